"""The figure of the validation: every estimate's agreement with the reference on every problem."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend
from experiments.synthetic.numbers.models import TITLES, Row, is_flat_row
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.report.validation import HEADINGS
from isouq.plots import BLUE, GREY, ORANGE
from isouq.stats import Interval


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw r and ρ of every estimate on every problem: the seeds, their mean and interval, the paper's number (a star).

    Seeds that were not accepted are hollow, and in no mean.
    """
    figure, axes = plt.subplots(
        2, len(HEADINGS), figsize=(4.2 * len(HEADINGS), 7), sharey=True, sharex=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    names = [model.name for model in numbers.details]
    for column, (estimate, heading) in zip(axes.T, HEADINGS.items(), strict=True):
        for place, (axis, (statistic, symbol)) in enumerate(zip(column, TITLES.items(), strict=True)):
            name = f"{estimate}_{statistic}"
            for y, (model, rows) in enumerate(numbers.details.items()):
                if name in numbers.groups[model.name]:
                    _draw_seeds(axis, y, rows, name, numbers.groups[model.name][name])
                if paper := PAPER.get(estimate, {}).get(model.problem):
                    axis.plot(paper[place], y + 0.22, marker="*", color=ORANGE, ms=9, ls="none")
            axis.set_yticks(range(len(names)), names)
            axis.axvline(0, color=GREY, lw=0.6)
            axis.grid(True, axis="x")
            axis.set_xlabel(symbol)
            axis.set_xlim(-0.75, 1.04)
        column[0].set_title(heading)
    axes[0, 0].invert_yaxis()
    lines: list[dict[str, Any]] = [
        {"marker": "o", "color": BLUE, "ls": "-", "label": "mean and 95 % interval over accepted seeds"},
        {"marker": ".", "color": BLUE, "alpha": 0.5, "ls": "none", "label": "accepted seed"},
        {"marker": "o", "mfc": "none", "color": GREY, "ls": "none", "ms": 4, "label": "unconverged seed (in no mean)"},
        {"marker": "*", "color": ORANGE, "ls": "none", "ms": 9, "label": "paper"},
    ]
    add_legend(figure, lines, 4)
    return {"validation": figure}


def _draw_seeds(axis: Any, y: int, rows: Sequence[Row], column: str, interval: Interval) -> None:
    rows = [row for row in rows if not is_flat_row(row) and np.isfinite(row[column])]
    accepted = [row[column] for row in rows if row["accepted"]]
    others = [row[column] for row in rows if not row["accepted"]]
    axis.plot(accepted, [y - 0.2] * len(accepted), ".", color=BLUE, alpha=0.5)
    axis.plot(others, [y - 0.2] * len(others), "o", mfc="none", color=GREY, ms=4)
    if interval.count:
        axis.plot(interval.mean, y, "o", color=BLUE)
    if interval.count > 1:
        axis.plot([interval.low, interval.high], [y, y], color=BLUE, lw=2)
