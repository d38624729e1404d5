"""Tasks on a Ray cluster: an existing one by address, or a local one that ends with the run.

The folder of the run must be on a file system that all nodes share, and the project in the same place on all of them.
Ray finds lost workers and nodes, tries their tasks again and moves the results; nodes that join later take part.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.run.errors import RunError
from experiments.run.executors._attempts import ATTEMPTS, DIED
from experiments.run.executors._order import programs_first
from experiments.run.executors.settings import Settings, worker_python_path
from experiments.run.job import Job, Outcome
from isouq._errors import first_line

TASKS = 4000  # largest number of tasks that Ray holds at a time, unless --workers gives another


@contextmanager
def start(
    settings: Settings, widest: int, function: Callable[..., Outcome], out: Path, report: Callable[..., None]
) -> Iterator[Any]:
    """Return an executor that runs every job as a task of Ray; see `executors.start`."""
    try:
        import ray
    except ImportError as error:
        raise RunError("--executor ray needs ray; pip install 'isouq[ray]'") from error
    local = settings.address is None
    options: dict[str, Any] = {"include_dashboard": False} if local else {}
    options |= {"log_to_driver": False, "logging_level": "error", "runtime_env": {"env_vars": _environment(settings)}}
    try:
        with warnings.catch_warnings():  # JAX warns of forks; what Ray forks it replaces at once (exec)
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called", category=RuntimeWarning)
            ray.init("local" if local else settings.address, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        hint = "" if local else "; is it up, and is RAY_AUTH_MODE here what it is there?"
        raise RunError(f"no Ray cluster at {settings.address or 'this machine'}: {first_line(error)}{hint}") from error
    try:
        if settings.workers is None:
            _check_room(settings, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        resources = {"num_cpus": settings.cpus, "num_gpus": settings.gpus, "max_retries": ATTEMPTS - 1}
        task = ray.remote(**resources)(_call)
        yield lambda jobs: _run(ray, task, function, jobs, settings.workers or TASKS)
    finally:
        ray.shutdown()  # and with it the tasks of this driver


def _run(
    ray: Any, task: Any, function: Callable[..., Outcome], jobs: Sequence[Job], limit: int
) -> Iterator[tuple[Job, Outcome]]:
    """Yield each job with its outcome; Ray has at most `limit` tasks at a time."""
    waiting, running = iter(programs_first(jobs)), dict[Any, Job]()
    while True:
        for job in itertools.islice(waiting, limit - len(running)):
            running[task.remote(function, job)] = job
        if not running:
            return
        ray.wait(list(running), num_returns=1)
        for reference in ray.wait(list(running), num_returns=len(running), timeout=0)[0]:
            job = running.pop(reference)
            try:
                yield job, ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                yield job, Outcome(error=first_line(error.cause or error))
            except ray.exceptions.RayError as error:  # Ray has tried again already
                yield job, Outcome(error=DIED, traceback=str(error))


def _call(function: Callable[..., Outcome], job: Job) -> Outcome:
    """Run in the task: Ray takes plain functions alone."""
    return function(job)


def _environment(settings: Settings) -> dict[str, str]:
    """Return the environment of the workers: where the project is, and no more of a GPU than their share."""
    chosen = {"PYTHONPATH": worker_python_path()}
    if own := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        chosen["JAX_COMPILATION_CACHE_DIR"] = own
    if settings.gpus == 0:
        chosen["JAX_PLATFORMS"] = "cpu"
    elif settings.gpus < 1:
        chosen["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.9 * settings.gpus:.3f}"
    return chosen


def _check_room(settings: Settings, nodes: Sequence[dict[str, float]]) -> None:
    """Raise RunError if no node has room for a worker: its tasks would wait for ever."""
    if not any(node.get("CPU", 0) >= settings.cpus and node.get("GPU", 0) >= settings.gpus for node in nodes):
        raise RunError(
            f"no node of the cluster has {settings.cpus} CPUs and {settings.gpus:g} GPUs for a worker; give "
            "smaller --resources, or --workers for a cluster that grows"
        )
