"""The checkpoint of a job of several steps: a job that is killed loses the step that it was computing alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from isouq._checkpoint import Checkpoint, Saved

SECONDS = 10.0  # shortest time between two writes


class Partial:
    """The results of the steps of a job by name, as JSON holds them. Without a path nothing is written."""

    def __init__(self, path: Path | None = None, mark: str = "", seconds: float = SECONDS) -> None:
        """Read the results that the file holds.

        mark: the job's key. A file of another job is ignored, with a warning.
        """
        self._file = None if path is None else Checkpoint(path, seconds, mark)
        saved = None if self._file is None else self._file.load(np.zeros(0, np.uint8), None)
        self._results: dict[str, Any] = {} if saved is None else json.loads(saved.state.tobytes())

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the step's result, stored or computed now; either way it is what JSON makes of it."""
        if name not in self._results:
            self.put(name, compute())
        return self._results[name]

    def get(self, name: str, default: Any) -> Any:
        """Return what is stored under a name."""
        return self._results.get(name, default)

    def put(self, name: str, value: Any) -> None:
        """Store a step's result."""
        self._results[name] = json.loads(json.dumps(value))
        if self._file is not None and self._file.due():
            text = json.dumps(self._results).encode()
            self._file.save(Saved(len(self._results), np.frombuffer(text, np.uint8), None))
