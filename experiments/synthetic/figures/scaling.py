"""The figures of the scaling study: agreement against width by prior, as curves and as a heat map."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.report.palette import GREY, SERIES
from experiments.run.job import Result
from experiments.synthetic.numbers.models import TITLES
from experiments.synthetic.presets.scaling import CURVES
from isouq.stats import Interval

ByPrior = Mapping[tuple[str, float], Mapping[int, Mapping[str, Interval]]]


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw the curves of the priors that the paper's claim is about, and the map of all priors."""
    by_prior = {
        prior: {model.width: numbers.groups[model.name] for model in models}
        for prior, models in numbers.details.by_prior.items()
    }
    curves = {prior: by_width for prior, by_width in by_prior.items() if prior in CURVES}
    return {"scaling": against_width(curves), "scaling_map": heat_map(by_prior)}


def against_width(curves: ByPrior) -> Figure:
    """Draw r and ρ against width, a curve with its 95 % band for each prior; the lower strip shows the accepted share.

    curves: (prior, σ) -> width -> intervals by name: "epistemic_STATISTIC", and "accepted", the share of seeds.
    """
    figure, axes = plt.subplots(
        2, 2, figsize=(10, 4.9), sharex=True, layout="constrained", height_ratios=(4, 1), squeeze=False
    )
    widths = sorted({width for by_width in curves.values() for width in by_width})
    for column, (statistic, label) in enumerate(TITLES.items()):
        top, bottom = axes[:, column]
        for ((prior, sigma), by_width), (colour, marker) in zip(curves.items(), SERIES, strict=False):
            # A mean is NaN where nothing was accepted: line and band break there.
            ran = sorted(by_width)
            points = [by_width[w][f"epistemic_{statistic}"] for w in ran]
            top.plot(ran, [i.mean for i in points], marker=marker, color=colour, ms=4, label=f"{prior}, σ = {sigma:g}")
            bounds = [i.low for i in points], [i.high for i in points]
            top.fill_between(ran, *bounds, color=colour, alpha=0.2, lw=0)
            top.vlines(ran, *bounds, color=colour, lw=0.8)  # a point between two breaks has no band
            bottom.plot(ran, [by_width[w]["accepted"].mean for w in ran], marker=marker, color=colour, ms=3, lw=0.8)
        top.set(ylabel=f"epistemic, {label}", ylim=(-0.25, 1.02))
        top.axhline(0, color=GREY, lw=0.6)
        top.grid(alpha=0.3)
        bottom.set(xlabel="hidden width (6 × width + 3 parameters)", ylabel="accepted", ylim=(-0.08, 1.08))
        bottom.set_xscale("log", base=2)
        bottom.set_xticks(widths, [str(w) for w in widths])
        bottom.minorticks_off()
    axes[0, 0].legend(title="prior", fontsize=8, title_fontsize=8, frameon=False, loc="lower right")
    return figure


def heat_map(cells: ByPrior) -> Figure:
    """Draw the mean r and ρ over width × prior as a heat map with the numbers; grey where nothing was accepted.

    cells: as the curves of `against_width`. A number is followed by "*" where some seeds were not accepted.
    """
    rows = list(cells)
    widths = sorted({width for by_width in cells.values() for width in by_width})
    figure, axes = plt.subplots(
        2, 1, figsize=(1.6 + 0.85 * len(widths), 2.2 + 1.0 * len(rows)), sharex=True, layout="constrained"
    )
    for axis, (statistic, label) in zip(axes, TITLES.items(), strict=True):
        values = np.full((len(rows), len(widths)), np.nan)
        for i, key in enumerate(rows):
            for j, width in enumerate(widths):
                cell = cells[key].get(width)
                if cell is None:
                    continue
                interval = cell[f"epistemic_{statistic}"]
                values[i, j] = interval.mean
                if interval.count == 0:
                    axis.text(j, i, "none\naccepted", ha="center", va="center", fontsize=6)
                    continue
                mark = "" if cell["accepted"].mean == 1 else "*"
                colour = "white" if interval.mean < 0.55 else "black"
                axis.text(j, i, f"{interval.mean:.2f}{mark}", ha="center", va="center", fontsize=8, color=colour)
        image = axis.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        axis.set_facecolor("#dddddd")
        axis.set_yticks(range(len(rows)), [f"{prior}, σ = {sigma:g}" for prior, sigma in rows], fontsize=8)
        axis.set_ylabel("prior")
        figure.colorbar(image, ax=axis, pad=0.01, extend="min").set_label(f"epistemic, {label}", fontsize=8)
    axes[-1].set_xticks(range(len(widths)), [str(w) for w in widths])
    axes[-1].set_xlabel("hidden width   (* some seeds unconverged and left out; empty: not run)")
    return figure
