"""What a run tells on standard error: a live bar on a terminal, else a line a minute."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

INTERVAL = 60  # seconds between two lines where there is no terminal


class Screen:
    """Lines for the user. quiet: errors alone."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.console = Console(file=sys.stderr, soft_wrap=True, highlight=False, emoji=False)

    def error(self, text: str) -> None:
        """Print a line, --quiet or not."""
        self.console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Print a line unless --quiet is given."""
        if not self.quiet:
            self.error(text)

    def show(self, table: Table) -> None:
        """Print a table unless --quiet is given."""
        if not self.quiet:
            self.console.print(table, soft_wrap=False)

    @contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show a spinner on a terminal while the block runs."""
        if self.quiet or not self.console.is_terminal:
            yield
            return
        with self.console.status(text):
            yield

    @contextmanager
    def rows(self, total: int, kept: int) -> Iterator["Rows"]:
        """Show the progress of `total` rows, of which `kept` are there already."""
        if self.quiet or not self.console.is_terminal:
            yield Rows(self, None, total, kept)
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
        with Progress(*columns, console=self.console, transient=True) as bar:
            yield Rows(self, bar, total, kept)


class Rows:
    """Rows done, their rate and the time left."""

    def __init__(self, screen: Screen, bar: Progress | None, total: int, kept: int) -> None:
        self._screen, self._bar, self._total, self._kept, self.done = screen, bar, total, kept, kept
        self._started = self._told = time.monotonic()
        self._task = bar.add_task(self._count(), total=total, completed=kept, speed="compiling") if bar else None

    def advance(self, count: int) -> None:
        """Add so many rows to those that are done."""
        self.done += count
        now = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self.done, description=self._count(), speed=self._speed(now))
        elif now - self._told >= INTERVAL:
            self._told = now
            self._screen.note(f"isouq: {self._count()}, {self._speed(now)}")

    def timing(self) -> str:
        """Return how many rows this run went through, how long it took, and the rows per second."""
        seconds, count = time.monotonic() - self._started, self.done - self._kept
        rows = "1 row" if count == 1 else f"{count} rows"
        return f"this run went through {rows} in {_clock(seconds)}, {_per_time(count / max(seconds, 1e-9))}"

    def _count(self) -> str:
        return f"{self.done}/{self._total} rows"

    def _speed(self, now: float) -> str:
        rate = (self.done - self._kept) / max(now - self._started, 1e-9)
        left = f", about {_clock((self._total - self.done) / rate)} left" if rate else ""
        return _per_time(rate) + left


def _per_time(rate: float) -> str:
    """Return the rows per second, or per minute where they are few."""
    return f"{rate:.1f} rows/s" if rate >= 1 else f"{60 * rate:.1f} rows/min"


def _clock(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
