"""The figure of the validation: every estimate's agreement with the reference on every problem."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.report.palette import BLUE, GREY, ORANGE
from experiments.run.job import Result
from experiments.synthetic.numbers.models import STATISTICS, TITLES
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.report.validation import HEADINGS
from isouq.stats import Interval


class Agreement(NamedTuple):
    """One correlation of one estimate on one problem: (accepted, value) of every seed, and the accepted ones' mean."""

    seeds: Sequence[tuple[bool, float]]
    interval: Interval


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw r and ρ of every estimate on every problem beside the paper's."""
    measured = {
        estimate: {
            model.name: {
                s: Agreement(
                    [(row["accepted"], row[f"{estimate}_{s}"]) for row in rows],
                    numbers.groups[model.name][f"{estimate}_{s}"],
                )
                for s in STATISTICS
                if f"{estimate}_{s}" in numbers.groups[model.name]
            }
            for model, rows in numbers.details.items()
        }
        for estimate in HEADINGS
    }
    return {"validation": agreement(measured, PAPER, HEADINGS)}


def agreement(
    measured: Mapping[str, Mapping[str, Mapping[str, Agreement]]],
    paper: Mapping[str, Mapping[str, tuple[float, float]]],
    titles: Mapping[str, str],
) -> Figure:
    """Draw r and ρ of each estimate on each problem: the seeds, their mean and interval, the paper's number (a star).

    measured: estimate -> problem -> statistic -> its values, empty where the problem has no such estimate. Seeds that
    were not accepted are hollow, and in no mean.
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
        for row, (statistic, symbol) in enumerate(TITLES.items()):
            axis = axes[row, column]
            for y, name in enumerate(names):
                if statistic in by_problem[name]:
                    _row(axis, y, by_problem[name][statistic])
                if name in paper.get(estimate, {}):
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


def _row(axis: Any, y: int, agreement: Agreement) -> None:
    accepted = [value for accepted, value in agreement.seeds if accepted and np.isfinite(value)]
    others = [value for accepted, value in agreement.seeds if not accepted and np.isfinite(value)]
    axis.plot(accepted, [y - 0.2] * len(accepted), ".", color=BLUE, alpha=0.5)
    axis.plot(others, [y - 0.2] * len(others), "o", mfc="none", color=GREY, ms=4)
    interval = agreement.interval
    if interval.count:
        axis.plot(interval.mean, y, "o", color=BLUE)
    if interval.count > 1:
        axis.plot([interval.low, interval.high], [y, y], color=BLUE, lw=2)
