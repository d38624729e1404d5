"""The report of the leaderboard."""

from collections.abc import Sequence

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.measure.estimators import BASE, CONTROL, ESTIMATORS, NEEDS, STATISTICS, Estimator
from experiments.synthetic.numbers.estimators import ALL, MIN_MODELS, SHOWN, Details, SignificanceTest
from experiments.synthetic.numbers.models import ALPHA, MIN_SEEDS, Model
from experiments.synthetic.report.page import difference, p_value, page

HEADINGS = {
    "spearman": "ρ",
    "pearson": "r",
    "partial": "partial ρ given p(1 − p)",
    "overlap": "overlap of the top tenth",
}


def report(numbers: Numbers, preset: str) -> str:
    """Return what is better and worse than ‖g‖² in each family, what ‖g‖² adds to p(1 − p), and all tables."""
    details: Details = numbers.details
    return page(
        f"Which cheap estimate can stand in for the posterior? Preset `{preset}`",
        numbers,
        _reading(numbers),
        _beyond_control(details),
        *(_claims(numbers, family) for family in details.families),
        *(_table(numbers, family) for family in details.families),
    )


def _reading(numbers: Numbers) -> str:
    details: Details = numbers.details
    sizes = "; ".join(f"{family}, {_size(models)}" for family, models in details.families.items())
    return (
        "## How to read this page\n\n"
        "Every estimate is compared with the variance of the predicted probability under HMC, over the evaluation "
        "inputs. The primary statistic is Spearman's ρ. A family is a set of posteriors for which one statement is "
        "made; its numbers are means over models of means over seeds, and the intervals are those of a bootstrap over "
        f"models and seeds. Families: {sizes}.\n\n"
        f"An estimate is called better or worse than ‖g‖² where its difference in ρ, paired by posterior, has an "
        f"adjusted p below {ALPHA:g} (Benjamini and Hochberg, over all estimates and families). A difference stands "
        "with its 95 % interval and its number of pairs. p(1 − p) does not exist for a regression, nor "
        "MC dropout for a model without a hidden layer: their ρ is a mean over fewer models than that of ‖g‖². Compare "
        "the differences, which are paired. "
        f"A family of fewer than {MIN_MODELS} models is not tested: there the bootstrap calls up to a quarter of the "
        "differences of 0 significant; with four models it is up to a seventh. ‖g‖² itself needs one trained network; "
        "what an estimate needs beyond that is the first column of the comparisons. They list the largest ensembles "
        "alone; the tables of every estimate hold all.\n\n"
        "Overlap of the top tenth: which share of the tenth of the inputs with the largest estimates is in the tenth "
        "with the largest variance; unrelated maps have 0.1. Passes are those of one network for each input, without "
        "training and without building a covariance, for three classes. Seconds are for all inputs, with training "
        "and without compiling.\n"
    )


def _size(models: Sequence[Model]) -> str:
    accepted, seeds = sum(model.accepted for model in models), sum(model.seeds for model in models)
    return f"{len(models)} model{'s' if len(models) > 1 else ''}, {accepted} of {seeds} accepted"


def _beyond_control(details: Details) -> str:
    """Return whether ‖g‖² knows more than p(1 − p): its partial rank correlation given p(1 − p)."""
    body = []
    for family, test in details.beyond_control.items():
        if test.interval.count:
            control = _difference(details.differences.get((family, CONTROL)))
            body.append([family, tables.mean_bounds(test.interval), p_value(test.p), *control])
    gain = "ρ of p(1 − p) minus ρ of ‖g‖²"
    header = ["family", "partial ρ of ‖g‖² given p(1 − p)", "its adjusted p", gain, "its adjusted p"]
    return (
        "## What does ‖g‖² know beyond p(1 − p)?\n\n"
        "A partial ρ above 0 says that among inputs of the same p(1 − p) those with a larger ‖g‖² tend to have a "
        "larger posterior variance.\n\n" + (tables.table(header, body) if body else "No classification was accepted.\n")
    )


def _difference(test: SignificanceTest | None) -> list[str]:
    return ["–", "–"] if test is None else [difference(test.interval, 3), p_value(test.p)]


def _claims(numbers: Numbers, family: str) -> str:
    """Return which estimates of each need are better or worse than ‖g‖² in a family."""
    details: Details = numbers.details
    models = details.families[family]
    text = f"## {family[0].upper()}{family[1:]}: against ‖g‖²\n\n"
    if min(model.seeds for model in models) < MIN_SEEDS:
        return text + f"No claim is made from fewer than {MIN_SEEDS} seeds; the differences are in the table below.\n"
    body = []
    for need, words in NEEDS.items():
        tests = [
            details.differences[family, name]
            for name in SHOWN
            if ESTIMATORS[name].needs == need and (family, name) in details.differences
        ]
        better = sorted((t for t in tests if t.verdict > 0), key=lambda test: -test.interval.mean)
        worse = sorted((t for t in tests if t.verdict < 0), key=lambda test: test.interval.mean)
        unsettled = sum(t.verdict == 0 and t.interval.count > 0 for t in tests)
        body.append([words, _names(better), _names(worse), str(unsettled)])
    return text + tables.table(["needs", "better, by how much in ρ", "worse", "unsettled"], body)


def _names(tests: Sequence[SignificanceTest]) -> str:
    listed = [f"{ESTIMATORS[test.name].title} ({test.interval.mean:+.2f})" for test in tests]
    return "; ".join(listed) or "none"


def _table(numbers: Numbers, family: str) -> str:
    """Return every estimate of a family: statistics, difference to ‖g‖², and cost."""
    values = numbers.groups[family]
    body = []
    for name, estimator in ESTIMATORS.items():
        rho = values.get(f"{name}_spearman")
        if rho is None or not rho.count:
            continue
        test = None if name == BASE else numbers.details.differences[family, name]
        body.append(
            [
                estimator.title,
                NEEDS[estimator.needs],
                tables.mean_bounds(rho),
                *_difference(test),
                *(tables.number(values[f"{name}_{s}"].mean) for s in list(STATISTICS)[1:]),
                _passes(estimator),
                tables.number(values[f"{name}_seconds"].mean, 3),
            ]
        )
    title = f"## {family[0].upper()}{family[1:]}: every estimate\n\n"
    if not body:
        return title + "No reference was accepted.\n"
    header = [
        "estimate", "needs", "ρ", "ρ minus that of ‖g‖²", "adjusted p", *(HEADINGS[s] for s in list(STATISTICS)[1:]),
        "networks trained, forward passes, backward passes", "seconds with training",
    ]  # fmt: skip
    note = "The families together; each model counts once.\n\n" if family == ALL else ""
    return title + note + tables.table(header, body)


def _passes(estimator: Estimator) -> str:
    return f"{estimator.networks}, {estimator.forward}, {estimator.backward}"
