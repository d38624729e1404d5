"""The synthetic problems as pure functions of (key, n).

`PROBLEMS[name].sample(key, n)` draws a data set. A user's own arrays become a problem by `from_arrays`, and a function
`(key, n) -> (xs, ys)` by `Problem(...)`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from isouq import _checks


class Dataset(NamedTuple):
    """Training data: xs `[n, features]` in float32, and ys `[n]`, labels in int32 or values in float32."""

    xs: Float[Array, "n features"]
    ys: Num[Array, " n"]


@dataclass(frozen=True)
class Problem:
    """A data-generating process and the model that goes with it.

    name: its name in tables.
    kind: "binary", "multiclass" or "regression".
    draw: a pure function `(key, n) -> (xs [n, features], ys [n])`.
    num_outputs: 1, or the number of classes.
    hidden: widths of the hidden layers of the MLP.
    noise: the known standard deviation of y given x, for regression alone.
    held_out: a pure function `key -> (xs, ys)` of points that the data set of that key does not have; the experiments
        then compare at these inputs. None: they compare on a grid, which exists for one or two features.
    """

    name: str
    kind: str
    draw: Callable[[Array, int], tuple[Array, Array]]
    num_outputs: int = 1
    hidden: tuple[int, ...] = ()
    noise: float | None = None
    held_out: Callable[[Array], tuple[Array, Array]] | None = None

    def __post_init__(self) -> None:
        _checks.one_of("kind", self.kind, _checks.KINDS)
        _checks.positive_int("num_outputs", self.num_outputs)
        if self.kind == "multiclass" and self.num_outputs < 2:
            raise ValueError(f"num_outputs is {self.num_outputs}; a multiclass problem needs at least 2")
        if self.kind != "multiclass" and self.num_outputs != 1:
            raise ValueError(f"num_outputs is {self.num_outputs}; a {self.kind} problem has 1")
        _checks.noise(self.kind, self.noise)

    def sample(self, key: Array, n: int = 200) -> Dataset:
        """Return a data set of n points, which is checked; the same key gives the same points."""
        _checks.positive_int("n", n)
        with jax.enable_x64(False):  # the same data in every precision mode
            return self._check(*self.draw(key, n))

    def sample_held_out(self, key: Array) -> Dataset | None:
        """Return the points that `sample` with the same key leaves out; None where a grid takes their place."""
        if self.held_out is None:
            return None
        with jax.enable_x64(False):
            try:
                xs, ys = self.held_out(key)
                return self._check(xs, ys)
            except (TypeError, ValueError) as error:
                raise ValueError(f"held-out points of {self.name!r}: {error}") from error

    def _check(self, xs: Any, ys: Any) -> Dataset:
        xs = jnp.asarray(xs, jnp.float32)
        if xs.ndim != 2:
            raise ValueError(f"xs has shape {xs.shape}; expected [n, features] (use xs[:, None] for one feature)")
        _checks.dataset(xs, ys, self.kind, self.num_outputs)
        return Dataset(xs, jnp.asarray(ys, jnp.float32 if self.kind == "regression" else jnp.int32))


def from_arrays(
    xs: Any,
    ys: Any,
    kind: str,
    *,
    hidden: tuple[int, ...] = (32,),
    noise: float | None = None,
    name: str = "own",
) -> Problem:
    """Return a user's own arrays xs `[n, features]` and ys `[n]` as a problem.

    Its `sample(key, n)` draws n of the rows without replacement, in an order that depends on the key. hidden, noise and
    name are those of `Problem`.

    Raises:
        ValueError: the arrays are no data set of the kind; the message says what to do.
    """
    _checks.dataset(xs, ys, kind)
    xs, ys = np.asarray(xs), np.asarray(ys)
    num_outputs = int(ys.max()) + 1 if kind == "multiclass" else 1

    def draw(key: Array, n: int) -> tuple[Array, Array]:
        if n > len(xs):
            raise ValueError(f"n is {n}, but the problem {name!r} has {len(xs)} rows; ask for at most that many")
        rows = np.asarray(jax.random.permutation(key, len(xs)))[:n]
        return jnp.asarray(xs[rows]), jnp.asarray(ys[rows])

    return Problem(name, kind, draw, num_outputs, hidden, noise)


def evaluation_inputs(
    xs: Any, resolution: int | None = None, *, widen: float | None = 0.5
) -> Float[Array, "m features"]:
    """Return the inputs on which estimate and reference are compared, a grid over the widened range of the data.

    Args:
        xs: the data, `[n, features]` with one or two features.
        resolution: points along each feature; by default 400 for one feature and 50 for each of two. In a grid the
            first feature runs fastest.
        widen: length in units of x by which the range is extended at both ends. None extends it by a quarter of itself
            at both ends, which is the wide region of the experiments.

    Raises:
        ValueError: xs has no or more than two features.
    """
    xs = np.asarray(xs, np.float32)
    if xs.ndim != 2 or xs.shape[1] not in (1, 2):
        raise ValueError(
            f"xs has shape {xs.shape}; a grid exists for one or two features: pass evaluation inputs of your own"
        )
    if resolution is None:
        resolution = 400 if xs.shape[1] == 1 else 50
    _checks.positive_int("resolution", resolution, 2)
    low, high = xs.min(axis=0), xs.max(axis=0)
    pad = (high - low) / 4 if widen is None else np.float32(widen)
    axes = [np.linspace(a, b, resolution, dtype=np.float32) for a, b in zip(low - pad, high + pad, strict=True)]
    grid = np.meshgrid(*axes, indexing="xy")
    return jnp.asarray(np.stack([axis.ravel() for axis in grid], axis=-1))


@dataclass(frozen=True)
class _Compiled:
    """A draw as one program in place of twenty; unlike a function that is decorated with jit it can be pickled."""

    draw: Callable

    def __call__(self, key: Array, n: int) -> tuple[Array, Array]:
        return _draw(self.draw, key, n)


@partial(jax.jit, static_argnames=("draw", "n"))
def _draw(draw: Callable, key: Array, n: int) -> tuple[Array, Array]:
    return draw(key, n)


def _labels(n: int, classes: int) -> Array:
    return jnp.arange(n) % classes


def _ring_points(key: Array, labels: Array, radius: Array, radial_sd: float) -> Array:
    radial_key, angle_key = jax.random.split(key)
    r = radius[labels] + radial_sd * jax.random.normal(radial_key, labels.shape)
    angle = jax.random.uniform(angle_key, labels.shape, maxval=2 * jnp.pi)
    return _polar(r, angle)


def _polar(r: Array, angle: Array) -> Array:
    return jnp.stack([r * jnp.cos(angle), r * jnp.sin(angle)], axis=-1)


def _binary_linear(key: Array, n: int) -> tuple[Array, Array]:
    x_key, y_key = jax.random.split(key)
    xs = 1.5 * jax.random.normal(x_key, (n, 2))
    return xs, jax.random.bernoulli(y_key, jax.nn.sigmoid(2 * xs.sum(axis=1))).astype(jnp.int32)


def _binary_xor(key: Array, n: int) -> tuple[Array, Array]:
    centres = jnp.array([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
    blob = _labels(n, 4)
    xs = centres[blob] + 0.5 * jax.random.normal(key, (n, 2))
    return xs, (centres[blob].prod(axis=1) > 0).astype(jnp.int32)


def _binary_rings(key: Array, n: int) -> tuple[Array, Array]:
    labels = _labels(n, 2)
    return _ring_points(key, labels, jnp.array([1.0, 2.0]), 0.2), labels


def _multiclass_clusters(key: Array, n: int) -> tuple[Array, Array]:
    labels = _labels(n, 3)
    centres = _polar(jnp.full(3, 2.0), 2 * jnp.pi * jnp.arange(3) / 3)
    return centres[labels] + 0.8 * jax.random.normal(key, (n, 2)), labels


def _multiclass_spirals(key: Array, n: int) -> tuple[Array, Array]:
    turn_key, angle_key = jax.random.split(key)
    labels = _labels(n, 3)
    t = jax.random.uniform(turn_key, (n,))
    angle = 4.0 * t + 2 * jnp.pi * labels / 3 + 0.2 * jax.random.normal(angle_key, (n,))
    return _polar(0.25 + 2.25 * t, angle), labels


def _multiclass_rings(key: Array, n: int) -> tuple[Array, Array]:
    labels = _labels(n, 3)
    return _ring_points(key, labels, jnp.array([1.0, 2.0, 3.0]), 0.25), labels


def _regression_linear(key: Array, n: int) -> tuple[Array, Array]:
    x_key, y_key = jax.random.split(key)
    xs = jax.random.uniform(x_key, (n, 1), minval=-2.0, maxval=2.0)
    return xs, 1.5 * xs[:, 0] - 0.5 + 0.3 * jax.random.normal(y_key, (n,))


def _regression_sine(key: Array, n: int) -> tuple[Array, Array]:
    x_key, y_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (n,), minval=-2.0, maxval=2.0)
    return x[:, None], jnp.sin(2 * x) + 0.2 * jax.random.normal(y_key, (n,))


def _regression_nonlinear(key: Array, n: int) -> tuple[Array, Array]:
    x_key, side_key, y_key = jax.random.split(key, 3)
    size = jax.random.uniform(x_key, (n,), minval=0.5, maxval=2.0)
    x = jnp.where(jax.random.bernoulli(side_key, shape=(n,)), size, -size)
    return x[:, None], jnp.sin(2 * x) + 0.2 * jax.random.normal(y_key, (n,))


PROBLEMS: dict[str, Problem] = {
    problem.name: replace(problem, draw=_Compiled(problem.draw))
    for problem in (
        Problem("binary/linear", "binary", _binary_linear),
        Problem("binary/xor", "binary", _binary_xor, hidden=(16,)),
        Problem("binary/rings", "binary", _binary_rings, hidden=(16,)),
        Problem("multiclass/clusters", "multiclass", _multiclass_clusters, num_outputs=3),
        Problem("multiclass/spirals", "multiclass", _multiclass_spirals, num_outputs=3, hidden=(32,)),
        Problem("multiclass/rings", "multiclass", _multiclass_rings, num_outputs=3, hidden=(32,)),
        Problem("regression/linear", "regression", _regression_linear, noise=0.3),
        Problem("regression/nonlinear", "regression", _regression_nonlinear, hidden=(32,), noise=0.2),
        Problem("regression/sine", "regression", _regression_sine, hidden=(32,), noise=0.2),
    )
}


def get(name: str) -> Problem:
    """Return the problem of that name; raise a ValueError that lists the names where there is none."""
    _checks.one_of("problem", name, PROBLEMS)
    return PROBLEMS[name]
