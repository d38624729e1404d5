"""Progress of a run: a live bar on a terminal, one line a finished job elsewhere, and a small file for `status`."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from experiments.run.job import Job
from experiments.run.status import FILE, duration

Report = Callable[..., None]  # (job, share done, error=None); a share of 0 says that it starts, of 1 that it has ended


@contextmanager
def reporter(jobs: list[Job], console: Console, out: Path) -> Iterator[Report]:
    """Yield a function that shows how far a job is, on the console and in DIR/progress.json."""
    count = _Count(jobs)
    show = _live(count, console) if console.is_terminal else _lines(count, console)
    with show as show_job:

        def report(job: Job, share: float, error: str | None = None) -> None:
            if count.update(job, share):
                _write(out, count)
            show_job(job, share, error)

        yield report
    (out / FILE).unlink(missing_ok=True)


class _Count:
    """How far the jobs of a run are. total, done: by weight. running: when each job under way was started."""

    def __init__(self, jobs: list[Job]) -> None:
        self.weights = {job: job.weight() for job in jobs}
        self.shares = dict.fromkeys(jobs, 0.0)
        self.total, self.done = sum(self.weights.values()), 0.0
        self.started, self.ended = time.monotonic(), 0
        self.running: dict[Job, float] = {}

    def update(self, job: Job, share: float) -> bool:
        """Take in the share of a job; return whether a job has started or ended."""
        self.done += self.weights[job] * (share - self.shares[job])
        self.shares[job] = share
        if share == 1.0:
            self.ended += 1
            self.running.pop(job, None)
        elif share == 0.0:
            self.running[job] = time.time()
        return share in (0.0, 1.0)

    def seconds_left(self) -> float | None:
        """Return the expected seconds to the end, at the pace so far; None before anything is done."""
        if self.done <= 0:
            return None
        return (time.monotonic() - self.started) * max(0.0, self.total - self.done) / self.done

    def time_left(self) -> str:
        """Return the time left in words."""
        seconds = self.seconds_left()
        return "time left unknown" if seconds is None else f"about {duration(seconds)} left"


@contextmanager
def _lines(count: _Count, console: Console) -> Iterator[Report]:
    total = len(count.weights)
    console.print(f"{total} jobs to run, about {duration(count.total)} on two CPU cores")

    def show(job: Job, share: float, error: str | None) -> None:
        if share == 1.0:
            state = "failed: " + error if error else "done"
            console.print(f"[{count.ended}/{total}] {job.label()}: {state}, {count.time_left()}", markup=False)

    yield show


@contextmanager
def _live(count: _Count, console: Console) -> Iterator[Report]:
    total = len(count.weights)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"0/{total} jobs", total=count.total, left="")

        def show(job: Job, share: float, error: str | None) -> None:
            if error:
                console.print(f"{job.label()} failed: {error}", markup=False)
            description = f"{count.ended}/{total} jobs, {job.label()}"
            bar.update(task, completed=count.done, left=count.time_left(), description=description)

        yield show


def _write(out: Path, count: _Count) -> None:
    """Replace the file that `status` reads; it need not survive a crash of the machine, and is not forced to disk."""
    running = [[job.label(), started] for job, started in count.running.items()]
    temporary = out / f"{FILE}.tmp"
    temporary.write_text(json.dumps({"left": count.seconds_left(), "written": time.time(), "running": running}))
    os.replace(temporary, out / FILE)


def console() -> Console:
    """Return the console for progress: standard error, so that standard output holds the paths alone."""
    return Console(file=sys.stderr, soft_wrap=True, highlight=False, emoji=False)
