"""The figure of the lineage: the distance of every shared setting to the paper, by the level of each factor."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend
from experiments.synthetic.numbers.lineage import FEWEST_SEEDS, Comparison, Lineage
from isouq.plots import BLUE, GREEN, GREY, ORANGE

_COMPLETE: dict[str, Any] = {"marker": ".", "color": BLUE, "alpha": 0.35, "ms": 5, "ls": "none"}
_INCOMPLETE: dict[str, Any] = {"marker": "o", "mfc": "none", "color": GREY, "alpha": 0.5, "ms": 3, "ls": "none"}
_MEAN: dict[str, Any] = {"marker": "|", "color": "black", "ms": 13, "mew": 2, "ls": "none"}
_NEAREST: dict[str, Any] = {"marker": "*", "color": ORANGE, "mec": "black", "mew": 0.5, "ms": 13, "ls": "none"}
_PROTOCOL: dict[str, Any] = {"marker": "D", "color": GREEN, "mec": "black", "mew": 0.5, "ms": 7, "ls": "none"}


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw a strip for each level of each factor: a point for a setting, and the mean of the complete ones."""
    lineage: Lineage = numbers.details
    levels = [group for group in numbers.groups if ": " in group]
    factors = [level.split(": ")[0] for level in levels]
    breaks = np.cumsum([0, *(one != other for one, other in pairwise(factors))])
    places = dict(zip(levels, np.arange(len(levels)) + 0.6 * breaks, strict=True))
    figure, axis = plt.subplots(figsize=(8, 1.4 + 0.3 * places[levels[-1]]), layout="constrained")
    shift = np.random.default_rng(0).uniform(-0.3, 0.3, len(lineage.comparisons))
    for one, by in zip(lineage.comparisons, shift, strict=True):
        _draw(axis, places, one, by, _COMPLETE if one.complete else _INCOMPLETE)
    for level, place in places.items():
        axis.plot(numbers.groups[level]["distance"].mean, place, **_MEAN)
    for special, style in ((lineage.nearest, _NEAREST), (lineage.protocol, _PROTOCOL)):
        if special is not None:
            _draw(axis, places, special, 0.0, style)
    axis.set_yticks(list(places.values()), levels)
    axis.set_ylim(places[levels[-1]] + 0.7, -0.7)
    axis.set_xlim(left=0)
    axis.set_xlabel("mean |difference| to the paper's epistemic r and ρ")
    axis.grid(True, axis="x")
    add_legend(
        figure,
        [
            {**_COMPLETE, "alpha": 1, "label": f"setting with all 16 numbers, each from {FEWEST_SEEDS} seeds or more"},
            {**_INCOMPLETE, "alpha": 1, "label": "other setting, over the numbers that it has"},
            {**_MEAN, "ms": 8, "label": "mean of the blue settings"},
            {**_NEAREST, "label": "nearest"},
            {**_PROTOCOL, "label": "protocol"},
        ],
        3,
    )
    return {"lineage": figure}


def _draw(axis: Any, places: dict[str, float], one: Comparison, shift: float, style: dict[str, Any]) -> None:
    """Draw a setting in the strip of its level of every factor."""
    rows = [places[f"{factor}: {level}"] + shift for factor, level in one.setting.levels().items()]
    axis.plot([one.distance.mean] * len(rows), rows, **style)
