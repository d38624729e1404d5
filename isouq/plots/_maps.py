"""Draw the uncertainty of two-dimensional problems as maps, and that of one-dimensional problems as curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from isouq.plots._palette import BLUE, GREEN, GREY, ORANGE

_PANELS = (
    ("reference", "epistemic, HMC\nVar[p]"),
    ("epistemic", "epistemic, one gradient\n‖g‖²"),
    ("aleatoric_reference", "aleatoric, HMC\nE[p(1 − p)]"),
    ("aleatoric", "aleatoric, point\np(1 − p)"),
)


def unit_range(values: Any) -> np.ndarray:
    """Return values scaled to [0, 1] by their own minimum and maximum; a constant becomes 0."""
    values = np.asarray(values, np.float64)
    spread = np.ptp(values)
    return np.zeros_like(values) if spread == 0 else (values - values.min()) / spread


def map_grid(problems: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Return a figure with a row of four maps for each problem: reference and estimate, epistemic and aleatoric.

    problems: pairs of a title and arrays: `grid` `[m², 2]` with the first feature fastest, the data `xs` and `ys`, and
    the maps `reference`, `epistemic`, `aleatoric_reference` and `aleatoric`, each `[m²]` and drawn on its own scale.
    """
    rows = len(problems)
    figure, axes = plt.subplots(rows, 4, figsize=(10.6, 2.45 * rows + 0.55), squeeze=False, layout="constrained")
    for index, (row, (title, arrays)) in enumerate(zip(axes, problems, strict=True)):
        for axis, (name, heading) in zip(row, _PANELS, strict=True):
            image = draw_map(axis, arrays, name)
            axis.tick_params(labelsize=7)
            if index == 0:
                axis.set_title(heading, fontsize=9)
            if index == rows - 1:
                axis.set_xlabel("x₁", fontsize=8)
        row[0].set_ylabel(f"{title}\nx₂", fontsize=8)
    bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 1.6 / rows + 0.2), aspect=30, pad=0.01)
    bar.set_label("each map scaled to its own [min, max]", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def draw_map(axis: Any, arrays: Mapping[str, np.ndarray], name: str) -> Any:
    """Draw the map `name`, scaled to [0, 1], with the data; return the image. arrays: as `map_grid` takes them."""
    grid = arrays["grid"]
    side = round(len(grid) ** 0.5)
    (left, bottom), (right, top) = grid.min(axis=0), grid.max(axis=0)
    image = axis.imshow(
        unit_range(arrays[name]).reshape(side, side),
        origin="lower", extent=(left, right, bottom, top), cmap="viridis", vmin=0, vmax=1, aspect="auto",
    )  # fmt: skip
    _draw_points(axis, arrays)
    return image


def _draw_points(axis: Any, arrays: Mapping[str, np.ndarray]) -> None:
    for label, (face, edge, marker) in enumerate(
        (("white", "black", "o"), ("black", "white", "s"), (ORANGE, "white", "^"))
    ):
        points = arrays["xs"][arrays["ys"] == label]
        axis.scatter(*points.T, color=face, edgecolors=edge, marker=marker, s=6, linewidths=0.35)


def curves(problems: Sequence[tuple[str, Mapping[str, np.ndarray]]]) -> Figure:
    """Return a figure with two panels for each problem of one feature: the predictive mean, and the epistemic curves.

    problems: pairs of a title and arrays: `grid` `[m, 1]`, the data `xs` and `ys`, `probability` (the mean at θ*),
    `mean` (under the reference), and the curves `reference`, `epistemic` and, where present, `laplace`.
    """
    figure, axes = plt.subplots(len(problems), 2, figsize=(9, 3.2 * len(problems)), squeeze=False, layout="constrained")
    for (left, right), (title, arrays) in zip(axes, problems, strict=True):
        draw_prediction(left, arrays)
        left.set(xlabel="x", ylabel=f"{title}\ny")
        draw_curves(right, arrays)
        for axis in (left, right):
            axis.legend(fontsize=7, frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return figure


def draw_prediction(axis: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Draw the data, the mean under HMC with its band, and the prediction. arrays: as `curves` takes them."""
    x = arrays["grid"][:, 0]
    sd = np.sqrt(arrays["reference"])
    axis.scatter(arrays["xs"][:, 0], arrays["ys"], s=6, color=GREY, label="data", zorder=1)
    axis.fill_between(
        x, arrays["mean"] - 2 * sd, arrays["mean"] + 2 * sd, color=BLUE, alpha=0.25, label="HMC mean ± 2 sd"
    )
    axis.plot(x, arrays["mean"], color=BLUE, lw=1.2)
    axis.plot(x, arrays["probability"], color=ORANGE, ls="--", lw=1.2, label="prediction at θ*")


def draw_curves(axis: Any, arrays: Mapping[str, np.ndarray]) -> None:
    """Draw the epistemic curves, each scaled to [0, 1], above a mark for every point of the data."""
    x = arrays["grid"][:, 0]
    axis.plot(x, unit_range(arrays["reference"]), color=BLUE, label="HMC, Var[f(x)]")
    axis.plot(x, unit_range(arrays["epistemic"]), color=ORANGE, ls="--", label="one gradient, ‖g‖²")
    if "laplace" in arrays:
        axis.plot(x, unit_range(arrays["laplace"]), color=GREEN, ls=":", label="Laplace, gᵀH⁻¹g")
    axis.plot(arrays["xs"][:, 0], np.full(len(arrays["xs"]), -0.04), "|", color=GREY, ms=5)
    axis.set(xlabel="x", ylabel="epistemic, scaled to [0, 1]", ylim=(-0.09, 1.05))
