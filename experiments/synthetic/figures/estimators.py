"""The figures of the leaderboard: differences to ‖g‖² with intervals, and agreement against cost."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend
from experiments.synthetic.measure.estimators import BASE, CONTROL, ESTIMATORS, NEEDS
from experiments.synthetic.numbers.estimators import SHOWN, Details, SignificanceTest
from experiments.synthetic.numbers.models import ALPHA
from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE

LOWEST = -0.6  # of a difference in ρ that is drawn; beyond it stands the number
COLOURS = dict(zip(NEEDS, (BLUE, GREEN, ORANGE, PURPLE, GREY), strict=True))
MARKERS = dict(zip(NEEDS, "os^Dv", strict=True))
# the two estimates that are marked among their like
NAMED: dict[str, dict[str, Any]] = {
    BASE: {"marker": "o", "ls": "none", "ms": 8, "mfc": "none", "color": "black", "label": "‖g‖²"},
    CONTROL: {"marker": "x", "ls": "none", "ms": 6, "color": "black", "label": "p(1 − p)"},
}


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw the differences in ρ to ‖g‖² by family, and mean ρ against seconds by family."""
    return {"estimators": _draw_differences(numbers), "estimators_cost": _draw_costs(numbers)}


def _families_with_numbers(numbers: Numbers) -> list[str]:
    """Return the families of which anything was accepted; all, which are empty, where nothing was."""
    families = list(numbers.details.families)
    return [family for family in families if numbers.groups[family][f"{BASE}_spearman"].count] or families


def _draw_differences(numbers: Numbers) -> Figure:
    details: Details = numbers.details
    families = _families_with_numbers(numbers)
    rows = 1 if len(families) <= 5 else 2
    columns = -(-len(families) // rows)
    size = (2.6 + 2.0 * columns, rows * (0.5 + 0.22 * len(SHOWN)))
    figure, axes = plt.subplots(rows, columns, figsize=size, dpi=150, sharex=True, squeeze=False, layout="constrained")
    for axis, family in zip(axes.flat, families, strict=False):
        axis.axvline(0, color="black", lw=0.8)
        for y, name in enumerate(SHOWN):
            test = details.differences.get((family, name))
            if test is not None and test.interval.count:
                _draw_difference(axis, y, test)
        axis.set_title(family.replace(", ", ",\n", 1).replace("widths, ", "widths,\n"))
        axis.set_xlabel("ρ minus ρ of ‖g‖²")
        axis.tick_params(labelsize=7, labelbottom=True)
        axis.grid(True, axis="x")
        axis.set_ylim(len(SHOWN) - 0.4, -0.6)
        axis.set_yticks(range(len(SHOWN)), [])
    axes[0, 0].set_xlim(left=LOWEST - 0.05)
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(SHOWN)), [ESTIMATORS[name].title for name in SHOWN], fontsize=7)
    for axis in axes.flat[len(families) :]:
        axis.remove()
    add_legend(figure, [*_legend(), _hollow()], 3)
    return figure


def _draw_difference(axis: Any, y: int, test: SignificanceTest) -> None:
    """Draw a difference with its interval, or write its number where it lies beyond the axis."""
    need, interval = ESTIMATORS[test.name].needs, test.interval
    if interval.mean < LOWEST:
        axis.text(LOWEST, y, f"← {interval.mean:.2f}", color=COLOURS[need], fontsize=7, va="center")
        return
    filled = COLOURS[need] if test.p < ALPHA else "white"
    axis.plot(interval.mean, y, MARKERS[need], ms=4.5, color=COLOURS[need], mfc=filled, zorder=3)
    if interval.count > 1:
        axis.plot([max(interval.low, LOWEST), interval.high], [y, y], color=COLOURS[need], lw=1.2)
        if interval.low < LOWEST:
            axis.plot(LOWEST, y, "<", ms=3.5, color=COLOURS[need])  # the interval goes on


def _legend() -> list[dict[str, Any]]:
    return [
        {"marker": MARKERS[need], "color": COLOURS[need], "ls": "none", "label": f"needs {words}"}
        for need, words in NEEDS.items()
    ]


def _hollow() -> dict[str, Any]:
    words = f"hollow: adjusted p ≥ {ALPHA:g}, or not tested; bars: 95 % intervals, which go on at an arrow"
    return {"marker": "o", "color": GREY, "mfc": "white", "ls": "none", "label": words}


def _draw_costs(numbers: Numbers) -> Figure:
    families = _families_with_numbers(numbers)
    rows = -(-len(families) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(10, 3.4 * rows), sharex=True, squeeze=False, layout="constrained")
    for axis, family in zip(axes.flat, families, strict=False):
        points = _costs(numbers, family)
        for cost, agreement, name in points:
            need = ESTIMATORS[name].needs
            axis.plot(cost, agreement, MARKERS[need], ms=4, color=COLOURS[need], alpha=0.8)
        axis.set_xscale("log")
        axis.margins(y=0.12)
        best = max(points, key=lambda point: point[1], default=None)
        axis.set_title(family + (f"\nbest: {ESTIMATORS[best[2]].title}" if best else ""))
        axis.set_ylabel("ρ of ‖g‖² + mean difference")
        axis.tick_params(labelsize=7, labelbottom=True)
        axis.grid(True)
        _mark_front(axis, points)
    for axis in axes.flat[max(0, len(families) - 2) : len(families)]:
        axis.set_xlabel("seconds for all inputs, training included, one core")
    for axis in axes.flat[len(families) :]:
        axis.remove()
    front = {"color": "black", "lw": 0.8, "label": "no cheaper estimate agrees better"}
    add_legend(figure, [*_legend(), front, *NAMED.values()], 3)
    return figure


def _costs(numbers: Numbers, family: str) -> list[tuple[float, float, str]]:
    """Return seconds, agreement and name of the estimates of a family.

    The agreement is the mean ρ of ‖g‖² plus the mean paired difference, because not every estimate exists for every
    posterior: means of ρ over different posteriors cannot be compared.
    """
    values, details = numbers.groups[family], numbers.details
    base, points = values[f"{BASE}_spearman"].mean, []
    for name in ESTIMATORS:
        test, cost = details.differences.get((family, name)), values.get(f"{name}_seconds")
        gain = 0.0 if name == BASE else float("nan") if test is None else test.interval.mean
        if cost is not None and cost.mean > 0 and np.isfinite(base + gain):
            points.append((cost.mean, base + gain, name))
    return points


def _mark_front(axis: Any, points: Sequence[tuple[float, float, str]]) -> None:
    """Join the points that no cheaper one exceeds, and mark ‖g‖² and the control."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    axis.step([cost for cost, _, _ in front], [value for _, value, _ in front], where="post", color="black", lw=0.8)
    for cost, value, name in points:
        if name in NAMED:
            axis.plot(cost, value, **NAMED[name])
