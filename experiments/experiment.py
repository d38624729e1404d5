"""The stages of an experiment: presets, measure, numbers, then report and figures."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.report.outputs import Numbers, Outputs


class Experiment(NamedTuple):
    """An experiment by name on the command line: its stages but for the measurement, which is the jobs' own.

    jobs: `jobs(preset, seeds, **options)` returns the jobs of a preset; its docstring is the lab card. numbers: turns
    the results into every number that is shown. report: turns (numbers, preset) into Markdown. figures: turns (results,
    numbers) into matplotlib figures by name; it draws arrays of the results and numbers, and computes no statistic.
    options: the command line's options that `jobs` takes beside preset and seeds.
    """

    jobs: Callable[..., list]
    numbers: Callable[[list], Numbers]
    report: Callable[[Numbers, str], str]
    figures: Callable[[list, Numbers], dict[str, Any]]
    options: tuple[str, ...] = ()

    def summarise(self, results: list, preset: str) -> Outputs:
        """Return what is written of the results."""
        numbers = self.numbers(results)
        return Outputs(numbers, self.report(numbers, preset), self.figures(results, numbers))
