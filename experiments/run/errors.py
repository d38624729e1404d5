"""The one error that a user of the command line is meant to read."""

from collections.abc import Iterator
from contextlib import contextmanager


class RunError(Exception):
    """A run that cannot go on, or ended with failed cells; the message is for the user."""


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with a file or a model that a run was given, as a RunError of one line."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise RunError((str(error).strip() or type(error).__name__).splitlines()[0]) from error
