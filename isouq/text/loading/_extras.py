"""The packages of the `text` extra, imported when they are used."""

import importlib
from types import ModuleType


def require(module_name: str) -> ModuleType:
    """The module of that name; raises an ImportError of one line that says how to install it.

    Only an absent package is reported so: a package that is there and fails inside keeps its own error.
    """
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        package = module_name.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise ImportError(f"isouq.text needs {package}; pip install 'isouq[text]'") from error
