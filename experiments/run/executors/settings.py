"""How jobs are run; no result depends on it."""

import os
from dataclasses import dataclass
from pathlib import Path

from isouq import _checks

EXECUTORS = ("local", "processes", "ray", "slurm")
ATTEMPTS = 3  # workers that one job may cost before it counts as failed
DIED = f"its worker died {ATTEMPTS} times (killed, or out of memory)"


@dataclass(frozen=True)
class Settings:
    """Where jobs are run, and with how much of a machine.

    workers: at most so many jobs at once; by default as many as there is room for. address: of a Ray cluster, as
    ray.init takes it; None: a local one. cpus, gpus: of one worker, for ray and slurm; a share of a GPU (ray) lets
    several jobs have one. partition, minutes: of the SLURM jobs; the cluster's defaults if None. cluster: submitit's,
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


def worker_python_path() -> str:
    """Return PYTHONPATH for workers on other machines: this project, then what is there already."""
    root = str(Path(__file__).parents[3])
    return os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
