"""The numbers of the spectrum: every model's, where ‖g‖² lies, and whether the bulk predicts the agreement."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.numbers.models import Groups, Row, numbers_of, rows_by_model, sweep_by_prior, usable_rows
from experiments.synthetic.numbers.prediction import OUTCOMES, Relation, relations

COLUMNS = (
    "bulk_dimension", "bulk_mean", "bulk_total", "effective_dimension", "effective_share", "pooled_participation",
    "within_participation", "isotropic_participation", "inverse_pearson", "whole_pearson", "whole_spearman",
)  # fmt: skip
ALL_MODELS = "all models"
_SAME = ("problem", "prior", "sigma", "num_params", "seed")  # a problem's own model may stand in the sweep too


class Details(NamedTuple):
    """The rows of every model, and the relation of each predictor to each outcome by group."""

    models: Groups
    relations: dict[str, dict[str, dict[str, Relation]]]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return every model's columns, the share of ‖g‖² in the bulk over all models, and the relations.

    Groups: a model's name; "all models", with medians over the accepted rows; "all models", a prior "over widths" and
    "over problems", with Spearman's correlations PREDICTOR_OUTCOME over the accepted rows.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    summary: list[Number] = []
    for model, group in groups.items():
        summary += numbers_of(model, group, COLUMNS)
    by_outcome = _relations(rows, groups)
    summary += _bulk(rows) + [
        number for outcome, by_group in by_outcome.items() for number in _as_numbers(outcome, by_group)
    ]
    return Numbers(rows, summary, details=Details(groups, by_outcome))


def _bulk(rows: Sequence[Row]) -> list[Number]:
    """Return the bulk's shares of directions and of ‖g‖² over the usable rows, and how often the latter is larger."""
    shares = [(row["bulk_dimension"], row["bulk_mean"]) for row in usable_rows(rows)]
    if not shares:
        return []
    directions, norm = np.transpose(shares)
    more = norm > directions + 1e-6  # a share of 0 against rounding is no more
    values = {
        "median_bulk_dimension": np.median(directions),
        "median_bulk_mean": np.median(norm),
        "largest_bulk_mean": norm.max(),
        "more_in_bulk": more.mean(),
    }
    return [Number.value(ALL_MODELS, name, float(v), len(shares), len(shares)) for name, v in values.items()]


def _relations(rows: Sequence[Row], groups: Groups) -> dict[str, dict[str, dict[str, Relation]]]:
    """Return the relations by outcome and group of models, each group with its independent clusters of rows."""
    rows = sorted(rows, key=lambda row: row["width"] is not None)  # problems first
    distinct = list({tuple(row[name] for name in _SAME): row for row in rows}.values())
    parts: dict[str, tuple[Sequence[Row], Callable[[Row], Any]]] = {
        ALL_MODELS: (distinct, lambda row: (row["problem"], row["seed"]))
    }
    for models in sweep_by_prior(groups).values():
        swept = [row for model in models for row in groups[model]]
        parts[f"{models[0].prior_name} over widths"] = (swept, lambda row: row["seed"])
    parts["over problems"] = ([row for row in rows if row["width"] is None], lambda row: row["problem"])
    return {
        outcome: {name: relations(part, cluster, outcome) for name, (part, cluster) in parts.items() if part}
        for outcome in OUTCOMES
    }


def _as_numbers(outcome: str, by_group: dict[str, dict[str, Relation]]) -> list[Number]:
    """Return the relations as numbers; n counts the models."""
    return [
        Number(group, f"{predictor}_{outcome}", r.value, r.low, r.high, r.models, r.models)
        for group, by_predictor in by_group.items()
        for predictor, r in by_predictor.items()
    ]
