"""Tables, sentences and figures of the experiment `qa`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.answers.figures.qa import figures
from experiments.answers.numbers import analysis as _qa_analysis
from experiments.answers.numbers import statistics as _qa_numbers
from experiments.answers.numbers.analysis import COVERAGES, Analysis, analysed, by_benchmark
from experiments.answers.numbers.table import BASELINES, MAIN, PASSES, SCORES, VIEWS, Group, groups, paper
from experiments.answers.tiny_model import TINY
from experiments.report import tables as words
from experiments.report.outputs import Outputs, table_csv
from isouq.stats import Interval

LISTED = 20  # lines of a file that were left out, shown at most
# Pairs of scores that say how much of a norm is p alone.
PAIRS = (
    ("epistemic_mean", "aleatoric_mean"), ("epistemic_mean", "nll_mean"), ("grad_log_mean", "aleatoric_mean"),
    ("grad_log_mean", "nll_mean"), ("beyond_mean", "nll_mean"), ("epistemic_mean", "grad_log_mean"),
)  # fmt: skip
Row = dict[str, Any]


def report(rows: Sequence[Row], costs: Sequence[Row], preset: str, broken: Sequence[str] = ()) -> Outputs:
    """The summary beside the paper's Table 2, its figures, `auroc.csv`, `tests.csv`, `correlations.csv`.

    rows: a question each: model, benchmark, index, state, right, and its scores (None or NaN: it has none).
    costs: model, benchmark, pass (of `_qa_table.PASSES`), seconds a question, mib of the passes that were measured.
    broken: lines of the files that were left out.
    """
    found = analysed(groups(rows))
    told = [one for one in found if one.areas]
    tests = _qa_numbers.adjusted([test for one in told for test in _qa_numbers.paired(one.group, one.learned)])
    parts = [f"# Question answering, preset `{preset}`: which uncertainty tells a wrong answer\n"]
    if not rows:
        parts.append("There is no question that was both scored and judged, so there is nothing to report.\n")
    else:
        parts += [_reading(rows), _answers(found)]
    if told:
        parts += [_tables(told), _tested(told, tests), _rejected(told), _correlated(told), _mixed(told), _lengths(told)]
    if found:
        parts += [_viewed(found), _chosen(found), _transferred(found), _costs(costs)]
    parts.append(_left_out(broken))
    tables = {"auroc.csv": _area_rows(told), "tests.csv": [_rounded(test) for test in tests]}
    tables["correlations.csv"] = _correlation_rows(told)
    files = {name: table_csv(lines) for name, lines in tables.items() if lines}
    return Outputs(list(rows), "\n".join(part for part in parts if part), figures(told), files)


def _reading(rows: Sequence[Row]) -> str:
    tiny = any(row["model"] == TINY for row in rows)
    made = " The model is a tiny one, made for tests: its numbers mean nothing." if tiny else ""
    seeds = {row.get("seed", 0) for row in rows}
    several = f" Samples of {len(seeds)} seeds stand in table.csv; those of the first are used here." * (len(seeds) > 1)
    return (
        f"AUROC: the chance that a wrong answer has a higher score than a right one; ½ is chance.{made} Every score is "
        "higher where the answer is less certain, and orders the same greedy answers. p is the probability of the "
        "answer by length (the geometric mean of its tokens'), unless a row says otherwise; p(1 − p) falls again below "
        "p = ½, and the column p < ½ has the share of such answers. Refused and empty answers are neither right nor "
        "wrong: counted, and in no AUROC. A logarithm of 0 counts as the smallest finite one.\n\n"
        "A table gives the AUROC of all questions, and its sd and 95 % interval "
        f"over {_qa_numbers.RUNS} resamples of them (one greedy answer a question, so no seeds to average over); a "
        "resample with one class only is left out. The learned combinations are logistic regressions on log p(1 − p) "
        f"and log ‖∇p‖²: {_qa_numbers.RUNS} runs, each with a new split into halves, stratified by the label, fitted "
        "on one half and scored on a resample of the other. Their mean, sd and interval are over the runs: of half as "
        "many questions, so wider. The paper's numbers are of four other models, mean ± sd over 300 bootstrap runs."
        f"{several}\n"
    )


def _answers(found: Sequence[Analysis]) -> str:
    body, notes = [], []
    for one in found:
        group = one.group
        right, wrong = _counts(group)
        share = words.number(right / max(1, right + wrong), 3)
        params = group.asked[0].get("num_params")
        counts = (len(group.asked), right, wrong, group.state("refused"), group.state("empty"))
        body.append([group.name, f"{params:,}" if params else "–", group.benchmark, *map(str, counts), share,
                     _below_half(group)])  # fmt: skip
        notes += _notes(one)
    header = ["model", "parameters", "questions", "asked", "right", "wrong", "refused", "empty", "share right", "p < ½"]
    return "## Answers\n\n" + words.table(header, body) + "".join(f"\n{note}\n" for note in notes)


def _below_half(group: Group) -> str:
    """The share of the judged answers whose p by length lies below ½, where p(1 − p) falls with p."""
    nll = group.scores.get("nll_mean", np.zeros(0))
    nll = nll[np.isfinite(nll)]
    return words.number(float(np.mean(nll > np.log(2))), 3) if len(nll) else "–"


def _notes(one: Analysis) -> list[str]:
    """What keeps an AUROC from being read, in sentences."""
    group, notes = one.group, []
    right, wrong = _counts(group)
    if right + wrong == 0:
        return [f"{one.title}: no answer could be judged, so there is no AUROC."]
    if not group.both:
        return [f"{one.title}: all {right + wrong} answers are {'wrong' if wrong else 'right'}, so there is no AUROC."]
    if min(right, wrong) < _qa_numbers.FEW:
        notes.append(
            f"{one.title}: {right} right and {wrong} wrong answers. With fewer than {_qa_numbers.FEW} of either the "
            "intervals are narrower than what is known, and nothing is tested."
        )
    if group.unjudged:
        notes.append(f"{one.title}: {group.unjudged} answers have no label and are left out.")
    if not one.learned:
        notes.append(f"{one.title}: no combination could be fitted; it needs both scores and two answers of each kind.")
    constant = [SCORES[name].label for name, score in group.scores.items() if np.nanmin(score) == np.nanmax(score)]
    if constant:
        notes.append(f"{one.title}: the same for every question, so at chance: {'; '.join(constant)}.")
    return notes


def _counts(group: Group) -> tuple[int, int]:
    wrong = int(group.wrong.sum())
    return len(group.wrong) - wrong, wrong


def _tables(told: Sequence[Analysis]) -> str:
    """A table a benchmark, a column a model."""
    text = "## AUROC of every score\n"
    for benchmark, mine in by_benchmark(told).items():
        known = paper(benchmark)
        header = ["score"]
        for one in mine:
            right, wrong = _counts(one.group)
            header.append(f"{one.group.name}: {right} right, {wrong} wrong")
        header += ["mean of the models"] * (len(mine) > 1) + ["paper"] * bool(known)
        body = []
        for name, score in SCORES.items():
            areas = [one.areas.get(name) for one in mine]
            if not any(areas):
                continue
            line = [score.label, *(_area(area, len(one.group.wrong)) for area, one in zip(areas, mine, strict=True))]
            if len(mine) > 1:
                line.append(_spread([area.mean for area in areas if area]))
            if known:
                line.append(f"{known[name][0]:.2f} ± {known[name][1]:.2f}" if name in known else "–")
            body.append(line)
        text += f"\n### {benchmark}\n\n{words.table(header, body)}"
    return text


def _area(area: Interval | None, judged: int) -> str:
    """Value ± sd [low, high], and of how many questions where not of all."""
    if area is None:
        return "–"
    text = words.number(area.mean)
    if np.isfinite(area.sd):
        text += f" ± {words.number(area.sd)} [{words.number(area.low)}, {words.number(area.high)}]"
    return text if area.count == judged else f"{text} ({area.count} answers)"


def _spread(values: Sequence[float]) -> str:
    mean = words.number(float(np.mean(values)))
    return mean if len(values) < 2 else f"{mean} ± {words.number(float(np.std(values, ddof=1)))}"


def _tested(told: Sequence[Analysis], tests: Sequence[Row]) -> str:
    if not tests:
        return ""
    clear = [test for test in tests if test["adjusted"] < 0.05]
    better = sum(test["difference"] > 0 for test in clear)
    text = (
        "## Against the baselines\n\nAUROC less that of the baseline on the same questions, its 95 % interval, and the "
        f"two-sided p of the paired bootstrap ({_qa_numbers.TESTS} resamples) after Benjamini and Hochberg over all "
        f"{len(tests)} tests. The learned combination is compared on the halves that it was not fitted on. Of the "
        f"{len(tests)} tests {len(clear)} have p < 0.05: {better} for our score, {len(clear) - better} for the "
        "baseline. The paper: on TruthfulQA the combination beats P(True) and both entropies, p < 0.01.\n"
    )
    for one in told:
        mine = {(t["score"], t["baseline"]): t for t in tests
                if (t["model"], t["benchmark"]) == (one.group.model, one.group.benchmark)}  # fmt: skip
        body = [
            [SCORES[baseline].label, *(_difference(mine.get((ours, baseline))) for ours in _qa_numbers.OURS)]
            for baseline in BASELINES
            if any((ours, baseline) in mine for ours in _qa_numbers.OURS)
        ]
        if body:
            header = ["less the baseline", *(SCORES[ours].label for ours in _qa_numbers.OURS)]
            text += f"\n### {one.title}\n\n{words.table(header, body)}"
    return text


def _difference(test: Row | None) -> str:
    if test is None:
        return "–"
    interval = f"[{test['low']:+.2f}, {test['high']:+.2f}]"
    return f"{test['difference']:+.2f} {interval}, p = {test['adjusted']:.3f}"


def _rejected(told: Sequence[Analysis]) -> str:
    body = []
    for one in told:
        for name, curve in one.curves.items():
            at = [words.number(float(np.interp(c, COVERAGES, curve["mean"])), 3) for c in (1, 0.5, 0.2)]
            value, low, high = (words.number(float(v), 3) for v in curve["aurc"])
            body.append([one.group.name, one.group.benchmark, SCORES[name].label, *at, f"{value} [{low}, {high}]"])
    header = ["model", "questions", "order by", "accuracy of all", "of the surest 50 %", "of the surest 20 %", "AURC"]
    return (
        "## If only the surest are answered\n\nAURC: the mean share of errors over all coverages, smaller is better, "
        "with its 95 % interval over questions. The combination orders by its mean log odds over the runs that were "
        "not fitted on the question.\n\n" + words.table(header, body)
    )


def _correlated(told: Sequence[Analysis]) -> str:
    lines = []
    for one in told:
        rho = -_qa_analysis.rank_correlation(one.group, "epistemic_mean", "p_true")
        if np.isfinite(rho):
            lines.append([one.group.name, one.group.benchmark, f"{rho:+.2f}"])
    if not lines:
        return ""
    return (
        "## Do epistemic uncertainty and P(True) say the same?\n\nSpearman's ρ of ‖∇p‖² and P(True) itself (not "
        "1 − P(True)) over the questions; the paper has about −0.2 on both benchmarks. Figure `correlations` has the "
        "other pairs.\n\n" + words.table(["model", "questions", "ρ"], lines)
    )


def _mixed(told: Sequence[Analysis]) -> str:
    body = []
    for one in told:
        values = []
        for pair in PAIRS:
            low, high = _qa_analysis.rank_interval(one.group, *pair)
            rho = _qa_analysis.rank_correlation(one.group, *pair)
            values.append(f"{words.number(rho)} [{words.number(low)}, {words.number(high)}]")
        body.append([one.group.name, one.group.benchmark, *values])
    header = ["model", "questions", *(f"{SCORES[a].label}, {SCORES[b].label}" for a, b in PAIRS)]
    return (
        "## How much of the norm is p alone?\n\nSpearman's ρ over the judged answers; p by length. ‖∇p‖² / (p(1 − p))² "
        "is what is left of ‖∇p‖² beyond p: with two classes the squared norm of the logit's gradient.\n\n"
        + words.table(header, body)
    )


def _correlation_rows(told: Sequence[Analysis]) -> list[Row]:
    rows = []
    for one in told:
        for a, b in (*PAIRS, ("epistemic_mean", "p_true")):
            low, high = _qa_analysis.rank_interval(one.group, a, b)
            rho = {"rho": _qa_analysis.rank_correlation(one.group, a, b), "low": low, "high": high}
            key = {"model": one.group.model, "benchmark": one.group.benchmark, "score": a, "other": b}
            rows.append(key | _rounded(rho))
    return rows


def _lengths(told: Sequence[Analysis]) -> str:
    shown = [name for name in MAIN if any(name in one.group.scores for one in told)]
    body = []
    for one in told:
        for part in one.parts:
            areas = [words.number(part.areas[name].mean) if name in part.areas else "–" for name in shown]
            length = f"{part.shortest} to {part.longest}" if part.longest > part.shortest else str(part.shortest)
            body.append([one.group.name, one.group.benchmark, length, str(part.right), str(part.wrong), *areas])
    if not body:
        return ""
    header = ["model", "questions", "tokens", "right", "wrong", *(SCORES[name].label for name in shown)]
    return (
        "## Is it the length of the answer?\n\nAUROC within the thirds of the answers by length; a dash where a third "
        f"has fewer than {_qa_numbers.FEW} right or wrong answers. The AUROC of the length itself stands in the tables "
        "above.\n\n" + words.table(header, body)
    )


def _viewed(found: Sequence[Analysis]) -> str:
    shown = [name for name in MAIN if any(name in one.group.scores for one in found)]
    body = []
    for one in found:
        for view, (right, wrong, areas) in _qa_analysis.by_view(one.group).items():
            values = [words.number(areas[name].mean) if name in areas else "–" for name in shown]
            body.append([one.group.name, one.group.benchmark, VIEWS[view], str(right), str(wrong), *values])
    if not body:
        return ""
    header = ["model", "questions", "right where", "right", "wrong", *(SCORES[name].label for name in shown)]
    return (
        "## Under another view of right\n\nAUROC of the same scores with other labels; which label counts was fixed "
        "beforehand, and these are beside it. The combination was fitted to the label that counts.\n\n"
        + words.table(header, body)
    )


def _chosen(found: Sequence[Analysis]) -> str:
    body = []
    for one in found:
        views = _qa_analysis.choices(one.group)
        if views:
            values = [f"{words.number(v.mean, 3)} {words.bounds(v, 3)}" for v in views.values()]
            body.append([one.group.name, one.group.benchmark, str(views["mc1"].count), *values])
    if not body:
        return ""
    return (
        "## Multiple choice\n\nmc1: share of questions where the best true reference is likelier than every false one. "
        "mc2: the mean share of the references' probability that the true ones have. With 95 % intervals over "
        "questions.\n\n" + words.table(["model", "questions", "asked", "mc1", "mc2"], body)
    )


def _transferred(found: Sequence[Analysis]) -> str:
    body = []
    for one in found:
        others = [other.group for other in found if other.group.benchmark == one.group.benchmark and other is not one]
        areas = [_qa_analysis.transfer(one.group, others, divided) for divided in (False, True)]
        own = one.areas.get("combined_mean")
        if any(areas):
            shown = [_area(area, len(one.group.wrong)) for area in (*areas, own)]
            body.append([one.group.name, one.group.benchmark, *shown])
    if not body:
        return ""
    header = ["model held out", "questions", "raw", "‖∇p‖² divided by ‖θ‖²", "fitted on the model itself"]
    return (
        "## Does the combination carry over to another model?\n\nFitted on the questions of all other models, scored "
        "on those of the model that was held out. The paper: at chance or below, also after the division.\n\n"
        + words.table(header, body)
    )


def _costs(costs: Sequence[Row]) -> str:
    """What each score needs, and what its passes took where they were measured."""
    seconds = _mean_by_pass(costs, "seconds")
    memory = _mean_by_pass(costs, "mib")
    body = []
    for score in SCORES.values():
        passes = [PASSES[one] for one in score.passes]
        known = bool(passes) and all(one in seconds for one in score.passes)
        largest = [memory[one] for one in score.passes if one in memory]
        body.append(
            [
                score.label,
                str(sum(one.forward for one in passes)),
                str(sum(one.backward for one in passes)),
                "yes" if any(one.sampled for one in passes) else "no",
                score.also or "–",
                f"{sum(seconds[one] for one in score.passes):.2f}" if known else "–",
                f"{max(largest):,.0f}" if largest else "–",
            ]
        )
    header = ["score", "forward passes", "backward passes", "sampled answers", "also needs", "seconds", "MiB"]
    text = (
        "## What a score costs\n\nBeside the greedy answer, which all share. Passes are over one answer. Seconds a "
        "question, of compiled programs, the sampled answers included and what `also needs` names not; MiB beside the "
        "parameters, by the compiled program's own account.\n\n" + words.table(header, body)
    )
    if "answer" in seconds:
        text += f"\nThe greedy answer itself: {seconds['answer']:.2f} seconds.\n"
    measured = sorted({f"{row['model']} on {row['benchmark']}" for row in costs})
    return text + (f"\nMean over {', '.join(measured)}.\n" if measured else "")


def _mean_by_pass(costs: Sequence[Row], column: str) -> dict[str, float]:
    by: dict[str, list[float]] = {}
    for row in costs:
        value = row.get(column)
        if value is not None and np.isfinite(value):
            by.setdefault(row["pass"], []).append(value)
    return {name: float(np.mean(values)) for name, values in by.items()}


def _left_out(broken: Sequence[str]) -> str:
    if not broken:
        return ""
    more = f"- and {len(broken) - LISTED} more\n" if len(broken) > LISTED else ""
    return f"## Left out of the files: {len(broken)}\n\n" + "".join(f"- {line}\n" for line in broken[:LISTED]) + more


def _area_rows(told: Sequence[Analysis]) -> list[Row]:
    rows = []
    for one in told:
        right, wrong = _counts(one.group)
        known = paper(one.group.benchmark)
        for name, area in one.areas.items():
            mean, sd = known.get(name, (None, None))
            values = {"auroc": area.mean, "sd": area.sd, "low": area.low, "high": area.high}
            key = {"model": one.group.model, "benchmark": one.group.benchmark, "score": name}
            counts = {"right": right, "wrong": wrong, "questions": area.count}
            rows.append(key | counts | _rounded(values) | {"paper": mean, "paper_sd": sd})
    return rows


def _rounded(row: Row) -> Row:
    """To six digits, and None for what is not there."""
    return {
        name: (round(value, 6) if np.isfinite(value) else None) if isinstance(value, float) else value
        for name, value in row.items()
    }
