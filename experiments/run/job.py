"""What a run computes: jobs, each a frozen configuration and a pure function of it, and what they return."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np


class Result(NamedTuple):
    """numbers: one row of a table, as JSON holds it. arrays: maps over the evaluation inputs, and the data."""

    numbers: dict[str, Any]
    arrays: dict[str, np.ndarray]


def hash_fields(fields: Mapping[str, Any]) -> str:
    """Return the key of a job: a hash of these fields, whatever their order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


class Job(Protocol):
    """A unit of work. Jobs are hashable, two jobs are equal where their keys are, and processes can pickle them."""

    @property
    def study(self) -> str:
        """Return the name of what is computed, by which times are listed; "reference" for what other jobs need."""
        ...

    def key(self) -> str:
        """Return a hash of everything that the result depends on: the configuration and the version of the code."""
        ...

    def label(self) -> str:
        """Return the name of the job in progress lines and error messages."""
        ...

    def weight(self) -> float:
        """Return the expected seconds with two cores at work."""
        ...

    def program(self) -> str:
        """Return a name of the compiled programs that the job uses: jobs of one program compile nothing anew.

        It depends on everything that decides shapes, and not on seeds or priors.
        """
        ...

    def needs(self) -> "Job | None":
        """Return the job whose result this one reads, or None."""
        ...

    def run(self, needed: Result | None, checkpoint: Path | None, progress: Callable[[float], None] | None) -> Result:
        """Compute the result.

        needed: the result of `needs()`. checkpoint: a file from which the job goes on after a kill; it may write no
        other. progress: is called with the share that is done, from 0 to 1.
        """
        ...

    def __hash__(self) -> int: ...


@runtime_checkable
class GroupJob(Job, Protocol):
    """A job that an accelerator can run together with others; a job without these methods runs alone."""

    def group(self) -> str | None:
        """Return the name of a group, whose jobs can run together; None for a job that runs alone.

        Jobs of one group use one program. A job that needs another runs alone.
        """
        ...

    @classmethod
    def run_group(cls, jobs: Sequence[Self], progress: Callable[[float], None] | None) -> list[Result]:
        """Compute the results of jobs of one group, in order; `progress` is called with the share that is done."""
        ...


class Cost(NamedTuple):
    """What a job, or a stage of a run, took.

    seconds, cpu_seconds: of the wall clock, and of the process on all its cores. compiled, loaded: programs that were
    compiled, and that came from the compilation cache; compiling_seconds: the time of both, part of `seconds`.
    """

    seconds: float
    cpu_seconds: float
    compiled: int = 0
    loaded: int = 0
    compiling_seconds: float = 0.0


class Outcome(NamedTuple):
    """How a job ended: with a result and its provenance, or with an error.

    error: one line for the user. traceback: where in the code the error arose. cost: None if its worker died.
    """

    result: Result | None = None
    provenance: dict[str, Any] | None = None
    error: str | None = None
    traceback: str = ""
    cost: Cost | None = None
