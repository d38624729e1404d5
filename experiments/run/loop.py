"""The loop of the driver: read what is finished, run what is missing, save each result as it comes."""

import errno
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from experiments.run import executors
from experiments.run.compilations import cache_folder, cache_problem, shrink
from experiments.run.errors import RunError
from experiments.run.executors.settings import Settings
from experiments.run.job import Job, Outcome, Result
from experiments.run.lock import lock
from experiments.run.plan import Plan, write_plan
from experiments.run.progress import Report, reporter
from experiments.run.store import Store
from experiments.run.times import Times
from experiments.run.worker import execute, execute_group

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def run_jobs(
    jobs: Sequence[Job],
    out: Path,
    settings: Settings,
    console: Console,
    plan: Plan | None = None,
    times: Times | None = None,
) -> list[Result]:
    """Return the results of all jobs, in order: finished ones are read, the others are run and stored.

    A job that other jobs need is run once, before them. A job that fails does not stop the others; RunError lists the
    failures at the end. RunError also if another process is at work in the folder, or results cannot be stored there.

    plan: name, preset and command, for `status`; the jobs are put in here. times: takes in what each job costs.
    """
    store = Store(out / "cells")
    count = len(set(jobs))
    try:
        store.folder.mkdir(parents=True, exist_ok=True)
        with lock(out):
            finished = finished_results(jobs, out)
            missing = [job for job in dict.fromkeys(jobs) if job not in finished]
            todo = list(dict.fromkeys([*_missing_needs(missing, store), *missing]))
            store.clear(todo)
            if plan is not None:
                write_plan(out, plan.with_jobs([*todo, *jobs]))
            if finished:
                console.print(
                    f"{len(finished)} of {count} jobs are finished already: read from {store.folder}", markup=False
                )
            errors = _run_all(todo, out, store, settings, console, times or Times()) if todo else {}
    except OSError as error:
        remedy = "make room" if error.errno in FULL else "put that right"
        raise RunError(
            f"cannot store results in {error.filename or store.folder}: {error.strerror or error}; finished jobs are "
            f"kept, {remedy} and give the same command again"
        ) from error
    failures = [f"{job.label()}: {errors[job]}" for job in missing if job in errors]
    if failures:
        lines = "\n  ".join(failures)
        raise RunError(f"{len(failures)} of {count} jobs failed; the same command runs only them again:\n  {lines}")
    results = finished | {job: _load(store, job) for job in missing}
    return [results[job] for job in jobs]


def finished_results(jobs: Sequence[Job], out: Path) -> dict[Job, Result]:
    """Return the stored results of those jobs that are finished; nothing is run."""
    store = Store(out / "cells")
    stored = {job: store.load(job) for job in jobs}
    return {job: result for job, result in stored.items() if result is not None}


def jobs_by_commit(jobs: Sequence[Job], out: Path) -> dict[str, int]:
    """Return how many of these finished jobs, and of those that they read, each commit of the code computed."""
    store = Store(out / "cells")
    every = dict.fromkeys([*(job.needs() for job in jobs), *jobs])
    return dict(Counter(store.commit(job) for job in every if job is not None))


def _missing_needs(missing: Sequence[Job], store: Store) -> list[Job]:
    """Return the jobs that missing ones need and that have no whole result."""
    needs = dict.fromkeys(job.needs() for job in missing)
    return [job for job in needs if job is not None and store.load(job) is None]


def _run_all(
    todo: list[Job], out: Path, store: Store, settings: Settings, console: Console, times: Times
) -> dict[Job, str]:
    """Run the jobs in waves, each of which needs only results of earlier ones; return the errors by job."""
    waiting, errors = dict.fromkeys(todo), dict[Job, str]()
    function = partial(execute, store.folder.resolve(), cache=settings.compilation_cache)
    together = partial(execute_group, cache=settings.compilation_cache)
    problem = cache_problem(settings.compilation_cache)
    if problem is not None:
        console.print(problem, markup=False)
    with (
        reporter(todo, console, out) as report,
        executors.start(settings, len(todo), function, out, report, together) as run,
    ):
        while waiting:
            wave = [job for job in waiting if job.needs() not in waiting]
            ready = [job for job in wave if job.needs() not in errors]
            for job in wave:
                del waiting[job]
                needs = job.needs()
                if needs in errors:
                    _end(job, Outcome(error=f"the job that it needs failed: {errors[needs]}"), store, errors, report)
            for job, outcome in run(ready):
                if outcome.cost is not None:
                    times.add(job.study, outcome.cost)
                _end(job, outcome, store, errors, report)
    store.clear([])
    folder = cache_folder(settings.compilation_cache)
    if folder is not None:
        shrink(folder)
    return errors


def _end(job: Job, outcome: Outcome, store: Store, errors: dict[Job, str], report: Report) -> None:
    """Store how a job ended, and report it."""
    if outcome.result is None:
        store.save_failure(job, outcome)
        errors[job] = outcome.error or "no result"
    else:
        store.save(job, outcome.result, outcome.provenance)
    report(job, 1.0, errors.get(job))


def _load(store: Store, job: Job) -> Result:
    result = store.load(job)
    if result is None:
        raise RunError(f"the stored result of {job.label()} cannot be read back from {store.folder}; run again")
    return result
