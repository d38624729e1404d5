"""The learned combination of both uncertainties: a logistic regression on halves of the questions."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.answers.numbers import auroc
from experiments.answers.numbers.auroc import resampled_auroc
from experiments.answers.numbers.groups import Group
from experiments.answers.numbers.logistic import fit_logistic, log_odds
from experiments.answers.numbers.scores import BASELINES, FEATURES, FREE, SCORES
from isouq import stats

OURS = ("combined_mean", "epistemic_mean", "aleatoric_mean")  # tested against every baseline


class Combination(NamedTuple):
    """A combination that is fitted on half of the questions and scored on the other half, again and again.

    odds: `[runs, n]`, log odds of "wrong". counts: `[runs, n]`, how often a question is drawn from the half that is
    scored. held_out: `[n]`, the mean of the odds over the runs that were not fitted on the question. All NaN, and
    never drawn, for a question without the features. auroc: `[runs]`, of each run's draws.
    """

    odds: np.ndarray
    counts: np.ndarray
    held_out: np.ndarray
    auroc: np.ndarray

    def auroc_among(self, wrong: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return the AUROC of each run `[runs]` over the questions of the mask `known` alone; wrong: `[n]`."""
        if known[np.isfinite(self.held_out)].all():
            return self.auroc
        pairs = zip(self.odds[:, known], self.counts[:, known], strict=True)
        return np.array([resampled_auroc(wrong[known], odds, counts[None])[0] for odds, counts in pairs])

    def interval(self) -> stats.Interval:
        """Return mean AUROC, sd and 95 % interval of the first `auroc.RUNS` runs: splits and resamples vary both."""
        areas = self.auroc[: auroc.RUNS]
        finite = areas[np.isfinite(areas)]
        mean = float(finite.mean()) if len(finite) else float("nan")
        return auroc.with_spread(int(np.isfinite(self.held_out).sum()), mean, finite)


def features(group: Group, name: str = "combined_mean") -> np.ndarray | None:
    """Return log aleatoric and log epistemic of every question `[n, 2]`, NaN where unknown; None without both."""
    names = FEATURES[name]
    if not all(one in group.scores for one in names):
        return None
    x = np.column_stack([group.scores[one] for one in names])
    x[~np.isfinite(x).all(axis=1)] = np.nan
    return x


def fit_combination(group: Group, name: str, runs: int, seed: int = 0) -> Combination | None:
    """Return the combination `name` over `runs` splits into halves, stratified by the label.

    Each run is fitted on one half and scored on a resample of the other. None where the features are not known or a
    class has fewer than two questions.
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
    scored, areas = np.zeros((runs, len(known)), bool), np.full(runs, np.nan)
    rows = np.flatnonzero(known)
    for run in range(runs):
        train = _half(wrong, rng)
        odds[run, rows] = log_odds(fit_logistic(x[train], wrong[train]), x)
        test = rows[~train]
        scored[run, test] = True
        counts[run, test] = rng.multinomial(len(test), np.full(len(test), 1 / len(test)))
        areas[run] = resampled_auroc(wrong, odds[run, rows], counts[run : run + 1, rows])[0]
    held_out = np.nansum(np.where(scored, odds, 0), axis=0) / np.maximum(scored.sum(axis=0), 1)
    return Combination(odds, counts, np.where(scored.any(axis=0), held_out, np.nan), areas)


def _half(wrong: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a mask of half of each class, at least one question of each on both sides."""
    mask = np.zeros(len(wrong), bool)
    for label in (False, True):
        members = rng.permutation(np.flatnonzero(wrong == label))
        mask[members[: len(members) // 2]] = True
    return mask


def add_combinations(group: Group) -> tuple[Group, dict[str, Combination]]:
    """Return the group with the held-out log odds of each combination among its scores, and the combinations."""
    fitted = {name: fit_combination(group, name, max(auroc.RUNS, auroc.TESTS)) for name in FEATURES}
    combinations = {name: one for name, one in fitted.items() if one is not None}
    scores = {name: one.held_out for name, one in combinations.items()} | group.scores
    return group._replace(scores={name: scores[name] for name in SCORES if name in scores}), combinations


def auroc_by_score(group: Group, combinations: Mapping[str, Combination]) -> dict[str, stats.Interval]:
    """Return the AUROC of every score: of a combination over its splits, of another over all questions that have it."""
    intervals = {
        name: combinations[name].interval() if name in combinations else auroc.auroc_interval(group.wrong, score)
        for name, score in group.scores.items()
    }
    return {name: one for name, one in intervals.items() if one is not None and np.isfinite(one.mean)}


def paired_tests(group: Group, combinations: Mapping[str, Combination]) -> list[dict[str, Any]]:
    """Return the AUROC of each of `OURS` less that of each baseline, and of each other score less that of −log p.

    Each pair is compared on the questions that have both scores. A combination and a baseline are compared on the same
    draws from the half that the combination was not fitted on, any other two on the same draws of all questions. A pair
    with fewer than `auroc.FEW` right or wrong answers is left out.
    """
    rows = []
    counts = auroc.resample_counts(max(1, len(group.wrong)), auroc.TESTS)
    pairs = [(a, b) for a in OURS for b in BASELINES] + [(a, FREE) for a in SCORES if a not in (*OURS, FREE)]
    for score, baseline in ((a, b) for a, b in pairs if a in group.scores and b in group.scores):
        one, other = group.scores[score], group.scores[baseline]
        known = np.isfinite(one) & np.isfinite(other)
        wrong = group.wrong[known]
        if not auroc.can_test(wrong):
            continue
        if score in combinations:
            drawn = combinations[score].counts[:, known]
            own_areas = combinations[score].auroc_among(group.wrong, known)
            resampled = own_areas - resampled_auroc(wrong, other[known], drawn)
            difference = np.nanmean(resampled)
        else:
            drawn = counts[:, known]
            resampled = resampled_auroc(wrong, one[known], drawn) - resampled_auroc(wrong, other[known], drawn)
            difference = stats.auroc(wrong, one[known]) - stats.auroc(wrong, other[known])
        row = {"model": group.model, "benchmark": group.benchmark, "score": score, "baseline": baseline}
        rows.append(row | auroc.difference_row(difference, resampled))
    return rows
