"""How jobs are run; no result depends on it."""

import os
from dataclasses import dataclass
from pathlib import Path

EXECUTORS = ("local", "processes", "ray", "slurm")


@dataclass(frozen=True)
class Settings:
    """Where jobs are run, and with how much of a machine; the command line checks the values.

    name: one of `EXECUTORS`.
    workers: the largest number of jobs at once; by default as many as there is room for.
    address: the address of a Ray cluster, as ray.init takes it; None starts a local cluster.
    cpus, gpus: the cores and GPUs of one worker, for ray and slurm. With a share of a GPU (ray) several jobs share one.
    partition, minutes: the partition and the time limit of SLURM jobs; None leaves the defaults.
    cluster: "slurm", or "local" to run the SLURM jobs as processes on this machine, to try it.
    compilation_cache: the folder of compiled programs, "none", or None for the default: see
        `compilations.cache_folder`.
    """

    name: str = "processes"
    workers: int | None = None
    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    partition: str | None = None
    minutes: int | None = None
    cluster: str = "slurm"
    compilation_cache: str | None = None


def worker_python_path() -> str:
    """Return PYTHONPATH for workers on other machines: this project, then the present PYTHONPATH."""
    root = str(Path(__file__).parents[3])
    return os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH")) if part)
