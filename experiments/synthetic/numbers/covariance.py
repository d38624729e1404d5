"""The numbers of the covariance study: agreement and cost of every method, and the asymmetry of the proxies."""

from collections.abc import Sequence

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.covariance import CLIPPED, METHODS
from experiments.synthetic.measure.proxies import CURVATURES, DATA
from experiments.synthetic.numbers.models import (
    STATISTICS,
    Groups,
    Model,
    Row,
    is_flat_row,
    mean_over_all,
    numbers_of,
    rows_by_model,
)

PROXIES = {f"proxy_{side}_hessian": f"proxy {side.upper()}, Hessian, dense" for side in "ab"}
_COST = [f"{method}_{what}" for method in METHODS for what in ("gradients", "bytes")]
_COST += [f"seconds_{method}_{what}" for method in METHODS for what in ("build", "apply")]
_COST += [f"{method}_clipped" for method in CLIPPED]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return r, ρ and scale of every method over the accepted seeds, costs over all, and the proxies' asymmetry.

    A group is a problem. `DATAas_stated_CURVATURE` is the share of seeds whose proxies are asymmetric as the paper
    states. details: the rows of every problem.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    planar = planar_models(groups)
    agreement = [f"{name}_{statistic}" for name in (*METHODS, *PROXIES) for statistic in STATISTICS]
    agreement += [f"{method}_scale" for method in METHODS]
    summary: list[Number] = []
    for model, group in groups.items():
        summary += numbers_of(model, group, [column for column in agreement if column in group[0]])
        summary += [mean_over_all(model, group, column) for column in (*_COST, "gradient_evaluations")]
        if model in planar:
            summary += _proxies(model, [row for row in group if not is_flat_row(row)])
    return Numbers(rows, summary, details=groups)


def planar_models(groups: Groups) -> list[Model]:
    """Return the problems of two inputs, whose maps under proxies are compared."""
    return [model for model, group in groups.items() if "identity_symmetry" in group[0]]


def proxy_columns(curvature: str) -> list[str]:
    """Return the columns that show how symmetric the maps are: the identity's, both proxies', and their log ratio."""
    return [
        "identity_symmetry",
        *(f"proxy_{side}_{curvature}_{what}" for what in ("symmetry", "inside") for side in "ab"),
        *(f"log_ratio_{side}_{curvature}" for side in "ab"),
    ]


def is_asymmetric(row: Row, data: str, curvature: str) -> bool:
    """Return whether both proxies are surer where their data lie and the log ratio changes its sign in between."""
    surer = all(row[f"{data}proxy_{side}_{curvature}_inside"] < 1 for side in "ab")
    return surer and row[f"{data}log_ratio_a_{curvature}"] < 0 < row[f"{data}log_ratio_b_{curvature}"]


def _proxies(model: Model, rows: Sequence[Row]) -> list[Number]:
    """Return the asymmetry of the proxies' maps over these seeds, accepted or not: there is no reference in it."""
    columns = dict.fromkeys(f"{data}{c}" for data in DATA for curvature in CURVATURES for c in proxy_columns(curvature))
    summary = [mean_over_all(model, rows, column) for column in columns]
    for data in DATA:
        for curvature in CURVATURES:
            share = sum(is_asymmetric(row, data, curvature) for row in rows) / max(len(rows), 1)
            name = f"{data}as_stated_{curvature}"
            summary.append(Number.value(model.name, name, share, len(rows), model.accepted))
    return summary
