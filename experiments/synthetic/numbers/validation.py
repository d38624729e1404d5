"""The numbers of the validation: every estimate against the reference, by problem, beside the paper's numbers."""

from collections.abc import Sequence
from typing import Any

from experiments.report.outputs import Number, Numbers
from experiments.run.errors import RunError
from experiments.run.job import Result
from experiments.synthetic.measure.agreement import ESTIMATES
from experiments.synthetic.numbers.models import (
    STATISTICS,
    Model,
    Row,
    costs_of,
    mean_over_accepted,
    numbers_of,
    rows_by_model,
)

# arXiv 2603.29466, Table 1: (r, ρ) by estimate and problem. Its nonlinear regression stands beside both of ours.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "epistemic": {
        "binary/linear": (0.95, 0.99),
        "binary/xor": (0.65, 0.68),
        "binary/rings": (0.86, 0.44),
        "multiclass/clusters": (0.86, 0.97),
        "multiclass/spirals": (0.76, 0.91),
        "multiclass/rings": (0.88, 0.97),
        "regression/linear": (0.98, 0.99),
        "regression/nonlinear": (0.73, 0.81),
        "regression/sine": (0.73, 0.81),
    },
    "laplace": {
        "binary/linear": (0.95, 0.99),
        "binary/xor": (0.68, 0.70),
        "binary/rings": (0.86, 0.46),
        "regression/linear": (1.00, 1.00),
        "regression/nonlinear": (0.93, 0.97),
        "regression/sine": (0.93, 0.97),
    },
    "aleatoric": {
        "binary/linear": (0.99, 1.00),
        "binary/xor": (0.76, 0.74),
        "binary/rings": (0.95, 0.58),
        "multiclass/clusters": (0.95, 0.99),
        "multiclass/spirals": (0.96, 0.97),
        "multiclass/rings": (0.96, 0.98),
    },
}
REGIONS = {"_data": "data's range", "": "grid (± 0.5)", "_wide": "wide (1.5 ×)"}
_EXACT = [f"exact_{name}_{what}" for name in ("reference", "laplace") for what in ("pearson", "scale")]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return r and ρ of every estimate on every problem, of ‖g‖² in three regions, and of the closed form.

    A group is a problem. details: the rows of every problem.
    """
    rows = _rows(results)
    if not rows:
        raise RunError("no agreement cell of validation is finished: a second opinion alone makes no table")
    groups = rows_by_model(rows)
    columns = [f"{estimate}_{statistic}" for estimate in ESTIMATES for statistic in STATISTICS] + _EXACT
    summary: list[Number] = []
    for model, group in groups.items():
        summary += numbers_of(model, group, [column for column in columns if column in group[0]])
        summary += [*_regions(model, group), *costs_of(model, group)]
    return Numbers(rows, summary, details=groups)


def _rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one row a problem and seed: the second opinion's columns stand on the agreement's row."""
    rows = [result.numbers for result in results]
    opinions = {
        (row["problem"], row["seed"]): {name: value for name, value in row.items() if name.startswith("numpyro_")}
        for row in rows
        if row["study"] == "second_opinion"
    }
    agreements = [row for row in rows if row["study"] == "agreement"]
    return [{**row, **opinions.get((row["problem"], row["seed"]), {})} for row in agreements]


def _regions(model: Model, rows: Sequence[Row]) -> list[Number]:
    """Return ‖g‖²'s correlations inside the data's range and on the wide grid; the latter has a verdict of its own."""
    summary = []
    for region, flag in (("_data", "accepted"), ("_wide", "accepted_wide")):
        accepted = sum(row[flag] for row in rows)
        for statistic in STATISTICS:
            column = f"epistemic_{statistic}{region}"
            summary.append(Number.of(model.name, column, mean_over_accepted(rows, column, flag), accepted))
    return summary
