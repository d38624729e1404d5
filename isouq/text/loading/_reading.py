"""A JSON file, and what another library says about a damaged one: always one line."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, kind: type = dict) -> Any:
    """The JSON object in a file, or the list if `kind` is list; raises a ValueError of one line for anything else."""
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)}); fetch it again") from error
    if not isinstance(value, kind):
        expected = "a JSON object" if kind is dict else f"a {kind.__name__}"
        raise ValueError(f"{path} holds a {type(value).__name__}; expected {expected}; fetch it again")
    return value


def one_line(error: BaseException) -> str:
    """The message of an error, or its kind where it has none; at most 300 characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]
