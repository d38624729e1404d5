"""The models of an experiment: the rows of one network and prior, one row a seed, are one group of numbers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.report.outputs import Number
from experiments.synthetic.configuration import describe_model
from isouq.stats import Interval, benjamini_hochberg, bootstrap_mean

Row = dict[str, Any]
DEFAULT_PRIOR = "unit σ = 1"  # that of the validation
STATISTICS = {"pearson": "r", "spearman": "ρ"}
MIN_SEEDS = 5  # below which nothing is tested or claimed
ALPHA = 0.05  # an adjusted p below it is called significant
# What a reference cost and how well θ* was trained: column, heading, digits after the point.
COSTS = {
    "rounds": ("rounds", 1),
    "ess_bulk": ("bulk ESS", 0),
    "gradient_evaluations": ("gradients", 0),
    "map_spread": ("log density of θ* − worst start, nats", 2),
    "map_escapes": ("escapes from saddles", 1),
}
TITLES = {"pearson": "Pearson r", "spearman": "Spearman ρ"}


class Model(NamedTuple):
    """A network with its prior: a problem's own (width None), or one of a sweep over architectures and priors.

    name: the group of its numbers. accepted, seeds: the number of posteriors that were accepted, and of all.
    depth: the number of hidden layers; a problem's own network has that of its problem.
    """

    name: str
    problem: str
    width: int | None
    prior: str
    sigma: float
    num_params: int
    accepted: int
    seeds: int
    depth: int = 1
    activation: str = "tanh"

    @property
    def accepted_share(self) -> str:
        """The accepted posteriors among all, as "4/5"."""
        return f"{self.accepted}/{self.seeds}"

    @property
    def prior_name(self) -> str:
        """The prior with its scale, as "fan_in σ = 3"."""
        return f"{self.prior} σ = {self.sigma:g}"

    @property
    def network(self) -> str:
        """The network of a sweep, as "width 8, depth 2"."""
        return describe_model(self.width, self.depth, self.activation).removeprefix(", ")


Groups = dict[Model, list[Row]]


def rows_by_model(rows: Iterable[Row]) -> Groups:
    """Return the rows of every model: the problems in the order of the rows, then the sweep by prior, σ, width, depth.

    Of networks of one width and depth tanh comes first.
    """
    groups: dict[str, list[Row]] = {}
    for row in sorted(rows, key=_place):
        groups.setdefault(model_name(row), []).append(row)
    return {_model(name, group): group for name, group in groups.items()}


def sweep_by_prior(models: Iterable[Model]) -> dict[tuple[str, float], list[Model]]:
    """Return the models of the sweep by (prior, σ), in the order of their widths."""
    priors: dict[tuple[str, float], list[Model]] = {}
    for model in models:
        if model.width is not None:
            priors.setdefault((model.prior, model.sigma), []).append(model)
    return priors


def numbers_of(model: Model, rows: Sequence[Row], columns: Sequence[str]) -> list[Number]:
    """Return the mean of each column over the accepted rows of a model, and the share of accepted rows."""
    share = Number.value(model.name, "accepted", model.accepted / model.seeds, model.seeds, model.accepted)
    return [
        share,
        *(Number.of(model.name, column, mean_over_accepted(rows, column), model.accepted) for column in columns),
    ]


def mean_over_accepted(rows: Iterable[Row], column: str, flag: str = "accepted") -> Interval:
    """Return the mean of a column over the rows whose posterior was accepted, with its bootstrap interval.

    Rows whose ‖g‖² is flat, undefined values and missing ones are left out. flag: the column that says
    whether the posterior was accepted.
    """
    return bootstrap_mean(values_that_count(rows, column, flag))


def values_that_count(rows: Iterable[Row], column: str, flag: str = "accepted") -> list[float]:
    """Return the values of a column that means and tests use; see `mean_over_accepted`."""
    return [row[column] for row in rows if counts(row, column, flag=flag)]


def usable_rows(rows: Iterable[Row], flag: str = "accepted") -> list[Row]:
    """Return the rows that means, tests and figures use; see `counts`."""
    return [row for row in rows if counts(row, flag=flag)]


def is_flat_row(row: Row) -> bool:
    """Return whether the row's ‖g‖² is flat; the tables of version 0.1 have no such column."""
    return row.get("flat", False)


def pairs_by_seed(base: Iterable[Row], other: Iterable[Row], column: str) -> Float[np.ndarray, "seeds 2"]:
    """Return the values (base, other) of a column for the seeds that count in both, as for `mean_over_accepted`."""
    first, second = ({row["seed"]: row[column] for row in rows if counts(row, column)} for rows in (base, other))
    return np.array([(first[seed], second[seed]) for seed in second if seed in first], np.float64).reshape(-1, 2)


def counts(row: Row, *columns: str, flag: str = "accepted") -> bool:
    """Return whether means and tests use a row: its reference was accepted, its ‖g‖² is not flat, its columns exist."""
    is_usable = row[flag] and not is_flat_row(row)
    return bool(is_usable and all(np.isfinite(row.get(column, np.nan)) for column in columns))


def adjust(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted together by Benjamini and Hochberg (1995); NaN, which is no test, stays NaN."""
    adjusted, is_test = np.full(len(p_values), np.nan), np.isfinite(p_values)
    if is_test.any():
        adjusted[is_test] = benjamini_hochberg(np.asarray(p_values)[is_test])
    return adjusted.tolist()


def costs_of(model: Model, rows: Sequence[Row]) -> list[Number]:
    """Return the means of the columns COSTS over all rows of a model; tables of version 0.1 lack some of them."""
    return [mean_over_all(model, rows, column) for column in COSTS if column in rows[0]]


def mean_over_all(model: Model, rows: Sequence[Row], column: str) -> Number:
    """Return the mean of a column over all rows of a model, for a cost or a quantity that needs no reference."""
    values = [row[column] for row in rows if np.isfinite(row[column])]
    return Number.of(model.name, column, bootstrap_mean(values), model.accepted)


def _place(row: Row) -> tuple:
    """Return a sort key that keeps the order of problems, and puts the prior `unit` and tanh first."""
    if row["width"] is None:
        return (False,)
    depth, activation = _depth_and_activation(row)
    return (True, row["prior"] != "unit", row["sigma"], row["width"], depth, activation != "tanh", activation)


def model_name(row: Row) -> str:
    """Return the name of a row's model: its problem, or its prior in a sweep, and its architecture.

    As "binary/xor", "binary/xor, relu", "unit σ = 1, width 8" or "unit σ = 1, width 8, depth 2"; a problem's own
    network with another prior than the default is "real/iris, fan_in σ = 3".
    """
    prior = f"{row['prior']} σ = {row['sigma']:g}"
    network = describe_model(row["width"], *_depth_and_activation(row))
    if row["width"] is not None:
        return prior + network
    return row["problem"] + network + ("" if prior == DEFAULT_PRIOR else f", {prior}")


def _depth_and_activation(row: Row) -> tuple[int, str]:
    """Return the depth and the activation of a row's network; the tables of version 0.1 have no such columns."""
    return row.get("depth", 1), row.get("activation", "tanh")


def _model(name: str, rows: Sequence[Row]) -> Model:
    shared = {field: rows[0][field] for field in ("problem", "width", "prior", "sigma", "num_params")}
    depth, activation = _depth_and_activation(rows[0])
    accepted = sum(row["accepted"] for row in rows)
    return Model(name, **shared, accepted=accepted, seeds=len(rows), depth=depth, activation=activation)
