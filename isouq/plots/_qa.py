"""Scores of answers against right and wrong: AUROC, rejection, rank correlations, length of the answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from isouq.plots._palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SERIES
from isouq.stats import Interval

_STYLES = ((ORANGE, "-"), (BLUE, "-"), (GREEN, "--"), (PURPLE, "-"), ("black", "-."), (GREY, ":"), (BLUE, ":"))


def qa_auroc(
    measured: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    paper: Mapping[str, Mapping[str, tuple[float, float]]],
    labels: Mapping[str, str],
) -> Figure:
    """A panel a benchmark, a line a score: AUROC with its 95 % interval, a marker a model; the paper's a hollow star.

    measured: benchmark -> model -> score -> interval. paper: benchmark -> score -> mean and sd. labels: score -> its
    name; its order is that of the lines.
    """
    models = list(dict.fromkeys(model for by_model in measured.values() for model in by_model))
    shown = [
        s for s in labels if any(s in by_score for by_model in measured.values() for by_score in by_model.values())
    ]
    lines = [*models, *["paper"] * any(paper.get(benchmark) for benchmark in measured)]
    height = 1.5 + len(shown) * (0.13 + 0.08 * len(lines))
    figure, axes = plt.subplots(
        1, len(measured), figsize=(3.2 + 3.4 * len(measured), height), squeeze=False, sharex=True, sharey=True,
        layout="constrained",
    )  # fmt: skip
    offsets = dict(zip(lines, 0.8 * ((np.arange(len(lines)) + 0.5) / len(lines) - 0.5), strict=True))
    for axis, (benchmark, by_model) in zip(axes[0], measured.items(), strict=True):
        for place in range(0, len(shown), 2):
            axis.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", lw=0, zorder=0)
        for model, by_score in by_model.items():
            colour, marker = _series(models.index(model))
            for place, score in enumerate(shown):
                if score in by_score:
                    one = by_score[score]
                    axis.hlines(place + offsets[model], one.low, one.high, color=colour, lw=1.6)
                    axis.plot(one.mean, place + offsets[model], marker=marker, color=colour, ms=4.5)
        for score, (mean, sd) in paper.get(benchmark, {}).items():
            if score in shown:
                y = shown.index(score) + offsets["paper"]
                axis.hlines(y, mean - sd, mean + sd, color="black", lw=0.7)
                axis.plot(mean, y, marker="*", mfc="white", mec="black", ms=8, ls="none")
        axis.axvline(0.5, color=GREY, lw=1)
        axis.set_title(benchmark, fontsize=9)
        axis.set_xlabel("AUROC for telling wrong answers")
        axis.grid(axis="x", alpha=0.3)
        axis.set_yticks(range(len(shown)), [labels[score] for score in shown], fontsize=8)
        axis.set_ylim(len(shown) - 0.4, -0.6)
    handles = []
    for i, model in enumerate(models):
        colour, marker = _series(i)
        handles.append(plt.Line2D([], [], color=colour, marker=marker, ms=5, label=f"{model}, 95 % interval"))
    if "paper" in lines:
        star = {"marker": "*", "mfc": "white", "mec": "black", "ms": 9, "color": "black", "lw": 0.7}
        handles.append(plt.Line2D([], [], label="paper, mean ± sd, other models", **star))  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)), fontsize=8, frameon=False)
    return figure


def _series(i: int) -> tuple[str, str]:
    """The colour and marker of the i-th model; beyond the palette the colours come again with other markers."""
    return SERIES[i % len(SERIES)][0], "osD^vPX*<>"[i % 10]


def qa_rejection(
    curves: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]], coverage: np.ndarray, labels: Mapping[str, str]
) -> Figure:
    """Accuracy of the questions that are answered against their share: a panel a title, a line a score.

    curves: title -> score -> "mean", "low", "high" `[coverages]`. coverage: shares up to 1. A thin line shows the
    accuracy of all. labels: score -> what the legend says.
    """
    figure, axes = _panels(len(curves), 4.2, 3.7)
    for axis, (title, by_score) in zip(axes, curves.items(), strict=False):
        for score, colour, style in _styled(by_score, labels):
            curve = by_score[score]
            axis.plot(100 * coverage, curve["mean"], color=colour, ls=style, lw=1.6)
            axis.fill_between(100 * coverage, curve["low"], curve["high"], color=colour, alpha=0.07, lw=0)
        everything = next(iter(by_score.values()))["mean"][-1]
        axis.axhline(everything, color=GREY, lw=0.8)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("answered, % of the questions")
        axis.set_xlim(100, 100 * coverage.min())
        axis.set_ylim(bottom=0)
        axis.set_ylabel("accuracy of those")
        axis.grid(alpha=0.3)
    shown = {score for by_score in curves.values() for score in by_score}
    handles = [plt.Line2D([], [], color=c, ls=s, lw=1.6, label=labels[name]) for name, c, s in _styled(shown, labels)]
    handles.append(plt.Line2D([], [], color=GREY, lw=0.8, label="accuracy of all"))
    figure.legend(
        handles=handles, title="most certain first; 95 % band over questions", title_fontsize=8,
        loc="outside lower center", ncols=3 if len(curves) < 3 else 4, fontsize=8, frameon=False,
    )  # fmt: skip
    return figure


def _styled(shown: Any, labels: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """(score, colour, style), each score's own in every panel."""
    return [(name, *style) for name, style in zip(labels, _STYLES, strict=False) if name in shown]


def qa_correlations(matrices: Mapping[str, Float[np.ndarray, "scores scores"]], labels: Sequence[str]) -> Figure:
    """Spearman's ρ between scores as a matrix with its numbers, a panel a benchmark; grey where it is undefined."""
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
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(labels)), labels, fontsize=8, rotation=50, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(labels)), labels, fontsize=8)
    figure.colorbar(image, ax=axes[0, -1], shrink=0.8, pad=0.02).set_label("Spearman ρ over questions", fontsize=8)
    return figure


def qa_length(parts: Mapping[str, Sequence[tuple[str, Mapping[str, Interval]]]], labels: Mapping[str, str]) -> Figure:
    """AUROC with its 95 % interval within answers of about one length: a panel a title, a group of points a length.

    parts: title -> (what the lengths are called, score -> interval), the shortest first.
    """
    figure, axes = _panels(len(parts), 4.2, 3.2, sharey=True)
    names = {score for of_title in parts.values() for _, areas in of_title for score in areas}
    styled = [(name, colour, "osD^vPX"[i]) for i, (name, colour, _) in enumerate(_styled(names, labels))]
    for axis, (title, of_title) in zip(axes, parts.items(), strict=False):
        for i, (score, colour, marker) in enumerate(styled):
            offset = 0.7 * ((i + 0.5) / len(styled) - 0.5)
            for place, (_, areas) in enumerate(of_title):
                if score in areas:
                    one = areas[score]
                    axis.vlines(place + offset, one.low, one.high, color=colour, lw=1.4)
                    axis.plot(place + offset, one.mean, marker=marker, color=colour, ms=4.5)
        axis.axhline(0.5, color=GREY, lw=1)
        axis.set_xticks(range(len(of_title)), [name for name, _ in of_title], fontsize=8)
        axis.set_xlim(-0.5, len(of_title) - 0.5)
        axis.set_title(title, fontsize=9)
        axis.set_ylabel("AUROC for telling wrong answers", fontsize=8)
        axis.grid(axis="y", alpha=0.3)
    handles = [plt.Line2D([], [], color=c, marker=m, ms=5, label=labels[name]) for name, c, m in styled]
    figure.legend(
        handles=handles, title="95 % interval over questions", title_fontsize=8, loc="outside lower center",
        ncols=3 if len(parts) < 3 else 4, fontsize=8, frameon=False,
    )  # fmt: skip
    return figure


def _panels(count: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, list[Any]]:
    """A grid of at most three panels a row; the panels that are not needed are not there."""
    columns = min(3, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(6.4, width * columns), height * rows + 0.8), squeeze=False, layout="constrained",
        sharey=sharey,
    )  # fmt: skip
    for axis in axes.ravel()[count:]:
        axis.remove()
    return figure, list(axes.ravel()[:count])
