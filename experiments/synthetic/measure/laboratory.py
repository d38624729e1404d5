"""The trained networks, random directions and moments that the estimates of one posterior share."""

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

import isouq
from experiments.calibration import class_probabilities
from experiments.run.compilations import count_compilations
from experiments.synthetic.measure import members
from experiments.synthetic.measure.members import Members
from experiments.synthetic.subject import Subject

SIZES = (2, 5, 10)  # numbers of members of the ensembles
SAMPLES = 256  # perturbations, draws or dropout masks of an estimate
_STREAM = 3  # folded into the subject's second key


class Moments(NamedTuple):
    """Mean and variance of the predicted probability of every class over some networks, `[points, classes]` float64.

    For regression there is one column, the predicted mean's.
    """

    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, outputs: Any, kind: str) -> "Moments":
        """Return the moments of outputs `[networks, points, outputs]`."""
        p = np.asarray(outputs, np.float64) if kind == "regression" else class_probabilities(outputs, kind)
        return cls(p.mean(axis=0), p.var(axis=0))

    @property
    def target(self) -> np.ndarray | None:
        """Return the class with the highest mean probability at each input; None for regression."""
        return None if self.mean.shape[1] == 1 else self.mean.argmax(axis=1)


def pool(moments: list[Moments], weights: Any = None) -> Moments:
    """Return the moments of a mixture: the mean of the variances plus the variance of the means.

    weights: the share of each part; by default all the same.
    """
    means, variances = (np.stack(part) for part in zip(*moments, strict=True))
    mean = np.average(means, axis=0, weights=weights)
    return Moments(mean, np.average(variances + (means - mean) ** 2, axis=0, weights=weights))


class Laboratory:
    """A posterior with the further networks that are trained on its data, each when it is first asked for.

    xs: the inputs of the comparison. target: the class of θ* at each; None for regression. seconds: what each part
    took, without tracing and compiling, by name.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.setting, self.theta, self.kind = subject.setting, subject.theta, subject.kind
        self.predict, self.xs = subject.setting.predict, subject.xs[subject.grid]
        self.activation = subject.cell.activation
        self.target = None if subject.target is None else np.asarray(subject.target)
        self.seconds: dict[str, float] = {}
        self._key = jax.random.fold_in(subject.setting.second_key, _STREAM)
        self._parts: dict[str, Any] = {}
        self._inner = 0.0  # seconds of the parts that were timed while the present one is

    def time_part(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return what `compute` returns, and keep its seconds under a name.

        Where a program had to be compiled it is computed once more and timed then, because tracing and compiling take
        a hundred times as long as a small program runs. Seconds of the parts that were timed meanwhile do not count.
        """
        outer, start = self._inner, time.perf_counter()
        with count_compilations() as count:
            value, seconds = self._time(compute)
        if count.programs:
            value, seconds = self._time(compute)
        self.seconds[name] = seconds
        self._inner = outer + time.perf_counter() - start
        return value

    def _time(self, compute: Callable[[], Any]) -> tuple[Any, float]:
        self._inner, start = 0.0, time.perf_counter()
        value = jax.block_until_ready(compute())
        return value, max(0.0, time.perf_counter() - start - self._inner)

    def compute_once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return the part of that name, which is computed and timed when it is first asked for."""
        if name not in self._parts:
            self._parts[name] = self.time_part(name, compute)
        return self._parts[name]

    def key(self, name: str) -> Any:
        """Return the random key of a part. The last four letters of its name decide: no two parts may share them."""
        return jax.random.fold_in(self._key, int.from_bytes(name.encode()) % 2**31)

    @cached_property
    def theta_flat(self) -> Any:
        """θ* as a vector `[P]`."""
        return ravel_pytree(self.theta)[0]

    @cached_property
    def directions(self) -> Any:
        """Standard normal directions in the space of the parameters, `[SAMPLES, P]`."""
        return jax.random.normal(self.key("directions"), (SAMPLES, self.theta_flat.size))

    def uncertainty(self, params: Any = None, **options: Any) -> Any:
        """Return `isouq.uncertainty` over the inputs, by default at θ* and about its class."""
        params = self.theta if params is None else params
        return isouq.uncertainty(self.predict, params, self.xs, self.kind, **{"target": self.target, **options})

    def train(self, kind: str) -> Members:
        """Return the trained members of an ensemble; see `members.train_ensemble`."""
        return self.compute_once(
            f"train_{kind}", lambda: members.train_ensemble(self.setting, kind, max(SIZES), self.key(kind))
        )

    def member(self, kind: str, index: int) -> Any:
        """Return the parameters of one member."""
        return jax.tree.map(lambda leaf: leaf[index], self.train(kind).params)

    def ensemble(self, kind: str, count: int) -> Any:
        """Return `isouq.uncertainty` of the first members, about the class that their mean predicts."""
        params = jax.tree.map(lambda leaf: leaf[:count], self.train(kind).params)
        return self.compute_once(
            f"ensemble_{kind}_{count}", lambda: self.uncertainty(params, target=None, ensemble=True)
        )

    def moments(self, rows: Any) -> Moments:
        """Return the moments of the predictions over parameters `[S, P]`."""
        return Moments.of(_outputs_of_rows(self.predict, self.theta, self.xs, rows), self.kind)

    def linearised_moments(self, directions: Any) -> Moments:
        """Return the moments of the predictions whose outputs f(θ*) + J δ are linear in the directions δ, `[S, P]`."""
        return Moments.of(_linear_outputs(self.predict, self.theta, self.xs, directions), self.kind)


@jax.jit
def _outputs_of_rows(predict: Callable, like: Any, xs: Any, rows: Any) -> Any:
    unravel = ravel_pytree(like)[1]
    return jax.lax.map(lambda row: _outputs(predict, unravel(row), xs), rows)


@jax.jit
def _linear_outputs(predict: Callable, theta: Any, xs: Any, directions: Any) -> Any:
    unravel = ravel_pytree(theta)[1]

    def one(direction: Any) -> Any:
        value, slope = jax.jvp(lambda params: _outputs(predict, params, xs), (theta,), (unravel(direction),))
        return value + slope

    return jax.lax.map(one, directions)


def _outputs(predict: Callable, params: Any, xs: Any) -> Any:
    """Return the outputs at every input, `[points, outputs]`."""
    return jax.vmap(predict, (None, 0))(params, xs).reshape(len(xs), -1)
