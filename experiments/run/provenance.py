"""What a reader needs in order to understand a run, and a job, later: versions, device, commit, seeds, time."""

import os
import platform
import subprocess
import time
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import isouq
from experiments.run.job import Cost, Job
from experiments.run.times import Times

PACKAGES = ("jax", "jaxlib", "flax", "optax", "blackjax", "numpyro", "numpy", "scipy")


def describe_run(name: str, preset: str, command: str, times: Times, jobs_by_commit: dict[str, int]) -> dict[str, Any]:
    """Return versions, device, commit, command and times of a run.

    jobs_by_commit: the number of results that each commit of the code computed; one where a run was not interrupted.
    """
    return {
        "experiment": name,
        "preset": preset,
        "command": command,
        **_surroundings(),
        "jobs_by_commit": jobs_by_commit,
        "cpu_count": os.cpu_count(),
        "finished": _now(),
        "seconds_this_run": round(times.seconds(), 1),
        "stages_this_run": times.facts(),
    }


def describe_job(job: Job, numbers: dict[str, Any], cost: Cost) -> dict[str, Any]:
    """Return what is stored beside the numbers of a job; None where a job has no seed or no sampler."""
    return {
        **_surroundings(),
        "key": job.key(),
        "seed": getattr(job, "seed", None),
        "seconds": numbers.get("seconds"),
        "job_seconds": round(cost.seconds, 3),
        "cpu_seconds": round(cost.cpu_seconds, 3),
        "compiling_seconds": round(cost.compiling_seconds, 3),
        "programs_compiled": cost.compiled,
        "programs_loaded": cost.loaded,
        "gradient_evaluations": numbers.get("gradient_evaluations"),
        "finished": _now(),
    }


@lru_cache(maxsize=1)
def _surroundings() -> dict[str, Any]:
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {"isouq": isouq.__version__} | {package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
