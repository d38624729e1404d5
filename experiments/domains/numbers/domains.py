"""The numbers of the experiment `domains`: means over seeds, intervals over texts, and what a claim rests on."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.domains.configuration import VARIANTS
from experiments.domains.statistics import Estimate, coverage_accuracy, estimate, wilson
from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from isouq import stats
from isouq.stats import Interval, bootstrap_mean

COVARIANCES = {
    "ggn_diagonal": "GGN, diagonal",
    "fisher_diagonal": "empirical Fisher, diagonal",
    "ggn_kronecker": "GGN, Kronecker",
    "fisher_kronecker": "empirical Fisher, Kronecker",
    "ggn_dense": "GGN, dense",
    "fisher_dense": "empirical Fisher, dense",
}
SCORES = {
    "epistemic": "epistemic ‖g‖²",
    "aleatoric": "aleatoric p(1 − p)",
    "sum": "their sum",
    "softmax": "maximum softmax probability",
    "ensemble": "ensemble, variance of p",
    "ensemble_softmax": "ensemble, maximum of the mean p",
}
SUREST = (0.8, 0.9, 0.95)  # shares of the texts whose accuracy the table shows
COVERAGES = np.linspace(0.5, 1, 51)
MEANS = (
    "identity_science", "identity_sports", "identity_difference", "identity_auroc", "log_ratio_science",
    "log_ratio_sports", "right_sign", "auroc",
)  # fmt: skip
MEMORY_FORMS = ("identity", "diagonal", "kronecker")
# The columns of table.csv, each where a row has it.
COLUMNS = (
    "data", "encoder", "variant", "seed", "covariance", "proxies", "precision", "max_length", "epochs", "study",
    "accepted", "accuracy", "num_params", "train", "validation", "tests", "best_epoch", "scope", "compared",
    "identity_difference", "identity_auroc", "log_ratio_science", "log_ratio_sports", "auroc", "lowered_a", "lowered_b",
    "identity_difference_low", "identity_difference_high", "log_ratio_science_low", "log_ratio_science_high",
    "log_ratio_sports_low", "log_ratio_sports_high", "auroc_low", "auroc_high", "identity_science", "identity_sports",
    "sign_change", "right_sign", "judged", "errors",
    *(f"{name}_{statistic}" for name in SCORES for statistic in ("aurc", "auroc")),
    "batch", "tokens", *(f"{form}_{engine}" for form in MEMORY_FORMS for engine in ("jaxpr", "vmap")), "seconds",
)  # fmt: skip
Row = dict[str, Any]


class Accuracy(NamedTuple):
    """The test accuracy of a variant: over all seeds together with Wilson's interval; rows: one a seed."""

    variant: str
    rows: list[Row]
    share: float
    low: float
    high: float


class Comparison(NamedTuple):
    """A covariance over its seeds. results: one a seed; means: over the seeds, by column (`MEANS`).

    sign_changes, lowered_a, lowered_b, accepted: on how many seeds the sign changes between the domains, H_A⁻¹ lowers
    science more, H_B⁻¹ lowers sports more, and the accuracy is high enough.
    """

    variant: str
    scope: str
    covariance: str
    proxies: int
    precision: float
    results: list[Result]
    means: dict[str, Interval]
    sign_changes: int
    lowered_a: int
    lowered_b: int
    accepted: int

    @property
    def rows(self) -> list[Row]:
        """The numbers of each seed."""
        return [result.numbers for result in self.results]


class Rejection(NamedTuple):
    """The rejection of a variant over its seeds.

    surest: score -> accuracy at the shares `SUREST` and, last, AURC. curves: score -> accuracy at each of `COVERAGES`.
    auroc: score -> AUROC of the errors, the mean over the seeds that have errors. difference: AURC of ‖g‖² less that of
    p(1 − p).
    """

    variant: str
    seeds: int
    errors: int
    texts: int
    surest: dict[str, Estimate]
    curves: dict[str, Estimate]
    auroc: dict[str, Interval]
    difference: Estimate


class DomainNumbers(NamedTuple):
    """facts: the columns that all rows share. comparisons: all of them; main: by `choose_main`. memory: its row."""

    facts: Row
    accuracies: list[Accuracy]
    comparisons: list[Comparison]
    main: list[Comparison]
    rejections: list[Rejection]
    memory: Row | None


def numbers(results: Sequence[Result]) -> Numbers:
    """Return accuracy, comparisons of the domains, rejection, and memory."""
    by_study: dict[str, list[Result]] = {}
    for result in results:
        by_study.setdefault(result.numbers["study"], []).append(result)
    compared = sorted(by_study.get("domains", []), key=_place)
    scored = [_with_rejection(result) for result in sorted(by_study.get("rejection", []), key=_place)]
    memory = by_study.get("memory", [])
    comparisons = _compare_over_seeds(compared)
    details = DomainNumbers(
        results[0].numbers,
        _accuracies([result.numbers for result in (*compared, *scored)]),
        comparisons,
        choose_main(comparisons),
        [_reject(variant, some) for variant in VARIANTS if (some := _of_variant(scored, variant))],
        memory[0].numbers if memory else None,
    )
    rows = [{name: result.numbers[name] for name in COLUMNS if name in result.numbers}
            for result in (*compared, *scored, *memory)]  # fmt: skip
    return Numbers(rows, _summary(details), details=details)


def _place(result: Result) -> tuple[Any, ...]:
    """Return where a result stands in the tables."""
    row = result.numbers
    variant, covariance = VARIANTS.index(row["variant"]), [*COVARIANCES, ""].index(row["covariance"])
    return variant, covariance, -row["precision"], row["proxies"], row["seed"]


def _of_variant(results: Sequence[Result], variant: str) -> list[Result]:
    return [result for result in results if result.numbers["variant"] == variant]


def _accuracies(rows: Sequence[Row]) -> list[Accuracy]:
    """Return the accuracy of each variant; studies of one seed share a fine-tuning, which counts once."""
    once = {(row["variant"], row["seed"]): row for row in rows}
    accuracies = []
    for variant in VARIANTS:
        seeds = [row for (name, _), row in once.items() if name == variant]
        if seeds:
            right, count = sum(row["accuracy"] * row["tests"] for row in seeds), sum(row["tests"] for row in seeds)
            accuracies.append(Accuracy(variant, seeds, right / count, *wilson(round(right), count)))
    return accuracies


def _compare_over_seeds(results: Sequence[Result]) -> list[Comparison]:
    """Return the comparisons of all seeds of each variant, covariance, number of proxies and λ."""
    seeds: dict[tuple[str, str, str, int, float], list[Result]] = {}
    for result in results:
        row = result.numbers
        key = (row["variant"], row["scope"], row["covariance"], row["proxies"], row["precision"])
        seeds.setdefault(key, []).append(result)
    comparisons = []
    for key, some in seeds.items():
        rows = [result.numbers for result in some]
        means = {name: bootstrap_mean([row[name] for row in rows]) for name in MEANS}
        counts = (
            sum(row["sign_change"] for row in rows),
            sum(row["lowered_a"] > 0 for row in rows),
            sum(row["lowered_b"] > 0 for row in rows),
            sum(row["accepted"] for row in rows),
        )
        comparisons.append(Comparison(*key, some, means, *counts))
    return comparisons


def choose_main(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return, of each variant and covariance, λ = 1 and the largest number of proxies that most seeds have."""
    best: dict[tuple[str, str], Comparison] = {}
    for one in comparisons:
        key = one.variant, one.covariance
        other = best.get(key)
        if one.precision == 1 and (
            other is None or (len(one.results), one.proxies) > (len(other.results), other.proxies)
        ):
            best[key] = one
    return list(best.values())


def _with_rejection(result: Result) -> Result:
    """Return the result with AURC of every score, and its AUROC for telling the errors where there are any."""
    row, wrong = dict(result.numbers), result.arrays["wrong"]
    for name in SCORES:
        score = result.arrays[f"score_{name}"]
        row[f"{name}_aurc"] = stats.aurc(wrong, score)
        if 0 < wrong.sum() < len(wrong):
            row[f"{name}_auroc"] = stats.auroc(wrong, score)
    return Result(row, result.arrays)


def _reject(variant: str, results: Sequence[Result]) -> Rejection:
    """Return the rejection of a variant: means over its seeds, with intervals as the texts of each seed are redrawn."""
    rows = [result.numbers for result in results]
    surest, curves, auroc = {}, {}, {}
    for name in SCORES:
        value, low, high = estimate(_mean_over_seeds(_accuracy_curve), *_samples(results, name))
        split = len(SUREST) + 1
        surest[name] = Estimate(value[:split], low[:split], high[:split])
        curves[name] = Estimate(value[split:], low[split:], high[split:])
        auroc[name] = bootstrap_mean([row[f"{name}_auroc"] for row in rows if f"{name}_auroc" in row])
    difference = estimate(_mean_over_seeds(_aurc_difference), *_samples(results, "epistemic", "aleatoric"))
    errors, texts = (sum(row[name] for row in rows) for name in ("errors", "judged"))
    return Rejection(variant, len(rows), errors, texts, surest, curves, auroc, difference)


def _samples(results: Sequence[Result], *scores: str) -> list[np.ndarray]:
    """Return of each seed the scores of the texts and, in the last column, which predictions are wrong."""
    return [np.column_stack([*(one.arrays[f"score_{name}"] for name in scores), one.arrays["wrong"]])
            for one in results]  # fmt: skip


def _mean_over_seeds(statistic: Any) -> Any:
    """Return the statistic of several seeds: the mean of that of each."""
    return lambda *samples: np.mean([statistic(sample) for sample in samples], axis=0)


def _accuracy_curve(rows: np.ndarray) -> list[float]:
    """Return accuracy at `SUREST`, AURC, and accuracy at `COVERAGES`."""
    risk = stats.rejection_curve(rows[:, 1], rows[:, 0])
    surest, curve = ([coverage_accuracy(risk, c) for c in shares] for shares in (SUREST, COVERAGES))
    return [*surest, float(risk.mean()), *curve]


def _aurc_difference(rows: np.ndarray) -> float:
    one, other, wrong = rows.T
    return stats.aurc(wrong, one) - stats.aurc(wrong, other)


def _summary(details: DomainNumbers) -> list[Number]:
    """Return the lines of summary.csv; accepted: the seeds whose fine-tuning reached `configuration.ACCURACY`."""
    lines = []
    for one in details.accuracies:
        accepted = sum(row["accepted"] for row in one.rows)
        tests = sum(row["tests"] for row in one.rows)
        lines.append(Number(one.variant, "accuracy", one.share, one.low, one.high, tests, accepted))
    for case in details.comparisons:
        group = f"{case.variant}, {case.covariance}, {case.proxies} proxies, λ = {case.precision:g}"
        count, accepted = len(case.results), case.accepted
        lines += [Number.of(group, name, mean, accepted) for name, mean in case.means.items()]
        for name, seeds in (
            ("sign_change", case.sign_changes),
            ("lowered_a", case.lowered_a),
            ("lowered_b", case.lowered_b),
        ):
            lines.append(Number.value(group, f"share_{name}", seeds / count, count, accepted))
    for rejection in details.rejections:
        lines += _rejection_lines(rejection, details.accuracies)
    if details.memory is not None:
        for name in (f"{form}_{engine}" for form in MEMORY_FORMS for engine in ("jaxpr", "vmap")):
            if name in details.memory:
                lines.append(Number.value("memory, bytes", name, float(details.memory[name]), 1, 1))
    return lines


def _rejection_lines(rejection: Rejection, accuracies: Sequence[Accuracy]) -> list[Number]:
    """Return the lines of summary.csv about the rejection of a variant."""
    group, count = f"{rejection.variant}, rejection", rejection.seeds
    accepted = sum(row["accepted"] for one in accuracies if one.variant == rejection.variant for row in one.rows)
    statistics = [*(f"accuracy_{round(100 * share)}" for share in SUREST), "aurc"]
    lines = []
    for name, surest in rejection.surest.items():
        for statistic, value, low, high in zip(statistics, *map(list, surest), strict=True):
            ends = float(value), float(low), float(high)
            lines.append(Number(group, f"{statistic}_{name}", *ends, count, accepted))
        if rejection.auroc[name].count:
            lines.append(Number.of(group, f"auroc_{name}", rejection.auroc[name], accepted))
    value, low, high = map(float, rejection.difference)
    return [*lines, Number(group, "aurc_epistemic_less_aleatoric", value, low, high, count, accepted)]
