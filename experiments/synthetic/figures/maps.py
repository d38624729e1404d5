"""The figures of the maps: the reference beside the estimate."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.numbers.models import is_flat_row
from isouq import plots
from isouq.plots._maps import draw_curves, draw_map, draw_prediction

AGREES, FAILS = "binary/rings", "regression/nonlinear"


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
    arrays = {result.numbers["problem"]: result.arrays for result in results if result.numbers["accepted"]}
    if AGREES in arrays and FAILS in arrays:
        drawn["agreement_and_failure"] = draw_agreement_and_failure(arrays[AGREES], arrays[FAILS])
    return drawn


def draw_agreement_and_failure(rings: Mapping[str, np.ndarray], gap: Mapping[str, np.ndarray]) -> Figure:
    """Draw a classification where ‖g‖² agrees with the posterior variance, beside a regression where it does not.

    rings, gap: the arrays of a problem with two inputs and of one with one.
    """
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.1), layout="constrained")
    for axis, name, title in zip(
        axes, ("reference", "epistemic"), ("two rings: Var[p] under HMC", "two rings: ‖g‖²"), strict=False
    ):
        image = draw_map(axis, rings, name)
        axis.set(title=title, xlabel="x₁", ylabel="x₂")
    figure.colorbar(image, ax=axes[1]).set_label("each scaled to [0, 1]")
    draw_prediction(axes[2], gap)
    draw_curves(axes[3], gap)
    axes[2].set(title="a gap in the data", xlabel="x", ylabel="y")
    axes[3].set(title="the same: the gap is missed", xlabel="x")
    for axis in axes[2:]:
        axis.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
    for axis in axes:
        axis.title.set_fontsize(9)
        axis.tick_params(labelsize=7)
    return figure


def _has_two_inputs(result: Result) -> bool:
    return result.arrays["grid"].shape[1] == 2


def _title(result: Result) -> str:
    mark = "" if result.numbers["accepted"] else " (unconverged)"
    return result.numbers["problem"] + mark
