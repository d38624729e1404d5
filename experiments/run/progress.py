"""Progress of a run, whatever executes it: a live bar on a terminal, one line a finished cell elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from experiments.run import clock
from experiments.run.job import AnyCell

Report = Callable[..., None]  # (cell, share done, error=None)


@contextmanager
def reporter(cells: list[AnyCell], console: Console) -> Iterator[Report]:
    """A live bar on a terminal, one line a finished cell elsewhere; both with the time left."""
    weights = {cell: cell.weight() for cell in cells}
    shares = dict.fromkeys(cells, 0.0)
    total, started, finished = sum(weights.values()), time.monotonic(), 0

    def left() -> str:
        done = sum(weights[cell] * share for cell, share in shares.items())
        if done <= 0:
            return "time left unknown"
        return f"about {clock.words((time.monotonic() - started) * (total - done) / done)} left"

    if not console.is_terminal:
        console.print(f"{len(cells)} cells to run, about {clock.words(total)} on two CPU cores")

        def report(cell: AnyCell, share: float, error: str | None = None) -> None:
            nonlocal finished
            shares[cell] = share
            if share == 1.0:
                finished += 1
                state = "failed: " + error if error else "done"
                console.print(f"[{finished}/{len(cells)}] {cell.label()}: {state}, {left()}", markup=False)

        yield report
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"0/{len(cells)} cells", total=total, left="")

        def report_live(cell: AnyCell, share: float, error: str | None = None) -> None:
            nonlocal finished
            shares[cell] = share
            if share == 1.0:
                finished += 1
                if error:
                    console.print(f"{cell.label()} failed: {error}", markup=False)
            done = sum(weights[cell] * share for cell, share in shares.items())
            bar.update(task, completed=done, left=left(), description=f"{finished}/{len(cells)} cells, {cell.label()}")

        yield report_live


def console() -> Console:
    """Progress goes to standard error, so that standard output holds the paths alone."""
    return Console(file=sys.stderr, soft_wrap=True, highlight=False, emoji=False)
