"""The numbers of the calibration: losses by data set and prior, and differences to the plain network."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.calibration import LOSSES
from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.calibration import PREDICTORS
from experiments.synthetic.numbers.estimators import SignificanceTest, significance_tests
from experiments.synthetic.numbers.models import MIN_SEEDS, Groups, Model, Row, counts, numbers_of, rows_by_model
from experiments.synthetic.presets.real import PRIORS
from experiments.synthetic.real_data import REAL

CLASSIFICATIONS, REGRESSION = "classifications", "regression"


class Details(NamedTuple):
    """The models, and the tests of what a predictor changes, by family, predictor and loss."""

    models: list[Model]
    changes: dict[tuple[str, str, str], SignificanceTest]


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
    tested = {family for family, models in families.items() if min(model.seeds for model in models) >= MIN_SEEDS}
    cases = {
        (family, name, loss): changes
        for family, models in families.items()
        for name, (base, _) in PREDICTORS.items()
        for loss in LOSSES
        if base and any(changes := _changes_by_data_set({model: groups[model] for model in models}, name, base, loss))
    }
    tests = significance_tests(
        tested, ((family, f"{name}_{loss}", groups) for (family, name, loss), groups in cases.items())
    )
    for test in tests:
        accepted = sum(model.accepted for model in families[test.family])
        summary.append(Number.of(test.family, f"{test.name}_gain", test.interval, accepted))
        summary.append(Number.value(test.family, f"{test.name}_gain_p", test.p, test.interval.count, accepted))
    return Numbers(rows, summary, details=Details(list(groups), dict(zip(cases, tests, strict=True))))


def _changes_by_data_set(groups: Groups, name: str, base: str, loss: str) -> list[list[float]]:
    """Return what a predictor changes in a loss, for each data set: its priors share their points and are one group."""
    changes: dict[str, list[float]] = {}
    for model, rows in groups.items():
        if _is_own(model, base):
            changes.setdefault(model.problem, []).extend(_differences(rows, name, base, loss))
    return list(changes.values())


def _is_own(model: Model, base: str) -> bool:
    """Return whether a model has networks of its own: those without a prior are the same under all priors."""
    return base != "mle" or (model.prior, model.sigma) == PRIORS[0]


def _differences(rows: Sequence[Row], name: str, base: str, loss: str) -> list[float]:
    """Return the loss of a predictor minus that of its base, for every seed that has both."""
    column, other = f"{name}_{loss}", f"{base}_{loss}"
    return [row[column] - row[other] for row in rows if counts(row, column, other)]
