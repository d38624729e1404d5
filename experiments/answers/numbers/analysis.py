"""What is found out about a model on a benchmark: AUROC, rejection, by length, by another view of right, transfer."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.answers.numbers.statistics import (
    FEW,
    RUNS,
    Learned,
    all_areas,
    area,
    features,
    fit_logistic,
    with_learned,
)
from experiments.answers.numbers.table import CURVES, MAIN, Group
from experiments.domains import numbers as _domain_numbers
from isouq import stats

COVERAGES = np.linspace(0.1, 1, 19)
DRAWN = 200  # resamples of a rejection curve
Curve = dict[str, np.ndarray]


class Part(NamedTuple):
    """Questions whose answers are about equally long: lengths in tokens, counts, AUROC by score (none below FEW)."""

    shortest: int
    longest: int
    right: int
    wrong: int
    areas: dict[str, stats.Interval]


class Analysis(NamedTuple):
    """A model on a benchmark; all but the group is empty where not both classes are there.

    learned: the combinations that could be fitted; their held-out log odds are among the group's scores. areas: AUROC
    by score. curves: rejection, by score. parts: the answers by length.
    """

    group: Group
    learned: dict[str, Learned]
    areas: dict[str, stats.Interval]
    curves: dict[str, Curve]
    parts: list[Part]

    @property
    def title(self) -> str:
        """Names model and benchmark."""
        return f"{self.group.name}, {self.group.benchmark}"


def analysed(found: Sequence[Group]) -> list[Analysis]:
    """The numbers of each model on each benchmark."""
    return [_analysed(group) for group in found]


def _analysed(group: Group) -> Analysis:
    if not group.both:
        return Analysis(group, {}, {}, {}, [])
    group, learned = with_learned(group)
    curves = {name: rejection(group, group.scores[name]) for name in CURVES if name in group.scores}
    return Analysis(group, learned, all_areas(group, learned), curves, by_length(group))


def by_benchmark(found: Sequence[Analysis]) -> dict[str, list[Analysis]]:
    """The models of each benchmark."""
    by: dict[str, list[Analysis]] = {}
    for one in found:
        by.setdefault(one.group.benchmark, []).append(one)
    return by


def by_length(group: Group) -> list[Part]:
    """The thirds of the answers by number of tokens; fewer than three where many answers have one length."""
    lengths = group.scores.get("num_tokens")
    if lengths is None:
        return []
    cuts = np.quantile(lengths[np.isfinite(lengths)], [1 / 3, 2 / 3])
    third = np.where(np.isfinite(lengths), np.digitize(lengths, cuts, right=True), -1)
    found = []
    for i in range(3):
        mask = third == i
        if mask.any():
            wrong = group.wrong[mask]
            ends = int(lengths[mask].min()), int(lengths[mask].max())
            right = int((~wrong).sum())
            areas = _areas(group, wrong, mask) if min(right, len(wrong) - right) >= FEW else {}
            found.append(Part(*ends, right, len(wrong) - right, areas))
    return found


def by_view(group: Group) -> dict[str, tuple[int, int, dict[str, stats.Interval]]]:
    """View of right -> how many are right, how many wrong, and AUROC by score with that label."""
    found = {}
    for name, view in group.views.items():
        mask = np.isfinite(view)
        wrong = view[mask] == 0
        found[name] = int((~wrong).sum()), int(wrong.sum()), _areas(group, wrong, mask)
    return found


def _areas(group: Group, wrong: np.ndarray, mask: np.ndarray) -> dict[str, stats.Interval]:
    made = {name: area(wrong, group.scores[name][mask]) for name in MAIN if name in group.scores}
    return {name: one for name, one in made.items() if one is not None}


def choices(group: Group) -> dict[str, stats.Interval]:
    """mc1 and mc2: mean over all questions that have them, and a bootstrap 95 % interval."""
    found = {}
    for name in ("mc1", "mc2"):
        values = [float(row[name]) for row in group.asked if row.get(name) is not None]
        if values:
            found[name] = stats.bootstrap_mean(values, resamples=2000)
    return found


def transfer(held: Group, others: Sequence[Group], divided: bool) -> stats.Interval | None:
    """AUROC of the learned combination of the other models, on the model that was held out.

    Of log p(1 − p) and log ‖∇p‖²; divided: of log(‖∇p‖²/‖θ‖²), ‖θ‖² the squared norm of a model's parameters. Every
    question of the others is fitted on, every one of `held` scored; the interval is over these. None where it cannot
    be fitted or scored.
    """
    test, train = _pooled([held], divided), _pooled(others, divided)
    if test is None or train is None or len(np.unique(train[1])) < 2:
        return None
    w = fit_logistic(*train)
    return area(test[1], w[0] + test[0] @ w[1:])


def _pooled(groups: Sequence[Group], divided: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Features and labels of several models' questions; a model without them adds none."""
    xs, ys = [], []
    for group in groups:
        x = features(group)
        norm = (group.asked[0].get("param_sq_norm") or 0) if divided else 1
        if x is None or norm == 0:
            continue
        known = np.isfinite(x[:, 0])
        xs.append(x[known] - [0, np.log(norm)])
        ys.append(group.wrong[known])
    return (np.concatenate(xs), np.concatenate(ys)) if xs else None


def rejection(group: Group, score: np.ndarray) -> Curve:
    """Accuracy `[coverages]` when the share `COVERAGES` with the lowest score is answered: mean, low, high, and `aurc`.

    low, high: 95 % over resamples of the questions. aurc: the mean share of errors over all coverages.
    """
    known = np.isfinite(score)
    score, wrong = score[known], group.wrong[known].astype(float)

    def curve(rows: np.ndarray) -> tuple[list[float], float]:
        risk = _domain_numbers.risks(score[rows], wrong[rows])
        return [_domain_numbers.coverage_accuracy(risk, c) for c in COVERAGES], float(risk.mean())

    rng = np.random.default_rng(0)
    n = len(score)
    drawn = [curve(rng.integers(n, size=n)) for _ in range(DRAWN)]
    accuracy, aurc = curve(np.arange(n))
    low, high = np.quantile([one[0] for one in drawn], [0.025, 0.975], axis=0)
    ends = np.quantile([one[1] for one in drawn], [0.025, 0.975])
    return {"mean": np.array(accuracy), "low": low, "high": high, "aurc": np.array([aurc, *ends])}


def correlations(group: Group) -> np.ndarray:
    """Spearman's ρ between the main scores `[len(MAIN), len(MAIN)]`, NaN where a score is constant or not there."""
    found = np.full((len(MAIN), len(MAIN)), np.nan)
    for i, one in enumerate(MAIN):
        for j, other in enumerate(MAIN[: i + 1]):
            found[i, j] = found[j, i] = rank_correlation(group, one, other)
    return found


def rank_correlation(group: Group, one: str, other: str) -> float:
    """Spearman's ρ over the questions that have both scores; NaN where it is undefined."""
    a, b = _both(group, one, other)
    return stats.spearman(a, b) if len(a) > 1 else float("nan")


def rank_interval(group: Group, one: str, other: str) -> tuple[float, float]:
    """The bootstrap 95 % interval of `rank_correlation` over the questions; NaN where it is undefined."""
    a, b = _both(group, one, other)
    if not np.isfinite(rank_correlation(group, one, other)):
        return float("nan"), float("nan")
    drawn = np.random.default_rng(0).integers(len(a), size=(RUNS, len(a)))
    low, high = np.nanquantile([stats.spearman(a[rows], b[rows]) for rows in drawn], [0.025, 0.975])
    return float(low), float(high)


def _both(group: Group, one: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    if one not in group.scores or other not in group.scores:
        return np.zeros(0), np.zeros(0)
    a, b = group.scores[one], group.scores[other]
    known = np.isfinite(a) & np.isfinite(b)
    return a[known], b[known]
