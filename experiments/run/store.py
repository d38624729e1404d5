"""Finished cells in a folder, and what a process needs to compute one without being in another's way."""

import json
import os
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.run import ledger, locks, provenance
from experiments.run.errors import RunError
from experiments.run.job import AnyCell, Result
from isouq import _files

LARGE = 2**26  # bytes; more is a network's parameters, which take seconds to compress and hardly shrink
PROVENANCE = "_provenance"


class Store:
    """`KEY.json` with the numbers beside `KEY.npz` with the arrays; `ledger` tells of the other files.

    The JSON is written last and atomically, so a cell either is whole or does not exist. Whoever computes a cell has
    its claim. On a folder that several machines share, its file system must have locks (flock).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def holds(self, cell: AnyCell) -> bool:
        """True when both files of the cell are there and the larger one is whole at its end, without reading it."""
        return self._path(cell, "json").exists() and zipfile.is_zipfile(self._path(cell, "npz"))

    def ended(self, cell: AnyCell) -> tuple[bool, str | None]:
        """Whether the cell is finished or failed, by the names in the folder, and why it failed; opens no result."""
        if self._path(cell, "json").exists():
            return True, None
        reason = ledger.failure(self.folder, cell.key())
        return reason is not None, reason

    def load(self, cell: AnyCell) -> Result | None:
        """The stored result, or None if there is none, its files are damaged or they are another cell's.

        RunError if it may not be read: it is whole for all that is known, and would be computed twice.
        """
        try:
            numbers = json.loads(self._path(cell, "json").read_text(encoding="utf-8"))
            key = numbers.pop(PROVENANCE, {}).get("key", cell.key())  # cells of before say no key
            if not numbers or key != cell.key():
                return None
            with open(self._path(cell, "npz"), "rb") as file, np.load(file, allow_pickle=False) as stored:
                return Result(numbers, dict(stored))
        except PermissionError as error:
            raise RunError(f"{error.filename}: {error.strerror}; ask its owner, or choose another --out") from error
        except Exception:  # whatever the damage, and it shows in many ways: the cell is run again
            return None

    def save(self, cell: AnyCell, result: Result) -> None:
        """Writes both files through temporary names; a kill leaves the old state. Then the checkpoint goes."""
        large = sum(array.nbytes for array in result.arrays.values()) > LARGE
        write = np.savez if large else np.savez_compressed
        _files.replace(self._path(cell, "npz"), lambda file: write(file, allow_pickle=False, **result.arrays))
        numbers = {**result.numbers, PROVENANCE: provenance.of_cell(cell, result.numbers)}
        _files.replace_text(self._path(cell, "json"), json.dumps(numbers, indent=1))
        self.checkpoint_path(cell).unlink(missing_ok=True)
        self._path(cell, "failed").unlink(missing_ok=True)

    def checkpoint_path(self, cell: AnyCell) -> Path:
        """Where a long cell keeps what it has done so far; the file goes once the cell is saved."""
        return self._path(cell, "part.npz")

    def claim(self, cell: AnyCell, wait: bool = False) -> locks.Claim | None:
        """The right to compute the cell, to be given back; None if another process has it and `wait` is False."""
        return locks.claim(self._path(cell, "lock"), cell.label(), self.checkpoint_path(cell), wait)

    def obtain(self, cell: AnyCell, compute: Callable[[], Result]) -> Result:
        """The stored result; or it is computed and stored by this process alone, or waited for if another is at it."""
        found = self.load(cell)
        if found is None:
            claim = self.claim(cell, wait=True)
            assert claim is not None
            with claim:
                found = self.load(cell) or self.computed(cell, compute)
        return found

    def computed(self, cell: AnyCell, compute: Callable[[], Result]) -> Result:
        """What `compute` gives, stored and written to the log; for the holder of the claim."""
        key, label = cell.key(), cell.label()
        resumed = self.checkpoint_path(cell).exists()
        ledger.record(self.folder, "started", key, label, resumed=resumed)
        started = time.monotonic()
        result = compute()
        self.save(cell, result)
        seconds = round(time.monotonic() - started, 3)
        ledger.record(self.folder, "finished", key, label, seconds=seconds, weight=cell.weight())
        return result

    def fail(self, cell: AnyCell, reason: str, error: BaseException | None = None) -> None:
        """Keeps why the cell failed: one line, and where in the code. A result takes its place."""
        lines = traceback.format_exception(error) if error is not None else []
        text = json.dumps({"label": cell.label(), "reason": reason, "traceback": "".join(lines)}, indent=1)
        _files.replace_text(self._path(cell, "failed"), text)
        ledger.record(self.folder, "failed", cell.key(), cell.label(), reason=reason)

    def retry(self, cells: list[AnyCell]) -> None:
        """Before cells are run: forgets earlier failures, and takes away what is left of a damaged result."""
        names = ledger.scan(self.folder)
        for cell in cells:
            key = cell.key()
            if key in names.failed:
                self._path(cell, "failed").unlink(missing_ok=True)
            claim = self.claim(cell) if key in names.finished else None
            if claim is not None:
                with claim:
                    if self.load(cell) is None:
                        self._path(cell, "json").unlink(missing_ok=True)

    def sweep(self) -> None:
        """Removes what dead processes have left: temporary files, locks, the checkpoints of finished cells."""
        names: dict[str, list[str]] = {}
        for name in os.listdir(self.folder):
            names.setdefault(name.partition(".")[0], []).append(name)
        for key, mine in names.items():
            finished = f"{key}.json" in mine
            left = [name for name in mine if name.endswith(".tmp") or (finished and ".part.npz" in name)]
            if not left and f"{key}.lock" not in mine:
                continue
            claim = locks.claim(self.folder / f"{key}.lock", "")
            if claim is not None:  # else somebody is at it
                with claim:
                    for name in left:
                        (self.folder / name).unlink(missing_ok=True)

    def _path(self, cell: AnyCell, suffix: str) -> Path:
        return self.folder / f"{cell.key()}.{suffix}"
