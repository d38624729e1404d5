"""The figures of the experiment `qa`: only those that can be drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.answers.numbers.analysis import COVERAGES, Analysis, Part, by_benchmark, correlations
from experiments.answers.numbers.table import CURVES, MAIN, SCORES, paper
from isouq import plots
from isouq.stats import Interval


def figures(told: Sequence[Analysis]) -> dict[str, Any]:
    """By name: "auroc", "rejection", "correlations", "length". told: the analyses that have an AUROC."""
    if not told:
        return {}
    labels = {name: score.label for name, score in SCORES.items()}
    drawn = {name: labels[name] for name in CURVES}
    by = by_benchmark(told)
    measured = {benchmark: {one.group.name: one.areas for one in mine} for benchmark, mine in by.items()}
    found: dict[str, Any] = {"auroc": plots.qa_auroc(measured, {name: paper(name) for name in by}, labels)}
    curves = {one.title: one.curves for one in told if one.curves}
    if curves:
        found["rejection"] = plots.qa_rejection(curves, COVERAGES, drawn)
    matrices = {benchmark: _mean_matrix(mine) for benchmark, mine in by.items()}
    if any(np.isfinite(matrix).any() for matrix in matrices.values()):
        found["correlations"] = plots.qa_correlations(matrices, [labels[name] for name in MAIN])
    parts = {one.title: [_point(part) for part in one.parts] for one in told if any(p.areas for p in one.parts)}
    if parts:
        found["length"] = plots.qa_length(parts, drawn)
    return found


def _mean_matrix(mine: Sequence[Analysis]) -> np.ndarray:
    """The mean over the models that have the number."""
    found = np.array([correlations(one.group) for one in mine])
    count = np.isfinite(found).sum(axis=0)
    return np.where(count > 0, np.nansum(found, axis=0) / np.maximum(count, 1), np.nan)


def _point(part: Part) -> tuple[str, Mapping[str, Interval]]:
    length = f"{part.shortest}–{part.longest}" if part.longest > part.shortest else str(part.shortest)
    name = f"{length} tokens\n{part.right} right\n{part.wrong} wrong"
    return name, {score: part.areas[score] for score in CURVES if score in part.areas}
