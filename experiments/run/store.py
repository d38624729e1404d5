"""The results of jobs in a folder, as files that are whole or absent."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.run.errors import RunError
from experiments.run.job import Job, Outcome, Result
from isouq import _files

LARGE = 2**26  # bytes; more is a network's parameters, which take seconds to compress and hardly shrink
PROVENANCE = "_provenance"


class Store:
    """A folder with `KEY.json` (the numbers) and `KEY.npz` (the arrays) of every finished job.

    The JSON is written last and atomically, so that a result either is whole or does not exist. `KEY.failed` says why
    a job failed, and `KEY.part.npz` is the checkpoint of a job under way. The driver alone writes results.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, job: Job) -> Result | None:
        """Return the stored result, or None if there is none, its files are damaged or they are another job's.

        RunError if it may not be read: for all that is known it is whole, and would be computed twice.
        """
        try:
            numbers = json.loads(self._path(job, "json").read_text(encoding="utf-8"))
            if numbers.pop(PROVENANCE)["key"] != job.key():
                return None
            with open(self._path(job, "npz"), "rb") as file, np.load(file, allow_pickle=False) as stored:
                return Result(numbers, dict(stored))
        except PermissionError as error:
            raise RunError(f"{error.filename}: {error.strerror}; ask its owner, or choose another --out") from error
        except Exception:  # damage shows in many ways; whatever it is, the job is run again
            return None

    def commit(self, job: Job) -> str:
        """Return the commit of the code that computed the stored result; "unknown" where no file says so."""
        try:
            return json.loads(self._path(job, "json").read_text(encoding="utf-8"))[PROVENANCE]["commit"]
        except (OSError, ValueError, KeyError):
            return "unknown"

    def save(self, job: Job, result: Result, provenance: dict[str, Any] | None) -> None:
        """Write both files through temporary names, so that a kill leaves the old state; then remove the checkpoint."""
        large = sum(array.nbytes for array in result.arrays.values()) > LARGE
        write = np.savez if large else np.savez_compressed
        _files.replace(self._path(job, "npz"), lambda file: write(file, allow_pickle=False, **result.arrays))
        numbers = {**result.numbers, PROVENANCE: {"key": job.key(), **(provenance or {})}}
        _files.replace_text(self._path(job, "json"), json.dumps(numbers, indent=1))
        self.checkpoint_path(job).unlink(missing_ok=True)
        self._path(job, "failed").unlink(missing_ok=True)

    def save_failure(self, job: Job, outcome: Outcome) -> None:
        """Record why the job failed: one line, and the traceback. A result takes its place."""
        record = {"label": job.label(), "reason": outcome.error, "traceback": outcome.traceback}
        _files.replace_text(self._path(job, "failed"), json.dumps(record, indent=1))

    def checkpoint_path(self, job: Job) -> Path:
        """Return the file where a long job keeps what it has done so far."""
        return self._path(job, "part.npz")

    def clear(self, jobs: Sequence[Job]) -> None:
        """Remove earlier failures and damaged results of jobs that are to be run, and what killed processes left."""
        for job in jobs:
            for suffix in ("failed", "json"):
                self._path(job, suffix).unlink(missing_ok=True)
        names = os.listdir(self.folder)
        finished = {name.removesuffix(".json") for name in names if name.endswith(".json")}
        for name in names:
            key, _, suffix = name.partition(".")
            if name.endswith(".tmp") or (suffix.startswith("part.npz") and key in finished):
                (self.folder / name).unlink(missing_ok=True)

    def _path(self, job: Job, suffix: str) -> Path:
        return self.folder / f"{job.key()}.{suffix}"
