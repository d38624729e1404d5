"""What the runner asks of a job, and what a job returns."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from experiments.run.store import Store


class AnyCell(Protocol):
    """What the runner and the store ask of a cell: hashable, and equal where its key is."""

    @property
    def study(self) -> str:
        """What is done; "reference" for a cell that other cells read."""
        ...

    def reference(self) -> "AnyCell":
        """The cell that this one reads; itself for a reference."""
        ...

    def key(self) -> str:
        """A hash of everything that the result depends on."""
        ...

    def label(self) -> str:
        """How progress and errors name the cell."""
        ...

    def weight(self) -> float:
        """Expected seconds with two cores at work."""
        ...

    def run(self, progress: Callable[[float], None] | None, store: "Store | None") -> "Result":
        """Runs the cell, and its reference first where the store has none."""
        ...

    def __hash__(self) -> int: ...


class Result(NamedTuple):
    """numbers: one row of a table. arrays: maps over the evaluation inputs, and the data."""

    numbers: dict[str, Any]
    arrays: dict[str, np.ndarray]
