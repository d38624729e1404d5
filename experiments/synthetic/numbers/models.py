"""The models of an experiment: the rows of one network and prior, one row a seed, are one group of numbers."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.outputs import Number
from isouq.stats import Interval, bootstrap_mean

Row = dict[str, Any]
STATISTICS = {"pearson": "r", "spearman": "ρ"}
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
    """A network with its prior: a problem's own (width None), or one of the sweep over widths and priors.

    name: the group of its numbers. accepted, seeds: the number of posteriors that were accepted, and of all.
    """

    name: str
    problem: str
    width: int | None
    prior: str
    sigma: float
    num_params: int
    accepted: int
    seeds: int

    @property
    def accepted_share(self) -> str:
        """The accepted posteriors among all, as "4/5"."""
        return f"{self.accepted}/{self.seeds}"

    @property
    def prior_name(self) -> str:
        """The prior with its scale, as "fan_in σ = 3"."""
        return f"{self.prior} σ = {self.sigma:g}"


Groups = dict[Model, list[Row]]


def rows_by_model(rows: Iterable[Row]) -> Groups:
    """Return the rows of every model: the problems in the order of the rows, then the sweep by prior, σ and width."""
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
    used = [row for row in rows if row[flag] and not row.get("flat", False)]
    return bootstrap_mean([row[column] for row in used if np.isfinite(row.get(column, np.nan))])


def costs_of(model: Model, rows: Sequence[Row]) -> list[Number]:
    """Return the means of the columns COSTS over all rows of a model; tables of version 0.1 lack some of them."""
    return [mean_over_all(model, rows, column) for column in COSTS if column in rows[0]]


def mean_over_all(model: Model, rows: Sequence[Row], column: str) -> Number:
    """Return the mean of a column over all rows of a model, for a cost or a quantity that needs no reference."""
    values = [row[column] for row in rows if np.isfinite(row[column])]
    return Number.of(model.name, column, bootstrap_mean(values), model.accepted)


def _place(row: Row) -> tuple:
    """Return a sort key that keeps the order of problems, and puts the prior `unit` first."""
    return (False,) if row["width"] is None else (True, row["prior"] != "unit", row["sigma"], row["width"])


def model_name(row: Row) -> str:
    """Return the name of a row's model: its problem, with a prior other than the default, or prior and width."""
    prior = f"{row['prior']} σ = {row['sigma']:g}"
    if row["width"] is not None:
        return f"{prior}, width {row['width']}"
    return row["problem"] if prior == "unit σ = 1" else f"{row['problem']}, {prior}"


def _model(name: str, rows: Sequence[Row]) -> Model:
    shared = {field: rows[0][field] for field in ("problem", "width", "prior", "sigma", "num_params")}
    return Model(name, **shared, accepted=sum(row["accepted"] for row in rows), seeds=len(rows))
