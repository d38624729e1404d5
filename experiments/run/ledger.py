"""What the folder of cells says without opening a result: what is finished, failed or claimed, and the log of the work.

Of a cell with the key KEY the folder holds KEY.json and KEY.npz once it is finished, KEY.part.npz while it is under
way (its checkpoint), KEY.lock while a process is at it and KEY.failed after a failure. `log.jsonl` has a line for
every cell that was started, finished or failed. Nothing here imports JAX: listing is quick.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LOG = "log.jsonl"
EVENTS = ("started", "finished", "failed")


class Names(NamedTuple):
    """Keys by what stands in the folder. claimed: there is a lock file, held or left behind."""

    finished: set[str]
    failed: set[str]
    claimed: set[str]


def scan(folder: Path) -> Names:
    """One pass over the folder's names; a folder that is not there is empty."""
    found = Names(set(), set(), set())
    kinds = {"json": found.finished, "failed": found.failed, "lock": found.claimed}
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return found
    for name in names:
        key, _, suffix = name.partition(".")
        if suffix in kinds:
            kinds[suffix].add(key)
    return found


def failure(folder: Path, key: str) -> str | None:
    """Why the cell failed, in one line; None if it did not."""
    try:
        return str(json.loads((folder / f"{key}.failed").read_text(encoding="utf-8"))["reason"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return "the record of its failure cannot be read"


def record(folder: Path, event: str, key: str, label: str, **more: Any) -> None:
    """Adds a line to the log, in one write."""
    line = {"event": event, "key": key, "label": label, "time": round(time.time(), 3), "pid": os.getpid(), **more}
    descriptor = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(descriptor, (json.dumps(line, ensure_ascii=False) + "\n").encode())
    finally:
        os.close(descriptor)


def events(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of the log, oldest first; one that a full disk has cut off is passed over."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") in EVENTS and isinstance(event.get("key"), str):
            yield event


def measured(folder: Path) -> dict[str, tuple[float, float]]:
    """`(seconds, weight)` by key, of the cells that the log says are finished."""
    found = {}
    for event in events(folder):
        seconds, weight = event.get("seconds"), event.get("weight")
        if event["event"] == "finished" and isinstance(seconds, (int, float)) and isinstance(weight, (int, float)):
            found[event["key"]] = (float(seconds), float(weight))
    return found
