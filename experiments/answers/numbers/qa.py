"""The numbers of the experiment `qa`: every AUROC, test, curve and cost that the summary and the figures show."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from experiments.answers.numbers import auroc
from experiments.answers.numbers.analysis import SUREST, Analysis, analyse_groups
from experiments.answers.numbers.combination import paired_tests
from experiments.answers.numbers.groups import group_rows, join_studies
from experiments.answers.numbers.scores import PASSES, SCORES, paper
from experiments.report.outputs import Number, Numbers, table_csv
from experiments.run.job import Result
from isouq import stats

Row = dict[str, Any]


class Cost(NamedTuple):
    """What a score needs beside the greedy answer; seconds a question and MiB are NaN where they were not measured."""

    forward: int
    backward: int
    samples: bool
    seconds: float
    mib: float


class Benchmark(NamedTuple):
    """The models of one benchmark that have an AUROC.

    mean: score -> the mean of the models' AUROC, and its spread over the models. matrix: Spearman's ρ between the main
    scores, the mean over the models that have the number.
    """

    analyses: list[Analysis]
    mean: dict[str, stats.Interval]
    matrix: np.ndarray


class QaNumbers(NamedTuple):
    """analyses: of every model and benchmark; benchmarks: those with an AUROC, by name. tests: adjusted, a row each.

    costs: by score; answer_seconds: of the greedy answer itself; measured_on: model and benchmark of the measured
    costs. left_out: lines of the files, and questions, that were not used, each with the reason.
    """

    analyses: list[Analysis]
    benchmarks: dict[str, Benchmark]
    tests: list[Row]
    costs: dict[str, Cost]
    answer_seconds: float
    measured_on: list[str]
    left_out: list[str]

    @property
    def scored(self) -> list[Analysis]:
        """Return the analyses that have an AUROC."""
        return [one for one in self.analyses if one.auroc]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return all numbers of the finished jobs; files: auroc.csv, tests.csv, correlations.csv and answers.jsonl."""
    blocks = [result.numbers for result in results]
    costs = [row for block in blocks if block["study"] == "cost" for row in block["costs"]]
    answered = [block for block in blocks if block["study"] == "reference"]
    left_out = list(dict.fromkeys(line for block in answered for line in (*block["broken"], *_overlong_lines(block))))
    computed = numbers_of_rows([_to_float32(row) for row in join_studies(results)], costs, left_out)
    lines = [
        json.dumps({"model": block["model"], "benchmark": block["benchmark"], "seed": block["seed"], **one},
                   ensure_ascii=False)
        for block in answered for one in block["questions"]
    ]  # fmt: skip
    return replace(computed, files=computed.files | {"answers.jsonl": "\n".join([*lines, ""])})


def _overlong_lines(block: Row) -> list[str]:
    """Return a line for every question of a block that does not fit in the model's context, with the reason."""
    return [f"{block['benchmark']} question {one['index']}: {one['why']}" for one in block["questions"] if "why" in one]


def _to_float32(row: Row) -> Row:
    """Return the row with seven digits, all that float32 holds."""
    return {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in row.items()}


def numbers_of_rows(rows: Sequence[Row], costs: Sequence[Row], left_out: Sequence[str] = ()) -> Numbers:
    """Return the numbers of a row a question.

    rows: model, benchmark, index, state, right, and the scores (None or NaN: the question has none). costs: model,
    benchmark, pass (of `scores.PASSES`), seconds a question, mib of the passes that were measured.
    """
    analyses = analyse_groups(group_rows(rows))
    scored = [one for one in analyses if one.auroc]
    tests = auroc.adjust([test for one in scored for test in paired_tests(one.group, one.combinations)])
    seconds, mib = _average_by_pass(costs, "seconds"), _average_by_pass(costs, "mib")
    details = QaNumbers(
        analyses,
        _by_benchmark(scored),
        tests,
        {name: _cost(name, seconds, mib) for name in SCORES},
        seconds.get("answer", float("nan")),
        sorted({f"{row['model']} on {row['benchmark']}" for row in costs}),
        list(left_out),
    )
    tables = {
        "auroc.csv": [row for one in scored for row in _auroc_rows(one)],
        "tests.csv": [_round(test) for test in tests],
        "correlations.csv": [row for one in scored for row in _correlation_rows(one)],
    }
    files = {name: table_csv(lines) for name, lines in tables.items() if lines}
    return Numbers(list(rows), _summary(details), files, details)


def _by_benchmark(scored: Sequence[Analysis]) -> dict[str, Benchmark]:
    """Return the models of each benchmark with their means."""
    by_name: dict[str, list[Analysis]] = {}
    for one in scored:
        by_name.setdefault(one.group.benchmark, []).append(one)
    benchmarks = {}
    for name, analyses in by_name.items():
        areas = {score: [one.auroc[score].mean for one in analyses if score in one.auroc] for score in SCORES}
        means = {score: stats.bootstrap_mean(values) for score, values in areas.items() if values}
        matrices = np.array([one.matrix for one in analyses])
        count = np.isfinite(matrices).sum(axis=0)
        matrix = np.where(count > 0, np.nansum(matrices, axis=0) / np.maximum(count, 1), np.nan)
        benchmarks[name] = Benchmark(analyses, means, matrix)
    return benchmarks


def _cost(score: str, seconds: dict[str, float], mib: dict[str, float]) -> Cost:
    """Return what a score needs, and what its passes took where all of them were measured."""
    names = SCORES[score].passes
    passes = [PASSES[name] for name in names]
    measured = bool(names) and all(name in seconds for name in names)
    return Cost(
        sum(one.forward for one in passes),
        sum(one.backward for one in passes),
        any(one.sampled for one in passes),
        sum(seconds[name] for name in names) if measured else float("nan"),
        max((mib[name] for name in names if name in mib), default=float("nan")),
    )


def _average_by_pass(costs: Sequence[Row], column: str) -> dict[str, float]:
    """Return the mean of a column for each kind of pass that has it."""
    by_pass: dict[str, list[float]] = {}
    for row in costs:
        value = row.get(column)
        if value is not None and np.isfinite(value):
            by_pass.setdefault(row["pass"], []).append(value)
    return {name: float(np.mean(values)) for name, values in by_pass.items()}


def _auroc_rows(one: Analysis) -> list[Row]:
    """Return the rows of auroc.csv, the paper's numbers beside ours."""
    right, wrong = one.group.counts
    known = paper(one.group.benchmark)
    rows = []
    for name, area in one.auroc.items():
        mean, sd = known.get(name, (None, None))
        row = {"model": one.group.model, "benchmark": one.group.benchmark, "score": name, "right": right}
        row |= {"wrong": wrong, "questions": area.count}
        row |= _round({"auroc": area.mean, "sd": area.sd, "low": area.low, "high": area.high})
        ratio = one.ratios[name]
        row |= _round({"prr": ratio.mean, "prr_low": ratio.low, "prr_high": ratio.high})
        rows.append(row | {"paper": mean, "paper_sd": sd})
    return rows


def _correlation_rows(one: Analysis) -> list[Row]:
    """Return the rows of correlations.csv."""
    key = {"model": one.group.model, "benchmark": one.group.benchmark}
    return [key | {"score": a, "other": b} | _round(rank._asdict()) for (a, b), rank in one.ranks.items()]


def _round(row: Row) -> Row:
    """Return the row with six decimals, and None for what is not there."""
    return {
        name: (round(value, 6) if np.isfinite(value) else None) if isinstance(value, float) else value
        for name, value in row.items()
    }


def _summary(details: QaNumbers) -> list[Number]:
    """Return the lines of summary.csv; times, which differ from run to run, are not among them."""
    lines = [line for one in details.analyses for line in (*_group_lines(one), *_score_lines(one))]
    for test in details.tests:
        group = next(one.group for one in details.analyses if _key(one) == (test["model"], test["benchmark"]))
        ends = test["difference"], test["low"], test["high"]
        judged = len(group.wrong)
        lines.append(Number(group.title, f"auroc_{test['score']}_less_{test['baseline']}", *ends, judged, judged))
    for name, benchmark in details.benchmarks.items():
        judged = sum(len(one.group.wrong) for one in benchmark.analyses)
        lines += [Number.of(f"{name}, models", f"auroc_{score}", mean, judged)
                  for score, mean in benchmark.mean.items()]  # fmt: skip
    return lines


def _key(one: Analysis) -> tuple[str, str]:
    return one.group.model, one.group.benchmark


def _group_lines(one: Analysis) -> list[Number]:
    """Return the lines about the answers of a model on a benchmark."""
    group = one.group
    right, wrong = group.counts
    judged = right + wrong
    lines = []
    if judged:
        lines += [Number.value(group.title, "share_right", right / judged, judged, judged)]
        lines += [Number.value(group.title, "share_p_below_half", one.below_half, judged, judged)]
    for view, (view_right, view_wrong, areas) in one.views.items():
        count = view_right + view_wrong
        lines += [Number.value(group.title, f"share_{view}", view_right / count, count, judged)]
        lines += [Number.of(group.title, f"auroc_{score}_{view}", i, judged) for score, i in areas.items()]
    return lines + [Number.of(group.title, name, interval, judged) for name, interval in one.choices.items()]


def _score_lines(one: Analysis) -> list[Number]:
    """Return the lines about the scores of a model on a benchmark."""
    title, judged = one.group.title, len(one.group.wrong)
    lines = [Number.of(title, f"auroc_{name}", area, judged) for name, area in one.auroc.items()]
    lines += [Number.of(title, f"prr_{name}", ratio, judged) for name, ratio in one.ratios.items()]
    for name, curve in one.curves.items():
        value, low, high = map(float, curve.aurc)
        lines.append(Number(title, f"aurc_{name}", value, low, high, judged, judged))
        for share, accuracy in zip(SUREST, curve.surest, strict=True):
            lines.append(Number.value(title, f"accuracy_{name}_surest_{share:g}", float(accuracy), judged, judged))
    for (a, b), rank in one.ranks.items():
        lines.append(Number(title, f"spearman_{a}_{b}", *rank, judged, judged))
    for part in one.parts:
        count = part.right + part.wrong
        group = f"{title}, {part.shortest} to {part.longest} tokens"
        lines.append(Number.value(group, "share_right", part.right / count, count, count))
        lines += [Number.of(group, f"auroc_{name}", area, count) for name, area in part.auroc.items()]
    for name, area in zip(("auroc_transfer", "auroc_transfer_divided"), one.transfer, strict=True):
        if area is not None:
            lines.append(Number.of(title, name, area, judged))
    return lines
