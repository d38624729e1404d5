"""The stages of an experiment after its measurement, without the files that the command writes of them."""

from typing import Any, NamedTuple

from experiments.report.outputs import Numbers


class Outputs(NamedTuple):
    """What the command writes."""

    numbers: Numbers
    summary: str
    figures: dict[str, Any]


def summarise(experiment, results, preset="smoke"):
    """Numbers, report and figures of results."""
    numbers = experiment.numbers(results)
    return Outputs(numbers, experiment.report(numbers, preset), experiment.figures(results, numbers))
