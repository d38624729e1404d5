"""Jobs in this process, on all its devices: one after the other on CPUs, groups of them together on an accelerator."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from experiments.run.executors._order import Queue
from experiments.run.executors.settings import Settings
from experiments.run.job import GroupJob, Job, Outcome

Together = Callable[[Sequence[Any], Callable[[float], None]], list[Outcome] | None]


@contextmanager
def start(
    settings: Settings,
    widest: int,
    function: Callable[..., Outcome],
    out: Path,
    report: Callable[..., None],
    together: Together | None = None,
) -> Iterator[Any]:
    """Return an executor that runs the jobs in this process; see `executors.start`.

    On an accelerator, jobs of one group run together. A group that cannot be run is halved, so that a job that fails
    fails alone, and groups fit into the memory of the device.

    together: (jobs, progress) → outcomes, or None where the jobs cannot be run together.
    """

    def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        for group in _groups(jobs, together is not None and jax.default_backend() != "cpu"):
            for job in group:
                report(job, 0.0)
            yield from run_group(group)

    def run_group(group: list[Job]) -> Iterator[tuple[Job, Outcome]]:
        if len(group) == 1 or together is None:
            for job in group:
                yield job, function(job, partial(_report_below_one, report, [job]))
            return
        outcomes = together(group, partial(_report_below_one, report, group))
        if outcomes is not None:
            yield from zip(group, outcomes, strict=True)
            return
        half = len(group) // 2
        yield from run_group(group[:half])
        yield from run_group(group[half:])

    yield run


def _groups(jobs: Sequence[Job], is_accelerated: bool) -> Iterator[list[Job]]:
    """Yield the jobs program by program: those of one group together on an accelerator, else each by itself."""
    queue, program, groups = Queue(jobs), None, dict[str, list[Job]]()
    while queue:
        job = queue.pop(program, ())
        program = job.program()
        name = job.group() if is_accelerated and isinstance(job, GroupJob) else None
        groups.setdefault(name or job.key(), []).append(job)
    yield from groups.values()


def _report_below_one(report: Callable[..., None], jobs: Sequence[Job], share: float) -> None:
    """Report a share above 0 and below 1, which stand for the start of a job and for its stored result."""
    for job in jobs:
        report(job, min(max(share, 0.001), 0.99))
