"""The numbers of the depth study: agreement of every network, and its differences to one hidden layer of tanh units."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.agreement import ESTIMATES
from experiments.synthetic.numbers.models import (
    MIN_SEEDS,
    STATISTICS,
    Groups,
    Model,
    adjust,
    costs_of,
    numbers_of,
    pairs_by_seed,
    rows_by_model,
)
from experiments.synthetic.presets.depth import BASELINE
from isouq.stats import Interval, bootstrap_mean, paired_bootstrap

_COLUMNS = [f"{name}_{statistic}" for name in ESTIMATES for statistic in STATISTICS]


class Comparison(NamedTuple):
    """The difference of a network's agreement to the baseline's, which has one hidden layer of tanh units.

    difference: mean over the seeds that count for both networks. p: that of the paired bootstrap; NaN below `MIN_SEEDS`
    pairs.
    """

    model: Model
    statistic: str
    difference: Interval
    p: float


def numbers(results: Sequence[Result]) -> Numbers:
    """Return every model's agreement and costs, and its differences to the baseline of the same width and prior.

    Groups: a model's name. Statistics beside the columns: `difference_STATISTIC`, paired by seed, `p_STATISTIC`, and
    `adjusted_p_STATISTIC`, after Benjamini and Hochberg over all tests of both statistics as one family.
    details: the models.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    summary: list[Number] = []
    for model, group in groups.items():
        summary += [*numbers_of(model, group, _COLUMNS), *costs_of(model, group)]
    summary += _numbers_of_comparisons(_comparisons(groups))
    return Numbers(rows, summary, details=list(groups))


def _comparisons(groups: Groups) -> list[Comparison]:
    """Return the comparison of every other network with the baseline of its width and prior, where that was run."""
    baselines = {_place(model): rows for model, rows in groups.items() if _is_baseline(model)}
    return [
        _comparison(model, statistic, pairs_by_seed(baselines[_place(model)], rows, f"epistemic_{statistic}"))
        for model, rows in groups.items()
        if not _is_baseline(model) and _place(model) in baselines
        for statistic in STATISTICS
    ]


def _comparison(model: Model, statistic: str, pairs: np.ndarray) -> Comparison:
    baseline, other = pairs.T
    if len(pairs) < MIN_SEEDS:
        return Comparison(model, statistic, bootstrap_mean(other - baseline), float("nan"))
    return Comparison(model, statistic, *paired_bootstrap(other, baseline))


def _numbers_of_comparisons(comparisons: Sequence[Comparison]) -> list[Number]:
    """Return the difference, p and adjusted p of every comparison."""
    adjusted = adjust([comparison.p for comparison in comparisons])
    summary = []
    for (model, statistic, difference, p), adjusted_p in zip(comparisons, adjusted, strict=True):
        summary.append(Number.of(model.name, f"difference_{statistic}", difference, model.accepted))
        for name, value in ((f"p_{statistic}", p), (f"adjusted_p_{statistic}", adjusted_p)):
            summary.append(Number.value(model.name, name, value, difference.count, model.accepted))
    return summary


def _is_baseline(model: Model) -> bool:
    return (model.depth, model.activation) == BASELINE


def _place(model: Model) -> tuple[int | None, str, float]:
    """Return what a network and its baseline have in common."""
    return model.width, model.prior, model.sigma
