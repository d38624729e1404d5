"""The numbers of the experiment `trace`: cross-validated classifiers on features of traces, against single scores."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.answers.numbers import auroc
from experiments.answers.numbers.auroc import resampled_auroc
from experiments.answers.numbers.groups import Group, group_rows, join_studies
from experiments.answers.numbers.logistic import fit_logistic, log_odds
from experiments.answers.numbers.scores import SCORES
from experiments.report.outputs import Number, Numbers, table_csv
from experiments.run.job import Result
from isouq import stats

FOLDS = 5
SPLITS = 10  # into folds; a question's log odds are the mean over them
SERIES = ("epistemic", "committal", "entropy")  # the follow-up paper's
STATISTICS = ("early", "middle", "late", "slope", "r_squared")  # the follow-up paper's


def _names(series: tuple[str, ...], statistics: tuple[str, ...] = STATISTICS) -> tuple[str, ...]:
    return tuple(f"{one}_{statistic}" for one in series for statistic in statistics)


# The features of each classifier; the first is the follow-up paper's.
CLASSIFIERS = {
    "classifier": _names(SERIES),
    "classifier_ours": _names((*SERIES, "log_epistemic"), (*STATISTICS, "mean", "max")),
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
# The single scores of `qa` that the classifiers are compared with: scores of one answer that are not learned.
OTHERS = (
    "epistemic_mean", "aleatoric_mean", "p_true", "semantic_entropy", "naive_entropy", "nll_mean", "mean_token_entropy",
    "max_token_entropy", "num_tokens",
)  # fmt: skip
TITLES = LABELS | {name: SCORES[name].label for name in OTHERS}
COURSE = {"log_epistemic": "log U_E", "committal": "p(1 − p)", "entropy": "entropy, nats"}  # thirds are shown
Row = dict[str, Any]


class TraceAnalysis(NamedTuple):
    """The numbers of the traces of one model on one benchmark.

    group: its scores are the classifiers' held-out log odds and the single scores. auroc: by score. tokens: the median
    and the largest number of tokens of an answer. best: the single score with the largest AUROC; None without any.
    course: series -> "right", "wrong" -> the mean of each third over the answers. examples: "right", "wrong" -> the
    longest such answer: index, pieces, and the arrays over its tokens.
    """

    group: Group
    auroc: dict[str, stats.Interval]
    tokens: tuple[float, int]
    best: str | None
    course: dict[str, dict[str, list[stats.Interval]]]
    examples: dict[str, Row]


class TraceNumbers(NamedTuple):
    """The analyses, the adjusted tests of the classifier, and the answers that were traced both ways."""

    analyses: list[TraceAnalysis]
    tests: list[Row]
    checks: list[Row]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return AUROC of the classifiers and of single scores, their differences, the course of a trace, and examples.

    Files: auroc.csv and tests.csv. Questions that were not traced are left out.
    """
    return numbers_of_rows(join_studies(results), [one for one in results if one.numbers["study"] == "trace"])


def numbers_of_rows(rows: Sequence[Row], blocks: Sequence[Result]) -> Numbers:
    """Return the numbers of a row a question; blocks: the results of the study "trace"."""
    traced = [row for row in rows if "features" in row]
    analyses = [analyse(add_traces(group), blocks) for group in group_rows(traced)]
    tests = auroc.adjust([row for one in analyses for row in paired_tests(one.group)])
    names = {one.group.model: one.group.name for one in analyses}
    tests = [row | {"name": names[row["model"]]} for row in tests]
    checks = [_check_row(block.numbers, check, names) for block in blocks for check in block.numbers["checks"]]
    tables = {
        "auroc.csv": [row for one in analyses for row in _auroc_rows(one)],
        "tests.csv": [{name: value for name, value in row.items() if name != "name"} for row in tests],
    }
    summary = [line for one in analyses for line in _summary(one, tests)]
    files = {name: table_csv(lines) for name, lines in tables.items() if lines}
    return Numbers([_table_row(row) for row in traced], summary, files, TraceNumbers(analyses, tests, checks))


def analyse(group: Group, blocks: Sequence[Result]) -> TraceAnalysis:
    """Return the numbers of one group that has the classifiers among its scores."""
    intervals = {name: auroc.auroc_interval(group.wrong, score) for name, score in group.scores.items()}
    areas = {name: interval for name, interval in intervals.items() if interval is not None}
    single = {name: area.mean for name, area in areas.items() if name not in CLASSIFIERS}
    tokens = [len(row["pieces"]) for row in group.rows]
    best = max(single, key=lambda name: single[name]) if single else None
    return TraceAnalysis(
        group, areas, (float(np.median(tokens)), max(tokens)), best, course(group), _examples(group, blocks)
    )


def add_traces(group: Group) -> Group:
    """Return the group with the classifiers, the means of the traces and `OTHERS` as its scores.

    A classifier is left out where one class has fewer than two answers.
    """
    scores: dict[str, np.ndarray] = {}
    for name, columns in CLASSIFIERS.items():
        x = np.array([[row.get("features", {}).get(column, np.nan) for column in columns] for row in group.judged])
        odds = cross_validate(x, group.wrong) if group.judged else None
        if odds is not None:
            scores[name] = odds
    for name in SINGLE:
        column = name.removeprefix("trace_")
        scores[name] = np.array([row.get("features", {}).get(column, np.nan) for row in group.judged])
    return group._replace(scores=scores | {name: group.scores[name] for name in OTHERS if name in group.scores})


def cross_validate(
    x: Float[np.ndarray, "n D"], wrong: Bool[np.ndarray, " n"], folds: int = FOLDS, splits: int = SPLITS
) -> Float[np.ndarray, " n"] | None:
    """Return the log odds of "wrong" of every question from regressions that never saw it; NaN without features.

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
        fold = assign_folds(y, folds, split)
        for i in range(folds):
            test = fold == i
            weights = fit_logistic(x[known][~test], y[~test])
            odds[test] += log_odds(weights, x[known][test]) / splits
    result = np.full(len(wrong), np.nan)
    result[known] = odds
    return result


def assign_folds(wrong: Bool[np.ndarray, " n"], folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Return the fold of every question; each fold has its share of each class, give or take one."""
    rng = np.random.default_rng(seed)
    fold = np.zeros(len(wrong), int)
    for label in (False, True):
        members = rng.permutation(np.flatnonzero(wrong == label))
        fold[members] = (np.arange(len(members)) + (folds - 1) * label) % folds
    return fold


def paired_tests(group: Group, runs: int | None = None) -> list[Row]:
    """Return the AUROC of the follow-up paper's classifier less that of every single score, on the same resamples.

    Empty without the classifier; a pair with fewer than `auroc.FEW` right or wrong answers is left out.
    """
    if "classifier" not in group.scores:
        return []
    rows = []
    counts = auroc.resample_counts(len(group.wrong), runs or auroc.TESTS)
    ours = group.scores["classifier"]
    for name in (one for one in (*SINGLE, *OTHERS) if one in group.scores):
        other = group.scores[name]
        known = np.isfinite(ours) & np.isfinite(other)
        wrong = group.wrong[known]
        if not auroc.can_test(wrong):
            continue
        drawn = counts[:, known]
        resampled = resampled_auroc(wrong, ours[known], drawn) - resampled_auroc(wrong, other[known], drawn)
        difference = stats.auroc(wrong, ours[known]) - stats.auroc(wrong, other[known])
        row = {"model": group.model, "benchmark": group.benchmark, "score": name}
        rows.append(row | auroc.difference_row(difference, resampled))
    return rows


def course(group: Group) -> dict[str, dict[str, list[stats.Interval]]]:
    """Return series -> "right", "wrong" -> the mean of each third over the answers, with its 95 % interval."""
    by_label = {
        label: [row["features"] for row, one in zip(group.judged, mask, strict=True) if one and "features" in row]
        for label, mask in (("right", ~group.wrong), ("wrong", group.wrong))
    }
    return {
        series: {
            label: [
                stats.bootstrap_mean([row[f"{series}_{third}"] for row in rows], resamples=auroc.RUNS)
                for third in STATISTICS[:3]
            ]
            for label, rows in by_label.items()
        }
        for series in COURSE
    }


def split_arrays(block: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[int, dict[str, np.ndarray]]:
    """Return index of a question -> log_p, entropy, log_grad_sq_norm of its answer's tokens, from a block's arrays."""
    by_index, start = {}, 0
    for row in block["questions"]:
        stop = start + len(row.get("pieces", ()))
        if stop > start:
            by_index[row["index"]] = {name: values[start:stop] for name, values in arrays.items()}
        start = stop
    return by_index


def _examples(group: Group, blocks: Sequence[Result]) -> dict[str, Row]:
    """Return the longest right and the longest wrong answer, with the series over their tokens."""
    series: dict[int, dict[str, np.ndarray]] = {}
    for block in blocks:
        if (block.numbers["model"], block.numbers["benchmark"]) == (group.model, group.benchmark):
            series = split_arrays(block.numbers, block.arrays) | series
    examples = {}
    for label, is_wrong in (("right", False), ("wrong", True)):
        rows = [row for row, wrong in zip(group.judged, group.wrong, strict=True) if wrong == is_wrong]
        if rows:
            row = max(rows, key=lambda row: len(row["pieces"]))
            arrays = series[row["index"]]
            examples[label] = {
                "index": row["index"],
                "pieces": row["pieces"],
                "epistemic": np.exp(2 * arrays["log_p"] + arrays["log_grad_sq_norm"]),
                "committal": np.exp(arrays["log_p"]) * -np.expm1(arrays["log_p"]),
                "entropy": arrays["entropy"],
            }
    return examples


def _check_row(block: Mapping[str, Any], check: Row, names: Mapping[str, str]) -> Row:
    """Return a check with the names of its model and benchmark, and how long 200 probes take beside the exact trace."""
    ratio = check["seconds_probe"] * 200 / (check["seconds_token"] * check["tokens"])
    name = names.get(block["model"], block["model"])
    return {"name": name, "benchmark": block["benchmark"], **check, "ratio": ratio}


def _auroc_rows(one: TraceAnalysis) -> list[Row]:
    right, wrong = one.group.counts
    key = {"model": one.group.model, "benchmark": one.group.benchmark}
    return [
        key | {"score": name, "right": right, "wrong": wrong} | _round(auroc=area.mean, low=area.low, high=area.high)
        for name, area in one.auroc.items()
    ]


def _table_row(row: Row) -> Row:
    columns = {name: row.get(name) for name in ("model", "benchmark", "index", "state", "right", "num_tokens")}
    return columns | _round(**{f"trace_{name}": value for name, value in row["features"].items()})


def _round(**values: float) -> dict[str, float]:
    """Return the values with six significant digits."""
    return {name: float(f"{value:.6g}") for name, value in values.items()}


def _summary(one: TraceAnalysis, tests: Sequence[Row]) -> list[Number]:
    """Return the lines of summary.csv for one model on one benchmark."""
    group, judged = one.group, len(one.group.wrong)
    median, most = one.tokens
    lines = [Number.value(group.title, "share_right", group.counts[0] / judged, judged, judged)] if judged else []
    lines += [Number.value(group.title, "tokens_median", median, len(group.rows), judged)]
    lines += [Number.value(group.title, "tokens_most", float(most), len(group.rows), judged)]
    lines += [Number.of(group.title, f"auroc_{name}", area, judged) for name, area in one.auroc.items()]
    for row in tests:
        if (row["model"], row["benchmark"]) == (group.model, group.benchmark):
            ends = row["difference"], row["low"], row["high"]
            lines.append(Number(group.title, f"auroc_classifier_less_{row['score']}", *ends, judged, judged))
    for series, by_label in one.course.items():
        for label, thirds in by_label.items():
            for third, interval in zip(STATISTICS[:3], thirds, strict=True):
                lines.append(Number.of(group.title, f"{series}_{third}_{label}", interval, judged))
    return lines
