"""The summary of the experiment `domains`."""

from collections.abc import Sequence

from experiments.domains.configuration import ACCURACY, MIN_SEEDS
from experiments.domains.numbers.domains import (
    COVARIANCES,
    MEMORY_FORMS,
    SCORES,
    SUREST,
    Accuracy,
    Comparison,
    DomainNumbers,
    Rejection,
    Row,
)
from experiments.domains.statistics import Estimate
from experiments.domains.texts import DOMAINS
from experiments.domains.tiny_encoder import TINY
from experiments.report import tables
from experiments.report.outputs import Numbers
from isouq.stats import Interval

VARIANTS = {"whole": "whole model fine-tuned", "head": "head alone"}
_RATIO = ("log ratio, science", "sports", "sign changes", "AUROC")


def report(numbers: Numbers, preset: str) -> str:
    """Return the summary, one table a question."""
    details: DomainNumbers = numbers.details
    parts = [f"# Domains, preset `{preset}`: science against sports texts\n", _reading(details.facts)]
    parts += [_accuracy(details.accuracies)]
    if details.comparisons:
        parts += [_overlap(details.main), _claims(details.main)]
        parts += [_proxies(details.comparisons), _precisions(details.comparisons)]
    if details.rejections:
        parts += [_rejection(details.rejections)]
    if details.memory is not None:
        parts += [_memory(details.memory)]
    return "\n".join(part for part in parts if part)


def _title(one: Comparison) -> list[str]:
    return [VARIANTS[one.variant], one.scope, COVARIANCES[one.covariance]]


def _ratio(one: Comparison) -> list[str]:
    """Return the cells under `_RATIO`."""
    medians = [_signed(one.means[f"log_ratio_{domain}"]) for domain in DOMAINS]
    return [*medians, f"{one.sign_changes}/{len(one.results)}", tables.mean_sd(one.means["auroc"])]


def _signed(interval: Interval, digits: int = 3) -> str:
    """Return mean ± sd to three significant digits, so that 10⁻⁵ is shown too."""
    if interval.count == 0:
        return "–"
    mean = f"{interval.mean:+.{digits}g}"
    return mean if interval.count == 1 else f"{mean} ± {interval.sd:.2g}"


def describe_encoder(row: Row) -> str:
    """Return the sentences that say which encoder and texts were used, and whether the encoder is one for tests."""
    random = " The encoder is random, made for tests: its numbers mean nothing." if row["encoder"] == TINY else ""
    return f"Encoder `{row['encoder']}`, texts `{row['data']}`, at most {row['max_length']} tokens each.{random}"


def _reading(row: Row) -> str:
    return (
        f"{describe_encoder(row)} "
        "H_A is the curvature of the loss on science texts alone plus the prior's λ = 1 (unit prior, fixed "
        "beforehand), H_B that on sports texts alone; both from texts that were not trained on. U is gᵀΣg with Σ = I, "
        "H_A⁻¹ or H_B⁻¹, and g the gradient of the predicted class's probability. The log ratio is log(U_A/U_B): it is "
        "below 0 on science and above 0 on sports where each proxy lowers uncertainty on its own domain. Mean ± sd "
        "over all seeds (split, head, order of training); intervals over texts are bootstrap 95 %.\n"
    )


def _accuracy(accuracies: Sequence[Accuracy]) -> str:
    body = []
    for one in accuracies:
        first = one.rows[0]
        body.append(
            [
                VARIANTS[one.variant],
                f"{first['num_params']:,}",
                f"{first['train']}, {first['validation']}, {first['tests']}",
                f"{one.share:.3f} [{one.low:.3f}, {one.high:.3f}]",
                ", ".join(f"{row['accuracy']:.3f}" for row in one.rows),
                ", ".join(f"{row['best_epoch']} of {row['epochs']}" for row in one.rows),
                tables.accepted_share(one.rows),
            ]
        )
    header = ["", "parameters", "texts to train, validate, test", "accuracy", "by seed", "best epoch",
              f"at least {ACCURACY}"]  # fmt: skip
    if not body:
        return ""
    return (
        "## Held-out accuracy\n\nThe interval is Wilson's over the test texts of all seeds together. A text in the "
        "tests of several seeds counts as often, so the interval is too narrow where the texts are few.\n\n"
        + tables.table(header, body)
    )


def _overlap(main: Sequence[Comparison]) -> str:
    body = []
    first = {(one.variant, one.scope): one for one in reversed(main)}  # all covariances have the same identity
    for one in (one for one in main if first[one.variant, one.scope] is one):
        by_seed = [f"[{row['identity_difference_low']:.2f}, {row['identity_difference_high']:.2f}]" for row in one.rows]
        body.append(
            [
                VARIANTS[one.variant],
                one.scope,
                str(one.rows[0]["compared"]),
                *(tables.mean_sd(one.means[f"identity_{domain}"]) for domain in DOMAINS),
                _signed(one.means["identity_difference"]),
                ", ".join(by_seed),
                tables.mean_sd(one.means["identity_auroc"]),
            ]
        )
    header = ["", "gradient of", "texts a seed", "median log U, science", "sports", "difference",
              "by seed, over texts", "AUROC"]  # fmt: skip
    return (
        "## Do the domains overlap under the identity?\n\nDifference: sports less science, in log units. AUROC: of log "
        "‖g‖² for telling sports texts; ½ where the two distributions overlap in full.\n\n" + tables.table(header, body)
    )


def _claims(main: Sequence[Comparison]) -> str:
    body, claims, failures = [], [], []
    for one in main:
        name, seeds = f"{VARIANTS[one.variant]}, {COVARIANCES[one.covariance]}", len(one.results)
        missing = _missing(one)
        if missing:
            failures.append(f"- {name}: {', '.join(missing)}\n")
        else:
            claims.append(name)
        body.append(
            [
                *_title(one),
                str(one.proxies),
                *(_signed(one.means[f"log_ratio_{domain}"]) for domain in DOMAINS),
                f"{one.sign_changes}/{seeds}",
                f"{one.lowered_a}/{seeds}, {one.lowered_b}/{seeds}",
                tables.mean_sd(one.means["right_sign"]),
                tables.mean_sd(one.means["auroc"]),
                ", ".join(f"[{row['auroc_low']:.2f}, {row['auroc_high']:.2f}]" for row in one.rows),
            ]
        )
    header = ["", "gradient of", "H", "proxy texts a domain", "log ratio, science", "sports", "sign changes",
              "own domain lowered more, A, B", "texts of the right sign", "AUROC", "by seed, over texts"]  # fmt: skip
    text = (
        "## Does a proxy bend uncertainty?\n\nMedians of the log ratio by domain, from the largest number of proxies "
        "that most seeds ran. AUROC of the log ratio for telling sports texts: ½ where the proxies make no difference, "
        "1 where the log ratio separates the domains. A change of sign is more than a high AUROC: where the texts of "
        "one domain are less confident, their curvature is larger for every text, and that shifts the log ratio of "
        "both domains alike.\n\n" + tables.table(header, body)
    )
    if claims:
        text += (
            f"\nOn every seed ({MIN_SEEDS} or more) the log ratio changes sign between the domains, each proxy lowers "
            f"its own domain more, and the held-out accuracy is {ACCURACY} or more: {'; '.join(claims)}.\n"
        )
    if failures:
        text += f"\nNot claimed, each for what does not hold on every one of {MIN_SEEDS} seeds or more:\n\n"
        text += "".join(failures)
    return text


def _missing(one: Comparison) -> list[str]:
    """Return what a claim lacks, with the seeds that have it; empty where enough seeds have everything."""
    seeds = len(one.results)
    conditions = {
        "a sign change": one.sign_changes,
        "A lowering science more": one.lowered_a,
        "B lowering sports more": one.lowered_b,
        f"accuracy of at least {ACCURACY}": one.accepted,
    }
    missing = [f"{name} on {count}/{seeds} seeds" for name, count in conditions.items() if count < seeds]
    return [*missing, *([f"{MIN_SEEDS} seeds (there are {seeds})"] if seeds < MIN_SEEDS else [])]


def _proxies(comparisons: Sequence[Comparison]) -> str:
    body = [[*_title(one), str(one.proxies), *_ratio(one)] for one in comparisons if one.precision == 1]
    header = ["", "gradient of", "H", "proxy texts a domain", *_RATIO]
    return "## How many proxy texts?\n\nλ = 1.\n\n" + tables.table(header, body)


def _precisions(comparisons: Sequence[Comparison]) -> str:
    several = {_case(one) for one in comparisons if one.precision != 1}
    shown = [one for one in comparisons if _case(one) in several]
    if not shown:
        return ""
    variants, covariances = list(VARIANTS), list(COVARIANCES)
    shown.sort(key=lambda one: (variants.index(one.variant), covariances.index(one.covariance), one.proxies,
                                one.precision))  # fmt: skip
    body = [[*_title(one), str(one.proxies), f"{one.precision:g}", *_ratio(one)] for one in shown]
    header = ["", "gradient of", "H", "proxy texts a domain", "λ", *_RATIO]
    return "## How much is the prior's?\n\nThe same with other λ, the precision of the prior.\n\n" + tables.table(
        header, body
    )


def _case(one: Comparison) -> tuple[str, str, str, int]:
    """Return all that names a comparison but λ."""
    return one.variant, one.scope, one.covariance, one.proxies


def _rejection(rejections: Sequence[Rejection]) -> str:
    text = (
        "## What a user would do with it: accuracy against rejection\n\nOver the texts that were not trained on "
        "(the test and proxies). Accuracy when the most certain 80, 90 or 95 % are answered, and AURC, the mean "
        "share of errors over all coverages (smaller is better): means over seeds, with bootstrap 95 % intervals over "
        "the texts of each seed. The seeds share texts, so the intervals are narrow. Every score orders the same "
        "predictions. With two classes p(1 − p) and the maximum softmax probability order alike. The sum adds ‖g‖² and "
        "p(1 − p) as they are, though the scale of ‖g‖² is arbitrary (Σ = I). The ensemble consists of five heads on "
        "the fine-tuned encoder's vectors, each from its own initialisation and bootstrap sample of the training "
        "texts; the encoder is fine-tuned once, not five times.\n"
    )
    header = ["order by", "accuracy at 80 %", "at 90 %", "at 95 %", "AURC", "AUROC of the errors"]
    for one in rejections:
        body = []
        for name, label in SCORES.items():
            surest = [_between(one.surest[name], i, 4) for i in range(len(SUREST) + 1)]
            area = one.auroc[name]
            body.append([label, *surest, tables.mean_sd(area) if area.count else "–"])
        title = VARIANTS[one.variant].capitalize()
        text += (
            f"\n### {title}: {one.errors} of {one.texts} texts wrong (seeds: {one.seeds})\n\n"
            f"{tables.table(header, body)}"
        )
        ends = (tables.number(float(value), 5) for value in one.difference)
        text += "\nAURC of ‖g‖² less that of p(1 − p), same resamples: {} [{}, {}]{}.\n".format(
            *ends, _conclusion(one.difference)
        )
    return text


def _between(estimate: Estimate, i: int, digits: int) -> str:
    value, low, high = (tables.number(float(values[i]), digits) for values in estimate)
    return f"{value} [{low}, {high}]"


def _conclusion(difference: Estimate) -> str:
    if difference.low > 0:
        return ", so ‖g‖² finds the errors less well"
    return ", so ‖g‖² finds the errors better" if difference.high < 0 else ", no clear difference"


def _memory(row: Row) -> str:
    body = [
        [
            name,
            f"{row[f'{name}_jaxpr'] / 2**20:,.0f}",
            f"{row[f'{name}_vmap'] / 2**20:,.0f}",
            f"{row[f'{name}_vmap'] / row[f'{name}_jaxpr']:.1f}",
        ]
        for name in MEMORY_FORMS
        if f"{name}_jaxpr" in row
    ]
    return (
        f"## Memory of one batch: {row['batch']} texts of {row['tokens']} tokens, {row['num_params']:,} parameters\n\n"
        "MiB beside parameters and Σ, as the compiled programs state them: of the engine, which every quadratic form "
        "but the dense one goes through, and of vmap of grad.\n\n"
        + tables.table(["Σ", "engine", "vmap of grad", "ratio"], body)
    )
