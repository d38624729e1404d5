"""Statistics: correlations, bootstrap intervals, p-values and losses of predictions, with NumPy and SciPy alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float


def pearson(a: Any, b: Any) -> float:
    """Return Pearson's r of two arrays of one shape; NaN where one is constant, because r is undefined there."""
    return _correlation(scipy.stats.pearsonr, a, b)


def spearman(a: Any, b: Any) -> float:
    """Return Spearman's ρ of two arrays of one shape; NaN where one is constant, because ρ is undefined there."""
    return _correlation(scipy.stats.spearmanr, a, b)


def _correlation(statistic: Any, a: Any, b: Any) -> float:
    a, b = _pairs(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(statistic(a, b).statistic)


def _pairs(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return two arrays as float64 `[n]`; raise unless they have one length of at least 2 and are finite."""
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if a.shape != b.shape or a.size < 2:
        raise ValueError(f"got {a.size} and {b.size} values; expected two arrays of one length, at least 2")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("the values to correlate hold NaN or infinity; remove them first")
    return a, b


def partial_spearman(a: Any, b: Any, given: Any) -> float:
    """Return the partial rank correlation of a and b given a third array: how they correlate where it is the same.

    (ρ_ab − ρ_ac ρ_bc) / √((1 − ρ_ac²)(1 − ρ_bc²)), with c the array `given`; NaN where one is constant, or where a or b
    has the ranks of c, because it is undefined there.
    """
    ab, ac, bc = spearman(a, b), spearman(a, given), spearman(b, given)
    rest = (1 - ac**2) * (1 - bc**2)
    return float((ab - ac * bc) / np.sqrt(rest)) if rest > 1e-12 else float("nan")


def top_overlap(a: Any, b: Any, share: float = 0.1) -> float:
    """Return the fraction of the inputs in the top `share` of a that are in the top `share` of b too.

    For unrelated arrays it is `share` on average. Of equal values the first ones count; NaN where an array is constant.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected a number above 0 and at most 1")
    a, b = _pairs(a, b)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    count = max(1, round(share * a.size))
    top = [set(np.argsort(-values, kind="stable")[:count].tolist()) for values in (a, b)]
    return len(top[0] & top[1]) / count


@dataclass(frozen=True)
class Interval:
    """A mean over seeds: their count, the mean, the standard deviation (n − 1) and a bootstrap interval [low, high]."""

    count: int
    mean: float
    sd: float
    low: float
    high: float


def bootstrap_mean(values: Any, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return mean, standard deviation and percentile bootstrap interval of the mean of `values`, one for each seed.

    Without values all numbers but the count are NaN. With one value the standard deviation and the interval are NaN.
    With very few seeds the interval is too narrow. Source: Efron (1979), the percentile interval.
    """
    values = np.asarray(values, np.float64).ravel()
    nan = float("nan")
    if values.size == 0:
        return Interval(0, nan, nan, nan, nan)
    mean = float(values.mean())
    if values.size == 1:
        return Interval(1, mean, nan, nan, nan)
    means = _resample_means(values, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(values.size, mean, float(values.std(ddof=1)), float(low), float(high))


def _resample_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
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
    """Return the interval of mean(a − b) on the same seeds or questions, and the p-value of `two_sided_p`."""
    a, b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    if a.shape != b.shape or a.size < 2:
        raise ValueError(f"got {a.size} and {b.size} values; expected pairs, at least 2")
    means = _resample_means(a - b, resamples, seed)
    return bootstrap_mean(a - b, resamples=resamples, seed=seed), two_sided_p(means)


def clustered_bootstrap(
    groups: Any, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[Interval, float]:
    """Return the interval of the mean over groups of their means, and the p-value of `two_sided_p`.

    groups: one array for each group, such as the differences of a problem, one for each of its seeds. Groups are drawn
    with replacement, and within each drawn group its values. One group alone is not drawn, but its values are. count is
    the number of all values, and sd that of the groups' means. Without values all numbers but the count are NaN; with
    one value the interval is.

    With few groups p is too small: in simulations of groups of five values whose mean is 0, p < 0.05 in 16 % of the
    cases for one group, in 8 to 24 % for two, 4 to 14 % for four, and 2 to 8 % for nine; more where groups differ more.
    """
    groups = [np.asarray(group, np.float64).ravel() for group in groups if np.size(group)]
    count, nan = sum(group.size for group in groups), float("nan")
    if count == 0:
        return Interval(0, nan, nan, nan, nan), nan
    means = np.array([group.mean() for group in groups])
    sd = float(means.std(ddof=1)) if len(means) > 1 else nan
    if count == 1:
        return Interval(1, float(means[0]), nan, nan, nan), nan
    rng = np.random.default_rng(seed)
    drawn = np.stack(
        [group[rng.integers(group.size, size=(resamples, len(groups), group.size))].mean(axis=2) for group in groups]
    )
    chosen = rng.integers(len(groups), size=(resamples, len(groups)))
    resampled = np.take_along_axis(drawn, chosen.reshape(1, resamples, -1), axis=0)[0].mean(axis=1)
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(count, float(means.mean()), sd, float(low), float(high)), two_sided_p(resampled)


def two_sided_p(resampled: Any) -> float:
    """Return p = 2 · min(share of resampled differences ≤ 0, share ≥ 0), at least 1 / their number and at most 1.

    NaN where a difference is NaN.
    """
    resampled = np.asarray(resampled, np.float64)
    if np.isnan(resampled).any():
        return float("nan")
    tail = min(np.mean(resampled <= 0), np.mean(resampled >= 0))
    return float(np.clip(2 * tail, 1 / len(resampled), 1))


def benjamini_hochberg(p_values: Any) -> Float[np.ndarray, " tests"]:
    """Return p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995)."""
    return np.asarray(scipy.stats.false_discovery_control(np.asarray(p_values, np.float64)))


def auroc(wrong: Any, score: Any) -> float:
    """Return the area under the ROC curve: the probability that a wrong answer has a higher score than a right one.

    wrong: 1 where the answer is wrong, else 0. score: higher where it is less certain. Ties count one half.

    Raises:
        ValueError: all answers are right or all are wrong, so that the area is undefined, or a score is NaN.
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


def _check_labels(probabilities: Any, labels: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities `[n, classes]` in float64 and labels `[n]`; raise unless they fit to each other.

    One column, or none, is the probability of class 1 of two.
    """
    if isinstance(probabilities, tuple) and hasattr(probabilities, "mean"):
        raise ValueError(f"probabilities is a {type(probabilities).__name__}; expected an array: its field .mean")
    p, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if p.ndim not in (1, 2) or labels.shape != p.shape[:1] or not labels.size:
        raise ValueError(
            f"got probabilities of shape {p.shape} and labels of shape {labels.shape}; "
            "expected [n] or [n, classes] and [n]"
        )
    if not ((p >= 0) & (p <= 1 + 1e-6)).all():  # NaN is in no range
        raise ValueError("probabilities holds NaN or a number outside 0 to 1; pass probabilities and not logits")
    p = np.minimum(p, 1)
    if p.ndim == 1 or p.shape[1] == 1:
        p = np.stack([1 - p.ravel(), p.ravel()], axis=1)
    if not np.allclose(p.sum(axis=1), 1, atol=1e-3):
        raise ValueError("the probabilities of a row do not add up to 1; pass those of all classes")
    if not (np.equal(labels, np.round(labels)).all() and labels.min() >= 0 and labels.max() < p.shape[1]):
        raise ValueError(f"labels holds a number that is no class from 0 to {p.shape[1] - 1}")
    return p, labels.astype(int)


def log_loss(probabilities: Any, labels: Any) -> float:
    """Return the mean −log p of the labels, the negative log likelihood of one input (units: nats).

    probabilities: `[n, classes]`, or `[n]` for class 1 of two. A probability of 0 counts as 2 · 10⁻³⁰⁸, a loss of 708:
    give float64, because in float32 a probability is 1 from a logit of 17 on.
    """
    p, labels = _check_labels(probabilities, labels)
    return float(-np.mean(np.log(np.maximum(p[np.arange(len(p)), labels], np.finfo(np.float64).tiny))))


def gaussian_log_loss(mean: Any, variance: Any, ys: Any) -> float:
    """Return the mean −log N(y; mean, variance) of arrays `[n]` (units: nats); variance may be one number."""
    mean, variance, ys = (np.asarray(array, np.float64) for array in (mean, variance, ys))
    if mean.shape != ys.shape or variance.shape not in ((), ys.shape) or not ys.size:
        raise ValueError(f"got {mean.shape} means, {variance.shape} variances and {ys.shape} values; expected [n] each")
    if not np.all(variance > 0):
        raise ValueError("variance holds NaN or a number that is not above 0")
    return float(np.mean(np.square(ys - mean) / (2 * variance) + 0.5 * np.log(2 * np.pi * variance)))


def brier_score(probabilities: Any, labels: Any) -> float:
    """Return the mean over the inputs of Σ_c (p_c − 1[y = c])², between 0 and 2.

    For two classes that is twice (p₁ − y)². Source: Brier (1950).
    """
    p, labels = _check_labels(probabilities, labels)
    return float(np.mean(np.sum(np.square(p - np.eye(p.shape[1])[labels]), axis=1)))


def calibration_error(probabilities: Any, labels: Any, bins: int = 10) -> float:
    """Return the expected calibration error: Σ over bins of (share of inputs) · |accuracy − mean confidence|.

    Confidence is the largest probability of an input, and the bins are of equal width. Few inputs a bin make it too
    large. Source: Guo et al. (2017), arXiv 1706.04599.
    """
    if not (isinstance(bins, int) and bins > 0):
        raise ValueError(f"bins is {bins!r}; expected a whole number above 0")
    p, labels = _check_labels(probabilities, labels)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == labels
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    bins_with_inputs = [index == number for number in np.unique(index)]
    return float(sum(abs(right[rows].mean() - confidence[rows].mean()) * rows.mean() for rows in bins_with_inputs))


def rejection_curve(errors: Any, score: Any) -> Float[np.ndarray, " n"]:
    """Return the mean error among the k inputs of the smallest score, for k = 1 … n; ties share their errors.

    errors: 1 where the answer is wrong, else 0; or another loss of each input. score: higher where it is less certain.
    """
    errors, score = _pairs(errors, score)
    _, ties, counts = np.unique(score, return_inverse=True, return_counts=True)
    mean = np.bincount(ties, weights=errors) / counts
    return np.cumsum(np.repeat(mean, counts)) / np.arange(1, len(score) + 1)


def aurc(errors: Any, score: Any) -> float:
    """Return the area under the rejection curve, the mean error over all shares that are answered; smaller is better.

    Source: Geifman, Uziel and El-Yaniv (2018), arXiv 1805.08206.
    """
    return float(rejection_curve(errors, score).mean())


def prediction_rejection_ratio(errors: Any, score: Any) -> float:
    """Return how much of the gain of a perfect order the score's order has: 1 for a perfect one, 0 for a random one.

    (ē − AURC(score)) / (ē − AURC(errors)), where ē is the mean error; negative where the order is worse than random,
    NaN where all errors are equal. Source: Malinin and Gales (2021), arXiv 2002.07650.
    """
    errors, score = _pairs(errors, score)
    if np.ptp(errors) == 0:
        return float("nan")
    return float((errors.mean() - aurc(errors, score)) / (errors.mean() - aurc(errors, errors)))
