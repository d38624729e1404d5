"""The numbers of the experiment `qa`: areas under the ROC curve, the learned combination, paired tests.

Label 1 = the answer is wrong; a higher score = more uncertain. Intervals are over questions, drawn anew with
replacement: there is one greedy answer a question, so there are no seeds to average over.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.answers.numbers.table import BASELINES, FEATURES, SCORES, Group
from isouq import stats

RUNS = 300  # resamples of an interval, and splits of the learned combination
TESTS = 1000  # of a test: the p-values of a large family need more
FEW = 10  # right or wrong answers, below which a bootstrap cannot be trusted and nothing is tested
L2 = 1.0  # of the combination, on standardised features
OURS = ("combined_mean", "epistemic_mean", "aleatoric_mean")  # tested against every baseline


# logistic regression


def fit_logistic(x: Float[np.ndarray, "n D"], y: np.ndarray, l2: float = L2) -> Float[np.ndarray, " D_1"]:
    """Weights [intercept, D slopes] of P(y = 1 | x) = σ(w₀ + x·w), for x as given.

    Minimises Σᵢ log-loss + ½ l2 ‖w‖², the slopes taken on features standardised by x, the intercept free; Newton's
    method with halved steps. A constant feature has the slope 0. Raises ValueError for one class only, for NaN or
    infinity, and for l2 ≤ 0 (the classes may be separable: no minimum).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not np.isfinite(x).all():
        raise ValueError("the features hold NaN or infinity; replace or remove those rows first")
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}; expected a positive number, for the classes may be separable")
    if y.min() == y.max():
        raise ValueError(f"a logistic regression needs both classes; all {len(y)} labels are {y[0]:g}")
    mean, scale = x.mean(axis=0), x.std(axis=0)
    constant = scale <= 1e-12 * np.abs(mean)
    scale = np.where(constant, 1, scale)
    z = np.column_stack([np.ones(len(x)), np.where(constant, 0, (x - mean) / scale)])
    penalty = np.r_[0.0, np.full(x.shape[1], l2)]
    w = np.zeros(z.shape[1])
    w[0] = np.log(y.mean() / (1 - y.mean()))
    loss = _log_loss(z, y, penalty, w)
    for _ in range(50):
        p = _sigmoid(z @ w)
        gradient = z.T @ (p - y) + penalty * w
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty), gradient)
        size = 1.0
        while (lower := _log_loss(z, y, penalty, w - size * step)) > loss and size > 1e-6:
            size /= 2
        w, done, loss = w - size * step, abs(loss - lower) <= 1e-12 * max(1.0, loss), lower
        if done:
            break
    slopes = w[1:] / scale
    return np.r_[w[0] - slopes @ mean, slopes]


def predict_logistic(weights: Float[np.ndarray, " D_1"], x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
    """P(y = 1 | x), of the weights that `fit_logistic` gives."""
    return _sigmoid(weights[0] + np.asarray(x, np.float64) @ weights[1:])


def _log_loss(z: np.ndarray, y: np.ndarray, penalty: np.ndarray, w: np.ndarray) -> float:
    margin = z @ w
    return float(np.sum(np.logaddexp(0, margin) - y * margin) + penalty @ w**2 / 2)


def _sigmoid(margin: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -margin))


# areas under the ROC curve


def draws(n: int, runs: int, seed: int = 0) -> Float[np.ndarray, "runs n"]:
    """How often each of n questions is drawn, in each of `runs` resamples of n with replacement."""
    rows = np.random.default_rng(seed).integers(n, size=(runs, n)) + n * np.arange(runs)[:, None]
    return np.bincount(rows.ravel(), minlength=runs * n).reshape(runs, n).astype(np.float64)


def areas(wrong: Bool[np.ndarray, " n"], score: Float[np.ndarray, " n"], counts: np.ndarray) -> np.ndarray:
    """AUROC of every resample `[runs]`, as `stats.auroc` of the drawn questions; NaN where one class alone is drawn.

    counts: `[runs, n]`, how often a question is drawn. Cost: one sort for all resamples.
    """
    right = np.flatnonzero(~wrong)
    right = right[np.argsort(score[right])]
    drawn = np.zeros((len(counts), len(right) + 1))  # right answers that are drawn, below each place in their order
    np.cumsum(counts[:, right], axis=1, out=drawn[:, 1:])
    below, up_to = (np.searchsorted(score[right], score[wrong], side) for side in ("left", "right"))
    positive = counts[:, wrong]
    pairs = positive.sum(axis=1) * drawn[:, -1]
    won = np.sum(positive * (drawn[:, below] + drawn[:, up_to]), axis=1) / 2  # a tie is worth one half
    return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def area(wrong: np.ndarray, score: np.ndarray) -> stats.Interval | None:
    """AUROC over the questions that have the score, with the sd and the 95 % interval over resamples of them.

    `count` is the number of these questions. None where one class alone has the score.
    """
    known = np.isfinite(score)
    wrong, score = wrong[known], score[known]
    if not 0 < wrong.sum() < len(wrong):
        return None
    return _interval(len(wrong), stats.auroc(wrong, score), areas(wrong, score, draws(len(wrong), RUNS)))


def _interval(count: int, value: float, resampled: np.ndarray) -> stats.Interval:
    """Percentiles over the resamples that hold both classes; NaN for fewer than two such resamples."""
    found = resampled[np.isfinite(resampled)]
    if len(found) < 2:
        return stats.Interval(count, value, float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(found, [0.025, 0.975])
    return stats.Interval(count, value, float(found.std(ddof=1)), float(low), float(high))


# the learned combination


class Learned(NamedTuple):
    """A combination that is fitted on half of the questions and scored on the other half, again and again.

    odds: `[runs, n]`, log odds of "wrong". counts: `[runs, n]`, how often a question is drawn from the half that is
    scored. held_out: `[n]`, the mean of the odds over the runs that were not fitted on the question. All NaN, and
    never drawn, for a question without the features. areas: `[runs]`, of each run's draws.
    """

    odds: np.ndarray
    counts: np.ndarray
    held_out: np.ndarray
    areas: np.ndarray

    def areas_of(self, wrong: np.ndarray, known: np.ndarray) -> np.ndarray:
        """The same over the questions of the mask `known` alone; wrong: `[n]`."""
        if known[np.isfinite(self.held_out)].all():
            return self.areas
        pairs = zip(self.odds[:, known], self.counts[:, known], strict=True)
        return np.array([areas(wrong[known], odds, counts[None])[0] for odds, counts in pairs])

    def interval(self) -> stats.Interval:
        """Mean AUROC of the first `RUNS` runs, sd, and 95 % interval: of split and of resampling the scored half."""
        found = self.areas[:RUNS][np.isfinite(self.areas[:RUNS])]
        mean = float(found.mean()) if len(found) else float("nan")
        return _interval(int(np.isfinite(self.held_out).sum()), mean, found)


def features(group: Group, name: str = "combined_mean") -> np.ndarray | None:
    """Log aleatoric and log epistemic of every question `[n, 2]`, NaN where one is not known; None without both."""
    names = FEATURES[name]
    if not all(one in group.scores for one in names):
        return None
    x = np.column_stack([group.scores[one] for one in names])
    x[~np.isfinite(x).all(axis=1)] = np.nan
    return x


def learned(group: Group, name: str, runs: int, seed: int = 0) -> Learned | None:
    """The combination `name`; each run has a new split, stratified by the label, and draws from its other half.

    None where the features are not known or a class has fewer than two questions.
    """
    x = features(group, name)
    if x is None:
        return None
    known = np.isfinite(x[:, 0])
    x, wrong = x[known], group.wrong[known]
    n = len(wrong)
    if min(wrong.sum(), n - wrong.sum()) < 2:
        return None
    rng = np.random.default_rng(seed)
    odds, counts = np.full((runs, len(known)), np.nan), np.zeros((runs, len(known)))
    scored, found = np.zeros((runs, len(known)), bool), np.full(runs, np.nan)
    rows = np.flatnonzero(known)
    for run in range(runs):
        train = _half(wrong, rng)
        w = fit_logistic(x[train], wrong[train])
        odds[run, rows] = w[0] + x @ w[1:]
        test = rows[~train]
        scored[run, test] = True
        counts[run, test] = rng.multinomial(len(test), np.full(len(test), 1 / len(test)))
        found[run] = areas(wrong, odds[run, rows], counts[run : run + 1, rows])[0]
    held_out = np.nansum(np.where(scored, odds, 0), axis=0) / np.maximum(scored.sum(axis=0), 1)
    return Learned(odds, counts, np.where(scored.any(axis=0), held_out, np.nan), found)


def _half(wrong: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask of half of each class, at least one question of each on both sides."""
    mask = np.zeros(len(wrong), bool)
    for label in (False, True):
        of_class = rng.permutation(np.flatnonzero(wrong == label))
        mask[of_class[: len(of_class) // 2]] = True
    return mask


def with_learned(group: Group) -> tuple[Group, dict[str, Learned]]:
    """The group with the combinations' held-out log odds among its scores, and the combinations that can be fitted."""
    found = {name: learned(group, name, max(RUNS, TESTS) if name in OURS else RUNS) for name in FEATURES}
    kept = {name: one for name, one in found.items() if one is not None}
    scores = {name: one.held_out for name, one in kept.items()} | group.scores
    return group._replace(scores={name: scores[name] for name in SCORES if name in scores}), kept


def all_areas(group: Group, combined: Mapping[str, Learned]) -> dict[str, stats.Interval]:
    """Score -> AUROC; of a combination over its splits, of every other score over all questions that have it."""
    found = {name: combined[name].interval() if name in combined else area(group.wrong, score)
             for name, score in group.scores.items()}  # fmt: skip
    return {name: one for name, one in found.items() if one is not None and np.isfinite(one.mean)}


# tests


def paired(group: Group, combined: Mapping[str, Learned]) -> list[dict[str, Any]]:
    """Differences of AUROC, each of `OURS` less each baseline, on the questions that have both; `p` is two-sided.

    A combination and a baseline are compared on the same draws from the half that the combination was not fitted on,
    any other two on the same draws of all questions. p is `stats.two_sided_p`.
    A pair with fewer than `FEW` right or wrong answers is left out.
    """
    found = []
    counts = draws(max(1, len(group.wrong)), TESTS)
    for ours, baseline in ((a, b) for a in OURS for b in BASELINES if a in group.scores and b in group.scores):
        one, other = group.scores[ours], group.scores[baseline]
        known = np.isfinite(one) & np.isfinite(other)
        wrong = group.wrong[known]
        if min(wrong.sum(), (~wrong).sum()) < FEW:
            continue
        if ours in combined:
            drawn = combined[ours].counts[:, known]
            resampled = combined[ours].areas_of(group.wrong, known) - areas(wrong, other[known], drawn)
            value = np.nanmean(resampled)
        else:
            drawn = counts[:, known]
            resampled = areas(wrong, one[known], drawn) - areas(wrong, other[known], drawn)
            value = stats.auroc(wrong, one[known]) - stats.auroc(wrong, other[known])
        row = {"model": group.model, "benchmark": group.benchmark, "score": ours, "baseline": baseline}
        found.append({**row, "difference": float(value), **tested(resampled[np.isfinite(resampled)])})
    return found


def tested(resampled: np.ndarray) -> dict[str, float]:
    """The 95 % interval of resampled differences, and their two-sided p."""
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"low": float(low), "high": float(high), "p": stats.two_sided_p(resampled)}


def adjusted(tests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tests with `adjusted`: p after Benjamini and Hochberg over all models and benchmarks as one family."""
    if not tests:
        return []
    values = stats.benjamini_hochberg([test["p"] for test in tests])
    return [{**test, "adjusted": float(value)} for test, value in zip(tests, values, strict=True)]
