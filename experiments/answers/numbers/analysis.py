"""The numbers of one model on one benchmark: AUROC, rejection, lengths, other definitions of right, transfer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.answers.numbers import auroc
from experiments.answers.numbers.auroc import auroc_interval
from experiments.answers.numbers.combination import Combination, add_combinations, auroc_by_score, features
from experiments.answers.numbers.groups import Group, as_floats
from experiments.answers.numbers.logistic import fit_logistic, log_odds
from experiments.answers.numbers.scores import CURVES, MAIN
from experiments.domains.statistics import coverage_accuracy
from isouq import stats

COVERAGES = np.linspace(0.1, 1, 19)
SUREST = (1, 0.5, 0.2)  # shares of the questions whose accuracy the table shows
CURVE_RUNS = 200  # resamples of a rejection curve
# Pairs of scores that say how much of a norm is p alone; the last is epistemic uncertainty against P(True).
PAIRS = (
    ("epistemic_mean", "aleatoric_mean"), ("epistemic_mean", "nll_mean"), ("grad_log_mean", "aleatoric_mean"),
    ("grad_log_mean", "nll_mean"), ("beyond_mean", "nll_mean"), ("epistemic_mean", "grad_log_mean"),
    ("epistemic_mean", "p_true"),
)  # fmt: skip
Areas = dict[str, stats.Interval]


class Curve(NamedTuple):
    """Accuracy `[coverages]` when the share `COVERAGES` with the lowest score is answered, with its 95 % interval.

    surest: accuracy at the shares `SUREST`. aurc: value, low, high of the mean share of errors over all coverages.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    surest: np.ndarray
    aurc: np.ndarray


class Part(NamedTuple):
    """Questions whose answers are about equally long: lengths in tokens, counts, AUROC by score (with few, none)."""

    shortest: int
    longest: int
    right: int
    wrong: int
    auroc: Areas


class View(NamedTuple):
    """Another definition of right: how many answers are right, how many wrong, and AUROC by score with that label."""

    right: int
    wrong: int
    auroc: Areas


class Rank(NamedTuple):
    """Spearman's ρ of two scores with its bootstrap 95 % interval over the questions; NaN where it is undefined."""

    rho: float
    low: float
    high: float


class Analysis(NamedTuple):
    """A model on a benchmark. Where not both classes are there, combinations, auroc, curves, parts, ranks are empty.

    combinations: those that could be fitted; their held-out log odds are among the group's scores. auroc, ratios,
    curves: by score; ratios: prediction rejection ratios. parts: the answers by length. ranks: by the pairs `PAIRS`;
    matrix: Spearman's ρ between the scores `MAIN`. views: by definition of right. choices: mc1 and mc2, means over the
    questions. transfer: AUROC of the combination of the other models on this one, as it is and with ‖∇p‖² divided by
    ‖θ‖². below_half: the share of the judged answers with p by length below ½; NaN where p is unknown. constant: the
    scores that are the same for every question.
    """

    group: Group
    combinations: dict[str, Combination]
    auroc: Areas
    ratios: Areas
    curves: dict[str, Curve]
    parts: list[Part]
    ranks: dict[tuple[str, str], Rank]
    matrix: np.ndarray
    views: dict[str, View]
    choices: Areas
    transfer: tuple[stats.Interval | None, stats.Interval | None]
    below_half: float
    constant: list[str]


def analyse_groups(groups: Sequence[Group]) -> list[Analysis]:
    """Return the numbers of each model on each benchmark."""
    with_combinations = [add_combinations(group) if group.has_both_classes else (group, {}) for group in groups]
    fitted = [group for group, _ in with_combinations]
    return [analyse(group, combinations, fitted) for group, combinations in with_combinations]


def analyse(group: Group, combinations: dict[str, Combination], groups: Sequence[Group]) -> Analysis:
    """Return the numbers of a group; groups: all of them, for the transfer from the other models of the benchmark."""
    others = [one for one in groups if one.benchmark == group.benchmark and one.model != group.model]
    both = group.has_both_classes
    return Analysis(
        group,
        combinations,
        auroc=auroc_by_score(group, combinations) if both else {},
        ratios={name: rejection_ratio(group, group.scores[name]) for name in group.scores} if both else {},
        curves={name: reject(group, group.scores[name]) for name in CURVES if name in group.scores} if both else {},
        parts=divide_by_length(group) if both else [],
        ranks={pair: rank(group, *pair) for pair in PAIRS} if both else {},
        matrix=rank_matrix(group),
        views=label_by_views(group),
        choices=average_choices(group),
        transfer=(transfer(group, others, False), transfer(group, others, True)),
        below_half=share_below_half(group),
        constant=[name for name, score in group.scores.items() if np.nanmin(score) == np.nanmax(score)],
    )


def share_below_half(group: Group) -> float:
    """Return the share of the judged answers whose p by length lies below ½, where p(1 − p) falls with p."""
    nll = group.scores.get("nll_mean", np.zeros(0))
    nll = nll[np.isfinite(nll)]
    return float(np.mean(nll > np.log(2))) if len(nll) else float("nan")


def divide_by_length(group: Group) -> list[Part]:
    """Return the thirds of the answers by number of tokens; fewer than three where many answers have one length."""
    lengths = group.scores.get("num_tokens")
    if lengths is None:
        return []
    cuts = np.quantile(lengths[np.isfinite(lengths)], [1 / 3, 2 / 3])
    third = np.where(np.isfinite(lengths), np.digitize(lengths, cuts, right=True), -1)
    parts = []
    for i in range(3):
        mask = third == i
        if mask.any():
            wrong = group.wrong[mask]
            areas = _main_areas(group, wrong, mask) if auroc.can_test(wrong) else {}
            right = int((~wrong).sum())
            ends = int(lengths[mask].min()), int(lengths[mask].max())
            parts.append(Part(*ends, right, len(wrong) - right, areas))
    return parts


def label_by_views(group: Group) -> dict[str, View]:
    """Return the AUROC of the main scores under every other definition of right."""
    views = {}
    for name, label in group.views.items():
        mask = np.isfinite(label)
        wrong = label[mask] == 0
        views[name] = View(int((~wrong).sum()), int(wrong.sum()), _main_areas(group, wrong, mask))
    return views


def _main_areas(group: Group, wrong: np.ndarray, mask: np.ndarray) -> Areas:
    """Return the AUROC of the main scores over the questions of a mask; wrong: the labels of those."""
    areas = {name: auroc_interval(wrong, group.scores[name][mask]) for name in MAIN if name in group.scores}
    return {name: one for name, one in areas.items() if one is not None}


def average_choices(group: Group) -> Areas:
    """Return mc1 and mc2: the mean over all questions that have them, with its bootstrap 95 % interval."""
    columns = {name: as_floats([row.get(name) for row in group.rows]) for name in ("mc1", "mc2")}
    known = {name: values[~np.isnan(values)] for name, values in columns.items()}
    return {name: stats.bootstrap_mean(values, resamples=2000) for name, values in known.items() if len(values)}


def transfer(group: Group, others: Sequence[Group], divided: bool) -> stats.Interval | None:
    """Return the AUROC on a group of the combination that is fitted to the questions of other models.

    The features are log p(1 − p) and log ‖∇p‖²; divided: log(‖∇p‖²/‖θ‖²), ‖θ‖² the squared norm of a model's
    parameters. The interval is over the questions of the group. None where nothing can be fitted or scored.
    """
    test, train = _pool([group], divided), _pool(others, divided)
    if test is None or train is None or len(np.unique(train[1])) < 2:
        return None
    return auroc_interval(test[1], log_odds(fit_logistic(*train), test[0]))


def _pool(groups: Sequence[Group], divided: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Return features and labels of several models' questions; a model without them adds none."""
    xs, ys = [], []
    for group in groups:
        x = features(group)
        norm = (group.rows[0].get("param_sq_norm") or 0) if divided else 1
        if x is None or norm == 0:
            continue
        known = np.isfinite(x[:, 0])
        xs.append(x[known] - [0, np.log(norm)])
        ys.append(group.wrong[known])
    return (np.concatenate(xs), np.concatenate(ys)) if xs else None


def reject(group: Group, score: Float[np.ndarray, " n"]) -> Curve:
    """Return the accuracy when only the questions with the lowest scores are answered, for every share of them."""
    known = np.isfinite(score)
    questions = np.column_stack([score[known], group.wrong[known]])

    def curve(rows: Float[np.ndarray, "n 2"]) -> np.ndarray:
        risk = stats.rejection_curve(rows[:, 1], rows[:, 0])
        return np.array([*(coverage_accuracy(risk, c) for c in COVERAGES), risk.mean()])

    value = curve(questions)
    low, high = stats.bootstrap_interval(curve, questions, resamples=CURVE_RUNS)
    surest = np.interp(SUREST, COVERAGES, value[:-1])
    return Curve(value[:-1], low[:-1], high[:-1], surest, np.array([value[-1], low[-1], high[-1]]))


def rejection_ratio(group: Group, score: Float[np.ndarray, " n"]) -> stats.Interval:
    """Return the prediction rejection ratio over the questions that have the score, with its sd and 95 % interval.

    A resample of one class alone is left out.
    """
    known = np.isfinite(score)
    questions = np.column_stack([group.wrong[known], score[known]])

    def ratio(rows: Float[np.ndarray, "n 2"]) -> float:
        return stats.prediction_rejection_ratio(rows[:, 0], rows[:, 1])

    drawn = np.random.default_rng(0).integers(len(questions), size=(CURVE_RUNS, len(questions)))
    return auroc.with_spread(len(questions), ratio(questions), np.array([ratio(questions[rows]) for rows in drawn]))


def rank_matrix(group: Group) -> Float[np.ndarray, "scores scores"]:
    """Return Spearman's ρ between the scores `MAIN`, NaN where a score is constant or not there."""
    known = {name: group.scores[name] for name in MAIN if name in group.scores}
    matrix = np.full((len(MAIN), len(MAIN)), np.nan)
    for i, one in enumerate(MAIN):
        for j, other in enumerate(MAIN[: i + 1]):
            if one in known and other in known:
                matrix[i, j] = matrix[j, i] = _rho(_pairs(group, one, other))
    return matrix


def rank(group: Group, one: str, other: str) -> Rank:
    """Return Spearman's ρ over the questions that have both scores, with its bootstrap 95 % interval."""
    pairs = _pairs(group, one, other)
    rho = _rho(pairs)
    if not np.isfinite(rho):
        return Rank(float("nan"), float("nan"), float("nan"))
    low, high = stats.bootstrap_interval(_rho, pairs, resamples=auroc.RUNS)
    return Rank(rho, float(low), float(high))


def _rho(pairs: Float[np.ndarray, "n 2"]) -> float:
    return stats.spearman(pairs[:, 0], pairs[:, 1]) if len(pairs) > 1 else float("nan")


def _pairs(group: Group, one: str, other: str) -> Float[np.ndarray, "n 2"]:
    """Return both scores of the questions that have them; no row where the group lacks a score."""
    if one not in group.scores or other not in group.scores:
        return np.zeros((0, 2))
    pairs = np.column_stack([group.scores[one], group.scores[other]])
    return pairs[np.isfinite(pairs).all(axis=1)]
