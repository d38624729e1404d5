"""The numbers of the leaderboard: every estimate by family of posteriors, and what is better than ‖g‖²."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.estimators import BASE, ESTIMATORS, STATISTICS
from experiments.synthetic.measure.laboratory import SIZES
from experiments.synthetic.numbers.models import (
    ALPHA,
    MIN_SEEDS,
    Model,
    Row,
    adjust,
    counts,
    numbers_of,
    rows_by_model,
    values_that_count,
)
from experiments.synthetic.real_data import REAL
from isouq.stats import Interval, clustered_bootstrap

PRIMARY = "spearman"
ALL = "all posteriors"
MIN_MODELS = 4  # of a family that is tested
# What is listed and drawn: of ensembles only the largest. The tables show all.
SHOWN = tuple(
    name
    for name, estimator in ESTIMATORS.items()
    if name != BASE and (estimator.needs != "ensemble" or name.endswith(f"_{max(SIZES)}"))
)


class SignificanceTest(NamedTuple):
    """A test of a mean against 0, such as that of the difference of an estimate to ‖g‖² in ρ.

    p: adjusted by Benjamini and Hochberg (1995) over all tests of its kind, in all families; NaN where a model of the
    family has fewer than `MIN_SEEDS` seeds, where there are fewer values than that, or fewer than `MIN_MODELS` groups,
    because the bootstrap of one or two models calls 8 to 24 % of differences of 0 significant at 0.05.
    """

    family: str
    name: str
    interval: Interval
    p: float

    @property
    def verdict(self) -> int:
        """Return 1 where the mean is significantly above 0, −1 where it is below, and 0 where there is no telling."""
        return int(np.sign(self.interval.mean)) if self.p < ALPHA else 0


class Details(NamedTuple):
    """The families with their models, the tests of all estimates against ‖g‖², and those of ‖g‖² given p(1 − p)."""

    families: dict[str, list[Model]]
    differences: dict[tuple[str, str], SignificanceTest]
    beyond_control: dict[str, SignificanceTest]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return the statistics of every estimate for each family and model, and the tests against ‖g‖².

    A family is a set of posteriors for which one statement is made. Its numbers are means over models of the means over
    seeds, with intervals over both (`clustered_bootstrap`). Groups: a family or a model. NAME_STATISTIC; NAME_gain, the
    difference in ρ to ‖g‖² by seed; NAME_gain_p, its adjusted p; NAME_seconds. Only accepted references whose ‖g‖² is
    not flat count.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    names = [name for name in ESTIMATORS if any(f"{name}_{PRIMARY}" in row for row in rows)]
    summary: list[Number] = []
    for model, group in groups.items():
        summary += numbers_of(model, group, [f"{name}_{PRIMARY}" for name in names])
    families = _families(list(groups))
    for family, models in families.items():
        summary += _statistics(family, {model: groups[model] for model in models}, names)
    tested = {family for family, models in families.items() if min(model.seeds for model in models) >= MIN_SEEDS}
    differences = significance_tests(
        tested,
        (
            (family, name, [_differences(groups[model], name) for model in models])
            for family, models in families.items()
            for name in names
            if name != BASE
        ),
    )
    beyond = significance_tests(
        tested,
        (
            (family, BASE, [values_that_count(groups[model], f"{BASE}_partial") for model in models])
            for family, models in families.items()
        ),
    )
    for test in differences:
        accepted = sum(model.accepted for model in families[test.family])
        summary.append(Number.of(test.family, f"{test.name}_gain", test.interval, accepted))
        summary.append(Number.value(test.family, f"{test.name}_gain_p", test.p, test.interval.count, accepted))
    for test in beyond:
        summary.append(Number.value(test.family, f"{BASE}_partial_p", test.p, test.interval.count, 0))
    by_pair = {(test.family, test.name): test for test in differences}
    details = Details(families, by_pair, {test.family: test for test in beyond})
    return Numbers(rows, summary, details=details)


def _families(models: Sequence[Model]) -> dict[str, list[Model]]:
    """Return the models of every family, and of all together where there are several."""
    families: dict[str, list[Model]] = {}
    for model in models:
        families.setdefault(_family(model), []).append(model)
    return {**families, ALL: list(models)} if len(families) > 1 else families


def _family(model: Model) -> str:
    """Return the name of the family that a model's posteriors belong to."""
    if model.problem in REAL:
        is_regression = REAL[model.problem].kind == "regression"
        return "real data, regression" if is_regression else f"real data, {model.prior_name}"
    if model.width is not None:
        return f"three rings, widths, {model.prior_name}"
    return "synthetic problems"


def _differences(rows: Sequence[Row], name: str) -> list[float]:
    """Return the difference in ρ to ‖g‖² of every row that counts and has both."""
    own, base = f"{name}_{PRIMARY}", f"{BASE}_{PRIMARY}"
    return [row[own] - row[base] for row in rows if counts(row, own, base)]


def _statistics(family: str, rows: dict[Model, list[Row]], names: Sequence[str]) -> list[Number]:
    """Return all statistics of all estimates in a family."""
    accepted = sum(model.accepted for model in rows)
    summary = []
    for name in names:
        columns = {f"{name}_{statistic}": f"{name}_{statistic}" for statistic in STATISTICS}
        columns[f"{name}_seconds"] = f"seconds_{name}"
        for statistic, column in columns.items():
            interval, _ = clustered_bootstrap(
                [values_that_count(group, column) for group in rows.values()], resamples=2000
            )
            summary.append(Number.of(family, statistic, interval, accepted))
    return summary


def significance_tests(tested: set[str], cases: Iterable[tuple[str, str, list[list[float]]]]) -> list[SignificanceTest]:
    """Return the means with their intervals, and the p-values of the tested families, adjusted together.

    cases: a family, a name and the values of each group of it; see `clustered_bootstrap`. tested: the families with
    enough seeds. A case is tested in these alone, with at least `MIN_SEEDS` values and `MIN_MODELS` groups.
    """
    tests = []
    for family, name, groups in cases:
        interval, p = clustered_bootstrap(groups)
        models = sum(bool(group) for group in groups)
        is_tested = family in tested and interval.count >= MIN_SEEDS and models >= MIN_MODELS
        tests.append(SignificanceTest(family, name, interval, p if is_tested else float("nan")))
    adjusted = adjust([test.p for test in tests])
    return [test._replace(p=p) for test, p in zip(tests, adjusted, strict=True)]
