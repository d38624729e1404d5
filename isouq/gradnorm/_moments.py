"""Second moments of the factors of a gradient, of which KFAC is made."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from isouq.gradnorm._factors import Factors, OneHot, at_least_float32
from isouq.gradnorm._forms import fits, lead_and_last
from isouq.gradnorm._norms import backward, factors_of
from isouq.gradnorm._plan import Group, Plan
from isouq.gradnorm._trace import Traced, trace

LARGEST = 2**13  # rows of the largest factor that is a whole matrix; a larger one is its diagonal

Pairs = list[tuple[Array, Array]]


def factor_moments(f: Callable) -> Callable:
    """Return a function that gives the moments `(A, B)` of every leaf of params, in order, for a scalar f(params, ...).

    With G = Σ_p x_p δ_pᵀ `[C, F]` the gradient of a weight that is used once, A = mean_p x_p x_pᵀ `[C, C]` and
    B = Σ_p δ_p δ_pᵀ `[F, F]` over its positions p (KFAC-expand, Eschenhagen et al., arXiv 2311.00636). A vector has
    A = 1 and B = g gᵀ, exact. A matrix that is used otherwise (several times, or in a way no rule knows) has
    A = G Gᵀ / ‖G‖² and B = Gᵀ G, whose trace is right and which are exact for a gradient of rank one.

    A moment with one axis, `[C]`, is diagonal. For the rows of a look-up, which are one-hot, that is exact; a moment
    with more than `LARGEST` rows is approximated by its diagonal.
    """

    def moments(*args: Any, **kwargs: Any) -> Pairs:
        return jax.grad(moment_products(f))(zero_moments(f)(*args, **kwargs), *args, **kwargs)

    return moments


def zero_moments(f: Callable) -> Callable:
    """Return a function that gives zeros of the shapes of `factor_moments`, for a scalar f(params, ...)."""

    def zeros(*args: Any, **kwargs: Any) -> Pairs:
        traced = trace(f, args, kwargs, 0, False)
        if traced is None:
            return [_zeros(leaf, None) for leaf in jax.tree.leaves(args[0])]
        groups = _plan(traced).groups
        return [_zeros(leaf, groups.get(i)) for i, leaf in enumerate(traced.leaves)]

    return zeros


def moment_products(f: Callable) -> Callable:
    """Return the function Σ ⟨A, M⟩ + ⟨B, N⟩ of pairs (M, N), one for each leaf, and of the arguments of a scalar f.

    It is linear in the pairs, so that its derivative with respect to them is the moments. The derivative of a sum over
    a batch is the sum of the moments, and the moments of a single row are never formed.
    """

    def products(pairs: Pairs, *args: Any, **kwargs: Any) -> Array:
        traced = trace(f, args, kwargs, 0, False)
        if traced is None:
            leaves = jax.tree.leaves(jax.grad(f)(*args, **kwargs))
            return sum(map(_products_of_gradient, leaves, pairs), jnp.zeros(()))
        plan = _plan(traced)
        _, gradients, received = backward(traced, plan)
        total = jnp.zeros(())
        for i, (leaf, pair) in enumerate(zip(traced.leaves, pairs, strict=True)):
            if i in plan.direct:
                total += _products_of_gradient(gradients[i], pair)
            elif i in plan.groups:
                total += _products_of_factors(factors_of(plan.groups[i][0], received)[0], leaf, pair)
        return total

    return products


def _plan(traced: Traced) -> Plan:
    """Return a plan that collects the pairs of leaves that are used in one product, with all others direct."""
    plan = traced.plan(collect=range(len(traced.leaves)))
    others = [i for i, leaf in enumerate(traced.leaves) if not _is_one_product(plan.groups.get(i, []), leaf)]
    return traced.plan(collect=range(len(traced.leaves)), direct=others)


def _is_one_product(groups: list[Group], leaf: Any) -> bool:
    """Return whether the leaf is a matrix that meets data once, in a product that splits it as Kronecker factors do."""
    if jnp.ndim(leaf) < 2 or len(groups) != 1 or len(groups[0].sites) != 1:
        return False
    return fits(groups[0], *lead_and_last(leaf))


def _zeros(leaf: Any, groups: list[Group] | None) -> tuple[Array, Array]:
    """Return zeros of the shapes of the moments of one leaf."""
    last = jnp.shape(leaf)[-1] if jnp.ndim(leaf) else 1
    sizes = (jnp.size(leaf) // last if last else 0, last)
    diagonal = [size > LARGEST for size in sizes]
    if groups and groups[0].sites[0].lookup:
        diagonal[0 if groups[0].sites[0].layout.rows == lead_and_last(leaf)[0] else 1] = True
    dtype = at_least_float32(jnp.result_type(leaf))
    first, second = (
        jnp.zeros(size if alone else (size, size), dtype) for size, alone in zip(sizes, diagonal, strict=True)
    )
    return first, second


def _products_of_factors(factors: Factors, leaf: Any, pair: tuple[Array, Array]) -> Array:
    """Return ⟨A, M⟩ + ⟨B, N⟩ of one leaf from its factors."""
    rows, cols, layout = factors
    # the data may be on either side of the weight; A belongs to the leading axes
    of_rows, of_cols = pair if layout.rows == lead_and_last(leaf)[0] else reversed(pair)
    if isinstance(rows, OneHot):
        row = jnp.where(rows.at >= 0, rows.at, rows.size)  # −1 is out of bounds and has no row
        first = jnp.sum(of_rows.at[row].get(mode="fill", fill_value=0))
    else:
        first = _inner(rows, of_rows)
    return first / factors.positions + _inner(cols, of_cols)


def _products_of_gradient(g: Array, pair: tuple[Array, Array]) -> Array:
    """Return ⟨A, M⟩ + ⟨B, N⟩ of one leaf from its gradient."""
    first, second = pair
    g = g.astype(first.dtype).reshape(first.shape[0], second.shape[0])
    if g.size == 0:
        return jnp.zeros((), g.dtype)
    of_rows = _inner(g, second)
    if g.shape[0] == 1:
        return jnp.sum(first) + of_rows
    top = jnp.max(jnp.abs(g))
    unit = g / jnp.where(top > 0, top, 1)  # its squares do not underflow, however small the gradient is
    total = jnp.sum(jnp.square(unit))
    trace_one = jnp.sum(first if first.ndim == 1 else jnp.diag(first)) / first.shape[0]  # where the gradient is zero
    return jnp.where(total > 0, _inner(unit.T, first) / jnp.where(total > 0, total, 1), trace_one) + of_rows


def _inner(vectors: Array, moment: Array) -> Array:
    """Return ⟨Σ v vᵀ, moment⟩ of vectors [..., C] and a moment [C, C], or [C] where it is diagonal."""
    vectors = vectors.astype(moment.dtype).reshape(-1, moment.shape[0])
    if moment.ndim == 1:
        return jnp.sum(jnp.square(vectors) @ moment)
    return jnp.sum((vectors @ moment) * vectors)
