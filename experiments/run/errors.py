"""The one error that a user of the command line is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager

from isouq._errors import first_line


class RunError(Exception):
    """A run that cannot go on, or ended with failed jobs; the message is for the user."""


@contextmanager
def run_errors() -> Iterator[None]:
    """Raise what is wrong with a file or a model that a run was given as a RunError of one line."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise RunError(first_line(error)) from error
