"""Statistics of the study: correlations, intervals over seeds, AUROC, paired tests. NumPy and SciPy only."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float


def pearson(a: Any, b: Any) -> float:
    """Pearson's r of two arrays of one shape; NaN when either is constant (r is undefined there)."""
    return _correlation(scipy.stats.pearsonr, a, b)


def spearman(a: Any, b: Any) -> float:
    """Spearman's ρ of two arrays of one shape; NaN when either is constant (ρ is undefined there)."""
    return _correlation(scipy.stats.spearmanr, a, b)


def _correlation(statistic: Any, a: Any, b: Any) -> float:
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if a.shape != b.shape or a.size < 2:
        raise ValueError(f"got {a.size} and {b.size} values; expected two arrays of one length, at least 2")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("the values to correlate hold NaN or infinity; remove them first")
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(statistic(a, b).statistic)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds: count, mean, sd (n − 1), and a bootstrap interval [low, high]."""

    count: int
    mean: float
    sd: float
    low: float
    high: float


def bootstrap_mean(values: Any, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Mean, sd and percentile bootstrap interval of the mean of `values` (one a seed).

    With no value everything is NaN and count 0; with one, sd and interval are NaN: one seed has no
    spread. Source: Efron (1979), the percentile interval; narrow for very few seeds, so read the
    count beside it.
    """
    values = np.asarray(values, np.float64).ravel()
    nan = float("nan")
    if values.size == 0:
        return Interval(0, nan, nan, nan, nan)
    mean = float(values.mean())
    if values.size == 1:
        return Interval(1, mean, nan, nan, nan)
    means = _resampled_means(values, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(values.size, mean, float(values.std(ddof=1)), float(low), float(high))


def _resampled_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).integers(values.size, size=(resamples, values.size))
    return values[rows].mean(axis=1)


def bootstrap_interval(
    statistic: Callable[..., Any], *samples: np.ndarray, resamples: int = 1000, seed: int = 0
) -> Float[np.ndarray, "2 ..."]:
    """Return the two ends of the bootstrap 95 % interval of `statistic(*samples)`, a number or an array.

    The rows of each sample are drawn anew with replacement, apart from those of the other samples. A resample where the
    statistic is NaN is left out. Cost: the statistic `resamples` times. Source: Efron (1979), the percentile interval.
    """
    rng = np.random.default_rng(seed)

    def draw() -> list[np.ndarray]:
        return [sample[rng.integers(len(sample), size=len(sample))] for sample in samples]

    return percentile_interval([statistic(*draw()) for _ in range(resamples)])


def percentile_interval(resampled: Any) -> Float[np.ndarray, "2 ..."]:
    """Return the 2.5 % and the 97.5 % quantile of resampled values along the first axis; NaN values are left out."""
    return np.nanquantile(np.asarray(resampled, np.float64), [0.025, 0.975], axis=0)


def paired_bootstrap(a: Any, b: Any, *, resamples: int = 10_000, seed: int = 0) -> tuple[Interval, float]:
    """The interval of mean(a − b) on the same seeds or questions, and a two-sided p-value.

    p = 2 · min(share of resampled means ≤ 0, share ≥ 0), at least 1/resamples.
    """
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if a.shape != b.shape or a.size < 2:
        raise ValueError(f"got {a.size} and {b.size} values; expected pairs, at least 2")
    means = _resampled_means(a - b, resamples, seed)
    return bootstrap_mean(a - b, resamples=resamples, seed=seed), two_sided_p(means)


def two_sided_p(resampled: Any) -> float:
    """2 · min(share of resampled differences ≤ 0, share ≥ 0), at least 1 / their number and at most 1."""
    resampled = np.asarray(resampled, np.float64)
    tail = min(np.mean(resampled <= 0), np.mean(resampled >= 0))
    return float(np.clip(2 * tail, 1 / len(resampled), 1))


def benjamini_hochberg(p_values: Any) -> Float[np.ndarray, " tests"]:
    """p-values adjusted for the false discovery rate over a family of tests."""
    return np.asarray(scipy.stats.false_discovery_control(np.asarray(p_values, np.float64)))


def auroc(wrong: Any, score: Any) -> float:
    """Area under the ROC curve: the chance that a wrong answer has a higher score than a right one.

    wrong: 1 = the answer is wrong, 0 = right; score: higher = more uncertain. Ties count one half.
    One class only is an error, for the area is undefined there.
    """
    wrong, score = np.asarray(wrong).astype(bool).ravel(), np.asarray(score, np.float64).ravel()
    if wrong.shape != score.shape:
        raise ValueError(f"got {wrong.size} labels and {score.size} scores; expected one score a label")
    positives = int(wrong.sum())
    negatives = wrong.size - positives
    if positives == 0 or negatives == 0:
        raise ValueError(
            f"AUROC needs both classes; all {wrong.size} answers are {'wrong' if positives else 'right'}; score more"
        )
    if np.isnan(score).any():
        raise ValueError("score holds NaN; remove those rows first")
    ranks = scipy.stats.rankdata(score)
    return float((ranks[wrong].sum() - positives * (positives + 1) / 2) / (positives * negatives))
