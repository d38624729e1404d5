"""Predictions under a Gaussian posterior N(θ, Σ): `isouq.predictive`, and a scale for Σ: `isouq.fit_scale`.

With the outputs f(x; θ) linearised at the parameters, an output f_c has the variance v_c = ∇f_cᵀ Σ ∇f_c. For one
logit the probit approximation of MacKay (1992) averages the probability over it, p_1 = σ(f / √(1 + π v / 8)).
For several classes

    p_c = softmax(f / √(1 + π v / 8))_c

uses the variance of each logit and not their covariances. It depends on a constant that is added to all logits.

The quadratic forms come from the engine, one class after the other, and no gradient is formed.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Array, Float

from isouq import _checks, stats
from isouq._predict import check_predict
from isouq._rows import map_rows
from isouq._uncertainty import check_covariance, value_and_quadratic
from isouq.covariance import Identity

METHODS = ("probit", "logits", "weights")


class Predictive(NamedTuple):
    """The predictive distribution of y at n inputs.

    mean: for "multiclass" the probabilities `[n, classes]`; for "binary" that of class 1, `[n]`; for "regression" the
        mean of y, `[n]`.
    epistemic: the variance, over the posterior, of the prediction whose average is `mean`, of the same shape. For a
        classification by "probit", which gives no such variance, None.
    variance: for "regression" the variance of y, epistemic + noise², `[n]`; for a classification None.
    """

    mean: Float[Array, "n ..."]
    epistemic: Float[Array, "n ..."] | None
    variance: Float[Array, " n"] | None


def predictive(
    predict: Callable,
    params: Any,
    xs: Any,
    kind: str,
    covariance: Any,
    *,
    method: str = "probit",
    noise: float | None = None,
    key: Any = None,
    num_samples: int = 100,
    batch_size: int | None = None,
) -> Predictive:
    """Return the predictive distribution of y under the posterior N(params, Σ).

    Args:
        predict: as in `isouq.uncertainty`.
        params: the mean of the posterior, real floating arrays.
        xs: inputs with a leading axis n (an array or a pytree of arrays).
        kind: "binary", "multiclass" or "regression".
        covariance: Σ, such as `isouq.laplace(...)`, or `isouq.Identity(scale)` with the scale of `isouq.fit_scale`.
        method: "probit", the linearised outputs with MacKay's approximation, which for regression is exact; "logits",
            the linearised outputs sampled, f + J δ with δ ~ N(0, Σ); or "weights", f(params + δ), rounded to the dtype
            of params. The last fails where the posterior is wider than the region in which the network is linear, as a
            Laplace approximation often is.
        noise: standard deviation of y given x; for regression it must be given, otherwise it must not.
        key: a random key, for "logits" and "weights".
        num_samples: draws of δ, for these two; all inputs share them.
        batch_size: number of inputs that are computed at a time; by default all.

    Returns:
        `Predictive(mean, epistemic, variance)`, float32 or better.

    Raises:
        ValueError: a wrong shape, NaN in params or xs, an unknown kind or method, a missing key, or a covariance that
            does not fit the parameters or, for the two sampled methods, cannot be sampled.

    Cost: "probit" takes a forward and a backward pass for each class and input. "logits" takes num_samples forward
    passes with a tangent, about two forward passes each, and "weights" num_samples forward passes. The memory is that
    of batch_size × activations, with one draw of the parameters at a time; the gradients of batch_size inputs are
    formed for "probit" with `isouq.Dense`.

    Sources: MacKay (1992) for the probit approximation; Immer et al. (2021), arXiv 2008.08400, for linearised outputs.
    """
    _checks.one_of("method", method, METHODS)
    _checks.noise(kind, noise)
    predict, num_outputs, traceable = _check(predict, params, xs, kind, covariance, batch_size)
    if method == "probit":
        outputs, variances = _moments(predict, params, xs, covariance, num_outputs, batch_size, traceable)
        mean, epistemic = _squash(outputs, variances, kind), variances[:, 0]
        if kind != "regression":
            return Predictive(mean, None, None)
    else:
        _checks.key("key", key)
        _checks.positive_int("num_samples", num_samples, 2)
        if not hasattr(covariance, "deviation"):
            raise ValueError(
                f"covariance is a {type(covariance).__name__}, which cannot be sampled; use method='probit'"
            )
        mean, epistemic = _sample(predict, params, xs, covariance, key, num_samples, method, kind, batch_size)
    return Predictive(mean, epistemic, None if noise is None else epistemic + noise**2)


class ScaleFit(NamedTuple):
    """A scale of a covariance, fitted by `fit_scale`.

    scale: s. 0 where no positive scale lowers the loss.
    covariance: s · Σ, for `isouq.uncertainty` and `isouq.predictive`.
    log_loss: mean −log p of the labels under the predictive with s · Σ.
    log_loss_of_params: the same without a covariance, s = 0.
    """

    scale: float
    covariance: Any
    log_loss: float
    log_loss_of_params: float


def fit_scale(
    predict: Callable,
    params: Any,
    xs: Any,
    ys: Any,
    kind: str,
    covariance: Any = None,
    *,
    noise: float | None = None,
    batch_size: int | None = None,
) -> ScaleFit:
    """Return the scale s for which the predictive under N(params, s · Σ) gives held-out labels the largest likelihood.

    s minimises the mean over the data of −log p(y), where p is the predictive of `isouq.predictive` with "probit".
    Without a covariance Σ is I, so that the scale gives ‖g‖² the unit of a variance. Whether s · ‖g‖² equals the
    posterior's variance has not been measured.

    Args:
        predict: as in `isouq.uncertainty`.
        params: the mean of the posterior, real floating arrays.
        xs: inputs that params were not trained on.
        ys: their labels, or their values for regression, `[n]`.
        kind: "binary", "multiclass" or "regression".
        covariance: Σ; None is the identity.
        noise: standard deviation of y given x; for regression it must be given, otherwise it must not.
        batch_size: number of inputs that are computed at a time; by default all.

    Returns:
        `ScaleFit(scale, covariance, log_loss, log_loss_of_params)`.

    Raises:
        ValueError: as for `isouq.predictive`, or labels that do not fit; or outputs at params that are not finite.

    Warns:
        UserWarning: the largest scale that is tried is the best.

    Cost: a forward and a backward pass for each class and input, once; the search over s is in NumPy.

    Source: ours; for a Laplace approximation the scale is one over the temperature of Ritter et al. (2018).
    """
    covariance = Identity() if covariance is None else covariance
    if not hasattr(covariance, "scaled"):
        check_covariance(covariance, params)
        raise ValueError(
            f"covariance is a {type(covariance).__name__}, which cannot be scaled; give it a method scaled(factor)"
        )
    _checks.noise(kind, noise)
    predict, num_outputs, traceable = _check(predict, params, xs, kind, covariance, batch_size)
    _checks.labels(xs, ys, kind, num_outputs)
    moments = LinearMoments.of(predict, params, xs, covariance, num_outputs, batch_size, traceable)
    if not all(np.isfinite(array).all() for array in moments):
        raise ValueError("predict or its gradient is not finite at some row of xs; remove that row first")

    def loss(scale: float) -> float:
        return moments.log_loss(ys, kind, noise, scale)

    mean_variance = float(np.mean(moments.variances))
    scale, border = minimise_over_decades(loss, 1 / mean_variance) if mean_variance else (0.0, 0)
    scale = scale if loss(scale) < loss(0.0) else 0.0
    if scale and border > 0:
        warnings.warn(
            f"the scale is {scale:.2g}, the largest that is tried; check that ys holds labels of more than one class "
            "and that params are trained before you use it",
            stacklevel=2,
        )
    return ScaleFit(scale, covariance.scaled(scale), loss(scale), loss(0.0))


class LinearMoments(NamedTuple):
    """The outputs f_c at the parameters and their linearised variances ∇f_cᵀ Σ ∇f_c, each `[n, outputs]`, float64."""

    outputs: np.ndarray
    variances: np.ndarray

    @classmethod
    def of(cls, *arguments: Any) -> "LinearMoments":
        """Return what `_moments` computes from these arguments."""
        return cls(*(np.asarray(array, np.float64) for array in _moments(*arguments)))

    def moderate(self, scale: float = 1.0) -> np.ndarray:
        """Return f / √(1 + π s v / 8), the logits of the probit approximation under s · Σ."""
        return _moderate(self.outputs, scale * self.variances)

    def log_loss(self, ys: Any, kind: str, noise: float | None, scale: float = 1.0) -> float:
        """Return the mean −log p(y) under s · Σ, in float64 and right also where p is nearly 0."""
        if kind == "regression":
            variance = scale * self.variances[:, 0] + float(noise or 0) ** 2
            return stats.gaussian_log_loss(self.outputs[:, 0], variance, ys)
        logits, labels = self.moderate(scale), np.asarray(ys).astype(int)
        if kind == "binary":
            return float(-np.mean(scipy.special.log_expit(np.where(labels == 1, logits[:, 0], -logits[:, 0]))))
        return float(-np.mean(scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]))


def linear_moments(
    predict: Callable,
    params: Any,
    xs: Any,
    kind: str,
    covariance: Any,
    *,
    noise: float | None = None,
    batch_size: int | None = None,
) -> LinearMoments:
    """Return the moments of the linearised outputs; for the arguments, errors and cost see `predictive`."""
    _checks.noise(kind, noise)
    predict, num_outputs, traceable = _check(predict, params, xs, kind, covariance, batch_size)
    return LinearMoments.of(predict, params, xs, covariance, num_outputs, batch_size, traceable)


def minimise_over_decades(
    loss: Callable[[float], float], center: float, decades: float = 12.0
) -> tuple[float, Literal[-1, 0, 1]]:
    """Return the number > 0 of the smallest loss within so many decades of the center, and the border that it is at.

    The border is −1 for the smallest number that is tried, 1 for the largest and 0 for the others. Five numbers a
    decade are tried, because the loss may have several minima, and the best is refined to a relative 10⁻⁶ by SciPy's
    bounded search. A loss that is NaN or infinite is never the smallest.
    """

    def finite_loss(at: float) -> float:
        value = loss(10.0**at)
        return value if np.isfinite(value) else 1e30

    grid = np.linspace(-decades, decades, round(10 * decades) // 2 + 1) + np.log10(center)
    losses = [finite_loss(at) for at in grid]
    best = int(np.argmin(losses))
    border: Literal[-1, 0, 1] = -1 if best == 0 else 1 if best == len(grid) - 1 else 0
    bounds = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    optimum = scipy.optimize.minimize_scalar(finite_loss, bounds=bounds, method="bounded", options={"xatol": 1e-7})
    return float(10.0 ** (optimum.x if optimum.fun < losses[best] else grid[best])), border


def _check(
    predict: Callable, params: Any, xs: Any, kind: str, covariance: Any, batch_size: int | None
) -> tuple[Any, int, bool]:
    """Return predict as a program, its number of outputs, and whether the engine reads it; raise for a wrong call."""
    _checks.one_of("kind", kind, _checks.KINDS)
    _checks.count_rows(xs)
    if batch_size is not None:
        _checks.positive_int("batch_size", batch_size)
    _checks.float_leaves("params", params)
    _checks.finite("params", params)
    _checks.finite("xs", xs)
    if covariance is None:
        raise ValueError(
            "covariance is None; expected one, such as isouq.laplace(...) or isouq.fit_scale(...).covariance"
        )
    check_covariance(covariance, params)
    frozen, num_classes = check_predict(predict, params, xs, kind)
    return frozen, (num_classes or 1) if kind == "multiclass" else 1, frozen.traceable


@partial(jax.jit, static_argnames=("num_outputs", "batch_size", "traceable"))
def _moments(
    predict: Callable,
    params: Any,
    xs: Any,
    covariance: Any,
    num_outputs: int,
    batch_size: int | None,
    traceable: bool,
) -> tuple[Array, Array]:
    """Return the outputs f_c of every row and their linearised variances ∇f_cᵀ Σ ∇f_c, each `[n, outputs]`."""
    engine = "jaxpr" if traceable else "vmap"

    def one(x: Any) -> tuple[Array, Array]:
        def of_output(index: Array) -> tuple[Array, Array]:
            def scalar(theta: Any) -> tuple[Array, None]:
                return jnp.ravel(predict(theta, x))[index], None

            (value, _), quadratic = value_and_quadratic(scalar, params, covariance, engine)
            return value.astype(quadratic.dtype), quadratic

        return jax.lax.map(of_output, jnp.arange(num_outputs))

    return map_rows(one, (xs,), batch_size)


def _moderate(outputs: Any, variances: Any) -> Any:
    """Return f / √(1 + π v / 8) of arrays of JAX or NumPy."""
    return outputs / (1 + np.pi / 8 * variances) ** 0.5


def _squash(outputs: Array, variances: Array, kind: str) -> Array:
    """Return the mean of the predictive from outputs and their variances, by MacKay's approximation."""
    if kind == "regression":
        return outputs[:, 0]
    moderated = _moderate(outputs, variances)
    return jax.nn.sigmoid(moderated[:, 0]) if kind == "binary" else jax.nn.softmax(moderated, axis=1)


def _widen(array: Array) -> Array:
    """Return the array in float32 or better."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


@partial(jax.jit, static_argnames=("num_samples", "method", "kind", "batch_size"))
def _sample(
    predict: Callable,
    params: Any,
    xs: Any,
    covariance: Any,
    key: Array,
    num_samples: int,
    method: str,
    kind: str,
    batch_size: int | None,
) -> tuple[Array, Array]:
    """Return mean and variance of the prediction over draws of the parameters, one draw at a time."""
    draw = covariance.deviation(params)

    def predictions(deviation: Any) -> Array:
        def one(x: Any) -> Array:
            tangent = jax.tree.map(lambda leaf, d: d.astype(leaf.dtype), params, deviation)
            if method == "weights":
                outputs = _widen(predict(jax.tree.map(jnp.add, params, tangent), x))
            else:
                at_params, change = jax.jvp(lambda theta: predict(theta, x), (params,), (tangent,))
                outputs = _widen(at_params) + _widen(change)
            if kind == "multiclass":
                return jax.nn.softmax(outputs)
            scalar = outputs.reshape(())
            return jax.nn.sigmoid(scalar) if kind == "binary" else scalar

        return map_rows(one, (xs,), batch_size)

    def add(total: tuple[Array, Array, Array], key: Array) -> tuple[tuple[Array, Array, Array], None]:
        count, mean, squares = total
        p = predictions(draw(key))
        after = mean + (p - mean) / (count + 1)  # Welford's update
        return (count + 1, after, squares + (p - mean) * (p - after)), None

    shape = jax.eval_shape(predictions, jax.eval_shape(draw, key))
    zero = jnp.zeros(shape.shape, shape.dtype)
    (_, mean, squares), _ = jax.lax.scan(
        add, (jnp.zeros((), shape.dtype), zero, zero), jax.random.split(key, num_samples)
    )
    return mean, squares / (num_samples - 1)
