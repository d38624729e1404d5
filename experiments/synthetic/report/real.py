"""The report of the real data."""

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.measure.estimators import BASE
from experiments.synthetic.measure.held_out import PREDICTORS, REJECTED
from experiments.synthetic.numbers.estimators import SHOWN
from experiments.synthetic.numbers.real import REFERENCE, TITLES
from experiments.synthetic.report.page import page


def report(numbers: Numbers, preset: str) -> str:
    """Return agreement with HMC, errors found, and calibration, a column for each data set and prior."""
    return page(
        f"Real data, preset `{preset}`: data sets of scikit-learn, held-out points",
        numbers,
        _by_estimate(numbers, "spearman", "Agreement with HMC: ρ", "Over the held-out points.", 2),
        _by_estimate(
            numbers, "auroc", "Finding errors: AUROC",
            "The probability that a point on which θ* is wrong has a larger value than one on which it is right. No "
            "regression has it, and no seed where all points are right.", 2,
        ),
        _by_estimate(
            numbers, "kept", f"Error on the {1 - REJECTED:.0%} of the points with the smallest values",
            "The share of wrong predictions of θ*, for `diabetes` the root mean square error in standard deviations of "
            "y. The first row is the error on all points.", 3,
        ),
        _calibration(numbers),
    )  # fmt: skip


def _by_estimate(numbers: Numbers, what: str, title: str, explanation: str, digits: int) -> str:
    models = list(numbers.details)
    body = []
    if what == "kept":
        body.append(["all points", *(tables.mean_bounds(numbers.groups[m.name]["error"], digits) for m in models)])
    for name, words in TITLES.items():
        if name not in (REFERENCE, BASE, *SHOWN):
            continue
        intervals = [numbers.groups[model.name].get(f"{name}_{what}") for model in models]
        if any(interval is not None and interval.count for interval in intervals):
            body.append([words, *("–" if i is None else tables.mean_bounds(i, digits) for i in intervals)])
    return f"## {title}\n\n{explanation}\n\n" + tables.table(["estimate", *(model.name for model in models)], body)


def _calibration(numbers: Numbers) -> str:
    body = []
    for model in numbers.details:
        values = numbers.groups[model.name]
        cells = [
            tables.mean_bounds(values[column], 3) if column in values else "–"
            for what in ("nll", "ece")
            for column in (f"{what}_{name}" for name in PREDICTORS)
        ]
        body.append([model.name, model.accepted_share, *cells])
    header = [
        "data, prior",
        "accepted",
        *(f"{what}, {title}" for what in ("NLL", "ECE") for title in PREDICTORS.values()),
    ]
    return (
        "## Calibration\n\nNLL: mean −log p of the label, for regression of N(mean, noise² + variance of the mean). "
        "ECE: expected calibration error over ten bins of confidence.\n\n" + tables.table(header, body)
    )
