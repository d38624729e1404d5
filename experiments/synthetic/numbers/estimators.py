"""The numbers of the leaderboard: every estimate by family of posteriors, and what is better than ‖g‖²."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.estimators import BASE, CONTROL, ESTIMATORS, STATISTICS
from experiments.synthetic.numbers.models import Model, Row, numbers_of, rows_by_model, usable_rows
from isouq.stats import Interval, benjamini_hochberg, clustered_bootstrap

PRIMARY = "spearman"
ALPHA = 0.05
ALL = "all posteriors"


class Test(NamedTuple):
    """A test against 0: of the difference of an estimate to ‖g‖² in ρ, or of the partial correlation of ‖g‖².

    p: adjusted by Benjamini and Hochberg (1995) over all tests of its kind, in all families.
    """

    family: str
    name: str
    interval: Interval
    p: float

    @property
    def verdict(self) -> int:
        """1 where it is above 0, −1 where below, and 0 where that is not settled."""
        return int(np.sign(self.interval.mean)) if self.p < ALPHA else 0


class Details(NamedTuple):
    """The families with their models, the tests of all estimates against ‖g‖², and those of ‖g‖² given p(1 − p)."""

    families: dict[str, list[Model]]
    differences: dict[tuple[str, str], Test]
    beyond_control: dict[str, Test]


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
    families = _families(groups)
    for family, models in families.items():
        used = {model: usable_rows(groups[model]) for model in models}
        summary += _statistics(family, used, names)
    differences = _test(
        (family, name, [_differences(usable_rows(groups[model]), name) for model in models])
        for family, models in families.items()
        for name in names
        if name != BASE
    )
    beyond = _test(
        (family, BASE, [_values(usable_rows(groups[model]), f"{BASE}_partial") for model in models])
        for family, models in families.items()
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


def family_of(model: Model, kind: str) -> str:
    """Return the family of a model's posteriors."""
    if model.problem.startswith("real/"):
        return "real data, regression" if kind == "regression" else f"real data, {model.prior_name}"
    if model.width is not None:
        return f"three rings, widths, {model.prior_name}"
    return "synthetic problems"


def _families(groups: dict[Model, list[Row]]) -> dict[str, list[Model]]:
    """Return the models of every family, and of all together."""
    families: dict[str, list[Model]] = {}
    for model, rows in groups.items():
        kind = "regression" if f"{CONTROL}_{PRIMARY}" not in rows[0] else "classification"
        families.setdefault(family_of(model, kind), []).append(model)
    return {**families, ALL: list(groups)} if len(families) > 1 else families


def _values(rows: Sequence[Row], column: str) -> list[float]:
    """Return the defined values of a column."""
    return [row[column] for row in rows if np.isfinite(row.get(column, np.nan))]


def _differences(rows: Sequence[Row], name: str) -> list[float]:
    """Return the difference in ρ to ‖g‖² of every row that has both."""
    pairs = [(row.get(f"{name}_{PRIMARY}", np.nan), row.get(f"{BASE}_{PRIMARY}", np.nan)) for row in rows]
    return [one - base for one, base in pairs if np.isfinite(one) and np.isfinite(base)]


def _statistics(family: str, rows: dict[Model, list[Row]], names: Sequence[str]) -> list[Number]:
    """Return all statistics of all estimates in a family."""
    accepted = sum(model.accepted for model in rows)
    summary = []
    for name in names:
        columns = {f"{name}_{statistic}": f"{name}_{statistic}" for statistic in STATISTICS}
        columns[f"{name}_seconds"] = f"seconds_{name}"
        for statistic, column in columns.items():
            interval, _ = clustered_bootstrap([_values(group, column) for group in rows.values()], resamples=2000)
            summary.append(Number.of(family, statistic, interval, accepted))
    return summary


def _test(cases: Iterable[tuple[str, str, list[list[float]]]]) -> list[Test]:
    """Return the tests of the means against 0, adjusted together; those without values have p = NaN."""
    tests = []
    for family, name, groups in cases:
        interval, p = clustered_bootstrap(groups)
        tests.append(Test(family, name, interval, p))
    defined = [test for test in tests if np.isfinite(test.p)]
    adjusted = iter(benjamini_hochberg([test.p for test in defined]) if defined else [])
    return [test._replace(p=float(next(adjusted))) if np.isfinite(test.p) else test for test in tests]
