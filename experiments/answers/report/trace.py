"""The summary of the experiment `trace`."""

from collections.abc import Sequence
from typing import Any

from experiments.answers.numbers.auroc import FEW, RUNS, TESTS
from experiments.answers.numbers.trace import COURSE, FOLDS, SPLITS, TITLES, TraceAnalysis, TraceNumbers
from experiments.answers.report.parts import answers_section, explain_missing_auroc
from experiments.answers.tiny_model import TINY
from experiments.report import tables
from experiments.report.outputs import Numbers
from isouq.stats import Interval

Row = dict[str, Any]


def report(numbers: Numbers, preset: str) -> str:
    """Return the summary: AUROC of classifiers and single scores, their differences, the course of a trace."""
    details: TraceNumbers = numbers.details
    analyses = details.analyses
    parts = [f"# Traces, preset `{preset}`: uncertainty along an answer\n"]
    if analyses:
        parts += [_reading(analyses), _answers(analyses), _auroc(analyses), _tests(details.tests), _course(analyses)]
    else:
        parts.append("There is no answer that was traced, scored and judged, so there is nothing to report.\n")
    parts.append(_checks(details.checks))
    return "\n".join(part for part in parts if part)


def _reading(analyses: Sequence[TraceAnalysis]) -> str:
    tiny = any(one.group.model == TINY for one in analyses)
    note = " The model is a tiny one, made for tests: its numbers mean nothing." if tiny else ""
    return (
        "At token t: U_E = ‖∇p(v_t | v_<t)‖² by all parameters, exactly; p(1 − p) of the chosen token; entropy of the "
        f"next token's distribution, in nats.{note} A classifier is a logistic regression on the features of the "
        "series: the means of the early, middle and late third, the slope of a line and its R² "
        f"(arXiv 2605.07776). It is cross-validated over {FOLDS} folds stratified by the label, and its score is the "
        f"held-out log odds, a mean over {SPLITS} divisions into folds. AUROC: the chance that a wrong answer has a "
        f"higher score than a right one; ½ is chance. Intervals are 95 % over {RUNS} resamples of the questions, with "
        "the held-out log odds as they are: the regressions are not fitted anew. Without any signal a cross-validated "
        "AUROC lies somewhat below ½, because each fold is judged by the others' share of wrong answers. The follow-up "
        "paper reports up to 0.807 on the reasoning traces, hundreds of tokens long, of other models; the traces here "
        "are those of the answers themselves.\n"
    )


def _answers(analyses: Sequence[TraceAnalysis]) -> str:
    body = []
    for one in analyses:
        group = one.group
        counts = (len(group.rows), *group.counts, group.count_state("refused"))
        body.append([group.name, group.benchmark, *map(str, counts), f"{one.tokens[0]:.0f}, {one.tokens[1]}"])
    header = ["model", "questions", "traced", "right", "wrong", "refused", "tokens: median, most"]
    return answers_section(header, body, [one.group for one in analyses], [_notes(one) for one in analyses])


def _notes(one: TraceAnalysis) -> list[str]:
    """Return what keeps an AUROC from being read, in sentences."""
    if reason := explain_missing_auroc(one.group):
        return [reason]
    right, wrong = one.group.counts
    notes = []
    if min(right, wrong) < FEW:
        notes.append(
            f"only {right} right and {wrong} wrong answers, so that the intervals tell little and nothing is tested."
        )
    if "classifier" not in one.group.scores:
        notes.append("no classifier; it needs two right and two wrong answers.")
    return notes


def _auroc(analyses: Sequence[TraceAnalysis]) -> str:
    shown = [one for one in analyses if one.auroc]
    if not shown:
        return ""
    names = [name for name in TITLES if any(name in one.auroc for one in shown)]
    body = [[TITLES[name], *(_area(one.auroc.get(name)) for one in shown)] for name in names]
    text = "## AUROC\n\n" + tables.table(["", *(one.group.title for one in shown)], body) + "\n"
    for one in shown:
        if one.best:
            text += (
                f"{one.group.title}: the best single score is {TITLES[one.best]}, {one.auroc[one.best].mean:.2f}; it "
                "was chosen after looking, which favours it.\n"
            )
    return text


def _area(area: Interval | None) -> str:
    return "–" if area is None else f"{tables.number(area.mean)} {tables.bounds(area)}"


def _tests(tests: Sequence[Row]) -> str:
    if not tests:
        return ""
    clear = [test for test in tests if test["adjusted"] < 0.05]
    better = sum(test["difference"] > 0 for test in clear)
    body = [
        [test["name"], test["benchmark"], TITLES[test["score"]], f"{test['difference']:+.3f}",
         f"[{test['low']:+.3f}, {test['high']:+.3f}]", f"{test['adjusted']:.3f}"]
        for test in tests
    ]  # fmt: skip
    header = ["model", "questions", "single score", "difference", "95 % interval", "p, adjusted"]
    return (
        "## The classifier of all three series against single scores\n\nThe classifier's AUROC less that of a single "
        f"score on the same questions, and the two-sided p of the paired bootstrap ({TESTS} resamples) after Benjamini "
        f"and Hochberg over all {len(tests)} tests. {len(clear)} have p < 0.05: {better} for the classifier, "
        f"{len(clear) - better} for the single score.\n\n" + tables.table(header, body)
    )


def _course(analyses: Sequence[TraceAnalysis]) -> str:
    body = []
    for one in analyses:
        for series, by_label in one.course.items():
            for label, thirds in by_label.items():
                if thirds[0].count:
                    values = [f"{tables.number(i.mean, 3)} {tables.bounds(i, 3)}" for i in thirds]
                    body.append([one.group.name, one.group.benchmark, COURSE[series], label, *values])
    if not body:
        return ""
    header = ["model", "questions", "series", "answers", "early third", "middle", "late"]
    return "## The course of a trace\n\nMeans over answers, with 95 % intervals.\n\n" + tables.table(header, body)


def _checks(checks: Sequence[Row]) -> str:
    if not checks:
        return ""
    body = [
        [
            check["name"],
            check["benchmark"],
            *(str(check[name]) for name in ("tokens", "probes")),
            *(f"{check[name]:.2f}" for name in ("rms", "worst")),
            *(f"{check[name]:.3f}" for name in ("seconds_token", "seconds_probe")),
            f"{check['ratio']:.0f}",
        ]
        for check in checks
    ]
    header = ["model", "questions", "tokens", "probes", "rms", "largest", "seconds a token", "seconds a probe",
              "200 probes over exact"]  # fmt: skip
    return (
        "## One answer both ways\n\nU_E by forward-mode probes less U_E by one backward pass a token, in standard "
        "errors of the probes. The errors of one trace are correlated, so the rms is 1 only on average. A probe "
        "serves all tokens of the answer; 200 probes leave a standard error of 10 %.\n\n" + tables.table(header, body)
    )
