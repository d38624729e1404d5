"""What a worker does with one job, on whatever machine it runs."""

import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.run.compilations import compilations
from experiments.run.errors import RunError
from experiments.run.job import Cost, GroupJob, Job, Outcome
from experiments.run.provenance import describe_job
from experiments.run.store import Store
from isouq._errors import first_line


def execute(
    folder: Path, job: Job, progress: Callable[[float], None] | None = None, cache: str | None = None
) -> Outcome:
    """Run a job and return how it ended; an error of the job is part of the outcome and is not raised.

    folder: the store's, from which the result that the job needs is read. Only the job's checkpoint and compiled
    programs are written. cache: the folder of these programs; see `compilations.cache_folder`.
    """
    outcome, cost = _measure(lambda: _run(folder, job, progress), cache)
    if outcome.result is None:
        return outcome._replace(cost=cost)
    return outcome._replace(provenance=describe_job(job, outcome.result.numbers, cost), cost=cost)


def execute_group(
    jobs: Sequence[GroupJob], progress: Callable[[float], None] | None = None, cache: str | None = None
) -> list[Outcome] | None:
    """Run jobs together and return how they ended; None, and a warning, if they cannot be run together.

    Each job's cost is an equal share; what was compiled counts with the first. There are no checkpoints.
    """
    try:
        results, cost = _measure(lambda: jobs[0].run_group(jobs, progress), cache)
    except (Exception, SystemExit) as error:  # one job may be the reason, or the memory of the device
        warnings.warn(
            f"{len(jobs)} jobs cannot be run together: {type(error).__name__}: {first_line(error)}", stacklevel=2
        )
        return None
    count = len(jobs)
    share = Cost(cost.seconds / count, cost.cpu_seconds / count, compiling_seconds=cost.compiling_seconds / count)
    costs = [share._replace(compiled=cost.compiled, loaded=cost.loaded), *[share] * (count - 1)]
    return [
        Outcome(result, describe_job(job, result.numbers, cost), cost=cost)
        for job, result, cost in zip(jobs, results, costs, strict=True)
    ]


def _measure(function: Callable[[], Any], cache: str | None) -> tuple[Any, Cost]:
    """Return the value of a function, and what computing it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    with compilations(cache) as count:
        value = function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return value, Cost(wall, cpu, count.programs - count.loaded, count.loaded, count.seconds)


def _run(folder: Path, job: Job, progress: Callable[[float], None] | None) -> Outcome:
    try:
        if not folder.is_dir():
            raise RunError(f"a worker does not see {folder}; give an --out that all machines share")
        store, needs = Store(folder), job.needs()
        needed = None if needs is None else store.load(needs)
        if needs is not None and needed is None:
            raise RunError(f"the result of {needs.label()} cannot be read; give the same command again")
        return Outcome(job.run(needed, store.checkpoint_path(job), progress))
    except RunError as error:
        return Outcome(error=str(error))
    except (Exception, SystemExit) as error:  # a job that fails, or leaves Python, must not end its worker
        return Outcome(error=f"{type(error).__name__}: {first_line(error)}", traceback=traceback.format_exc())
