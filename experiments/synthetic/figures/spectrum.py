"""The figures of the spectrum: the eigenvalues' densities by prior and width, and the bulk against the agreement."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.report.palette import GREY, ORANGE
from experiments.run.job import Result
from experiments.synthetic.measure.spectrum import COVARIANCE_EDGES, HESSIAN_EDGES
from experiments.synthetic.numbers.models import TITLES, Row
from experiments.synthetic.presets.scaling import CURVES

_MARKERS = ("o", "s", "^", "D", "v", "P")


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw the agreement of every model against its bulk, and the densities of the sweep's first seed."""
    drawn = {"spectrum_agreement": agreement([_point(row) for row in numbers.rows])}
    lines = _lines(results)
    if lines:
        drawn["spectrum"] = densities(lines, HESSIAN_EDGES, COVARIANCE_EDGES)
    return drawn


def _point(row: Row) -> dict[str, Any]:
    group = None if row["width"] is None else f"{row['prior']} σ = {row['sigma']:g}"
    columns = {"share": "bulk_mean", "pearson": "whole_pearson", "spearman": "whole_spearman"}
    point = {name: row[column] for name, column in columns.items()}
    return {"group": group, "width": row["width"], "accepted": row["accepted"], **point}


def _lines(results: Sequence[Result]) -> dict[tuple[str, float], dict[int, dict[str, Any]]]:
    """Return the densities of the sweep's first seed, for the priors that `scaling` draws as curves."""
    sweep = [result for result in results if result.numbers["width"] is not None]
    first = min((result.numbers["seed"] for result in sweep), default=0)
    lines: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for prior in CURVES:
        by_width = [
            r for r in sweep if (r.numbers["prior"], r.numbers["sigma"]) == prior and r.numbers["seed"] == first
        ]
        if by_width:
            lines[prior] = {
                result.numbers["width"]: {
                    **{name: result.arrays[f"{name}_density"] for name in ("hessian", "within")},
                    "accepted": result.numbers["accepted"],
                }
                for result in sorted(by_width, key=lambda result: result.numbers["width"])
            }
    return lines


def densities(
    lines: Mapping[tuple[str, float], Mapping[int, Mapping[str, Any]]],
    hessian_edges: np.ndarray,
    covariance_edges: np.ndarray,
) -> Figure:
    """Draw the share of directions by eigenvalue: likelihood's Hessian (top), draws' covariance within chains (bottom).

    lines: (prior, σ) -> width -> {"hessian", "within": share of directions in each bin, "accepted"}. σ is the
    prior's largest scale. hessian_edges: symmetric about 0, the middle bin drawn linearly. covariance_edges > 0.
    Dotted: the covariance of draws that did not converge.
    """
    figure, axes = plt.subplots(
        2, len(lines), figsize=(1.2 + 4 * len(lines), 6.6), sharex="row", sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    norm = _width_norm([width for by_width in lines.values() for width in by_width])
    colours = plt.get_cmap("viridis")
    for column, ((prior, sigma), by_width) in enumerate(lines.items()):
        top, bottom = axes[:, column]
        for width, line in by_width.items():
            colour = colours(norm(width))
            top.stairs(line["hessian"], hessian_edges, color=colour, lw=1.2)
            style = "-" if line["accepted"] else ":"
            bottom.stairs(line["within"], covariance_edges, color=colour, lw=1.2, ls=style)
        for place in (-1, 1):
            top.axvline(place / sigma**2, color=ORANGE, ls="--", lw=1.2)
        bottom.axvline(sigma**2, color=ORANGE, ls="--", lw=1.2)
        top.set_title(f"{prior}, σ = {sigma:g}", fontsize=10)
        top.set_xlabel("eigenvalue of the likelihood's Hessian at θ*")
        bottom.set_xlabel("eigenvalue of the draws' covariance, within chains")
        for axis in (top, bottom):
            axis.grid(alpha=0.3)
    inner = float(np.abs(hessian_edges).min())
    axes[0, 0].set_xscale("symlog", linthresh=inner, linscale=0.5)
    ends = _ends([line["hessian"] for by_width in lines.values() for line in by_width.values()], hessian_edges)
    powers = [power for power in range(-2, 7, 2) if inner < 10.0**power]
    axes[0, 0].set_xticks([-(10.0**p) for p in reversed(powers)] + [0] + [10.0**p for p in powers])
    axes[0, 0].set_xlim(*ends)
    axes[1, 0].set_xscale("log")
    axes[1, 0].set_xlim(
        *_ends([line["within"] for by_width in lines.values() for line in by_width.values()], covariance_edges)
    )
    for axis in axes[:, 0]:
        axis.set(ylabel="share of directions in a bin", ylim=(0, None))
    _width_bar(figure, axes, norm)
    handles = [
        plt.Line2D(
            [],
            [],
            color=ORANGE,
            ls="--",
            label="± smallest prior precision 1/σ² (top), largest prior variance σ² (bottom)",
        ),
        plt.Line2D([], [], color=GREY, ls=":", label="draws not converged"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def agreement(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the agreement r and ρ against the bulk's share of ‖g‖², a point a model.

    points: mappings with `group` (a prior; None for a problem's own model), `width`, `accepted`, `share`,
    `pearson` and `spearman`. A marker a group, a colour a width; hollow: the reference was not accepted.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.9), sharex=True, sharey=True, layout="constrained")
    groups = [group for group in dict.fromkeys(point["group"] for point in points) if group is not None]
    markers = dict(zip(groups, _MARKERS * len(groups), strict=False)) | {None: "*"}
    norm = _width_norm([point["width"] for point in points if point["width"] is not None])
    colours = plt.get_cmap("viridis")
    for axis, (statistic, label) in zip(axes, TITLES.items(), strict=True):
        for point in points:
            own = point["group"] is None
            colour = ORANGE if own else colours(norm(point["width"]))
            axis.plot(
                point["share"], point[statistic], marker=markers[point["group"]], ms=8 if own else 5, ls="none",
                mec=colour, mfc=colour if point["accepted"] else "none", mew=0.8, alpha=0.85,
            )  # fmt: skip
        axis.set(xlabel="share of ‖g‖² in the bulk (mean over inputs)", ylabel=f"epistemic, {label}")
        axis.set_xscale("symlog", linthresh=1e-3, linscale=0.4)
        axis.set(xlim=(-3e-4, 1.3), ylim=(min(-0.25, _lowest(points)), 1.04))
        axis.set_xticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])
        axis.axhline(0, color=GREY, lw=0.6)
        axis.grid(alpha=0.3)
    if groups:
        _width_bar(figure, axes, norm)
    handles = [plt.Line2D([], [], marker=markers[g], color=GREY, ls="none", ms=5, label=g) for g in groups]
    if any(point["group"] is None for point in points):
        handles.append(plt.Line2D([], [], marker="*", color=ORANGE, ls="none", ms=8, label="a problem's own model"))
    handles.append(plt.Line2D([], [], marker="o", mfc="none", color=GREY, ls="none", ms=5, label="hollow: unconverged"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    return figure


def _ends(densities: Sequence[Any], edges: np.ndarray) -> tuple[float, float]:
    """Return the edges of the outermost bins that are not empty."""
    filled = np.flatnonzero(np.sum(densities, axis=0) > 0)
    return float(edges[filled[0]]), float(edges[filled[-1] + 1])


def _lowest(points: Sequence[Mapping[str, Any]]) -> float:
    values = [point[name] for point in points for name in ("pearson", "spearman")]
    return min((value - 0.04 for value in values if np.isfinite(value)), default=0.0)


def _width_norm(widths: Sequence[int]) -> LogNorm:
    low, high = min(widths, default=1), max(widths, default=2)
    return LogNorm(low, high if high > low else 2 * low)


def _width_bar(figure: Figure, axes: Any, norm: LogNorm) -> None:
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, "viridis"), ax=axes, pad=0.01, aspect=40)
    bar.set_label("hidden width", fontsize=8)
    low, high = norm.vmin or 1, norm.vmax or 1
    powers = [2.0**k for k in range(32) if low <= 2.0**k <= high]
    bar.set_ticks(powers, labels=[f"{power:g}" for power in powers])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
