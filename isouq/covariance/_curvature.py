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

from isouq.gradnorm._moments import factor_moments

CURVATURES = ("hessian", "ggn", "fisher")
_AT_ONCE = 256  # products with basis vectors


def hessian(f: Callable, params: Any) -> Array:
    """∇²f `[P, P]`, by P forward-over-reverse products."""
    flat, unravel = ravel_pytree(params)
    return _rows(_hessian_product(f, flat, unravel), flat)


def _hessian_product(f: Callable, flat: Array, unravel: Callable) -> Callable:
    """The map v ↦ ∇²f v of flat vectors."""
    gradient = jax.grad(lambda theta: f(unravel(theta)))
    return lambda v: jax.jvp(gradient, (flat,), (v,))[1]


def _rows(times: Callable, flat: Array) -> Array:
    """The symmetric matrix of a product, _AT_ONCE rows at a time."""
    rows = jax.lax.map(times, jnp.eye(flat.size, dtype=flat.dtype), batch_size=min(_AT_ONCE, flat.size))
    return (rows + rows.T) / 2


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size"))
def dense(log_density: Any, params: Any, curvature: str, batch_size: int) -> Array:
    """C `[P, P]`."""
    if curvature == "hessian":
        return _rows(product(log_density, params, curvature, batch_size), ravel_pytree(params)[0])
    return _sum_over_data(lambda j: j.T @ j, log_density, params, curvature, batch_size)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size"))
def diagonal(log_density: Any, params: Any, curvature: str, batch_size: int) -> Array:
    """The diagonal of C `[P]`; of the Hessian by P products, exact."""
    if curvature != "hessian":
        return _sum_of_squares(log_density, params, curvature, batch_size)
    flat = ravel_pytree(params)[0]
    times = product(log_density, params, curvature, batch_size)

    def entry(index: Array) -> Array:
        return times(jnp.zeros_like(flat).at[index].set(1.0))[index]

    return jax.lax.map(entry, jnp.arange(flat.size), batch_size=min(_AT_ONCE, flat.size))


def product(log_density: Any, params: Any, curvature: str, batch_size: int) -> Callable:
    """The map v ↦ C v of flat vectors: two passes over the data, `batch_size` of them at a time."""
    flat, unravel = ravel_pytree(params)

    def times(v: Array) -> Array:
        def chunk(xs: Any, ys: Array) -> Array:
            if curvature == "hessian":
                part = replace(log_density, xs=xs, ys=ys)
                return -_hessian_product(part.log_likelihood, flat, unravel)(v.astype(flat.dtype))

            def outputs(theta: Array) -> Array:
                rows = functools.partial(_row_outputs, log_density, unravel(theta), params, curvature=curvature)
                return jax.vmap(rows)(xs, ys)

            _, j_v = jax.jvp(outputs, (flat,), (v.astype(flat.dtype),))
            return jax.vjp(outputs, flat)[1](j_v)[0]

        return _sum_chunks(chunk, log_density.xs, log_density.ys, batch_size).astype(v.dtype)

    return times


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size"))
def kronecker(log_density: Any, params: Any, curvature: str, batch_size: int) -> list[tuple[Array, Array]]:
    """KFAC's factors (A, B) of every leaf, C's block ≈ A ⊗ B: A the mean of its rows' moments, B their sum."""

    def one(x: Any, y: Array) -> list[tuple[Array, Array]]:
        def row(theta: Any, index: Array) -> Array:
            return _row_outputs(log_density, theta, params, x, y, curvature)[index]

        count = jax.eval_shape(lambda: _row_outputs(log_density, params, params, x, y, curvature)).shape[0]
        moments = jax.vmap(factor_moments(row), (None, 0))(params, jnp.arange(count))
        return [(first.sum(0) / count, second.sum(0)) for first, second in moments]

    def chunk(xs: Any, ys: Array) -> Any:
        return jax.tree.map(lambda m: m.sum(axis=0), jax.vmap(one)(xs, ys))

    total = _sum_chunks(chunk, log_density.xs, log_density.ys, batch_size)
    size = log_density.ys.shape[0]
    return [(first / size, second) for first, second in total]


def _row_outputs(log_density: Any, theta: Any, at: Any, x: Any, y: Array, curvature: str) -> Array:
    """A function of theta whose Jacobian at theta = `at` are the rows Jᵢ of one datum."""
    outputs = log_density.predict(theta, x).reshape(-1)
    fixed = jax.lax.stop_gradient(log_density.predict(at, x).reshape(-1))
    if log_density.kind == "regression":
        if curvature == "ggn":
            return outputs / log_density.noise
        return -jnp.square((y - outputs) / log_density.noise) / 2
    if log_density.kind == "binary":
        p = jax.nn.sigmoid(fixed)
        return outputs * (jnp.sqrt(p * (1 - p)) if curvature == "ggn" else y - p)
    p = jax.nn.softmax(fixed)
    if curvature == "fisher":
        return jnp.sum((jax.nn.one_hot(y, p.size, dtype=p.dtype) - p) * outputs)[None]
    root = jnp.sqrt(p)
    return root * outputs - root * jnp.sum(p * outputs)


def _sum_over_data(square: Callable, log_density: Any, params: Any, curvature: str, batch_size: int) -> Array:
    """The sum over the data of `square(J)`, J the rows `[batch · outputs, P]` of a batch."""
    flat, unravel = ravel_pytree(params)

    def rows(x: Any, y: Array) -> Array:
        return jax.jacrev(lambda theta: _row_outputs(log_density, unravel(theta), params, x, y, curvature))(flat)

    def chunk(xs: Any, ys: Array) -> Array:
        return square(jax.vmap(rows)(xs, ys).reshape(-1, flat.size))

    return _sum_chunks(chunk, log_density.xs, log_density.ys, batch_size)


def _sum_of_squares(log_density: Any, params: Any, curvature: str, batch_size: int) -> Array:
    """The sum over the data of the squared entries of the rows `[P]`, leaf by leaf: a batch keeps one copy of them."""

    def squares(x: Any, y: Array) -> Any:
        rows = jax.jacrev(lambda theta: _row_outputs(log_density, theta, params, x, y, curvature))(params)
        return jax.tree.map(lambda leaf: jnp.sum(jnp.square(leaf.astype(_wide(leaf))), axis=0), rows)

    def chunk(xs: Any, ys: Array) -> Any:
        return jax.tree.map(lambda leaf: leaf.sum(axis=0), jax.vmap(squares)(xs, ys))

    return ravel_pytree(_sum_chunks(chunk, log_density.xs, log_density.ys, batch_size))[0]


def _wide(leaf: Array) -> Any:
    return jnp.promote_types(leaf.dtype, jnp.float32)


def _sum_chunks(chunk: Callable, xs: Any, ys: Array, batch_size: int) -> Any:
    """The sum of `chunk(xs, ys)` over batches of the data; the last one may be smaller."""
    size = ys.shape[0]
    batch_size = min(batch_size, size)
    whole = size // batch_size * batch_size

    def split(leaf: Any) -> Array:
        return jnp.asarray(leaf)[:whole].reshape(-1, batch_size, *jnp.shape(leaf)[1:])

    def step(total: Any, batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, chunk(*batch)), None

    first = jax.eval_shape(chunk, *jax.tree.map(lambda leaf: jnp.asarray(leaf)[:batch_size], (xs, ys)))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
    total, _ = jax.lax.scan(step, zeros, jax.tree.map(split, (xs, ys)))
    if whole < size:
        rest = chunk(*jax.tree.map(lambda leaf: jnp.asarray(leaf)[whole:], (xs, ys)))
        total = jax.tree.map(jnp.add, total, rest)
    return total
