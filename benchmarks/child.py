"""Hands rows from a measuring process to the one that started it: a line each, between whatever else is printed."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MARK = "measured:"


def measure(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a module in a new process and return the row that it prints, or the reason why there is none in `status`."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env=os.environ | (environment or {}),
    )  # fmt: skip
    for line in done.stdout.splitlines():
        row = read_row(line)
        if row is not None:
            return row
    reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    return {"status": reason[0][:160]}


def print_row(row: dict[str, Any]) -> None:
    """Print a row for the parent process."""
    print(MARK, json.dumps(row), flush=True)


def read_row(line: str) -> dict[str, Any] | None:
    """Return the row that a line of a child's output holds; None for another line."""
    return json.loads(line.removeprefix(MARK)) if line.startswith(MARK) else None
