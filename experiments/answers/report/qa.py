"""The summary of the experiment `qa`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.answers.numbers.analysis import CURVE_RUNS, PAIRS, Analysis
from experiments.answers.numbers.auroc import FEW, RUNS, TESTS
from experiments.answers.numbers.combination import OURS
from experiments.answers.numbers.qa import Benchmark, QaNumbers
from experiments.answers.numbers.scores import BASELINES, FREE, MAIN, SCORES, VIEWS, paper
from experiments.answers.report.parts import answers_section, explain_missing_auroc
from experiments.answers.tiny_model import TINY
from experiments.report import tables
from experiments.report.outputs import Numbers
from isouq.stats import Interval

WHOSE = {"ours": "ours", "variant": "ours, variant", "baseline": "published", "control": "control"}
LISTED = 20  # lines that were left out, shown at most
Row = dict[str, Any]


def report(numbers: Numbers, preset: str) -> str:
    """Return the summary, beside the numbers of the paper's Table 2."""
    details: QaNumbers = numbers.details
    analyses, scored = details.analyses, details.scored
    parts = [f"# Question answering, preset `{preset}`: which uncertainty tells a wrong answer\n"]
    if not numbers.rows:
        parts.append("There is no question that was both scored and judged, so there is nothing to report.\n")
    else:
        parts += [_reading(numbers.rows), _answers(analyses)]
    if scored:
        parts += [_auroc(details.benchmarks), _tests(scored, details.tests)]
        parts += [_against_free(scored, details.tests), _rejection(scored), _p_true(scored)]
        parts += [_ranks(scored), _lengths(scored)]
    if analyses:
        parts += [_views(analyses), _choices(analyses), _transfer(analyses), _costs(details)]
    parts.append(_omissions(details.left_out))
    return "\n".join(part for part in parts if part)


def _reading(rows: Sequence[Row]) -> str:
    tiny = any(row["model"] == TINY for row in rows)
    note = " The model is a tiny one, made for tests: its numbers mean nothing." if tiny else ""
    seeds = {row.get("seed", 0) for row in rows}
    several = f" Samples of {len(seeds)} seeds stand in table.csv; those of the first are used here." * (len(seeds) > 1)
    return (
        f"AUROC: the chance that a wrong answer has a higher score than a right one; ½ is chance.{note} Every score is "
        "higher where the answer is less certain, and all scores order the same greedy answers. p is the probability "
        "of the answer by length (the geometric mean of its tokens' probabilities), unless a row says otherwise; "
        "p(1 − p) falls again below p = ½, and the column p < ½ has the share of such answers. Refused and empty "
        "answers are neither right nor wrong: they are counted, and are in no AUROC. A logarithm of 0 counts as the "
        "smallest finite one.\n\n"
        "PRR, the prediction rejection ratio: how much of the gain of a perfect order the score has when the least "
        "certain questions are left unanswered; 1 is perfect, 0 is a random order, and its spread is over "
        f"{CURVE_RUNS} resamples.\n\n"
        "A table gives the AUROC of all questions, with its sd and 95 % interval "
        f"over {RUNS} resamples of the questions. There is one greedy answer a question, so there are no seeds to "
        "average over; a resample with one class alone is left out. The learned combinations are logistic regressions "
        f"on log p(1 − p) and log ‖∇p‖²: {RUNS} runs, each with a new split into halves, stratified by the label, "
        "fitted on one half and scored on a resample of the other. Their mean, sd and interval are over the runs, each "
        "of half as many questions, so they are wider. The paper's numbers are of four other models, mean ± sd over "
        f"300 bootstrap runs.{several}\n"
    )


def _answers(analyses: Sequence[Analysis]) -> str:
    body = []
    for one in analyses:
        group = one.group
        right, wrong = group.counts
        params = group.rows[0].get("num_params")
        counts = (len(group.rows), right, wrong, group.count_state("refused"), group.count_state("empty"))
        body.append([group.name, f"{params:,}" if params else "–", group.benchmark, *map(str, counts),
                     tables.number(right / max(1, right + wrong), 3), tables.number(one.below_half, 3)])  # fmt: skip
    header = ["model", "parameters", "questions", "asked", "right", "wrong", "refused", "empty", "share right", "p < ½"]
    return answers_section(header, body, [one.group for one in analyses], [_notes(one) for one in analyses])


def _notes(one: Analysis) -> list[str]:
    """Return what keeps an AUROC from being read, in sentences."""
    if reason := explain_missing_auroc(one.group):
        return [reason]
    right, wrong = one.group.counts
    notes = []
    if min(right, wrong) < FEW:
        notes.append(
            f"{right} right and {wrong} wrong answers. With fewer than {FEW} of either the intervals are too narrow, "
            "and nothing is tested."
        )
    if one.group.unjudged:
        notes.append(f"{one.group.unjudged} answers have no label and are left out.")
    if not one.combinations:
        notes.append("no combination could be fitted; it needs both scores and two answers of each kind.")
    if one.constant:
        labels = "; ".join(SCORES[name].label for name in one.constant)
        notes.append(f"the same for every question, so at chance: {labels}.")
    return notes


def _auroc(benchmarks: dict[str, Benchmark]) -> str:
    """Return a table a benchmark, the largest AUROC first, with two columns a model."""
    text = "## AUROC and PRR of every score\n"
    for name, benchmark in benchmarks.items():
        known, several = paper(name), len(benchmark.analyses) > 1
        header = ["score", "whose"]
        for one in benchmark.analyses:
            right, wrong = one.group.counts
            header += [f"{one.group.name}: {right} right, {wrong} wrong", "PRR"]
        header += ["mean of the models"] * several + ["paper"] * bool(known)
        body = []
        for score, mean in sorted(benchmark.mean.items(), key=lambda item: -item[1].mean):
            line = [SCORES[score].label, WHOSE[SCORES[score].role]]
            for one in benchmark.analyses:
                line += [_area(areas.get(score), len(one.group.wrong)) for areas in (one.auroc, one.ratios)]
            if several:
                line.append(tables.mean_sd(mean))
            if known:
                line.append(f"{known[score][0]:.2f} ± {known[score][1]:.2f}" if score in known else "–")
            body.append(line)
        text += f"\n### {name}\n\n{tables.table(header, body)}"
    return text


def _area(area: Interval | None, judged: int) -> str:
    """Return value ± sd [low, high], and the number of answers where not all have the score."""
    if area is None:
        return "–"
    text = tables.number(area.mean)
    if np.isfinite(area.sd):
        text += f" ± {tables.number(area.sd)} [{tables.number(area.low)}, {tables.number(area.high)}]"
    return text if area.count == judged else f"{text} ({area.count} answers)"


def _tests(scored: Sequence[Analysis], tests: Sequence[Row]) -> str:
    if not tests:
        return ""
    own = [test for test in tests if test["score"] in OURS]
    clear = [test for test in own if test["adjusted"] < 0.05]
    better = sum(test["difference"] > 0 for test in clear)
    text = (
        "## Against the baselines\n\nThe AUROC of our score less that of the baseline on the same questions, its 95 % "
        f"interval, and the two-sided p of the paired bootstrap ({TESTS} resamples) after Benjamini and Hochberg over "
        f"all {len(tests)} tests of this section and the next. A learned combination is compared on the halves that it "
        f"was not fitted on. Of the {len(own)} tests of our scores {len(clear)} have p < 0.05: {better} for our score, "
        f"{len(clear) - better} for the baseline. The paper: on TruthfulQA the combination beats P(True) and both "
        "entropies, p < 0.01.\n"
    )
    for one in scored:
        by_pair = {(test["score"], test["baseline"]): test for test in tests
                   if (test["model"], test["benchmark"]) == (one.group.model, one.group.benchmark)}  # fmt: skip
        body = [
            [SCORES[baseline].label, *(_difference(by_pair.get((ours, baseline))) for ours in OURS)]
            for baseline in BASELINES
            if any((ours, baseline) in by_pair for ours in OURS)
        ]
        if body:
            header = ["less the baseline", *(SCORES[ours].label for ours in OURS)]
            text += f"\n### {one.group.title}\n\n{tables.table(header, body)}"
    return text


def _against_free(scored: Sequence[Analysis], tests: Sequence[Row]) -> str:
    """Return how every score compares with −log p."""
    by_key = {(test["model"], test["benchmark"], test["score"]): test for test in tests if test["baseline"] == FREE}
    names = [name for name in SCORES if any(key[2] == name for key in by_key)]
    body = [
        [SCORES[name].label, WHOSE[SCORES[name].role],
         *(_difference(by_key.get((one.group.model, one.group.benchmark, name))) for one in scored)]
        for name in names
    ]  # fmt: skip
    if not body:
        return ""
    header = ["less −log p", "whose", *(one.group.title for one in scored)]
    return (
        "## Against −log p\n\nEvery decoder gives −log p of its answer without a further pass. The AUROC of each score "
        "less that of −log p, with the interval and the p of the section before.\n\n" + tables.table(header, body)
    )


def _difference(test: Row | None) -> str:
    if test is None:
        return "–"
    interval = f"[{test['low']:+.2f}, {test['high']:+.2f}]"
    return f"{test['difference']:+.2f} {interval}, p = {test['adjusted']:.3f}"


def _rejection(scored: Sequence[Analysis]) -> str:
    body = []
    for one in scored:
        for name, curve in one.curves.items():
            surest = [tables.number(float(value), 3) for value in curve.surest]
            value, low, high = (tables.number(float(v), 3) for v in curve.aurc)
            label = SCORES[name].label
            body.append([one.group.name, one.group.benchmark, label, *surest, f"{value} [{low}, {high}]"])
    header = ["model", "questions", "order by", "accuracy of all", "of the surest 50 %", "of the surest 20 %", "AURC"]
    return (
        "## If only the surest are answered\n\nAURC: the mean share of errors over all coverages, smaller is better, "
        "with its 95 % interval over questions. The combination orders by its mean log odds over the runs that were "
        "not fitted on the question.\n\n" + tables.table(header, body)
    )


def _p_true(scored: Sequence[Analysis]) -> str:
    known = [one for one in scored if np.isfinite(one.ranks["epistemic_mean", "p_true"].rho)]
    if not known:
        return ""
    body = [
        [one.group.name, one.group.benchmark, f"{-one.ranks['epistemic_mean', 'p_true'].rho:+.2f}"] for one in known
    ]
    return (
        "## Do epistemic uncertainty and P(True) say the same?\n\nSpearman's ρ of ‖∇p‖² and P(True) itself (not "
        "1 − P(True)) over the questions; the paper has about −0.2 on both benchmarks. Figure `correlations` has the "
        "other pairs.\n\n" + tables.table(["model", "questions", "ρ"], body)
    )


def _ranks(scored: Sequence[Analysis]) -> str:
    pairs = PAIRS[:-1]  # the last one is that of `_p_true`
    body = []
    for one in scored:
        ranks = ([tables.number(value) for value in one.ranks[pair]] for pair in pairs)
        body.append([one.group.name, one.group.benchmark, *(f"{rho} [{low}, {high}]" for rho, low, high in ranks)])
    header = ["model", "questions", *(f"{SCORES[a].label}, {SCORES[b].label}" for a, b in pairs)]
    return (
        "## How much of the norm is p alone?\n\nSpearman's ρ over the judged answers; p by length. ‖∇p‖² / (p(1 − p))² "
        "is what is left of ‖∇p‖² beyond p: with two classes the squared norm of the logit's gradient.\n\n"
        + tables.table(header, body)
    )


def _lengths(scored: Sequence[Analysis]) -> str:
    shown = _main_scores(scored)
    body = []
    for one in scored:
        for part in one.parts:
            length = f"{part.shortest} to {part.longest}" if part.longest > part.shortest else str(part.shortest)
            counts = length, str(part.right), str(part.wrong)
            body.append([one.group.name, one.group.benchmark, *counts, *_means(part.auroc, shown)])
    if not body:
        return ""
    header = ["model", "questions", "tokens", "right", "wrong", *(SCORES[name].label for name in shown)]
    return (
        "## Is it the length of the answer?\n\nAUROC within the thirds of the answers by length; a dash where a third "
        f"has fewer than {FEW} right or wrong answers. The AUROC of the length itself stands in the tables "
        "above.\n\n" + tables.table(header, body)
    )


def _views(analyses: Sequence[Analysis]) -> str:
    shown = _main_scores(analyses)
    body = [
        [one.group.name, one.group.benchmark, VIEWS[name], str(view.right), str(view.wrong), *_means(view.auroc, shown)]
        for one in analyses
        for name, view in one.views.items()
    ]
    if not body:
        return ""
    header = ["model", "questions", "right where", "right", "wrong", *(SCORES[name].label for name in shown)]
    return (
        "## Under another view of right\n\nAUROC of the same scores with the labels of other definitions of right. "
        "Which label counts was fixed before any result was seen; these stand beside it. The combination was fitted to "
        "the label that counts.\n\n" + tables.table(header, body)
    )


def _main_scores(analyses: Sequence[Analysis]) -> list[str]:
    """Return the main scores that some model has."""
    return [name for name in MAIN if any(name in one.group.scores for one in analyses)]


def _means(areas: dict[str, Interval], shown: Sequence[str]) -> list[str]:
    return [tables.number(areas[name].mean) if name in areas else "–" for name in shown]


def _choices(analyses: Sequence[Analysis]) -> str:
    body = []
    for one in analyses:
        if one.choices:
            values = [f"{tables.number(v.mean, 3)} {tables.bounds(v, 3)}" for v in one.choices.values()]
            body.append([one.group.name, one.group.benchmark, str(one.choices["mc1"].count), *values])
    if not body:
        return ""
    return (
        "## Multiple choice\n\nmc1: share of questions where the best true reference is likelier than every false one. "
        "mc2: the mean share of the references' probability that the true ones have. With 95 % intervals over "
        "questions.\n\n" + tables.table(["model", "questions", "asked", "mc1", "mc2"], body)
    )


def _transfer(analyses: Sequence[Analysis]) -> str:
    body = []
    for one in analyses:
        if any(one.transfer):
            areas = (*one.transfer, one.auroc.get("combined_mean"))
            body.append([one.group.name, one.group.benchmark, *(_area(area, len(one.group.wrong)) for area in areas)])
    if not body:
        return ""
    header = ["model held out", "questions", "raw", "‖∇p‖² divided by ‖θ‖²", "fitted on the model itself"]
    return (
        "## Does the combination carry over to another model?\n\nFitted on the questions of all other models, scored "
        "on those of the model that was held out. The paper: at chance or below, also after the division.\n\n"
        + tables.table(header, body)
    )


def _costs(details: QaNumbers) -> str:
    """Return what each score needs, and what its passes took where they were measured."""
    body = []
    for name, cost in details.costs.items():
        passes = str(cost.forward), str(cost.backward), "yes" if cost.samples else "no"
        mib = f"{cost.mib:,.0f}" if np.isfinite(cost.mib) else "–"
        body.append([SCORES[name].label, *passes, SCORES[name].also or "–", tables.number(cost.seconds), mib])
    header = ["score", "forward passes", "backward passes", "sampled answers", "also needs", "seconds", "MiB"]
    text = (
        "## What a score costs\n\nThe cost beside the greedy answer, which all scores share. Passes are over one "
        "answer. Seconds a question are those of compiled programs: with the sampled answers, without what the column "
        "`also needs` names. MiB is the memory beside the parameters that the compiled program states.\n\n"
        + tables.table(header, body)
    )
    if np.isfinite(details.answer_seconds):
        text += f"\nThe greedy answer itself: {details.answer_seconds:.2f} seconds.\n"
    return text + (f"\nMean over {', '.join(details.measured_on)}.\n" if details.measured_on else "")


def _omissions(lines: Sequence[str]) -> str:
    if not lines:
        return ""
    more = f"- and {len(lines) - LISTED} more\n" if len(lines) > LISTED else ""
    return f"## Left out of the files: {len(lines)}\n\n" + "".join(f"- {line}\n" for line in lines[:LISTED]) + more
