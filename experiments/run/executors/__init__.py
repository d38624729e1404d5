"""What runs the cells: this process, workers on this machine, a Ray cluster, or a SLURM array.

An executor takes a list of cells and yields an `Outcome` of each as it ends. All but `local` are crews of workers that
go through the list on their own, each cell claimed in the folder by whoever computes it; `_crew.watch` follows them
there, replaces those that died, and tells what has ended.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from experiments.run.job import AnyCell
from experiments.run.store import Store
from experiments.run.work import Outcome, Report
from isouq import _checks

ROOT = Path(__file__).parents[3]
EXECUTORS = ("local", "processes", "ray", "slurm")

Run = Callable[[Sequence[AnyCell]], Iterator[Outcome]]


@dataclass(frozen=True)
class Settings:
    """How cells are run; no result depends on it.

    workers: at most so many cells at once; by default as many as there is room for. address: of a Ray cluster, as
    ray.init takes it; None: a local one. cpus, gpus: of one worker, for ray and slurm; a share of a GPU (ray) lets
    several cells have one. partition, minutes: of the SLURM jobs; the cluster's defaults if None. cluster: submitit's,
    "slurm", or "local" to try the same on this machine.
    """

    name: str = "processes"
    workers: int | None = None
    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    partition: str | None = None
    minutes: int | None = None
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        _checks.one_of("executor", self.name, EXECUTORS)
        _checks.one_of("cluster", self.cluster, ("slurm", "local"))
        _checks.positive_int("cpus", self.cpus)
        for name in ("workers", "minutes"):
            if getattr(self, name) is not None:
                _checks.positive_int(name, getattr(self, name))
        if not 0 <= self.gpus < float("inf"):
            raise ValueError(f"gpus is {self.gpus!r}; expected 0 or a positive number")


def opened(settings: Settings, widest: int, store: Store, report: Report) -> AbstractContextManager[Run]:
    """The executor, ready to run lists of at most `widest` cells, one list after the other.

    report: told how far cells are. Leaving the context ends the workers. RunError if it cannot be had.
    """
    return import_module(f"experiments.run.executors.{settings.name}").opened(settings, widest, store, report)


def project_path() -> str:
    """PYTHONPATH for workers elsewhere: this project, then what is there already."""
    return os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH")) if part)
