"""Errors of others in one line. Nothing is imported here, so that a process can use it before it imports JAX."""


def first_line(error: BaseException) -> str:
    """Return the first line of the error's message, or its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
