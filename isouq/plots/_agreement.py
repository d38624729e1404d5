"""Agreement with the reference: a problem at a time, and against width and prior."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from isouq.plots._palette import BLUE, GREY, ORANGE, SERIES
from isouq.stats import bootstrap_mean


def agreement(
    measured: Mapping[str, Mapping[str, Sequence[tuple[bool, float, float]]]],
    paper: Mapping[str, Mapping[str, tuple[float, float]]],
    titles: Mapping[str, str],
) -> Figure:
    """Correlations r and ρ of each estimate on each problem: seeds, mean and interval, the paper's number.

    measured: estimate -> problem -> (accepted, r, ρ) of each seed. Unaccepted seeds are hollow and
    in no mean.
    """
    figure, axes = plt.subplots(
        2,
        len(measured),
        figsize=(4.2 * len(measured), 7),
        sharey=True,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    for column, (estimate, by_problem) in enumerate(measured.items()):
        names = list(by_problem)
        for row, symbol in enumerate(("Pearson r", "Spearman ρ")):
            axis = axes[row, column]
            for y, name in enumerate(names):
                _agreement_row(axis, y, [(s[0], s[row + 1]) for s in by_problem[name]])
                if name in paper[estimate]:
                    axis.plot(paper[estimate][name][row], y + 0.22, marker="*", color=ORANGE, ms=9, ls="none")
            axis.set_yticks(range(len(names)), names, fontsize=8)
            axis.axvline(0, color=GREY, lw=0.6)
            axis.grid(axis="x", alpha=0.3)
            axis.set_xlabel(symbol)
            axis.set_xlim(-0.75, 1.04)
        axes[0, column].set_title(titles[estimate], fontsize=9)
    axes[0, 0].invert_yaxis()
    handles = [
        plt.Line2D([], [], marker="o", color=BLUE, ls="-", label="mean and 95 % interval over accepted seeds"),
        plt.Line2D([], [], marker=".", color=BLUE, alpha=0.5, ls="none", label="accepted seed"),
        plt.Line2D([], [], marker="o", mfc="none", color=GREY, ls="none", ms=4, label="unconverged seed (in no mean)"),
        plt.Line2D([], [], marker="*", color=ORANGE, ls="none", ms=9, label="paper"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _agreement_row(axis: Any, y: int, seeds: Sequence[tuple[bool, float]]) -> None:
    good = [value for accepted, value in seeds if accepted and np.isfinite(value)]
    bad = [value for accepted, value in seeds if not accepted and np.isfinite(value)]
    axis.plot(good, [y - 0.2] * len(good), ".", color=BLUE, alpha=0.5)
    axis.plot(bad, [y - 0.2] * len(bad), "o", mfc="none", color=GREY, ms=4)
    interval = bootstrap_mean(good)
    if interval.count:
        axis.plot(interval.mean, y, "o", color=BLUE)
    if interval.count > 1:
        axis.plot([interval.low, interval.high], [y, y], color=BLUE, lw=2)


def scaling_curves(curves: Mapping[tuple[str, float], Mapping[int, Mapping[str, Any]]]) -> Figure:
    """Correlations r and ρ against width, a curve with its 95 % band for each prior.

    curves: (prior, σ) -> width -> {"pearson": Interval, "spearman": Interval, "share": accepted share}.
    The lower strip shows the accepted share.
    """
    figure, axes = plt.subplots(
        2, 2, figsize=(10, 4.9), sharex=True, layout="constrained", height_ratios=(4, 1), squeeze=False
    )
    widths = sorted({width for by_width in curves.values() for width in by_width})
    for column, (statistic, label) in enumerate((("pearson", "Pearson r"), ("spearman", "Spearman ρ"))):
        top, bottom = axes[:, column]
        for ((prior, sigma), by_width), (colour, marker) in zip(curves.items(), SERIES, strict=False):
            # NaN where nothing was accepted: line and band break there, nothing is drawn across
            ran = sorted(by_width)
            points = [by_width[w][statistic] for w in ran]
            top.plot(ran, [i.mean for i in points], marker=marker, color=colour, ms=4, label=f"{prior}, σ = {sigma:g}")
            bounds = [i.low for i in points], [i.high for i in points]
            top.fill_between(ran, *bounds, color=colour, alpha=0.2, lw=0)
            top.vlines(ran, *bounds, color=colour, lw=0.8)  # a point between two breaks has no band
            bottom.plot(ran, [by_width[w]["share"] for w in ran], marker=marker, color=colour, ms=3, lw=0.8)
        top.set(ylabel=f"epistemic, {label}", ylim=(-0.25, 1.02))
        top.axhline(0, color=GREY, lw=0.6)
        top.grid(alpha=0.3)
        bottom.set(xlabel="hidden width (6 × width + 3 parameters)", ylabel="accepted", ylim=(-0.08, 1.08))
        bottom.set_xscale("log", base=2)
        bottom.set_xticks(widths, [str(w) for w in widths])
        bottom.minorticks_off()
    axes[0, 0].legend(title="prior", fontsize=8, title_fontsize=8, frameon=False, loc="lower right")
    return figure


def scaling_map(cells: Mapping[tuple[str, float], Mapping[int, Mapping[str, Any]]]) -> Figure:
    """Mean r and ρ over width × prior as a heat map with the numbers; hatched where nothing was accepted.

    cells: as in `scaling_curves`. A number is followed by "*" where some seeds were not accepted.
    """
    rows = list(cells)
    widths = sorted({width for by_width in cells.values() for width in by_width})
    figure, axes = plt.subplots(
        2, 1, figsize=(1.6 + 0.85 * len(widths), 2.2 + 1.0 * len(rows)), sharex=True, layout="constrained"
    )
    for axis, (statistic, label) in zip(axes, (("pearson", "Pearson r"), ("spearman", "Spearman ρ")), strict=True):
        values = np.full((len(rows), len(widths)), np.nan)
        for i, key in enumerate(rows):
            for j, width in enumerate(widths):
                cell = cells[key].get(width)
                if cell is None:
                    continue
                interval = cell[statistic]
                values[i, j] = interval.mean
                if interval.count == 0:
                    axis.text(j, i, "none\naccepted", ha="center", va="center", fontsize=6)
                    continue
                mark = "" if cell["share"] == 1 else "*"
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
