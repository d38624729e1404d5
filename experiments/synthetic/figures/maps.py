"""The figures of the maps: the reference beside the estimate."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.numbers.models import is_flat_row
from isouq import plots


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw a figure for every problem whose ‖g‖² is not flat, and an overview of those with two inputs."""
    drawn = {}
    results = [result for result in results if not is_flat_row(result.numbers)]
    planar = [result for result in results if _has_two_inputs(result)]
    if planar:
        drawn["maps"] = plots.map_grid([(_title(result), result.arrays) for result in planar])
    for result in results:
        draw = plots.map_grid if _has_two_inputs(result) else plots.curves
        drawn[result.numbers["problem"].replace("/", "_")] = draw([(_title(result), result.arrays)])
    return drawn


def _has_two_inputs(result: Result) -> bool:
    return result.arrays["grid"].shape[1] == 2


def _title(result: Result) -> str:
    mark = "" if result.numbers["accepted"] else " (unconverged)"
    return result.numbers["problem"] + mark
