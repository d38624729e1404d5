"""The curvature C of the negative log likelihood: Hessian, generalised Gauss-Newton, empirical Fisher.

C_hessian = −∇² Σᵢ log p(yᵢ|xᵢ,θ). The two others are sums of squares of rows, C = Σᵢ JᵢᵀJᵢ:

    empirical Fisher   Jᵢ = ∇ log p(yᵢ|xᵢ,θ)                     [1, P]
    GGN                Jᵢ = Lᵢᵀ ∂fᵢ/∂θ,  LᵢLᵢᵀ = −∂² log p/∂f²   [outputs, P]

with f the outputs of the network. The GGN is the Fisher matrix, because the likelihoods are exponential families in f.
The empirical Fisher matrix is another matrix. Sources: Martens (2020); Kunstner et al. (2019).

Many functions have the arguments `batch_size`, the largest number of data at a time, and `rows`, the largest number of
rows (data × outputs) at a time. Without `rows` as many are taken as fit in `_room.ROOM` bytes.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.flatten_util import ravel_pytree

from isouq._frozen import first_row
from isouq._room import bytes_of_one, steps
from isouq.gradnorm import Form, value_and_grad_quadratic
from isouq.gradnorm._factors import at_least_float32
from isouq.gradnorm._moments import moment_products, zero_moments

CURVATURES = ("hessian", "ggn", "empirical_fisher")
AT_ONCE = 256  # largest number of products with basis vectors at a time


def hessian(f: Callable, params: Any) -> Array:
    """Return ∇²f `[P, P]`, by P forward-over-reverse products, as many at a time as there is room for."""
    flat, unravel = ravel_pytree(params)
    times = _hessian_product(f, flat, unravel)
    return _symmetric_matrix(times, flat, _products_at_once(times, flat))


def _hessian_product(f: Callable, flat: Array, unravel: Callable) -> Callable:
    """Return the map v ↦ ∇²f v of flat vectors."""
    gradient = jax.grad(lambda theta: f(unravel(theta)))
    return lambda v: jax.jvp(gradient, (flat,), (v,))[1]


def _products_at_once(times: Callable, flat: Array, rows: int | None = None, data: int = 1) -> int:
    """Return how many products of a map to form at a time, where each takes `data` rows."""
    if rows is not None:
        return min(AT_ONCE, max(1, rows // data))
    return steps(1, min(AT_ONCE, flat.size), 1, bytes_of_one(lambda _, v: times(v), (), flat)).each


def _symmetric_matrix(times: Callable, flat: Array, at_once: int) -> Array:
    """Return the matrix of a symmetric map, `at_once` rows at a time."""
    rows = jax.lax.map(lambda index: times(_basis(flat, index)), jnp.arange(flat.size), batch_size=at_once)
    return (rows + rows.T) / 2


def _basis(flat: Array, index: Array) -> Array:
    return jnp.zeros_like(flat).at[index].set(1.0)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def dense(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Array:
    """Return C `[P, P]`."""
    if curvature == "hessian":
        flat, times, at_once = _hessian_products(log_density, params, batch_size, rows)
        return _symmetric_matrix(times, flat, at_once)
    gradient = _gradient_of_row(log_density, params, curvature)

    def square(*batch: Any) -> Array:
        j = _over_rows(functools.partial(gradient, params))(*batch)
        j = j.reshape(-1, j.shape[-1])
        return j.T @ j

    return _sum_over_rows(square, log_density, params, curvature, "dense", batch_size, rows)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def diagonal(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Array:
    """Return the diagonal of C `[P]`, that of the Hessian by P products.

    A sum of squared rows Σ gᵢ² is the derivative of Σ gᵀ diag(v) g by v, which the engine computes without gradients.
    """
    if curvature != "hessian":
        return ravel_pytree(_sum_of_derivatives("diagonal", log_density, params, curvature, batch_size, rows))[0]
    flat, times, at_once = _hessian_products(log_density, params, batch_size, rows)

    def entry(index: Array) -> Array:
        return times(_basis(flat, index))[index]

    return jax.lax.map(entry, jnp.arange(flat.size), batch_size=at_once)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def kronecker(
    log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None
) -> list[tuple[Array, Array]]:
    """Return KFAC's factors of every leaf, with A ⊗ B ≈ the block of C: A is a mean over the rows, B a sum."""
    total = _sum_of_derivatives("kronecker", log_density, params, curvature, batch_size, rows)
    size = log_density.ys.shape[0] * num_rows(log_density, params, curvature)
    return [(first / size, second) for first, second in total]


def product(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Callable:
    """Return the map v ↦ C v of flat vectors, which takes two passes over the data. C v is in float32 or better."""
    flat, unravel = ravel_pytree(params)
    data = _data_at_once(log_density, params, curvature, batch_size, rows)

    def times(v: Array) -> Array:
        def chunk(batch: Any) -> Array:
            return _product_of_data(log_density, unravel, curvature)(flat, *batch, v.astype(flat.dtype))

        return _sum_chunks(chunk, (log_density.xs, log_density.ys), data)

    return times


def _hessian_products(log_density: Any, params: Any, batch_size: int, rows: int | None) -> tuple[Array, Callable, int]:
    """Return the flat parameters, the map v ↦ C v of the Hessian, and how many products to form at a time."""
    flat = ravel_pytree(params)[0]
    times = product(log_density, params, "hessian", batch_size, rows)
    data = _data_at_once(log_density, params, "hessian", batch_size, rows)
    return flat, times, _products_at_once(times, flat, rows, data)


def _product_of_data(log_density: Any, unravel: Callable, curvature: str) -> Callable:
    """Return the map (flat, xs, ys, v) ↦ C v of some of the data."""

    def times(flat: Array, xs: Any, ys: Array, v: Array) -> Array:
        if curvature == "hessian":
            part = replace(log_density, xs=xs, ys=ys)
            return -_hessian_product(part.log_likelihood, flat, unravel)(v)

        def outputs(theta: Array) -> Array:
            rows = functools.partial(_row_outputs, log_density, unravel(theta), curvature=curvature)
            return jax.vmap(rows)(xs, ys)

        _, j_v = jax.jvp(outputs, (flat,), (v,))
        return jax.vjp(outputs, flat)[1](j_v)[0]

    return times


def _data_at_once(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None) -> int:
    """Return how many data a product takes at a time."""
    bytes_each = 0 if rows is not None else row_bytes(log_density, params, curvature, "low_rank")
    return steps(log_density.ys.shape[0], 1, batch_size, bytes_each, rows).data


def row_bytes(log_density: Any, params: Any, curvature: str, structure: str) -> int:
    """Return an upper bound of the bytes that a step holds for one row of one datum, or for one datum in a product."""
    datum = first_row((log_density.xs, log_density.ys))
    if structure == "low_rank" or curvature == "hessian":
        datum = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), datum)

        def product_of_datum(params: Any, *datum: Any) -> Array:
            flat, unravel = ravel_pytree(params)
            return _product_of_data(log_density, unravel, curvature)(flat, *datum, flat)

        return bytes_of_one(product_of_datum, params, *datum)
    return bytes_of_one(
        lambda params, *datum: _ROW_FUNCTIONS[structure](log_density, params, curvature)(params, *datum),
        params,
        *datum,
        jax.ShapeDtypeStruct((), jnp.int32),
    )


def _gradient_of_row(log_density: Any, params: Any, curvature: str) -> Callable:
    """Return the function (params, x, y, index) ↦ flat gradient of one row, in float32 or better."""

    def gradient(params: Any, *datum: Any) -> Array:
        flat = ravel_pytree(jax.grad(_row(log_density, curvature))(params, *datum))[0]
        return flat.astype(at_least_float32(flat.dtype))

    return gradient


def _diagonal_form(log_density: Any, params: Any, curvature: str) -> tuple[Callable, Any]:
    """Return gᵀ diag(v) g of one row as a function of (v, params, x, y, index), and a v of ones."""
    ones = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), at_least_float32(jnp.result_type(leaf))), params)

    def quadratic(variances: Any, *args: Any) -> Array:
        forms = [Form(diagonal=v) for v in jax.tree.leaves(variances)]
        return value_and_grad_quadratic(_row(log_density, curvature), forms)(*args)[1]

    return quadratic, ones


def _moments_form(log_density: Any, params: Any, curvature: str) -> tuple[Callable, Any]:
    """Return Σ ⟨A, M⟩ + ⟨B, N⟩ of one row as a function of (pairs (M, N), params, x, y, index), and pairs of zeros."""
    shapes = moment_shapes(log_density, params, curvature)
    zeros = jax.tree.map(lambda aval: jnp.zeros(aval.shape, aval.dtype), shapes)
    return moment_products(_row(log_density, curvature)), zeros


def moment_shapes(log_density: Any, params: Any, curvature: str) -> list[tuple[Any, Any]]:
    """Return the shapes of the factors (A, B) of every leaf."""
    datum = (*first_row((log_density.xs, log_density.ys)), jax.ShapeDtypeStruct((), jnp.int32))
    return jax.eval_shape(zero_moments(_row(log_density, curvature)), params, *datum)


_FORMS = {"diagonal": _diagonal_form, "kronecker": _moments_form}


def _form_of_row(structure: str, log_density: Any, params: Any, curvature: str) -> Callable:
    """Return the form of a structure as a function of (params, x, y, index)."""
    f, at = _FORMS[structure](log_density, params, curvature)
    return functools.partial(f, at)


_ROW_FUNCTIONS: dict[str, Callable] = {
    "dense": _gradient_of_row,
    **{name: functools.partial(_form_of_row, name) for name in _FORMS},
}


def num_rows(log_density: Any, params: Any, curvature: str) -> int:
    """Return the number of rows Jᵢ of one datum."""
    datum = first_row((log_density.xs, log_density.ys))
    return jax.eval_shape(lambda p, x, y: _row_outputs(log_density, p, x, y, curvature), params, *datum).shape[0]


def _row(log_density: Any, curvature: str) -> Callable:
    """Return one row as a scalar function of (params, x, y, its index)."""
    return lambda theta, x, y, index: _row_outputs(log_density, theta, x, y, curvature)[index]


def _row_outputs(log_density: Any, theta: Any, x: Any, y: Array, curvature: str) -> Array:
    """Return values whose Jacobian by theta is the rows Jᵢ of one datum; the factor Lᵢ is a constant at theta.

    They are computed from log-probabilities and from differences to the likeliest class, so that no digit is lost where
    a class is all but certain, or where the logits are large and close to each other.
    """
    outputs = jnp.ravel(log_density.predict(theta, x))
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
    differences = jnp.where(jnp.arange(outputs.size) == likeliest, 0, outputs - outputs[likeliest])
    mean = jnp.sum(jnp.exp(log_p) * differences)
    if curvature == "empirical_fisher":
        return (differences[y] - mean)[None]
    return jnp.exp(log_p / 2) * (differences - mean)


def _over_rows(f: Callable) -> Callable:
    """Return f(x, y, index) mapped over all data and all indices, `[data, indices, ...]`."""
    return jax.vmap(jax.vmap(f, (None, None, 0)), (0, 0, None))


def _sum_of_derivatives(
    structure: str, log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None
) -> Any:
    """Return the sum over all rows of the derivative of a form by the argument in which it is linear.

    The sum is differentiated and not its terms, so that the derivative of a single row is never held.
    """
    form, at = _FORMS[structure](log_density, params, curvature)

    def derivative(*batch: Any) -> Any:
        def total(at: Any) -> Array:
            return jnp.sum(_over_rows(functools.partial(form, at, params))(*batch))

        return jax.grad(total)(at)

    return _sum_over_rows(derivative, log_density, params, curvature, structure, batch_size, rows)


def _sum_over_rows(
    part: Callable,
    log_density: Any,
    params: Any,
    curvature: str,
    structure: str,
    batch_size: int,
    rows: int | None,
) -> Any:
    """Return the sum of `part(xs, ys, indices)` over all data and rows, in steps of as many as there is room for."""
    count = num_rows(log_density, params, curvature)
    bytes_each = 0 if rows is not None else row_bytes(log_density, params, curvature, structure)
    size = steps(log_density.ys.shape[0], count, batch_size, bytes_each, rows)

    def sum_of_batch(batch: Any) -> Any:
        return _sum_chunks(lambda indices: part(*batch, indices), jnp.arange(count), size.each)

    return _sum_chunks(sum_of_batch, (log_density.xs, log_density.ys), size.data)


def _sum_chunks(chunk: Callable, tree: Any, batch_size: int) -> Any:
    """Return the sum of `chunk` over batches of a leading axis, in float32 or better; the last may be smaller."""
    tree = jax.tree.map(jnp.asarray, tree)
    size = jax.tree.leaves(tree)[0].shape[0]
    end = size // batch_size * batch_size

    def part(batch: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.astype(at_least_float32(leaf.dtype)), chunk(batch))

    if batch_size == size:
        return part(tree)

    def step(total: Any, batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, part(batch)), None

    split = jax.tree.map(lambda leaf: leaf[:end].reshape(-1, batch_size, *leaf.shape[1:]), tree)
    first = jax.eval_shape(part, jax.tree.map(lambda leaf: leaf[0], split))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), first)
    total, _ = jax.lax.scan(step, zeros, split)
    if end < size:
        total = jax.tree.map(jnp.add, total, part(jax.tree.map(lambda leaf: leaf[end:], tree)))
    return total
