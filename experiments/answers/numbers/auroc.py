"""Areas under the ROC curve over resampled questions, and paired tests between them.

Label 1 = the answer is wrong; a higher score = more uncertain. Intervals are over questions, drawn anew with
replacement: there is one greedy answer a question, so there are no seeds to average over.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from isouq import stats

RUNS = 300  # resamples of an interval, and splits of the learned combination
TESTS = 1000  # resamples of a test: the p-values of a large family need more
FEW = 10  # right or wrong answers, below which a bootstrap cannot be trusted and nothing is tested


def resample_counts(n: int, runs: int) -> Float[np.ndarray, "runs n"]:
    """Return how often each of n questions is drawn, in each of `runs` resamples of n with replacement."""
    rows = np.random.default_rng(0).integers(n, size=(runs, n)) + n * np.arange(runs)[:, None]
    return np.bincount(rows.ravel(), minlength=runs * n).reshape(runs, n).astype(np.float64)


def resampled_auroc(
    wrong: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"], counts: Float[np.ndarray, "runs n"]
) -> Float[np.ndarray, " runs"]:
    """Return the AUROC of every resample, as `stats.auroc` of the drawn questions; NaN where it has one class alone.

    counts: how often a question is drawn. Cost: one sort for all resamples.
    """
    right = np.flatnonzero(~wrong)
    right = right[np.argsort(score[right])]
    drawn = np.zeros((len(counts), len(right) + 1))  # right answers that are drawn, below each place in their order
    np.cumsum(counts[:, right], axis=1, out=drawn[:, 1:])
    below, up_to = (np.searchsorted(score[right], score[wrong], side) for side in ("left", "right"))
    positive = counts[:, wrong]
    pairs = positive.sum(axis=1) * drawn[:, -1]
    ordered = np.sum(positive * (drawn[:, below] + drawn[:, up_to]), axis=1) / 2  # a tie is worth one half
    return np.divide(ordered, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def auroc_interval(wrong: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> stats.Interval | None:
    """Return the AUROC over the questions that have the score, with the sd and the 95 % interval over resamples.

    `count` is the number of these questions. None where one class alone has the score.
    """
    known = np.isfinite(score)
    wrong, score = wrong[known], score[known]
    if not 0 < wrong.sum() < len(wrong):
        return None
    resampled = resampled_auroc(wrong, score, resample_counts(len(wrong), RUNS))
    return with_spread(len(wrong), stats.auroc(wrong, score), resampled)


def with_spread(count: int, mean: float, resampled: np.ndarray) -> stats.Interval:
    """Return an interval of the resamples that hold both classes; sd and ends are NaN for fewer than two of them."""
    finite = resampled[np.isfinite(resampled)]
    if len(finite) < 2:
        return stats.Interval(count, mean, float("nan"), float("nan"), float("nan"))
    low, high = stats.percentile_interval(finite)
    return stats.Interval(count, mean, float(finite.std(ddof=1)), float(low), float(high))


def can_test(wrong: Bool[np.ndarray, " n"]) -> bool:
    """Return whether there are enough right and enough wrong answers for a test."""
    return min(wrong.sum(), (~wrong).sum()) >= FEW


def difference_row(difference: float, resampled: np.ndarray) -> dict[str, float]:
    """Return a difference of two AUROC with its 95 % interval and its two-sided p over the resamples that have it."""
    resampled = resampled[np.isfinite(resampled)]
    low, high = stats.percentile_interval(resampled)
    return {"difference": float(difference), "low": float(low), "high": float(high), "p": stats.two_sided_p(resampled)}


def adjust(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the tests with `adjusted`: p after Benjamini and Hochberg over all models and benchmarks as one family."""
    if not tests:
        return []
    values = stats.benjamini_hochberg([test["p"] for test in tests])
    return [{**test, "adjusted": float(value)} for test, value in zip(tests, values, strict=True)]
