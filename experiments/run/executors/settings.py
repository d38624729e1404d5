"""How jobs are run; no result depends on it."""

import os
from dataclasses import dataclass
from pathlib import Path

EXECUTORS = ("local", "processes", "ray", "slurm")


@dataclass(frozen=True)
class Settings:
    """Where jobs are run, and with how much of a machine; the command line checks the values.

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


def worker_python_path() -> str:
    """Return PYTHONPATH for workers on other machines: this project, then what is there already."""
    root = str(Path(__file__).parents[3])
    return os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
