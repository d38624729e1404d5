"""Does a property of the spectrum predict, over models, how well ‖g‖² agrees with the reference?"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

from experiments.synthetic.numbers.models import Row, usable_rows
from isouq.stats import bootstrap_interval

PREDICTORS = {
    "bulk_mean": "bulk share of ‖g‖²",
    "bulk_total": "the same, weighted",
    "bulk_dimension": "bulk share of directions",
    "effective_share": "d_eff / P",
    "pooled_participation": "participation, pooled",
    "within_participation": "participation, within",
    "inverse_pearson": "r(gᵀH⁻¹g, ‖g‖²)",
}
OUTCOMES = {"whole_pearson": "r", "whole_spearman": "ρ"}
RESAMPLES = 1000
DIGITS = 6  # decimals: shares that differ by less are ties, for the difference is rounding


class Relation(NamedTuple):
    """Spearman's correlation over models with its bootstrap 95 % interval; NaN where there is none."""

    models: int
    clusters: int
    value: float
    low: float
    high: float


def relations(rows: Sequence[Row], cluster: Callable[[Row], Any], outcome: str, seed: int = 0) -> dict[str, Relation]:
    """Return Spearman's correlation of each predictor with the outcome, over the usable rows.

    The interval is a cluster bootstrap (Davison and Hinkley 1997, ch. 3.8): whole clusters are drawn with
    replacement, each with all its rows, because the models of one data set are no independent evidence. All
    predictors share the resamples. cluster: returns the cluster of a row.
    """
    names = [outcome, *PREDICTORS]
    rows = [row for row in usable_rows(rows) if np.isfinite([row[name] for name in names]).all()]
    keys = [cluster(row) for row in rows]
    members = [np.flatnonzero([key == one for key in keys]) for one in dict.fromkeys(keys)]
    nan = float("nan")
    if len(rows) < 3:
        return {name: Relation(len(rows), len(members), nan, nan, nan) for name in PREDICTORS}
    table = np.round(np.array([[row[name] for name in names] for row in rows], np.float64), DIGITS)
    values = _correlations(table)
    bounds, defined = np.full((2, len(PREDICTORS)), nan), np.isfinite(values)
    if len(members) > 1 and defined.any():
        columns = table[:, [True, *defined]]
        bounds[:, defined] = bootstrap_interval(
            lambda drawn: _correlations(columns[np.concatenate([members[i] for i in drawn])]),
            np.arange(len(members)), resamples=RESAMPLES, seed=seed,
        )  # fmt: skip
    return {
        name: Relation(len(rows), len(members), float(value), float(low), float(high))
        for name, value, low, high in zip(PREDICTORS, values, *bounds, strict=True)
    }


def _correlations(table: np.ndarray) -> np.ndarray:
    """Return Spearman's correlation of the first column with each other; NaN where one is constant."""
    ranks = scipy.stats.rankdata(table, axis=0)
    ranks -= ranks.mean(axis=0)
    norms = np.sqrt(np.sum(ranks**2, axis=0))
    scale = norms[0] * norms[1:]
    return np.divide(ranks[:, 0] @ ranks[:, 1:], scale, out=np.full(len(scale), np.nan), where=scale > 0)
