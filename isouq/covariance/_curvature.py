"""The curvature C of the negative log likelihood: Hessian, generalised Gauss-Newton, empirical Fisher.

C_hessian = −∇² Σᵢ log p(yᵢ|xᵢ,θ). The two others are sums of squares of rows, C = Σᵢ JᵢᵀJᵢ:

    empirical Fisher   Jᵢ = ∇ log p(yᵢ|xᵢ,θ)                 [1, P]
    GGN                Jᵢ = Lᵢᵀ ∂fᵢ/∂θ,  LᵢLᵢᵀ = −∂² log p/∂f²   [outputs, P]

with f the outputs of the network. The GGN is the Fisher matrix here, for the likelihoods are exponential families
in f. Sources: Martens (2020), Kunstner et al. (2019) for the difference to the empirical one.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from isouq.covariance._room import Steps, bytes_of_one, one, steps
from isouq.gradnorm import Form, value_and_grad_quadratic
from isouq.gradnorm._factors import at_least_float32
from isouq.gradnorm._moments import moment_products, zero_moments

CURVATURES = ("hessian", "ggn", "fisher")
_AT_ONCE = 256  # products with basis vectors


def hessian(f: Callable, params: Any) -> Array:
    """∇²f `[P, P]`, by P forward-over-reverse products."""
    flat, unravel = ravel_pytree(params)
    times = _hessian_product(f, flat, unravel)
    return _rows(times, flat, steps(1, flat.size, 1, bytes_of_one(lambda _, v: times(v), (), flat)).each)


def _hessian_product(f: Callable, flat: Array, unravel: Callable) -> Callable:
    """The map v ↦ ∇²f v of flat vectors."""
    gradient = jax.grad(lambda theta: f(unravel(theta)))
    return lambda v: jax.jvp(gradient, (flat,), (v,))[1]


def _rows(times: Callable, flat: Array, at_once: int) -> Array:
    """The symmetric matrix of a product, `at_once` rows at a time."""
    rows = jax.lax.map(
        lambda index: times(_basis(flat, index)), jnp.arange(flat.size), batch_size=min(_AT_ONCE, at_once)
    )
    return (rows + rows.T) / 2


def _basis(flat: Array, index: Array) -> Array:
    return jnp.zeros_like(flat).at[index].set(1.0)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def dense(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Array:
    """C `[P, P]`."""
    flat, unravel = ravel_pytree(params)
    if curvature == "hessian":
        at_once, times = _products(log_density, params, batch_size, rows)
        return _rows(times, flat, at_once)
    row = _row(log_density, curvature)

    def square(xs: Any, ys: Array, indices: Array) -> Array:
        gradient = jax.grad(lambda theta, *datum: row(unravel(theta), *datum))
        j = _over_rows(functools.partial(gradient, flat))(xs, ys, indices).reshape(-1, flat.size)
        return j.T @ j

    return _sum_over_rows(square, jax.grad(row), log_density, params, curvature, batch_size, rows)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def diagonal(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Array:
    """The diagonal of C `[P]`; of the Hessian by P products, exact.

    A sum of squared rows Σ gᵢ² is the derivative of Σ gᵀ diag(v) g by v, which the engine knows without gradients.
    """
    flat = ravel_pytree(params)[0]
    if curvature == "hessian":
        at_once, times = _products(log_density, params, batch_size, rows)

        def entry(index: Array) -> Array:
            return times(_basis(flat, index))[index]

        return jax.lax.map(entry, jnp.arange(flat.size), batch_size=min(_AT_ONCE, at_once))
    row = _row(log_density, curvature)
    ones = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), at_least_float32(jnp.result_type(leaf))), params)

    def quadratic(variances: Any, *datum: Any) -> Array:
        return value_and_grad_quadratic(row, [Form(diagonal=v) for v in jax.tree.leaves(variances)])(params, *datum)[1]

    return ravel_pytree(_sum_of_derivatives(quadratic, ones, log_density, params, curvature, batch_size, rows))[0]


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def kronecker(
    log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None
) -> list[tuple[Array, Array]]:
    """KFAC's factors (A, B) of every leaf, C's block ≈ A ⊗ B: A the mean of its rows' moments, B their sum."""
    row = _row(log_density, curvature)
    datum = (*one((log_density.xs, log_density.ys)), jax.ShapeDtypeStruct((), jnp.int32))
    zeros = jax.tree.map(
        lambda aval: jnp.zeros(aval.shape, aval.dtype), jax.eval_shape(zero_moments(row), params, *datum)
    )

    def products(pairs: Any, *datum: Any) -> Array:
        return moment_products(row)(pairs, params, *datum)

    total = _sum_of_derivatives(products, zeros, log_density, params, curvature, batch_size, rows)
    size = log_density.ys.shape[0] * num_rows(log_density, params, curvature)
    return [(first / size, second) for first, second in total]


def product(log_density: Any, params: Any, curvature: str, batch_size: int) -> Callable:
    """The map v ↦ C v of flat vectors: two passes over the data, `batch_size` of them at a time at most."""
    return _products(log_density, params, batch_size, 1, curvature)[1]


def _products(
    log_density: Any, params: Any, batch_size: int, rows: int | None, curvature: str = "hessian"
) -> tuple[int, Callable]:
    """How many products at a time there is room for, and the map v ↦ C v."""
    flat, unravel = ravel_pytree(params)

    def of_data(v: Array, xs: Any, ys: Array) -> Array:
        if curvature == "hessian":
            part = replace(log_density, xs=xs, ys=ys)
            return -_hessian_product(part.log_likelihood, flat, unravel)(v.astype(flat.dtype))

        def outputs(theta: Array) -> Array:
            rows = functools.partial(_row_outputs, log_density, unravel(theta), curvature=curvature)
            return jax.vmap(rows)(xs, ys)

        _, j_v = jax.jvp(outputs, (flat,), (v.astype(flat.dtype),))
        return jax.vjp(outputs, flat)[1](j_v)[0]

    size = log_density.ys.shape[0]
    datum = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), one((log_density.xs, log_density.ys))
    )
    data = steps(size, 1, batch_size, bytes_of_one(of_data, flat, *datum), rows).data

    def times(v: Array) -> Array:
        data_of = (log_density.xs, log_density.ys)
        return _sum_chunks(lambda batch: of_data(v, *batch), data_of, data).astype(v.dtype)

    return steps(1, flat.size, 1, bytes_of_one(lambda _, v: times(v), (), flat), rows).each, times


def num_rows(log_density: Any, params: Any, curvature: str) -> int:
    """The number of rows Jᵢ of one datum."""
    datum = one((log_density.xs, log_density.ys))
    return jax.eval_shape(lambda p, x, y: _row_outputs(log_density, p, x, y, curvature), params, *datum).shape[0]


def _row(log_density: Any, curvature: str) -> Callable:
    """One row as a scalar function of (params, x, y, its index)."""
    return lambda theta, x, y, index: _row_outputs(log_density, theta, x, y, curvature)[index]


def _row_outputs(log_density: Any, theta: Any, x: Any, y: Array, curvature: str) -> Array:
    """A function of theta whose Jacobian are the rows Jᵢ of one datum; their weights are constants at theta.

    Written in log-probabilities and in differences to the likeliest class, so that no digit is lost where a class is
    all but certain, or where the logits have a large common part.
    """
    outputs = log_density.predict(theta, x).reshape(-1)
    fixed = jax.lax.stop_gradient(outputs)
    if log_density.kind == "regression":
        if curvature == "ggn":
            return outputs / log_density.noise
        return -jnp.square((y - outputs) / log_density.noise) / 2
    if log_density.kind == "binary":
        if curvature == "ggn":  # √(p(1 − p))
            return outputs * jnp.exp((jax.nn.log_sigmoid(fixed) + jax.nn.log_sigmoid(-fixed)) / 2)
        return outputs * jnp.where(y == 1, jax.nn.sigmoid(-fixed), -jax.nn.sigmoid(fixed))
    likeliest = jnp.argmax(fixed)
    log_p = jax.nn.log_softmax(fixed)
    p = jnp.exp(log_p).at[likeliest].set(0.0)  # its own difference is 0
    differences = outputs - outputs[likeliest]
    mean = jnp.sum(p * differences)
    if curvature == "fisher":
        return (differences[y] - mean)[None]
    return jnp.exp(log_p / 2) * (differences - mean)


def _over_rows(f: Callable) -> Callable:
    """f(x, y, index) of all data and all indices, `[data, indices, ...]`."""
    return jax.vmap(jax.vmap(f, (None, None, 0)), (0, 0, None))


def _sum_of_derivatives(
    f: Callable, at: Any, log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None
) -> Any:
    """The sum over all rows of the derivative of f(at, x, y, index) by `at`, in which it is linear.

    The sum is differentiated and not its terms: the derivative of a single row is never held.
    """

    def derivative(*batch: Any) -> Any:
        return jax.grad(lambda at: jnp.sum(_over_rows(functools.partial(f, at))(*batch)))(at)

    return _sum_over_rows(derivative, lambda _, *datum: f(at, *datum), log_density, params, curvature, batch_size, rows)


def _sum_over_rows(
    part: Callable,
    one_row: Callable,
    log_density: Any,
    params: Any,
    curvature: str,
    batch_size: int,
    rows: int | None,
) -> Any:
    """The sum over the data of `part(xs, ys, indices)`, of as many data and rows of each as there is room for.

    one_row: `one_row(params, x, y, index)`, the part of one row whose memory grows with their number.
    """
    count = num_rows(log_density, params, curvature)
    data = (log_density.xs, log_density.ys)
    bytes_each = bytes_of_one(one_row, params, *one(data), jax.ShapeDtypeStruct((), jnp.int32))
    size: Steps = steps(log_density.ys.shape[0], count, batch_size, bytes_each, rows)

    def of_data(batch: Any) -> Any:
        return _sum_chunks(lambda indices: part(*batch, indices), jnp.arange(count), size.each)

    return _sum_chunks(of_data, data, size.data)


def _sum_chunks(chunk: Callable, tree: Any, batch_size: int) -> Any:
    """The sum of `chunk` over batches of a leading axis; the last one may be smaller."""
    tree = jax.tree.map(jnp.asarray, tree)
    size = jax.tree.leaves(tree)[0].shape[0]
    whole = size // batch_size * batch_size
    if batch_size == size:
        return chunk(tree)

    def step(total: Any, batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk(batch)), None

    split = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, batch_size, *leaf.shape[1:]), tree)
    first = jax.eval_shape(chunk, jax.tree.map(lambda leaf: leaf[0], split))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
    total, _ = jax.lax.scan(step, zeros, split)
    if whole < size:
        total = jax.tree.map(jnp.add, total, chunk(jax.tree.map(lambda leaf: leaf[whole:], tree)))
    return total
