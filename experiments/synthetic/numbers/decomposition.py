"""The numbers of the decomposition: its correlations by model, the losses to each term, the best perturbation."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.decomposition import SIGMAS, VERSIONS
from experiments.synthetic.numbers.models import STATISTICS, Groups, Model, numbers_of, rows_by_model, usable_rows
from isouq.stats import bootstrap_mean

TERMS = ("taylor", "isotropy")
PARTS = ("problems", "width × prior")
PERTURBATIONS = {f"{sigma:g}": f"perturbation_{sigma:g}" for sigma in SIGMAS}
_CORRELATIONS = ["whole", *(f"{term}_{version}" for term in TERMS for version in VERSIONS), *PERTURBATIONS.values()]
_COLUMNS = [f"{name}_{statistic}" for name in _CORRELATIONS for statistic in STATISTICS]
_COLUMNS += [f"{size}_{version}" for size in ("scale", "anisotropy") for version in VERSIONS]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return the correlations and sizes of every model, and by part of the models the losses and perturbations.

    Groups: a model's name, with the columns of the table over its accepted seeds and `best_sigma_STATISTIC`; and
    "problems" and "width × prior", whose numbers are means over models. details: the rows of every model.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    summary: list[Number] = []
    for model, group in groups.items():
        summary += numbers_of(model, group, _COLUMNS)
        summary += _best_sigmas(model, summary[-len(_COLUMNS) :])
    for part in PARTS:
        models = {model: group for model, group in groups.items() if (model.width is None) == (part == "problems")}
        summary += _losses(part, models) + _over_models(part, list(models), summary)
    return Numbers(rows, summary, details=groups)


def _best_sigmas(model: Model, known: Sequence[Number]) -> list[Number]:
    """Return the σ whose perturbation has the largest mean correlation with V; none where nothing was accepted."""
    means = {number.statistic: number.mean for number in known if number.n}
    best = []
    for statistic in STATISTICS:
        tried = {sigma: means.get(f"perturbation_{sigma:g}_{statistic}", np.nan) for sigma in SIGMAS}
        tried = {sigma: mean for sigma, mean in tried.items() if np.isfinite(mean)}
        if tried:
            sigma = max(tried, key=tried.__getitem__)
            best.append(Number.value(model.name, f"best_sigma_{statistic}", sigma, 1, model.accepted))
    return best


def _losses(part: str, groups: Groups) -> list[Number]:
    """Return the losses 1 − corr(V, L) and 1 − corr(L, I), their difference, and where the former is larger."""
    accepted = sum(model.accepted for model in groups)
    summary = []
    for statistic in STATISTICS:
        for version in VERSIONS:
            taylor, isotropy = _pairs(groups, version, statistic).T
            values = {
                "taylor_loss": taylor,
                "isotropy_loss": isotropy,
                "loss_difference": taylor - isotropy,
                "taylor_loses_more": taylor > isotropy,
            }
            summary += [
                Number.of(part, f"{name}_{version}_{statistic}", bootstrap_mean(value), accepted)
                for name, value in values.items()
            ]
    return summary


def _pairs(groups: Groups, version: str, statistic: str) -> Float[np.ndarray, "models 2"]:
    """Return the losses to Taylor and to isotropy of every model, over the usable seeds that have both."""
    names = [f"{term}_{version}_{statistic}" for term in TERMS]
    losses = []
    for rows in groups.values():
        pairs = np.array([[row[name] for name in names] for row in usable_rows(rows)]).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        if len(pairs):
            losses.append(1 - pairs.mean(axis=0))
    return np.array(losses).reshape(-1, 2)


def _over_models(part: str, models: Sequence[Model], known: Sequence[Number]) -> list[Number]:
    """Return the mean over models of the perturbations' correlations, and of ‖g‖²'s, with V."""
    names = {model.name for model in models}
    accepted = sum(model.accepted for model in models)
    summary = []
    for name in (*PERTURBATIONS.values(), "whole"):
        for statistic in STATISTICS:
            column = f"{name}_{statistic}"
            means = [n.mean for n in known if n.group in names and n.statistic == column and np.isfinite(n.mean)]
            summary.append(Number.of(part, column, bootstrap_mean(means), accepted))
    return summary
