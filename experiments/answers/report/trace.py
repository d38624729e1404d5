"""Tables, sentences and figures of the experiment `trace`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.answers.numbers import trace as numbers
from experiments.answers.numbers.statistics import FEW, RUNS, TESTS, adjusted, area
from experiments.answers.numbers.table import Group, groups
from experiments.answers.numbers.trace import CLASSIFIERS, COURSE, FOLDS, LABELS, OTHERS, SPLITS, title
from experiments.answers.tiny_model import TINY
from experiments.report import tables as words
from experiments.report.outputs import Outputs, table_csv
from experiments.run.job import Result
from isouq import plots
from isouq.stats import Interval

SHOWN = {"right": False, "wrong": True}  # the examples of a figure
Row = dict[str, Any]
Areas = dict[str, Interval]


def summarise(results: Sequence[Result], rows: Sequence[Row], preset: str) -> Outputs:
    """AUROC of the classifiers and of single scores, their differences, the course of a trace; figures of both.

    Files: auroc.csv and tests.csv, what those two tables are made from.

    rows: a question each, from `qa.joined`; those that were not traced are left out.
    """
    found = [numbers.with_traces(group) for group in groups([row for row in rows if "features" in row])]
    areas = {(one.model, one.benchmark): _areas(one) for one in found}
    tests = adjusted([test for one in found for test in numbers.compared(one)])
    names = {one.model: one.name for one in found}
    blocks = [result for result in results if result.numbers["study"] == "trace"]
    parts = [f"# Traces, preset `{preset}`: uncertainty along an answer\n"]
    if found:
        parts += [_reading(found), _answers(found), _tables(found, areas), _tested(tests, names), _course(found)]
    else:
        parts.append("There is no answer that was traced, scored and judged, so there is nothing to report.\n")
    parts.append(_checked(blocks, names))
    shown = {_name(one, found): _examples(one, blocks) for one in found}
    figures = {f"trace_{name}": plots.trace_tokens(examples) for name, examples in shown.items() if examples}
    measured: dict[str, dict[str, Areas]] = {}
    for one in found:
        if areas[one.model, one.benchmark]:
            measured.setdefault(one.benchmark, {})[one.name] = areas[one.model, one.benchmark]
            course = numbers.profile(_judged(one), one.wrong)
            figures[f"course_{_name(one, found)}"] = plots.trace_course(course, COURSE)
    if measured:
        figures["auroc"] = plots.qa_auroc(measured, {}, {name: title(name) for name in (*LABELS, *OTHERS)})
    lines = [_line(one, name, area) for one in found for name, area in areas[one.model, one.benchmark].items()]
    files = {name: table_csv(kept) for name, kept in (("auroc.csv", lines), ("tests.csv", tests)) if kept}
    return Outputs([_flat(row) for row in rows if "features" in row], "\n".join(p for p in parts if p), figures, files)


def _name(one: Group, found: Sequence[Group]) -> str:
    model = f"{one.name}_" if len({group.model for group in found}) > 1 else ""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{model}{one.benchmark}")


def _judged(one: Group) -> list[Row]:
    return [row for row in one.asked if row["state"] == "answered" and row.get("right") is not None]


def _areas(one: Group) -> Areas:
    made = {name: area(one.wrong, score) for name, score in one.scores.items()}
    return {name: interval for name, interval in made.items() if interval is not None}


def _line(one: Group, score: str, area: Interval) -> Row:
    wrong = int(one.wrong.sum())
    counted = {"right": len(one.wrong) - wrong, "wrong": wrong}
    measured = {"auroc": area.mean, "low": area.low, "high": area.high}
    return {"model": one.model, "benchmark": one.benchmark, "score": score, **counted} | {
        name: float(f"{value:.6g}") for name, value in measured.items()
    }


def _flat(row: Row) -> Row:
    kept = {name: row.get(name) for name in ("model", "benchmark", "index", "state", "right", "num_tokens")}
    return kept | {f"trace_{name}": float(f"{value:.6g}") for name, value in row["features"].items()}


def _reading(found: Sequence[Group]) -> str:
    tiny = any(one.model == TINY for one in found)
    made = " The model is a tiny one, made for tests: its numbers mean nothing." if tiny else ""
    return (
        "At token t: U_E = ‖∇p(v_t | v_<t)‖² by all parameters, exactly; p(1 − p) of the chosen token; entropy of the "
        f"next token's distribution, in nats.{made} A classifier is a logistic regression on the features of the "
        "series: the means of the early, middle and late third, the slope of a line and its R² "
        f"(arXiv 2605.07776); {FOLDS} folds stratified by the label, the held-out log odds a mean over {SPLITS} "
        "divisions into folds. AUROC: the chance that a wrong answer has a higher score than a right one; ½ is chance. "
        f"Intervals are 95 % over {RUNS} resamples of the questions, of the held-out log odds as they are: the "
        "regressions are not fitted anew. Without any signal a cross-validated AUROC lies somewhat below ½, for each "
        "fold is judged by the others' share of wrong answers. The follow-up paper reports up to 0.807 on the "
        "reasoning traces, hundreds of tokens long, of other models; here the trace is the answer itself.\n"
    )


def _answers(found: Sequence[Group]) -> str:
    body, notes = [], []
    for one in found:
        wrong = int(one.wrong.sum())
        right = len(one.wrong) - wrong
        tokens = [len(row["pieces"]) for row in one.asked]
        body.append([one.name, one.benchmark, str(len(one.asked)), str(right), str(wrong),
                     str(one.state("refused")), f"{np.median(tokens):.0f}, {max(tokens)}"])  # fmt: skip
        where = f"{one.name}, {one.benchmark}"
        if not one.both:
            label = "wrong" if wrong else "right"
            what = f"all {right + wrong} answers are {label}" if right + wrong else "no answer could be judged"
            notes.append(f"{where}: {what}, so there is no AUROC.")
        elif min(right, wrong) < FEW:
            notes.append(
                f"{where}: only {right} right and {wrong} wrong answers; the intervals say how little that tells, "
                "and nothing is tested."
            )
        if one.both and "classifier" not in one.scores:
            notes.append(f"{where}: no classifier; it needs two right and two wrong answers.")
    header = ["model", "questions", "traced", "right", "wrong", "refused", "tokens: median, most"]
    return "## Answers\n\n" + words.table(header, body) + "".join(f"\n{note}\n" for note in notes)


def _tables(found: Sequence[Group], areas: dict[tuple[str, str], Areas]) -> str:
    shown = [one for one in found if areas[one.model, one.benchmark]]
    if not shown:
        return ""
    names = [name for name in (*LABELS, *OTHERS) if any(name in areas[one.model, one.benchmark] for one in shown)]
    body = [[title(name), *(_area(areas[one.model, one.benchmark].get(name)) for one in shown)] for name in names]
    header = ["", *(f"{one.name}, {one.benchmark}" for one in shown)]
    text = "## AUROC\n\n" + words.table(header, body) + "\n"
    for one in shown:
        mine = {n: i.mean for n, i in areas[one.model, one.benchmark].items() if n not in CLASSIFIERS}
        best = max(mine, key=lambda name: mine[name])
        text += (
            f"{one.name}, {one.benchmark}: the best single score is {title(best)}, {mine[best]:.2f}; it was "
            "chosen after looking, which favours it.\n"
        )
    return text


def _area(found: Interval | None) -> str:
    return "–" if found is None else f"{words.number(found.mean)} {words.bounds(found)}"


def _tested(tests: Sequence[Row], names: Mapping[str, str]) -> str:
    if not tests:
        return ""
    clear = [test for test in tests if test["adjusted"] < 0.05]
    better = sum(test["difference"] > 0 for test in clear)
    body = [
        [names[test["model"]], test["benchmark"], title(test["score"]), f"{test['difference']:+.3f}",
         f"[{test['low']:+.3f}, {test['high']:+.3f}]", f"{test['adjusted']:.3f}"]
        for test in tests
    ]  # fmt: skip
    header = ["model", "questions", "single score", "difference", "95 % interval", "p, adjusted"]
    return (
        "## The classifier of all three series against single scores\n\nIts AUROC less theirs on the same questions; "
        f"two-sided p of the paired bootstrap ({TESTS} resamples) after Benjamini and Hochberg over all {len(tests)} "
        f"tests. {len(clear)} have p < 0.05: {better} for the classifier, {len(clear) - better} for the single score."
        "\n\n" + words.table(header, body)
    )


def _course(found: Sequence[Group]) -> str:
    body = []
    for one in found:
        for series, by_label in numbers.profile(_judged(one), one.wrong).items():
            for label, thirds in by_label.items():
                if thirds[0].count:
                    values = [f"{words.number(i.mean, 3)} {words.bounds(i, 3)}" for i in thirds]
                    body.append([one.name, one.benchmark, COURSE[series], label, *values])
    if not body:
        return ""
    header = ["model", "questions", "series", "answers", "early third", "middle", "late"]
    return "## The course of a trace\n\nMeans over answers, with 95 % intervals.\n\n" + words.table(header, body)


def _checked(blocks: Sequence[Result], names: Mapping[str, str]) -> str:
    checks = [(block.numbers, check) for block in blocks for check in block.numbers["checks"]]
    if not checks:
        return ""
    body = [
        [
            names.get(block["model"], block["model"]),
            block["benchmark"],
            *(str(check[name]) for name in ("tokens", "probes")),
            *(f"{check[name]:.2f}" for name in ("rms", "worst")),
            *(f"{check[name]:.3f}" for name in ("seconds_token", "seconds_probe")),
            f"{check['seconds_probe'] * 200 / (check['seconds_token'] * check['tokens']):.0f}",
        ]
        for block, check in checks
    ]
    header = ["model", "questions", "tokens", "probes", "rms", "largest", "seconds a token", "seconds a probe",
              "200 probes over exact"]  # fmt: skip
    return (
        "## One answer both ways\n\nU_E by forward-mode probes less that by one backward pass a token, in standard "
        "errors of the probes (the errors of one trace are correlated, so the rms is 1 only on average). A probe "
        "serves all tokens of the answer; 200 leave a standard error of 10 %.\n\n" + words.table(header, body)
    )


def _examples(one: Group, blocks: Sequence[Result]) -> dict[str, Row]:
    """The longest right and the longest wrong answer."""
    series: dict[int, Row] = {}
    for block in blocks:
        if (block.numbers["model"], block.numbers["benchmark"]) == (one.model, one.benchmark):
            series = numbers.series_of(block.numbers, block.arrays) | series
    found = {}
    for label, is_wrong in SHOWN.items():
        mine = [row for row, wrong in zip(_judged(one), one.wrong, strict=True) if wrong == is_wrong]
        if mine:
            row = max(mine, key=lambda row: len(row["pieces"]))
            log_p = series[row["index"]]["log_p"]
            found[f"question {row['index']}, {label}"] = {
                "pieces": row["pieces"],
                "epistemic": np.exp(2 * log_p + series[row["index"]]["log_grad_sq_norm"]),
                "committal": np.exp(log_p) * -np.expm1(log_p),
                "entropy": series[row["index"]]["entropy"],
            }
    return found
