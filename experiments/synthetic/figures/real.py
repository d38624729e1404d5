"""The figure of the real data: the error of θ* against the share of points that is left out."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend
from experiments.synthetic.measure.held_out import SHARES
from experiments.synthetic.numbers.real import CURVES, TITLES
from experiments.synthetic.real_data import REAL
from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE

_COLOURS = ("black", GREY, BLUE, GREEN, ORANGE, PURPLE)
_MARKERS = "osv^Dx"


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw a panel for each data set and prior: mean error over seeds against the share of points left out."""
    models = list(numbers.details)
    columns = min(2, len(models))
    rows = -(-len(models) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 2.6 * rows), squeeze=False, sharex=True, layout="constrained"
    )
    for axis, model in zip(axes.flat, models, strict=False):
        values = numbers.groups[model.name]
        widths = np.linspace(2.6, 0.8, len(CURVES))  # lines that coincide are all seen
        for name, colour, marker, width in zip(CURVES, _COLOURS, _MARKERS, widths, strict=True):
            intervals = [values.get(f"rejection_{name}_{share:.1f}") for share in SHARES]
            if all(interval is not None for interval in intervals):
                means = [interval.mean for interval in intervals if interval is not None]
                axis.plot(SHARES, means, marker=marker, ms=3, lw=width, color=colour)
        title = f"{model.problem.removeprefix('real/')}, {model.prior_name}"
        axis.set_title(f"{title} ({model.accepted_share} accepted)")
        axis.set_ylabel("RMSE / sd of y" if REAL[model.problem].kind == "regression" else "share of errors")
        axis.set_ylim(bottom=0)
        axis.tick_params(labelsize=7, labelbottom=True)
        axis.grid(True)
    for axis in axes.flat[max(0, len(models) - columns) : len(models)]:
        axis.set_xlabel("share of points left out, the most uncertain first")
    for axis in axes.flat[len(models) :]:
        axis.remove()
    lines: list[dict[str, Any]] = [
        {"color": colour, "marker": marker, "ms": 4, "label": TITLES[name]}
        for name, colour, marker in zip(CURVES, _COLOURS, _MARKERS, strict=True)
    ]
    add_legend(figure, lines, 3)
    return {"real": figure}
