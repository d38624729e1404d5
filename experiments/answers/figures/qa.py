"""The figures of the experiment `qa`: AUROC, rejection, rank correlations, and AUROC by length."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.answers.figures.auroc import draw_auroc
from experiments.answers.numbers.analysis import COVERAGES, Curve, Part
from experiments.answers.numbers.qa import QaNumbers
from experiments.answers.numbers.scores import CURVES, MAIN, SCORES, paper
from experiments.report.outputs import Numbers
from experiments.run.job import Result
from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, TWO_COLUMNS
from isouq.stats import Interval

_STYLES = ((ORANGE, "-"), (BLUE, "-"), (GREEN, "--"), (PURPLE, "-"), ("black", "-."), (GREY, ":"), (BLUE, ":"))


def figures(_results: Sequence[Result], numbers: Numbers) -> dict[str, Any]:
    """Return the figures that can be drawn: "auroc", "rejection", "correlations", "length"."""
    details: QaNumbers = numbers.details
    if not details.scored:
        return {}
    labels = {name: score.label for name, score in SCORES.items()}
    shown = {name: labels[name] for name in CURVES}
    measured = {
        name: {one.group.name: one.auroc for one in benchmark.analyses}
        for name, benchmark in details.benchmarks.items()
    }
    drawn: dict[str, Any] = {"auroc": draw_auroc(measured, {name: paper(name) for name in measured}, labels)}
    curves = {one.group.title: one.curves for one in details.scored if one.curves}
    if curves:
        drawn["rejection"] = draw_rejection(curves, COVERAGES, shown)
    matrices = {name: benchmark.matrix for name, benchmark in details.benchmarks.items()}
    if any(np.isfinite(matrix).any() for matrix in matrices.values()):
        drawn["correlations"] = draw_correlations(matrices, [labels[name] for name in MAIN])
    parts = {
        one.group.title: [_point(part) for part in one.parts]
        for one in details.scored
        if any(part.auroc for part in one.parts)
    }
    if parts:
        drawn["length"] = draw_lengths(parts, shown)
    return drawn


def _point(part: Part) -> tuple[str, Mapping[str, Interval]]:
    """Return the label of a third of the answers, and the scores that are drawn."""
    length = f"{part.shortest}–{part.longest}" if part.longest > part.shortest else str(part.shortest)
    label = f"{length} tokens\n{part.right} right\n{part.wrong} wrong"
    return label, {score: part.auroc[score] for score in CURVES if score in part.auroc}


def draw_rejection(
    curves: Mapping[str, Mapping[str, Curve]], coverage: np.ndarray, labels: Mapping[str, str]
) -> Figure:
    """Draw the accuracy of the questions that are answered against their share: a panel a title, a line a score.

    curves: title -> score -> curve. coverage: shares up to 1. A thin line shows the accuracy of all questions. labels:
    score -> what the legend says.
    """
    figure, axes = _panels(len(curves), TWO_COLUMNS / 2, 3.0)
    for axis, (title, by_score) in zip(axes, curves.items(), strict=False):
        for score, colour, style in _styled(by_score, labels):
            curve = by_score[score]
            axis.plot(100 * coverage, curve.mean, color=colour, ls=style, lw=1.6)
            axis.fill_between(100 * coverage, curve.low, curve.high, color=colour, alpha=0.07, lw=0)
        everything = next(iter(by_score.values())).mean[-1]
        axis.axhline(everything, color=GREY, lw=0.8)
        axis.set_title(title)
        axis.set_xlabel("answered, % of the questions")
        axis.set_xlim(100, 100 * coverage.min())
        axis.set_ylim(bottom=0)
        axis.set_ylabel("accuracy of those")
        axis.grid(True)
    shown = {score for by_score in curves.values() for score in by_score}
    handles = [plt.Line2D([], [], color=c, ls=s, lw=1.6, label=labels[name]) for name, c, s in _styled(shown, labels)]
    handles.append(plt.Line2D([], [], color=GREY, lw=0.8, label="accuracy of all"))
    figure.legend(
        handles=handles, title="most certain first; 95 % band over questions",
        loc="outside lower center", ncols=3 if len(curves) < 3 else 4,
    )  # fmt: skip
    return figure


def _styled(shown: Any, labels: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (score, colour, style) of each score that is shown; a score has the same style in every panel."""
    return [(name, *style) for name, style in zip(labels, _STYLES, strict=False) if name in shown]


def draw_correlations(matrices: Mapping[str, Float[np.ndarray, "scores scores"]], labels: Sequence[str]) -> Figure:
    """Draw Spearman's ρ between scores as a matrix with its numbers, a panel a benchmark; grey: undefined."""
    size = 0.52 * len(labels)
    figure, axes = plt.subplots(
        1, len(matrices), figsize=(3.2 + (size + 0.2) * len(matrices), 1.9 + size), squeeze=False, sharey=True,
        layout="constrained",
    )  # fmt: skip
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        image = axis.imshow(matrix, cmap="PuOr_r", vmin=-1, vmax=1)
        axis.set_facecolor("#dddddd")
        for i, j in np.argwhere(np.isfinite(matrix)):
            colour = "white" if abs(matrix[i, j]) > 0.65 else "black"
            text = f"{round(matrix[i, j], 2) + 0:.2f}".replace("-", "−").replace("0.", ".").replace("1.00", "1")
            axis.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set_title(title)
        axis.set_xticks(range(len(labels)), labels, rotation=50, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(labels)), labels)
    figure.colorbar(image, ax=axes[0, -1], shrink=0.8, pad=0.02).set_label("Spearman ρ over questions")
    return figure


def draw_lengths(
    parts: Mapping[str, Sequence[tuple[str, Mapping[str, Interval]]]], labels: Mapping[str, str]
) -> Figure:
    """Draw AUROC with its 95 % interval among answers of about one length: a panel a title, a group of points a length.

    parts: title -> (the label of the lengths, score -> interval), the shortest first.
    """
    figure, axes = _panels(len(parts), TWO_COLUMNS / 2, 2.7, sharey=True)
    names = {score for groups in parts.values() for _, areas in groups for score in areas}
    styled = [(name, colour, "osD^vPX"[i]) for i, (name, colour, _) in enumerate(_styled(names, labels))]
    for axis, (title, groups) in zip(axes, parts.items(), strict=False):
        for i, (score, colour, marker) in enumerate(styled):
            offset = 0.7 * ((i + 0.5) / len(styled) - 0.5)
            for place, (_, areas) in enumerate(groups):
                if score in areas:
                    one = areas[score]
                    axis.vlines(place + offset, one.low, one.high, color=colour, lw=1.4)
                    axis.plot(place + offset, one.mean, marker=marker, color=colour, ms=4.5)
        axis.axhline(0.5, color=GREY, lw=1)
        axis.set_xticks(range(len(groups)), [name for name, _ in groups])
        axis.set_xlim(-0.5, len(groups) - 0.5)
        axis.set_title(title)
        axis.set_ylabel("AUROC for telling wrong answers")
        axis.grid(True, axis="y")
    handles = [plt.Line2D([], [], color=c, marker=m, ms=5, label=labels[name]) for name, c, m in styled]
    figure.legend(
        handles=handles, title="95 % interval over questions", loc="outside lower center",
        ncols=3 if len(parts) < 3 else 4,
    )  # fmt: skip
    return figure


def _panels(count: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, list[Any]]:
    """Return a figure with a grid of at most three panels a row, and its panels."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(TWO_COLUMNS, width * columns), height * rows + 0.8), squeeze=False,
        layout="constrained", sharey=sharey,
    )  # fmt: skip
    for axis in axes.ravel()[count:]:
        axis.remove()
    return figure, list(axes.ravel()[:count])
