"""Hands rows from a measuring process to the one that started it: a line each, between whatever else is printed."""

import json
from typing import Any

MARK = "measured:"


def print_row(row: dict[str, Any]) -> None:
    """Print a row for the parent process."""
    print(MARK, json.dumps(row), flush=True)


def read_row(line: str) -> dict[str, Any] | None:
    """Return the row that a line of a child's output holds; None for another line."""
    return json.loads(line.removeprefix(MARK)) if line.startswith(MARK) else None
