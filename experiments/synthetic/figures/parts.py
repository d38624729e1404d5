"""Parts that several figures of the synthetic experiments draw alike."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from isouq.stats import Interval


def draw_band(
    axis: Any,
    xs: Sequence[float],
    intervals: Sequence[Interval],
    colour: str,
    marker: str,
    **line: Any,
) -> None:
    """Draw a line through the means with its 95 % band; both break where nothing was accepted (NaN)."""
    axis.plot(xs, [i.mean for i in intervals], marker=marker, color=colour, ms=4, **line)
    bounds = [i.low for i in intervals], [i.high for i in intervals]
    axis.fill_between(xs, *bounds, color=colour, alpha=0.2, lw=0)
    axis.vlines(xs, *bounds, color=colour, lw=0.8)  # a point between two breaks has no band


def set_width_axis(axis: Any, widths: Sequence[int], **text: Any) -> None:
    """Make the x axis that of the hidden widths, in powers of 2."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths], **text)
    axis.minorticks_off()


def draw_numbers(axis: Any, values: np.ndarray, texts: np.ndarray, **text: Any) -> Any:
    """Draw correlations `[rows, columns]` as a heat map with the texts on it, grey where they are NaN."""
    axis.set_facecolor("#dddddd")
    for (i, j), value in np.ndenumerate(values):
        colour = "white" if value < 0.55 else "black"
        axis.text(j, i, texts[i, j], ha="center", va="center", color=colour, **text)
    return axis.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")


def add_legend(figure: Figure, lines: Sequence[dict[str, Any]], columns: int, **text: Any) -> None:
    """Write a legend below the figure, of lines that need not be drawn."""
    handles = [plt.Line2D([], [], **line) for line in lines]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, **text)
