"""Where the time of a run goes: the jobs that it ran, by study, and the driver's own work."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from experiments.run.job import Cost

REST = "starts, storing"  # CPU time of the driver and its workers outside of jobs and stages

LEGEND = "seconds: sum over jobs; compiled, loaded: programs, those loaded from the cache; compiling: seconds of both"


class Stage(NamedTuple):
    """A stage of a run. jobs: how many. cost: of all of them together, also of those that ran at once."""

    name: str
    jobs: int
    cost: Cost


class Times:
    """What the stages of a run cost, from its start on."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._costs: dict[str, list[Cost]] = {}
        self._outputs = Cost(0.0, 0.0)

    def add(self, study: str, cost: Cost) -> None:
        """Take in what a job of a study cost."""
        self._costs.setdefault(study, []).append(cost)

    @contextmanager
    def outputs(self) -> Iterator[None]:
        """Measure the work on tables and figures."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self._outputs = Cost(time.perf_counter() - wall, time.process_time() - cpu)

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def stages(self) -> list[Stage]:
        """Return the jobs of each study, the tables and figures, and the CPU time that is left; nothing without jobs.

        The driver sees the CPU time of workers that have ended on its machine.
        """
        if not self._costs:
            return []
        stages = [Stage(study, len(costs), _total(costs)) for study, costs in self._costs.items()]
        stages.append(Stage("tables and figures", 0, self._outputs))
        used = os.times()
        measured = sum(stage.cost.cpu_seconds for stage in stages)
        rest = used.user + used.system + used.children_user + used.children_system - measured
        return [*stages, Stage(REST, 0, Cost(0.0, max(0.0, rest)))]

    def facts(self) -> dict[str, Any]:
        """Return what is written into provenance.json: the cost of the jobs of each study."""
        return {study: {"jobs": len(costs), **_total(costs)._asdict()} for study, costs in self._costs.items()}

    def show(self, console: Console) -> None:
        """Print a line for each stage; nothing where no job was run."""
        stages = self.stages()
        if not stages:
            return
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column("stage", no_wrap=True)
        for column in ("jobs", "seconds", "CPU", "compiled", "loaded", "compiling"):
            table.add_column(column, justify="right")
        for name, jobs, cost in stages:
            table.add_row(name, *_fields(jobs, cost))
        total = _total([stage.cost for stage in stages])._replace(seconds=self.seconds())
        table.add_row("the whole run", *_fields(sum(stage.jobs for stage in stages), total))
        console.print(table)
        console.print(LEGEND)


def _total(costs: list[Cost]) -> Cost:
    return Cost(*map(sum, zip(*costs, strict=True)))


def _fields(jobs: int, cost: Cost) -> list[str]:
    """Return the fields of a line, empty where there is nothing."""
    numbers = (jobs, cost.seconds, cost.cpu_seconds, cost.compiled, cost.loaded, cost.compiling_seconds)
    return [f"{number:.1f}" if isinstance(number, float) and number else str(number or "") for number in numbers]
