"""The report of the calibration."""

from experiments.calibration import LOSSES
from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.measure.calibration import PREDICTORS
from experiments.synthetic.numbers.calibration import Details
from experiments.synthetic.report.page import difference, p_value, page

NUMBERS = {
    "map_scale_number": "scale of ‖g‖², θ*",
    "mle_scale_number": "scale of ‖g‖², MLE",
    "map_temperature_number": "temperature, θ*",
    "mle_temperature_number": "temperature, MLE",
    "map_last_layer_number": "scale, last-layer Laplace",
    "map_kronecker_scale_number": "scale, Kronecker Laplace",
    "map_evidence_factor": "prior by the evidence / prior",
}


def report(numbers: Numbers, preset: str) -> str:
    """Return what every predictor changes in the losses of the plain network, all losses, and the fitted numbers."""
    return page(
        f"Does a scale for ‖g‖² help? Preset `{preset}`: data sets of scikit-learn, held-out points",
        numbers,
        _changes(numbers.details),
        *(_losses(numbers, loss) for loss in LOSSES),
        _fitted(numbers),
    )


def _changes(details: Details) -> str:
    parts = []
    for family in dict.fromkeys(family for family, _, _ in details.changes):
        body = []
        for name, (base, title) in PREDICTORS.items():
            cells = [details.changes.get((family, name, loss)) for loss in LOSSES]
            if any(cells):
                line = [
                    x
                    for one in cells
                    for x in (["–", "–"] if one is None else [difference(one.interval, 3), p_value(one.p)])
                ]
                body.append([title, PREDICTORS[base][1], *line])
        header = ["predictor", "against", *(x for title in LOSSES.values() for x in (title, "adjusted p"))]
        parts.append(f"### {family[0].upper()}{family[1:]}\n\n" + tables.table(header, body))
    return (
        "## What each predictor changes\n\n"
        "Half of the held-out points fit the one number of a predictor (a scale or a temperature), the other half "
        "gives the losses. A change is the mean over data sets and priors of the paired difference to the plain "
        "network, with its 95 % interval and its number of pairs; below 0 is better. p is adjusted by Benjamini and "
        "Hochberg; the regression is one data set and is not tested. An MLE network has no prior, and counts once for "
        "each data set and seed. With four data sets, the groups of the bootstrap, up to a seventh of zero differences "
        "has p < 0.05.\n\n" + "\n".join(parts)
    )


def _losses(numbers: Numbers, loss: str) -> str:
    models = numbers.details.models
    body = []
    for name, (_, title) in PREDICTORS.items():
        intervals = [numbers.groups[model.name].get(f"{name}_{loss}") for model in models]
        if any(interval is not None and interval.count for interval in intervals):
            body.append([title, *("–" if i is None else tables.mean_bounds(i, 3) for i in intervals)])
    if not body:
        return ""
    title = LOSSES[loss]
    return f"## {title[0].upper()}{title[1:]}\n\n" + tables.table(["predictor", *(m.name for m in models)], body)


def _fitted(numbers: Numbers) -> str:
    body = []
    for model in numbers.details.models:
        values = numbers.groups[model.name]
        body.append([model.name, *(tables.number(values[n].mean, 4) if n in values else "–" for n in NUMBERS)])
    return (
        "## The fitted numbers\n\nMeans over the seeds. A scale of 0 says that no positive scale lowered the loss of "
        "the fitting half.\n\n" + tables.table(["data, prior", *NUMBERS.values()], body)
    )
