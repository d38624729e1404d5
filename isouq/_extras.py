"""Imports of optional packages: where one is missing, an error of one line names the extra to install."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Name the extra `isouq[name]` where an import inside the `with` block fails for want of a package.

    A package that is installed and fails for another reason keeps its own error.

    Raises:
        ImportError: a package is absent; one line says how to install it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "isouq").partition(".")[0]
        if package == "isouq":
            raise
        raise ImportError(f"isouq.{name} needs {package}; pip install 'isouq[{name}]'") from error


def require(module_name: str, name: str) -> ModuleType:
    """Return the module of that name, which the extra `isouq[name]` installs; raise as `extra` does."""
    with extra(name):
        return importlib.import_module(module_name)
