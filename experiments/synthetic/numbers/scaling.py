"""The numbers of the scaling study: agreement of every model, and the shape of its curve over widths."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.measure.agreement import ESTIMATES
from experiments.synthetic.numbers.models import (
    STATISTICS,
    Groups,
    Model,
    costs_of,
    numbers_of,
    pairs_by_seed,
    rows_by_model,
    sweep_by_prior,
)
from isouq.stats import bootstrap_mean

_COLUMNS = [f"{name}_{statistic}" for name in ESTIMATES for statistic in STATISTICS]


class Shape(NamedTuple):
    """The smallest and the largest model of a prior that have a number, and the one with the lowest mean."""

    smallest: Model
    lowest: Model
    largest: Model


class Details(NamedTuple):
    """All models, the smallest of each prior first, and the shapes by prior and statistic."""

    models: list[Model]
    shapes: dict[tuple[str, str], Shape]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return every model's agreement, and the rises from the lowest point of each curve.

    Groups: a model's name, and a prior's name with `fall_STATISTIC` and `rise_STATISTIC`, the differences to the lowest
    point.
    """
    rows = [result.numbers for result in results]
    groups = rows_by_model(rows)
    summary: list[Number] = []
    for model, group in groups.items():
        summary += [*numbers_of(model, group, _COLUMNS), *costs_of(model, group)]
    means = {(n.group, n.statistic): n.mean for n in summary}
    shapes = {}
    for models in sweep_by_prior(groups).values():
        name = models[0].prior_name
        for statistic in STATISTICS:
            column = f"epistemic_{statistic}"
            defined = {model: means[model.name, column] for model in models}
            shape = _shape({model: mean for model, mean in defined.items() if np.isfinite(mean)})
            if shape is not None:
                shapes[name, statistic] = shape
                summary += _rises(name, statistic, shape, groups)
    return Numbers(rows, summary, details=Details(list(groups), shapes))


def _shape(means: Mapping[Model, float]) -> Shape | None:
    """Return the ends and the lowest point of a curve of three points or more; models in the order of their widths."""
    if len(means) < 3:
        return None
    models = list(means)
    return Shape(models[0], min(models, key=means.__getitem__), models[-1])


def _rises(prior: str, statistic: str, shape: Shape, groups: Groups) -> list[Number]:
    """Return the differences of both ends to the lowest point, paired by seed; without a value where they coincide."""
    low = groups[shape.lowest]
    summary = []
    for name, end in (("fall", shape.smallest), ("rise", shape.largest)):
        interval = bootstrap_mean([])
        if end != shape.lowest:
            at_low, at_end = pairs_by_seed(low, groups[end], f"epistemic_{statistic}").T
            interval = bootstrap_mean(at_end - at_low)
        summary.append(Number.of(prior, f"{name}_{statistic}", interval, interval.count))
    return summary
