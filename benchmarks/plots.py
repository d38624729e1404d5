"""Draws the ratios to isouq as bars, and growth as lines."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.runner import Row
from isouq.plots import style

# Okabe and Ito's colours
VERMILION, BLUE, SKY, GREY, BLACK = "#D55E00", "#0072B2", "#56B4E9", "#999999", "#000000"
SPINES: Any = {"axes.spines.top": False, "axes.spines.right": False}


def bars(rows: Sequence[Row], path: Path) -> None:
    """Draw time and peak memory of every contestant as a multiple of isouq's, for each case, on logarithmic axes."""
    cases = list(dict.fromkeys(row["case"] for row in rows))
    groups = [[row for row in rows if row["case"] == case] for case in cases]
    heights = [0.3 * len(group) + 0.9 for group in groups]
    with style(), mpl.rc_context(SPINES):
        figure = Figure(figsize=(11, sum(heights)), layout="constrained")
        grid = figure.subplots(len(cases), 2, squeeze=False, sharey="row", gridspec_kw={"height_ratios": heights})
        for (left, right), case, group in zip(grid, cases, groups, strict=True):
            _ratio_bars(left, group, "time_ratio", lambda row: _time(row["seconds"]))
            _ratio_bars(right, group, "memory_ratio", lambda row: f"{row['peak_mb']:,.0f} MB")
            left.set_title(f"{case}: time ÷ isouq", loc="left")
            right.set_title("peak memory ÷ isouq", loc="left")
        figure.savefig(path)


def growth(rows: Sequence[Row], path: Path) -> None:
    """Draw time (top) and peak memory (bottom) against batch, width and length."""
    axes_names = list(dict.fromkeys(row["axis"] for row in rows))
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    looks = dict(zip(names, ((VERMILION, "o", 2.4), (BLUE, "s", 1.4), (BLACK, "^", 1.4)), strict=False))
    with style(), mpl.rc_context(SPINES):
        figure = Figure(figsize=(3.7 * len(axes_names), 6), layout="constrained")
        grid = figure.subplots(2, len(axes_names), squeeze=False)
        for column, axis in enumerate(axes_names):
            for ax, key, scale, label in zip(
                grid[:, column], ("seconds", "peak_mb"), (1e3, 1.0), ("time, ms", "peak memory, MB"), strict=True
            ):
                for name in names:
                    line = [row for row in rows if row["axis"] == axis and row["contestant"] == name and row[key]]
                    values = [max(scale * row[key], 1e-3) for row in line]
                    colour, marker, width = looks[name]
                    ax.plot(
                        [row["value"] for row in line], values, marker=marker, lw=width, ms=4, color=colour, label=name
                    )
                known = [scale * row[key] for row in rows if row["axis"] == axis and row[key]]
                wide = bool(known) and max(known) > 5 * min(known)  # a log axis exaggerates small differences
                ax.set(xscale="log", yscale="log" if wide else "linear", xlabel=axis, ylabel=label)
                if not wide:
                    ax.set_ylim(0, 1.1 * max(known, default=1.0))
                ax.set_xticks(sorted({row["value"] for row in rows if row["axis"] == axis}))
                ax.xaxis.set_major_formatter("{x:g}")
                ax.xaxis.set_minor_locator(NullLocator())
                ax.yaxis.set_major_formatter("{x:g}")
                ax.yaxis.set_minor_formatter("")
            grid[0, column].set_title(
                next(row["case"] for row in rows if row["axis"] == axis).split(", T =")[0], loc="left"
            )
        if len(names) > 1:
            grid[0, 0].legend()
        figure.savefig(path)


def _ratio_bars(ax: Axes, rows: Sequence[Row], key: str, absolute: Callable[[Row], str]) -> None:
    """Draw a bar from 1 to each ratio, a dot where the ratio is 1, and the reason where there is no number."""
    known = [row[key] for row in rows if row[key] is not None and np.isfinite(row[key])] or [1.0]
    low, high = min(*known, 0.8), max(*known, 2.0)
    span = high / low
    for i, row in enumerate(rows):
        ratio = row[key]
        ours = row["contestant"].startswith("isouq")
        colour = VERMILION if ours else SKY if row["framework"] == "JAX" else GREY
        if ratio is None or not np.isfinite(ratio):
            measured = key == "memory_ratio" and row["peak_mb"] is not None
            text = absolute(row) if measured else _reason(row)
            ax.text(1.03, i, text, va="center", fontsize=7.5, color="#555555", style="italic")
            continue
        ax.barh(i, ratio - 1, left=1, color=colour, height=0.7)
        if 0.9 < ratio < 1.1:
            ax.plot([ratio], [i], "D" if ours else "o", color=colour, ms=6 if ours else 3)
        label = f"{ratio:#.3g} × · {absolute(row)}" if ratio < 100 else f"{ratio:,.0f} × · {absolute(row)}"
        ax.text(max(ratio, 1.0) * span**0.015, i, label, va="center", weight="bold" if ours else "normal")
    ax.set_xscale("log")
    ax.set_xlim(low / span**0.03, high * span**0.4)
    ax.axvline(1, color=BLACK, lw=0.8)
    ax.xaxis.set_major_formatter("{x:g} ×")
    ax.xaxis.set_minor_formatter("")
    ax.set_yticks(range(len(rows)), [row["contestant"] for row in rows])
    if not ax.yaxis_inverted():
        ax.invert_yaxis()


def _reason(row: Row) -> str:
    return "not measured" if row["status"].startswith("ok") else row["status"].split(":")[0]


def _time(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"
