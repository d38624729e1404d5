"""What workers run in the test of their death; imports next to nothing, so that they start quickly."""

import os


def start(parent):
    """In place of the initialiser."""


def work(cell, folder):
    """Ends the worker at the cell called fatal, every other cell well."""
    if cell == "fatal":
        os._exit(1)
