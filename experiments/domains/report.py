"""Tables, sentences and figures of the experiment `domains`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.domains import numbers as _domain_numbers
from experiments.domains.texts import DOMAINS, TINY
from experiments.report import tables as report
from experiments.report.outputs import Outputs
from experiments.run.job import Result
from isouq import plots
from isouq.stats import Interval, bootstrap_mean

ACCURACY = 0.97  # held-out, for a fine-tuning to count
MIN_SEEDS = 3  # for a claim
NAMES = {
    "ggn_diagonal": "GGN, diagonal",
    "fisher_diagonal": "empirical Fisher, diagonal",
    "ggn_kronecker": "GGN, Kronecker",
    "fisher_kronecker": "empirical Fisher, Kronecker",
    "ggn_dense": "GGN, dense",
    "fisher_dense": "empirical Fisher, dense",
}
VARIANTS = {"whole": "whole model fine-tuned", "head": "head alone"}
SCORES = {
    "epistemic": "epistemic ‖g‖²",
    "aleatoric": "aleatoric p(1 − p)",
    "sum": "their sum",
    "softmax": "maximum softmax probability",
    "ensemble": "ensemble, variance of p",
    "ensemble_softmax": "ensemble, maximum of the mean p",
}
Row = report.Row
Group = tuple[str, str, str, int, float]  # variant, scope, covariance, proxies, λ
_COVERAGE = np.linspace(0.5, 1, 51)


def summarise(results: Sequence[Result], preset: str) -> Outputs:
    """One table a question; the figures of Fig. 4, of the number of proxies, and of rejection."""
    by_study: dict[str, list[Result]] = {}
    for result in results:
        by_study.setdefault(result.numbers["study"], []).append(result)
    compared = sorted(by_study.get("domains", []), key=_place)
    judged = sorted(by_study.get("rejection", []), key=_place)
    memory = by_study.get("memory", [])
    groups = _groups([result.numbers for result in compared])
    parts = [f"# Domains, preset `{preset}`: science against sports texts\n", _reading(results)]
    parts += [_accuracy([result.numbers for result in (*compared, *judged)])]
    if groups:
        main = _main(groups)
        parts += [_overlap(main), _bent(main), _counts(groups), _precisions(groups)]
    if judged:
        parts += [_rejected(judged)]
    if memory:
        parts += [_memory(memory[0].numbers)]
    figures: dict[str, Any] = {}
    for variant in VARIANTS:
        mine = [result for result in compared if result.numbers["variant"] == variant]
        if mine:
            figures[f"domains_{variant}"] = plots.domain_distributions(_distributions(mine))
    if groups:
        figures["proxies"] = plots.domain_proxies(_curves(groups))
    if judged:
        figures["rejection"] = plots.rejection(_rejection_curves(judged), _COVERAGE, SCORES)
    rows = [result.numbers for result in (*compared, *judged, *memory)]
    return Outputs(rows, "\n".join(part for part in parts if part), figures)


def _place(result: Result) -> tuple[Any, ...]:
    row = result.numbers
    variant, covariance = list(VARIANTS).index(row["variant"]), [*NAMES, ""].index(row["covariance"])
    return variant, covariance, -row["precision"], row["proxies"], row["seed"]


def _groups(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """The seeds of every comparison."""
    found: dict[Group, list[Row]] = {}
    for row in rows:
        key = (row["variant"], row["scope"], row["covariance"], row["proxies"], row["precision"])
        found.setdefault(key, []).append(row)
    return found


def _main(groups: dict[Group, list[Row]]) -> dict[Group, list[Row]]:
    """Of each variant and covariance the protocol's λ = 1 and the largest number of proxies that all seeds have."""
    best: dict[tuple[str, str], Group] = {}
    for group, mine in groups.items():
        name, kept = (group[0], group[2]), best.get((group[0], group[2]))
        if group[4] == 1 and (kept is None or (len(mine), group[3]) > (len(groups[kept]), kept[3])):
            best[name] = group
    return {group: groups[group] for group in best.values()}


def _title(group: Group) -> list[str]:
    return [VARIANTS[group[0]], group[1], NAMES[group[2]]]


def _all(rows: Sequence[Row], column: str) -> Interval:
    return bootstrap_mean([row[column] for row in rows])


_RATIO = ("log ratio, science", "sports", "sign changes", "AUROC")


def _ratio(rows: Sequence[Row]) -> list[str]:
    """The cells under `_RATIO`."""
    medians = [_signed(_all(rows, f"log_ratio_{domain}")) for domain in DOMAINS]
    changes = f"{sum(row['sign_change'] for row in rows)}/{len(rows)}"
    return [*medians, changes, report.mean_sd(_all(rows, "auroc"))]


def _signed(interval: Interval, digits: int = 3) -> str:
    """Mean ± sd to three significant digits, in a form that shows 10⁻⁵ too."""
    if interval.count == 0:
        return "–"
    mean = f"{interval.mean:+.{digits}g}"
    return mean if interval.count == 1 else f"{mean} ± {interval.sd:.2g}"


def _reading(results: Sequence[Result]) -> str:
    row = results[0].numbers
    random = " The encoder is random, made for tests: its numbers mean nothing." if row["encoder"] == TINY else ""
    return (
        f"Encoder `{row['encoder']}`, texts `{row['data']}`, at most {row['max_length']} tokens each.{random} "
        "H_A is the curvature of the loss on science texts alone plus the prior's λ = 1 (unit prior, fixed "
        "beforehand), H_B that on sports texts alone; both from texts that were not trained on. U is gᵀΣg with Σ = I, "
        "H_A⁻¹ or H_B⁻¹, g the gradient of the predicted class's probability. The log ratio is log(U_A/U_B): below 0 "
        "on science and above 0 on sports where each proxy lowers uncertainty on its own domain. Mean ± sd over all "
        "seeds (split, head, order of training); intervals over texts are bootstrap 95 %.\n"
    )


def _accuracy(rows: Sequence[Row]) -> str:
    once = {(row["variant"], row["seed"]): row for row in rows}
    body = []
    for variant, title in VARIANTS.items():
        mine = [row for (name, _), row in once.items() if name == variant]
        if not mine:
            continue
        right, count = sum(row["accuracy"] * row["tests"] for row in mine), sum(row["tests"] for row in mine)
        low, high = _domain_numbers.wilson(round(right), count)
        body.append(
            [
                title,
                f"{mine[0]['num_params']:,}",
                f"{mine[0]['train']}, {mine[0]['validation']}, {mine[0]['tests']}",
                f"{right / count:.3f} [{low:.3f}, {high:.3f}]",
                ", ".join(f"{row['accuracy']:.3f}" for row in mine),
                ", ".join(f"{row['best_epoch']} of {row['epochs']}" for row in mine),
                report.accepted_share(mine),
            ]
        )
    header = ["", "parameters", "texts to train, validate, test", "accuracy", "by seed", "best epoch",
              f"at least {ACCURACY}"]  # fmt: skip
    if not body:
        return ""
    return (
        "## Held-out accuracy\n\nThe interval is Wilson's over the test texts of all seeds together; a text in the "
        "tests of several seeds counts as often, so it is narrow where the data are few.\n\n"
        + report.table(header, body)
    )


def _lacking(rows: Sequence[Row], changes: int, lowered: dict[str, int]) -> list[str]:
    """What a claim lacks, with the seeds that have it; empty where every one of enough seeds has everything."""
    held = {
        "a sign change": changes,
        "A lowering science more": lowered["a"],
        "B lowering sports more": lowered["b"],
        f"accuracy of at least {ACCURACY}": sum(row["accepted"] for row in rows),
    }
    lacking = [f"{name} on {count}/{len(rows)} seeds" for name, count in held.items() if count < len(rows)]
    return [*lacking, *([f"{MIN_SEEDS} seeds (there are {len(rows)})"] if len(rows) < MIN_SEEDS else [])]


def _overlap(main: dict[Group, list[Row]]) -> str:
    body, seen = [], set()
    for group, mine in main.items():
        if group[:2] in seen:
            continue
        seen.add(group[:2])
        difference = _all(mine, "identity_difference")
        spread = [f"[{row['identity_difference_low']:.2f}, {row['identity_difference_high']:.2f}]" for row in mine]
        body.append(
            [
                VARIANTS[group[0]],
                group[1],
                str(mine[0]["compared"]),
                *(report.mean_sd(_all(mine, f"identity_{domain}")) for domain in DOMAINS),
                _signed(difference),
                ", ".join(spread),
                report.mean_sd(_all(mine, "identity_auroc")),
            ]
        )
    header = [
        "",
        "gradient of",
        "texts a seed",
        "median log U, science",
        "sports",
        "difference",
        "by seed, over texts",
        "AUROC",
    ]
    return (
        "## Do the domains overlap under the identity?\n\nDifference: sports less science, in log units. AUROC: of log "
        "‖g‖² for telling sports texts; ½ where the two distributions overlap in full.\n\n" + report.table(header, body)
    )


def _bent(main: dict[Group, list[Row]]) -> str:
    body: list[list[str]] = []
    claimed: list[str] = []
    failed: list[str] = []
    for group, mine in main.items():
        changes = sum(row["sign_change"] for row in mine)
        lowered = {side: sum(row[f"lowered_{side}"] > 0 for row in mine) for side in "ab"}
        name = f"{VARIANTS[group[0]]}, {NAMES[group[2]]}"
        reasons = _lacking(mine, changes, lowered)
        if reasons:
            failed.append(f"- {name}: {', '.join(reasons)}\n")
        else:
            claimed.append(name)
        body.append(
            [
                *_title(group),
                str(group[3]),
                _signed(_all(mine, "log_ratio_science")),
                _signed(_all(mine, "log_ratio_sports")),
                f"{changes}/{len(mine)}",
                f"{lowered['a']}/{len(mine)}, {lowered['b']}/{len(mine)}",
                report.mean_sd(_all(mine, "right_sign")),
                report.mean_sd(_all(mine, "auroc")),
                ", ".join(f"[{row['auroc_low']:.2f}, {row['auroc_high']:.2f}]" for row in mine),
            ]
        )
    header = ["", "gradient of", "H", "proxy texts a domain", "log ratio, science", "sports", "sign changes",
              "own domain lowered more, A, B", "texts of the right sign", "AUROC", "by seed, over texts"]  # fmt: skip
    text = (
        "## Does a proxy bend uncertainty?\n\nMedians of the log ratio by domain, from the largest number of proxies "
        "that most seeds ran. AUROC of the log ratio for telling sports texts: ½ where the proxies make no difference, "
        "1 where the log ratio separates the domains. The sign asks for more than the AUROC: where one domain's texts "
        "are less confident, its curvature is larger for every text, and that shifts the log ratio of both domains "
        "alike.\n\n" + report.table(header, body)
    )
    if claimed:
        text += (
            f"\nOn every seed ({MIN_SEEDS} or more) the log ratio changes sign between the domains, each proxy lowers "
            f"its own domain more, and the held-out accuracy is {ACCURACY} or more: {'; '.join(claimed)}.\n"
        )
    if failed:
        text += f"\nNot claimed, each for what does not hold on every one of {MIN_SEEDS} seeds or more:\n\n"
        text += "".join(failed)
    return text


def _counts(groups: dict[Group, list[Row]]) -> str:
    body = [[*_title(group), str(group[3]), *_ratio(mine)] for group, mine in groups.items() if group[4] == 1]
    header = ["", "gradient of", "H", "proxy texts a domain", *_RATIO]
    return "## How many proxy texts?\n\nλ = 1.\n\n" + report.table(header, body)


def _precisions(groups: dict[Group, list[Row]]) -> str:
    weak = {group[:4] for group in groups if group[4] != 1}
    chosen = [group for group in groups if group[:4] in weak]
    if not chosen:
        return ""
    chosen.sort(key=lambda g: (list(VARIANTS).index(g[0]), list(NAMES).index(g[2]), g[3], g[4]))
    body = [[*_title(group), str(group[3]), f"{group[4]:g}", *_ratio(groups[group])] for group in chosen]
    header = ["", "gradient of", "H", "proxy texts a domain", "λ", *_RATIO]
    return "## How much is the prior's?\n\nThe same with other λ, the precision of the prior.\n\n" + report.table(
        header, body
    )


def _rejected(judged: Sequence[Result]) -> str:
    text = (
        "## What a user would do with it: accuracy against rejection\n\nOver the texts that were not trained on "
        "(the test and proxies). Accuracy when the most certain 80, 90 or 95 % are answered, and AURC, the mean "
        "share of errors over all coverages (smaller is better): means over seeds, with bootstrap 95 % intervals over "
        "the texts of each seed; seeds share texts, so they are narrow. Every score orders the same predictions. With "
        "two classes p(1 − p) and the maximum softmax probability order alike. The sum adds ‖g‖² and p(1 − p) as they "
        "are, though the scale of ‖g‖² is arbitrary (Σ = I). The ensemble is of five heads on the fine-tuned encoder's "
        "vectors, each from its own initialisation and bootstrap sample of the training texts: no five fine-tunings.\n"
    )
    for variant, title in VARIANTS.items():
        mine = [r for r in judged if r.numbers["variant"] == variant]
        if not mine:
            continue
        errors, count = (sum(r.numbers[name] for r in mine) for name in ("errors", "judged"))
        body = []
        for name, label in SCORES.items():
            found = _pooled(mine, [name], lambda rows: _domain_numbers.rejection_statistics(rows[:, 0], rows[:, 1]))
            cells = [_between(found, f"accuracy_{c}", 4) for c in (80, 90, 95)]
            auroc = bootstrap_mean([r.numbers[f"{name}_auroc"] for r in mine if f"{name}_auroc" in r.numbers])
            body.append([label, *cells, _between(found, "aurc", 4), report.mean_sd(auroc) if auroc.count else "–"])
        header = ["order by", "accuracy at 80 %", "at 90 %", "at 95 %", "AURC", "AUROC of the errors"]
        text += (
            f"\n### {title.capitalize()}: {errors} of {count} texts wrong (seeds: {len(mine)})\n\n"
            f"{report.table(header, body)}"
        )
        difference = _pooled(mine, ["epistemic", "aleatoric"], _difference)
        text += (
            f"\nAURC of ‖g‖² less that of p(1 − p), same resamples: {_between(difference, 'aurc', 5)}"
            f"{_verdict(difference)}.\n"
        )
    return text


def _between(found: dict[str, float], name: str, digits: int) -> str:
    low, high = (report.number(found[f"{name}_{end}"], digits) for end in ("low", "high"))
    return f"{report.number(found[name], digits)} [{low}, {high}]"


def _verdict(found: dict[str, float]) -> str:
    if found["aurc_low"] > 0:
        return ", so ‖g‖² finds the errors less well"
    return ", so ‖g‖² finds the errors better" if found["aurc_high"] < 0 else ", no clear difference"


def _pooled(
    mine: Sequence[Result], scores: Sequence[str], of_seed: Callable[[np.ndarray], dict[str, float]]
) -> dict[str, float]:
    """Means over seeds of `of_seed([texts, scores then wrong])`, with bounds: the texts of each seed drawn anew."""
    groups = [np.column_stack([*(r.arrays[f"score_{name}"] for name in scores), r.arrays["wrong"]]) for r in mine]

    def statistics(*groups: np.ndarray) -> dict[str, float]:
        found = [of_seed(group) for group in groups]
        return {name: float(np.mean([one[name] for one in found])) for name in found[0]}

    return _domain_numbers.with_intervals(statistics, *groups)


def _difference(rows: np.ndarray) -> dict[str, float]:
    one, other, wrong = rows.T
    return {"aurc": float((_domain_numbers.risks(one, wrong) - _domain_numbers.risks(other, wrong)).mean())}


def _accuracies(rows: np.ndarray) -> dict[str, float]:
    risk = _domain_numbers.risks(rows[:, 0], rows[:, 1])
    return {f"{c:.2f}": _domain_numbers.coverage_accuracy(risk, c) for c in _COVERAGE}


def _memory(row: Row) -> str:
    body = [
        [
            name,
            f"{row[f'{name}_jaxpr'] / 2**20:,.0f}",
            f"{row[f'{name}_vmap'] / 2**20:,.0f}",
            f"{row[f'{name}_vmap'] / row[f'{name}_jaxpr']:.1f}",
        ]
        for name in (column.removesuffix("_jaxpr") for column in row if column.endswith("_jaxpr"))
    ]
    return (
        f"## Memory of one batch: {row['batch']} texts of {row['tokens']} tokens, {row['num_params']:,} parameters\n\n"
        "MiB beside parameters and Σ, by the compiled programs' own account: the engine, which every quadratic form "
        "but the dense one goes through, beside vmap of grad.\n\n"
        + report.table(["Σ", "engine", "vmap of grad", "ratio"], body)
    )


def _distributions(mine: Sequence[Result]) -> dict[str, dict[str, np.ndarray]]:
    """Of the first seed, each GGN at λ = 1 and the largest number of proxies: the arrays, by a title."""
    found: dict[str, dict[str, np.ndarray]] = {}
    largest = _main(_groups([result.numbers for result in mine]))
    shown = [group for group in largest if group[2].startswith("ggn")] or largest
    for _, scope, covariance, proxies, precision in shown:
        for result in mine:
            row = result.numbers
            if (row["covariance"], row["proxies"], row["precision"]) == (covariance, proxies, precision):
                found[f"{NAMES[covariance]}, {scope},\n{proxies} texts a domain, seed {row['seed']}"] = result.arrays
                break
    return found


def _curves(groups: dict[Group, list[Row]]) -> dict[str, dict[int, dict[str, Interval]]]:
    """Title -> number of proxies -> the intervals over seeds."""
    curves: dict[str, dict[int, dict[str, Interval]]] = {}
    columns = ("log_ratio_science", "log_ratio_sports", "auroc")
    for group, mine in groups.items():
        if group[4] == 1:
            title = f"{VARIANTS[group[0]]}\n{NAMES[group[2]]},\n{group[1]}"
            curves.setdefault(title, {})[group[3]] = {name: _all(mine, name) for name in columns}
    return {title: dict(sorted(by_count.items())) for title, by_count in curves.items()}


def _rejection_curves(judged: Sequence[Result]) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Variant -> score -> mean, low and high of the accuracy at each coverage, texts of all seeds drawn anew."""
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for variant, title in VARIANTS.items():
        mine = [r for r in judged if r.numbers["variant"] == variant]
        if not mine:
            continue
        found[title] = {}
        for score in SCORES:
            numbers = _pooled(mine, [score], _accuracies)
            found[title][score] = {
                what: np.array([numbers[f"{c:.2f}{end}"] for c in _COVERAGE])
                for what, end in (("mean", ""), ("low", "_low"), ("high", "_high"))
            }
    return found
