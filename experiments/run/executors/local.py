"""One job after the other in this process, each on all its devices."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from experiments.run.executors._order import Queue
from experiments.run.executors.settings import Settings
from experiments.run.job import Job, Outcome


@contextmanager
def start(
    settings: Settings, widest: int, function: Callable[..., Outcome], out: Path, report: Callable[..., None]
) -> Iterator[Any]:
    """Return an executor that runs the jobs in this process, one after the other; see `executors.start`."""

    def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        queue, program = Queue(jobs), None
        while queue:
            job = queue.pop(program, ())
            program = job.program()
            report(job, 0.0)
            yield job, function(job, partial(_report_below_one, report, job))

    yield run


def _report_below_one(report: Callable[..., None], job: Job, share: float) -> None:
    """Report a share above 0 and below 1, which stand for the start of a job and for its stored result."""
    report(job, min(max(share, 0.001), 0.99))
