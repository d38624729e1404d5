"""The numbers of the calibration: losses by data set and prior, and differences to the plain network."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.calibration import LOSSES, PREDICTORS
from experiments.synthetic.numbers.models import MIN_SEEDS, Model, Row, adjust, counts, numbers_of, rows_by_model
from experiments.synthetic.presets.real import PRIORS
from experiments.synthetic.real_data import REAL
from isouq.stats import Interval, clustered_bootstrap

MIN_PROBLEMS = 4  # data sets of a family that is tested; see `isouq.stats.clustered_bootstrap` for fewer
CLASSIFICATIONS, REGRESSION = "classifications", "regression"


class Change(NamedTuple):
    """What a predictor changes in a loss of the network that it is built on, and the adjusted p of that change."""

    family: str
    name: str
    loss: str
    interval: Interval
    p: float


class Details(NamedTuple):
    """The models, and the changes of every family."""

    models: list[Model]
    changes: list[Change]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return means over seeds of every loss by model, and for each family the changes against the plain network.

    Groups: a data set with its prior, with NAME_LOSS and the fitted numbers; "classifications" and "regression" with
    NAME_LOSS_gain, the mean over data sets and priors of the mean paired difference (below 0 is better), and
    NAME_LOSS_gain_p, its p-value, adjusted by Benjamini and Hochberg over all of them. One data set is not tested.
    Only accepted references count, also where a column does not need the reference, so that all are compared on the
    same seeds.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row if name.startswith(("map_", "mle", "posterior"))))
    columns = [name for name in columns if name.endswith((*LOSSES, "number", "factor"))]
    summary: list[Number] = []
    for model, group in groups.items():
        summary += numbers_of(model, group, [column for column in columns if column in group[0]])
    families: dict[str, list[Model]] = {}
    for model in groups:
        is_regression = REAL[model.problem].kind == "regression"
        families.setdefault(REGRESSION if is_regression else CLASSIFICATIONS, []).append(model)
    changes = []
    for family, models in families.items():
        is_tested = (
            len({model.problem for model in models}) >= MIN_PROBLEMS
            and min(model.seeds for model in models) >= MIN_SEEDS
        )
        for name, (base, _) in PREDICTORS.items():
            for loss in LOSSES:
                differences = [
                    _differences(groups[model], name, base, loss) for model in models if _is_own(model, base)
                ]
                if base and any(differences):
                    interval, p = clustered_bootstrap(differences)
                    changes.append(Change(family, name, loss, interval, p if is_tested else float("nan")))
    adjusted = adjust([change.p for change in changes])
    changes = [change._replace(p=p) for change, p in zip(changes, adjusted, strict=True)]
    for change in changes:
        accepted = sum(model.accepted for model in families[change.family])
        name = f"{change.name}_{change.loss}_gain"
        summary.append(Number.of(change.family, name, change.interval, accepted))
        summary.append(Number.value(change.family, f"{name}_p", change.p, change.interval.count, accepted))
    return Numbers(rows, summary, details=Details(list(groups), changes))


def _is_own(model: Model, base: str) -> bool:
    """Return whether a model has networks of its own: those without a prior are the same under all priors."""
    return base != "mle" or (model.prior, model.sigma) == PRIORS[0]


def _differences(rows: Sequence[Row], name: str, base: str, loss: str) -> list[float]:
    """Return the loss of a predictor minus that of its base, for every seed that has both."""
    column, other = f"{name}_{loss}", f"{base}_{loss}"
    return [row[column] - row[other] for row in rows if base and counts(row, column, other)]
