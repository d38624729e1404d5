"""The numbers of the experiment `trace`: cross-validated classifiers on features of traces, against single scores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.answers.numbers.statistics import FEW, RUNS, TESTS, areas, draws, fit_logistic, tested
from experiments.answers.numbers.table import SCORES, Group
from isouq import stats
from isouq.text.trace import OUR_STATISTICS, OURS, SERIES, STATISTICS

FOLDS = 5
SPLITS = 10  # into folds; a question's log odds are the mean over them
L2 = 1.0  # on standardised features


def _names(series: tuple[str, ...], statistics: tuple[str, ...] = STATISTICS) -> tuple[str, ...]:
    return tuple(f"{one}_{what}" for one in series for what in statistics)


# The features of each classifier; the first is the follow-up paper's.
CLASSIFIERS = {
    "classifier": _names(SERIES),
    "classifier_ours": _names((*SERIES, OURS), (*STATISTICS, *OUR_STATISTICS)),
    "classifier_epistemic": _names(("epistemic",)),
    "classifier_committal": _names(("committal",)),
    "classifier_entropy": _names(("entropy",)),
}
LABELS = {
    "classifier": "trace classifier, all three series",
    "classifier_ours": "with log U_E, means and maxima (ours)",
    "classifier_epistemic": "trace classifier, U_E alone",
    "classifier_committal": "trace classifier, p(1 − p) alone",
    "classifier_entropy": "trace classifier, entropy alone",
    "trace_epistemic_mean": "mean of U_E over the tokens",
    "trace_log_epistemic_mean": "mean of log U_E over the tokens",
    "trace_committal_mean": "mean of p(1 − p) over the tokens",
}
SINGLE = tuple(name for name in LABELS if name.startswith("trace_"))
# Single scores of `qa` that stand beside: those of one answer, not learned ones.
OTHERS = (
    "epistemic_mean", "aleatoric_mean", "p_true", "semantic_entropy", "naive_entropy", "nll_mean", "mean_token_entropy",
    "max_token_entropy", "num_tokens",
)  # fmt: skip
COURSE = {OURS: "log U_E", "committal": "p(1 − p)", "entropy": "entropy, nats"}  # series whose thirds are shown
Row = dict[str, Any]


def title(name: str) -> str:
    """What a classifier or score is called."""
    return LABELS.get(name) or SCORES[name].label


def with_traces(group: Group) -> Group:
    """The group with the classifiers' cross-validated log odds and the trace's means among its scores; others left out.

    A classifier is left out where one class has fewer than two answers.
    """
    judged = [row for row in group.asked if row["state"] == "answered" and row.get("right") is not None]
    found: dict[str, np.ndarray] = {}
    for name, columns in CLASSIFIERS.items():
        x = np.array([[row.get("features", {}).get(column, np.nan) for column in columns] for row in judged])
        odds = None if not len(judged) else cross_validated(x, group.wrong)
        if odds is not None:
            found[name] = odds
    for name in SINGLE:
        column = name.removeprefix("trace_")
        found[name] = np.array([row.get("features", {}).get(column, np.nan) for row in judged])
    found |= {name: group.scores[name] for name in OTHERS if name in group.scores}
    return group._replace(scores=found)


def cross_validated(
    x: Float[np.ndarray, "n D"], wrong: Bool[np.ndarray, " n"], folds: int = FOLDS, splits: int = SPLITS
) -> Float[np.ndarray, " n"] | None:
    """Log odds of "wrong" of every question from regressions that never saw it; NaN without features.

    The folds are stratified by the label, and no more than the smaller class has answers; the mean over `splits`
    divisions. None where a class has fewer than two answers with features.
    """
    known = np.isfinite(x).all(axis=1)
    y = wrong[known]
    folds = min(folds, int(y.sum()), int((~y).sum()))
    if folds < 2:
        return None
    odds = np.zeros(len(y))
    for split in range(splits):
        fold = stratified(y, folds, split)
        for i in range(folds):
            held = fold == i
            w = fit_logistic(x[known][~held], y[~held], L2)
            odds[held] += (w[0] + x[known][held] @ w[1:]) / splits
    found = np.full(len(wrong), np.nan)
    found[known] = odds
    return found


def stratified(wrong: Bool[np.ndarray, " n"], folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """The fold of every question; each fold has its share of each class, give or take one."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(wrong), int)
    for label in (False, True):
        of_class = rng.permutation(np.flatnonzero(wrong == label))
        fold[of_class] = (np.arange(len(of_class)) + (folds - 1) * label) % folds
    return fold


def compared(group: Group, tests: int = TESTS) -> list[Row]:
    """AUROC of the follow-up paper's classifier less that of every single score, on the same resampled questions.

    p is `stats.two_sided_p`. Empty without the classifier; a pair with fewer than `FEW` right or wrong answers is left
    out.
    """
    if "classifier" not in group.scores:
        return []
    found = []
    counts = draws(len(group.wrong), tests)
    ours = group.scores["classifier"]
    for name in (*SINGLE, *OTHERS):
        other = group.scores.get(name)
        known = np.isfinite(ours) & np.isfinite(other) if other is not None else np.zeros(len(ours), bool)
        wrong = group.wrong[known]
        if other is None or min(wrong.sum(), (~wrong).sum()) < FEW:
            continue
        resampled = areas(wrong, ours[known], counts[:, known]) - areas(wrong, other[known], counts[:, known])
        resampled = resampled[np.isfinite(resampled)]
        found.append(
            {
                "model": group.model,
                "benchmark": group.benchmark,
                "score": name,
                "difference": stats.auroc(wrong, ours[known]) - stats.auroc(wrong, other[known]),
                **tested(resampled),
            }
        )
    return found


def profile(rows: list[Row], wrong: np.ndarray) -> dict[str, dict[str, list[stats.Interval]]]:
    """Series -> "right", "wrong" -> the mean of each third over the answers, with its 95 % interval."""
    found: dict[str, dict[str, list[stats.Interval]]] = {}
    for series in COURSE:
        found[series] = {}
        for name, mask in (("right", ~wrong), ("wrong", wrong)):
            mine = [row["features"] for row, one in zip(rows, mask, strict=True) if one and "features" in row]
            thirds = [[row[f"{series}_{part}"] for row in mine] for part in STATISTICS[:3]]
            found[series][name] = [stats.bootstrap_mean(values, resamples=RUNS) for values in thirds]
    return found


def series_of(block: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    """Index of a question -> log_p, entropy, log_grad_sq_norm of its answer's tokens, from a block's arrays."""
    found, start = {}, 0
    for row in block["questions"]:
        stop = start + len(row.get("pieces", ()))
        if stop > start:
            found[row["index"]] = {name: values[start:stop] for name, values in arrays.items()}
        start = stop
    return found
