"""The figures of the spectrum: the eigenvalues' densities by prior and width, and the bulk against the agreement."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend
from experiments.synthetic.measure.spectrum import COVARIANCE_EDGES, HESSIAN_EDGES
from experiments.synthetic.numbers.models import TITLES, Row, is_flat_row
from experiments.synthetic.presets.scaling import CURVES
from isouq.plots import GREY, ORANGE

_MARKERS = ("o", "s", "^", "D", "v", "P")


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw the agreement of every model against its bulk, and the densities of the sweep's first seed."""
    drawn = {"spectrum_agreement": agreement([row for row in numbers.rows if not is_flat_row(row)])}
    lines = _lines(results)
    if lines:
        drawn["spectrum"] = densities(lines)
    return drawn


def _lines(results: Sequence[Result]) -> dict[tuple[str, float], dict[int, dict[str, Any]]]:
    """Return the densities of the sweep's first seed, for the priors that `scaling` draws as curves."""
    sweep = [result for result in results if result.numbers["width"] is not None and not is_flat_row(result.numbers)]
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


def densities(lines: Mapping[tuple[str, float], Mapping[int, Mapping[str, Any]]]) -> Figure:
    """Draw the share of directions by eigenvalue: likelihood's Hessian (top), draws' covariance within chains (bottom).

    lines: (prior, σ) -> width -> {"hessian", "within": share of directions in each bin, "accepted"}. σ is the
    prior's largest scale. The bins' edges are HESSIAN_EDGES, of which the middle bin is drawn linearly, and
    COVARIANCE_EDGES. Dotted: the covariance of draws that did not converge.
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
            top.stairs(line["hessian"], HESSIAN_EDGES, color=colour, lw=1.2)
            style = "-" if line["accepted"] else ":"
            bottom.stairs(line["within"], COVARIANCE_EDGES, color=colour, lw=1.2, ls=style)
        for place in (-1, 1):
            top.axvline(place / sigma**2, color=ORANGE, ls="--", lw=1.2)
        bottom.axvline(sigma**2, color=ORANGE, ls="--", lw=1.2)
        top.set_title(f"{prior}, σ = {sigma:g}", fontsize=10)
        top.set_xlabel("eigenvalue of the likelihood's Hessian at θ*")
        bottom.set_xlabel("eigenvalue of the draws' covariance, within chains")
        for axis in (top, bottom):
            axis.grid(True)
    inner = float(np.abs(HESSIAN_EDGES).min())
    axes[0, 0].set_xscale("symlog", linthresh=inner, linscale=0.5)
    ends = _ends([line["hessian"] for by_width in lines.values() for line in by_width.values()], HESSIAN_EDGES)
    powers = [power for power in range(-2, 7, 2) if inner < 10.0**power]
    axes[0, 0].set_xticks([-(10.0**p) for p in reversed(powers)] + [0] + [10.0**p for p in powers])
    axes[0, 0].set_xlim(*ends)
    axes[1, 0].set_xscale("log")
    axes[1, 0].set_xlim(
        *_ends([line["within"] for by_width in lines.values() for line in by_width.values()], COVARIANCE_EDGES)
    )
    for axis in axes[:, 0]:
        axis.set(ylabel="share of directions in a bin", ylim=(0, None))
    _width_bar(figure, axes, norm)
    ends_of_prior = "± smallest prior precision 1/σ² (top), largest prior variance σ² (bottom)"
    marks = [
        {"color": ORANGE, "ls": "--", "label": ends_of_prior},
        {"color": GREY, "ls": ":", "label": "draws not converged"},
    ]
    add_legend(figure, marks, 2)
    return figure


def agreement(rows: Sequence[Row]) -> Figure:
    """Draw the agreement r and ρ against the bulk's share of ‖g‖², a point a row.

    A marker a prior (a star: a problem's own model), a colour a width; hollow: the reference was not accepted.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.9), sharex=True, sharey=True, layout="constrained")
    swept = [row for row in rows if row["width"] is not None]
    priors = list(dict.fromkeys((row["prior"], row["sigma"]) for row in swept))
    markers = dict(zip(priors, _MARKERS * len(priors), strict=False))
    norm = _width_norm([row["width"] for row in swept])
    colours = plt.get_cmap("viridis")
    for axis, (statistic, label) in zip(axes, TITLES.items(), strict=True):
        for row in rows:
            own = row["width"] is None
            colour = ORANGE if own else colours(norm(row["width"]))
            marker = "*" if own else markers[row["prior"], row["sigma"]]
            axis.plot(
                row["bulk_mean"], row[f"whole_{statistic}"], marker=marker, ms=8 if own else 5, ls="none",
                mec=colour, mfc=colour if row["accepted"] else "none", mew=0.8, alpha=0.85,
            )  # fmt: skip
        axis.set(xlabel="share of ‖g‖² in the bulk (mean over inputs)", ylabel=f"epistemic, {label}")
        axis.set_xscale("symlog", linthresh=1e-3, linscale=0.4)
        axis.set(xlim=(-3e-4, 1.3), ylim=(min(-0.25, _lowest(rows)), 1.04))
        axis.set_xticks([0, 1e-3, 1e-2, 1e-1, 1], ["0", "0.001", "0.01", "0.1", "1"])
        axis.axhline(0, color=GREY, lw=0.6)
        axis.grid(True)
    if swept:
        _width_bar(figure, axes, norm)
    lines: list[dict[str, Any]] = [
        {"marker": marker, "color": GREY, "ms": 5, "label": f"{prior} σ = {sigma:g}"}
        for (prior, sigma), marker in markers.items()
    ]
    if len(swept) < len(rows):
        lines.append({"marker": "*", "color": ORANGE, "ms": 8, "label": "a problem's own model"})
    lines.append({"marker": "o", "mfc": "none", "color": GREY, "ms": 5, "label": "hollow: unconverged"})
    add_legend(figure, [{"ls": "none", **line} for line in lines], len(lines))
    return figure


def _ends(densities: Sequence[Any], edges: np.ndarray) -> tuple[float, float]:
    """Return the edges of the outermost bins that are not empty."""
    filled = np.flatnonzero(np.sum(densities, axis=0) > 0)
    return float(edges[filled[0]]), float(edges[filled[-1] + 1])


def _lowest(rows: Sequence[Row]) -> float:
    values = [row[f"whole_{statistic}"] for row in rows for statistic in TITLES]
    return min((value - 0.04 for value in values if np.isfinite(value)), default=0.0)


def _width_norm(widths: Sequence[int]) -> LogNorm:
    low, high = min(widths, default=1), max(widths, default=2)
    return LogNorm(low, high if high > low else 2 * low)


def _width_bar(figure: Figure, axes: Any, norm: LogNorm) -> None:
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, "viridis"), ax=axes, pad=0.01, aspect=40)
    bar.set_label("hidden width")
    low, high = norm.vmin or 1, norm.vmax or 1
    powers = [2.0**k for k in range(32) if low <= 2.0**k <= high]
    bar.set_ticks(powers, labels=[f"{power:g}" for power in powers])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
