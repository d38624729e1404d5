"""The figure of the depth study: agreement against width, a line for each network and a column for each prior."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend, set_width_axis
from experiments.synthetic.numbers.models import TITLES, Model, sweep_by_prior
from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from isouq.stats import Interval

_SERIES = (
    ((1, "tanh"), BLUE, "o", "-"), ((2, "tanh"), GREEN, "s", "-"), ((3, "tanh"), PURPLE, "D", "-"),
    ((1, "relu"), ORANGE, "^", "--"),
)  # fmt: skip
_APART = 1.06  # factor between the places of two lines, so that their bars stand side by side
Values = Mapping[str, Interval]


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw ρ, r and the accepted share against width."""
    return {"depth": against_width(sweep_by_prior(numbers.details), numbers.groups)}


def against_width(by_prior: Mapping[tuple[str, float], Sequence[Model]], groups: Mapping[str, Values]) -> Figure:
    """Draw ρ and r with 95 % bars, and the accepted share, against width: a column a prior, a line a network."""
    figure, axes = plt.subplots(
        3, len(by_prior), figsize=(1.5 + 4.3 * len(by_prior), 7), sharex=True, sharey="row", layout="constrained",
        height_ratios=(4, 4, 1.2), squeeze=False,
    )  # fmt: skip
    widths = sorted({model.width for models in by_prior.values() for model in models if model.width is not None})
    for column, ((prior, sigma), models) in zip(axes.T, by_prior.items(), strict=True):
        column[0].set_title(f"prior {prior}, σ = {sigma:g}")
        for place, (network, *style) in enumerate(_SERIES):
            line = {m.width: groups[m.name] for m in models if (m.depth, m.activation) == network}
            xs = np.array(list(line)) * _APART ** (place - (len(_SERIES) - 1) / 2)
            _draw_line(column, xs, list(line.values()), *style)
        for axis in column:
            axis.grid(True)
        column[-1].set(xlabel="units of a hidden layer")
        set_width_axis(column[-1], widths)
    for axis, statistic in zip(axes[:, 0], ("spearman", "pearson"), strict=False):
        axis.set_ylabel(f"epistemic, {TITLES[statistic]}")
    axes[-1, 0].set(ylabel="accepted", ylim=(-0.1, 1.1))
    add_legend(figure, [_legend_line(*series) for series in _SERIES], columns=len(_SERIES))
    return figure


def _draw_line(axes: Sequence, xs: np.ndarray, values: Sequence[Values], colour: str, marker: str, dashes: str) -> None:
    """Draw the two correlations and the accepted share of a network; a line breaks where nothing was accepted."""
    for axis, statistic in zip(axes, ("spearman", "pearson"), strict=False):
        points = [v[f"epistemic_{statistic}"] for v in values]
        axis.plot(xs, [point.mean for point in points], marker=marker, color=colour, ls=dashes, ms=4, lw=1.2)
        axis.vlines(xs, [point.low for point in points], [point.high for point in points], color=colour, lw=1.2)
        axis.axhline(0, color=GREY, lw=0.6)
    axes[-1].plot(xs, [v["accepted"].mean for v in values], marker=marker, color=colour, ls=dashes, ms=3, lw=0.8)


def _legend_line(network: tuple[int, str], colour: str, marker: str, dashes: str) -> dict:
    depth, activation = network
    layers = f"{depth} hidden layer{'s' if depth > 1 else ''}"
    return {"color": colour, "marker": marker, "ls": dashes, "label": f"{layers}, {activation}"}
