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

from isouq._frozen import first_row
from isouq.covariance._room import bytes_of_one, steps
from isouq.gradnorm import Form, value_and_grad_quadratic
from isouq.gradnorm._factors import at_least_float32
from isouq.gradnorm._moments import moment_products, zero_moments

CURVATURES = ("hessian", "ggn", "empirical_fisher")
AT_ONCE = 256  # products with basis vectors, at most


def hessian(f: Callable, params: Any) -> Array:
    """∇²f `[P, P]`, by P forward-over-reverse products, as many at a time as there is room for."""
    flat, unravel = ravel_pytree(params)
    times = _hessian_product(f, flat, unravel)
    return _rows(times, flat, _at_once(times, flat))


def _hessian_product(f: Callable, flat: Array, unravel: Callable) -> Callable:
    """The map v ↦ ∇²f v of flat vectors."""
    gradient = jax.grad(lambda theta: f(unravel(theta)))
    return lambda v: jax.jvp(gradient, (flat,), (v,))[1]


def _at_once(times: Callable, flat: Array, rows: int | None = None, data: int = 1) -> int:
    """How many products of a map to form at a time; rows: data × products that are allowed."""
    if rows is not None:
        return min(AT_ONCE, max(1, rows // data))
    return steps(1, min(AT_ONCE, flat.size), 1, bytes_of_one(lambda _, v: times(v), (), flat)).each


def _rows(times: Callable, flat: Array, at_once: int) -> Array:
    """The symmetric matrix of a product, `at_once` rows at a time."""
    rows = jax.lax.map(lambda index: times(_basis(flat, index)), jnp.arange(flat.size), batch_size=at_once)
    return (rows + rows.T) / 2


def _basis(flat: Array, index: Array) -> Array:
    return jnp.zeros_like(flat).at[index].set(1.0)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def dense(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Array:
    """C `[P, P]`."""
    if curvature == "hessian":
        flat, times, at_once = _hessian_products(log_density, params, batch_size, rows)
        return _rows(times, flat, at_once)
    gradient = _gradient_of_row(log_density, params, curvature)

    def square(*batch: Any) -> Array:
        j = _over_rows(functools.partial(gradient, params))(*batch)
        j = j.reshape(-1, j.shape[-1])
        return j.T @ j

    return _sum_over_rows(square, log_density, params, curvature, "dense", batch_size, rows)


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def diagonal(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Array:
    """The diagonal of C `[P]`; of the Hessian by P products, exact.

    A sum of squared rows Σ gᵢ² is the derivative of Σ gᵀ diag(v) g by v, which the engine knows without gradients.
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
    """KFAC's factors (A, B) of every leaf, C's block ≈ A ⊗ B: A the mean of its rows' moments, B their sum."""
    total = _sum_of_derivatives("kronecker", log_density, params, curvature, batch_size, rows)
    size = log_density.ys.shape[0] * num_rows(log_density, params, curvature)
    return [(first / size, second) for first, second in total]


def product(log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None = None) -> Callable:
    """The map v ↦ C v of flat vectors: two passes over the data, so many of them at a time as there is room for."""
    flat, unravel = ravel_pytree(params)
    data = _data_at_once(log_density, params, curvature, batch_size, rows)

    def times(v: Array) -> Array:
        def chunk(batch: Any) -> Array:
            return _product_of_data(log_density, unravel, curvature)(flat, *batch, v.astype(flat.dtype))

        return _sum_chunks(chunk, (log_density.xs, log_density.ys), data).astype(v.dtype)

    return times


def _hessian_products(log_density: Any, params: Any, batch_size: int, rows: int | None) -> tuple[Array, Callable, int]:
    """The flat parameters, the map v ↦ C v, and how many products to form at a time."""
    flat = ravel_pytree(params)[0]
    times = product(log_density, params, "hessian", batch_size, rows)
    data = _data_at_once(log_density, params, "hessian", batch_size, rows)
    return flat, times, _at_once(times, flat, rows, data)


def _product_of_data(log_density: Any, unravel: Callable, curvature: str) -> Callable:
    """The map (flat, xs, ys, v) ↦ C v of some of the data."""

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
    bytes_each = 0 if rows is not None else row_bytes(log_density, params, curvature, "low_rank")
    return steps(log_density.ys.shape[0], 1, batch_size, bytes_each, rows).data


def row_bytes(log_density: Any, params: Any, curvature: str, structure: str) -> int:
    """Bytes that a step holds of one row of one datum at most; of one datum, where products are taken."""
    datum = first_row((log_density.xs, log_density.ys))
    if structure == "low_rank" or curvature == "hessian":
        datum = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), datum)

        def of_datum(params: Any, *datum: Any) -> Array:
            flat, unravel = ravel_pytree(params)
            return _product_of_data(log_density, unravel, curvature)(flat, *datum, flat)

        return bytes_of_one(of_datum, params, *datum)
    return bytes_of_one(
        lambda params, *datum: _OF_ONE_ROW[structure](log_density, params, curvature)(params, *datum),
        params,
        *datum,
        jax.ShapeDtypeStruct((), jnp.int32),
    )


def _gradient_of_row(log_density: Any, params: Any, curvature: str) -> Callable:
    return lambda params, *datum: ravel_pytree(jax.grad(_row(log_density, curvature))(params, *datum))[0]


def _diagonal_form(log_density: Any, params: Any, curvature: str) -> tuple[Callable, Any]:
    """gᵀ diag(v) g of one row as a function of (v, params, x, y, index), and some v."""
    ones = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), at_least_float32(jnp.result_type(leaf))), params)

    def quadratic(variances: Any, *args: Any) -> Array:
        forms = [Form(diagonal=v) for v in jax.tree.leaves(variances)]
        return value_and_grad_quadratic(_row(log_density, curvature), forms)(*args)[1]

    return quadratic, ones


def _moments_form(log_density: Any, params: Any, curvature: str) -> tuple[Callable, Any]:
    """Σ ⟨A, M⟩ + ⟨B, N⟩ of one row as a function of (the pairs, params, x, y, index), and zero pairs."""
    shapes = moment_shapes(log_density, params, curvature)
    zeros = jax.tree.map(lambda aval: jnp.zeros(aval.shape, aval.dtype), shapes)
    return moment_products(_row(log_density, curvature)), zeros


def moment_shapes(log_density: Any, params: Any, curvature: str) -> list[tuple[Any, Any]]:
    """Shapes of the factors (A, B) of every leaf."""
    datum = (*first_row((log_density.xs, log_density.ys)), jax.ShapeDtypeStruct((), jnp.int32))
    return jax.eval_shape(zero_moments(_row(log_density, curvature)), params, *datum)


_FORMS = {"diagonal": _diagonal_form, "kronecker": _moments_form}


def _of_form(structure: str, log_density: Any, params: Any, curvature: str) -> Callable:
    f, at = _FORMS[structure](log_density, params, curvature)
    return functools.partial(f, at)


_OF_ONE_ROW: dict[str, Callable] = {
    "dense": _gradient_of_row,
    **{name: functools.partial(_of_form, name) for name in _FORMS},
}


def num_rows(log_density: Any, params: Any, curvature: str) -> int:
    """The number of rows Jᵢ of one datum."""
    datum = first_row((log_density.xs, log_density.ys))
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
    differences = jnp.where(jnp.arange(outputs.size) == likeliest, 0, outputs - outputs[likeliest])
    mean = jnp.sum(jnp.exp(log_p) * differences)
    if curvature == "empirical_fisher":
        return (differences[y] - mean)[None]
    return jnp.exp(log_p / 2) * (differences - mean)


def _over_rows(f: Callable) -> Callable:
    """f(x, y, index) of all data and all indices, `[data, indices, ...]`."""
    return jax.vmap(jax.vmap(f, (None, None, 0)), (0, 0, None))


def _sum_of_derivatives(
    structure: str, log_density: Any, params: Any, curvature: str, batch_size: int, rows: int | None
) -> Any:
    """The sum over all rows of the derivative of a form by what it is linear in.

    The sum is differentiated and not its terms: the derivative of a single row is never held.
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
    """The sum over the data of `part(xs, ys, indices)`, of as many data and rows of each as there is room for."""
    count = num_rows(log_density, params, curvature)
    bytes_each = 0 if rows is not None else row_bytes(log_density, params, curvature, structure)
    size = steps(log_density.ys.shape[0], count, batch_size, bytes_each, rows)

    def of_data(batch: Any) -> Any:
        return _sum_chunks(lambda indices: part(*batch, indices), jnp.arange(count), size.each)

    return _sum_chunks(of_data, (log_density.xs, log_density.ys), size.data)


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
