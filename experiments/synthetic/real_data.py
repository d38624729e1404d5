"""The real data sets that scikit-learn ships, as problems: 70 % of the rows for training, the others held out."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from isouq._extras import require
from isouq.problems import Problem

TRAINING_SHARE = 0.7
MAX_POINTS = 1000  # largest number of training points
HIDDEN = (16,)
# Standard deviation of the noise of a standardised target: about that of the residuals of a linear fit, which explains
# half of the variance of `diabetes`.
NOISE = 0.7


@lru_cache
def _table(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return all inputs `[rows, features]` and targets `[rows]` of a data set of scikit-learn."""
    return getattr(require("sklearn.datasets", "experiments"), f"load_{name}")(return_X_y=True)


@dataclass(frozen=True)
class _Split:
    """The training or the held-out part of a data set, as a function of the key that shuffles the rows.

    n: number of training points; the held-out part does not depend on it.

    Inputs and values are standardised by the whole training part, so that held-out points have the same scale whatever
    the number of points.
    """

    name: str
    regression: bool
    training: bool

    def __call__(self, key: Any, n: int = MAX_POINTS) -> tuple[Any, Any]:
        xs, ys = _table(self.name)
        order = np.asarray(jax.random.permutation(key, len(xs)))
        size = round(TRAINING_SHARE * len(xs))
        training, held_out = order[: min(size, MAX_POINTS)], order[size:]
        rows = training[:n] if self.training else held_out
        targets = _standardise(ys, training)[rows] if self.regression else ys[rows]
        return _standardise(xs, training)[rows], targets


def _standardise(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return values minus the mean of some rows, divided by their standard deviation; a constant column becomes 0."""
    deviation = values[rows].std(axis=0)
    return (values - values[rows].mean(axis=0)) / np.where(deviation == 0, 1.0, deviation)


def _problem(name: str, kind: str, num_outputs: int = 1) -> Problem:
    regression = kind == "regression"
    return Problem(
        f"real/{name}", kind, _Split(name, regression, True), num_outputs, HIDDEN, NOISE if regression else None,
        _Split(name, regression, False),
    )  # fmt: skip


REAL: dict[str, Problem] = {
    problem.name: problem
    for problem in (
        _problem("iris", "multiclass", 3),
        _problem("wine", "multiclass", 3),
        _problem("breast_cancer", "binary"),
        _problem("digits", "multiclass", 10),
        _problem("diabetes", "regression"),
    )
}
