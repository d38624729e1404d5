"""The stages of an experiment: presets, measure, numbers, then report and figures."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.report.outputs import Numbers, Outputs


class Experiment(NamedTuple):
    """An experiment by name on the command line.

    jobs: `jobs(preset, seeds, **options)` returns the jobs of a preset; its docstring is the lab card. summarise:
    `summarise(results, preset)` returns the files that are written. options: the command line's options that `jobs`
    takes beside preset and seeds.
    """

    jobs: Callable[..., list]
    summarise: Callable[[list, str], Outputs]
    options: tuple[str, ...] = ()


def stages(
    numbers: Callable[[list], Numbers],
    report: Callable[[Numbers, str], str],
    figures: Callable[[list, Numbers], dict[str, Any]],
) -> Callable[[list, str], Outputs]:
    """Return the `summarise` of an experiment whose numbers, report and figures are functions of their own.

    numbers: results → every number that is shown. report: (numbers, preset) → Markdown. figures: (results, numbers) →
    matplotlib figures by name; it draws arrays of the results and numbers, and computes no statistic.
    """

    def summarise(results: list, preset: str) -> Outputs:
        computed = numbers(results)
        return Outputs(
            computed.rows, report(computed, preset), figures(results, computed), computed.files, computed.summary
        )

    return summarise
