"""The Gram form of a squared gradient norm, with a test of cancellation that falls back on the product form.

For rows x_p and columns δ_p of positions p the gradient is G = Σ_p x_p δ_pᵀ, and

    ‖G‖² = Σ_pq A_pq B_pq,    A = X Xᵀ,    B = Δ Δᵀ.

Each term of the sum is known to about ε = 10⁻⁷ (float32) of ‖x_p‖‖x_q‖‖δ_p‖‖δ_q‖. As those errors are independent, the
sum is known to about ε D with D = Σ_p A_pp B_pp. Where the positions cancel (inputs with a large common part
before a layer whose output is centred; two uses with opposite signs), ‖G‖² ≪ D, and the digits are lost: this form
squares the condition of the gradient. So `gram_sq_norm` compares the two, and where D exceeds `MOST_CANCELLATION`
times the result it forms G itself, as `jax.grad` does. In networks whose positions do not cancel, D/‖G‖² is about 1
(at most 2.6 at any weight of SmolLM2-135M on four answers), so that the comparison costs next to nothing.

Where the sum overflows or vanishes on the way (its smallest terms are squares of small numbers), G is formed too.

The decision is made while the program runs. Under `jax.vmap` a `lax.cond` would compute both branches for all
examples; `custom_vmap` turns the batch into a leading axis instead, and a loop forms the gradients of those
examples alone that need it, one at a time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap

MOST_CANCELLATION = 8.0  # D / ‖G‖² up to which the Gram form is about as exact as jax.grad
_LEAST_CHUNK = 2**18  # entries of G that the product form holds at a time, at least


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype in which norms of `dtype` gradients are accumulated."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def leaf_sq_norm(leaf: Array) -> Array:
    """Return Σ |entry|² of one array, accumulated in float32 or better."""
    if jnp.iscomplexobj(leaf):
        return leaf_sq_norm(leaf.real) + leaf_sq_norm(leaf.imag)
    leaf = leaf.astype(at_least_float32(leaf.dtype))
    if not any(jax.typeof(leaf).sharding.spec):  # axes that are explicitly sharded may not be merged
        leaf = leaf.reshape(-1)  # XLA fuses the square of a flat array into the sum
    return jnp.sum(jnp.square(leaf))


def gram_sq_norm(rows: list[Array], cols: list[Array]) -> Array:
    """Return Σ_b ‖Σ_i rows_iᵀ cols_i‖² of uses i with rows [B, P_i, C] and columns [B, P_i, F].

    Multiplications: P_i P_j (C + F) for every pair of uses, and P_i C F a use for each entry of B that cancels.
    """
    return jnp.sum(_guarded_grams(rows, cols, ()))


def guard(fast: Callable, exact: Callable) -> Callable:
    """Return a function of (rows, cols, shared) that computes the form of each entry of B by `fast`, or by `exact`.

    fast: returns the form [B] and D [B] from rows and columns [B, P, ...] of all uses and what all entries share.
    exact: returns the form of one entry, whose arrays have no axis B; it multiplies the gradient out first.
    """

    @custom_vmap
    def choose(rows: list[Array], cols: list[Array], shared: Any) -> Array:
        norms, diagonals = fast(rows, cols, shared)
        smallest = jnp.finfo(norms.dtype).tiny / jnp.finfo(norms.dtype).eps
        # a comparison with NaN is false, so that an overflow on the way is computed again too
        is_exact = (MOST_CANCELLATION * norms >= diagonals) & (norms < jnp.inf) & (diagonals > smallest)

        def repair_one(args: tuple) -> Array:
            is_exact, norm, *factors = args
            return lax.cond(is_exact, lambda *_: norm, lambda *f: exact(*f, shared).astype(norm.dtype), *factors)

        def repair() -> Array:
            return lax.map(repair_one, (is_exact, norms, rows, cols))

        return lax.cond(jnp.all(is_exact), lambda: norms, repair)

    @choose.def_vmap
    def _(size: int, batched: list, rows: list[Array], cols: list[Array], shared: Any) -> tuple[Array, bool]:
        """Make the mapped axis part of the leading one."""

        def broadcast(array: Array, is_batched: bool) -> Array:
            return array if is_batched else jnp.broadcast_to(array[None], (size, *array.shape))

        def merge(array: Array, is_batched: bool) -> Array:
            return broadcast(array, is_batched).reshape(-1, *array.shape[1 + is_batched :])

        args = rows, cols, shared
        if any(jax.tree.leaves(batched[2])):  # what is shared differs along the mapped axis
            return lax.map(lambda one: choose(*one), jax.tree.map(broadcast, args, (*batched,))), True
        rows, cols = jax.tree.map(merge, args[:2], (*batched[:2],))
        return choose(rows, cols, shared).reshape(size, -1), True

    @jax.custom_jvp
    def guarded(rows: list[Array], cols: list[Array], shared: Any) -> Array:
        return choose(rows, cols, shared)

    @guarded.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        """Return the derivative of the exact form, which does not cancel."""
        _, tangent = jax.jvp(jax.vmap(exact, (0, 0, None)), primals, tangents)
        return guarded(*primals), tangent

    return guarded


def gram_sums(rows: list[Array], cols: list[Array], _: tuple = ()) -> tuple[Array, Array]:
    """Return ‖G‖² by the Gram form, and D, each [B]."""
    norms, diagonals = [], []
    for i in range(len(rows)):
        for j in range(i + 1):
            a, b = _inner(rows[i], rows[j]), _inner(cols[i], cols[j])
            norms.append((1 if i == j else 2) * jnp.sum(a * b, axis=(1, 2)))
            if i == j:
                # not from the diagonals of a and b: then XLA could not fuse the two products with their sum
                diagonals.append(jnp.sum(_sq_lengths(rows[i]) * _sq_lengths(cols[i]), axis=1))
    return functools.reduce(jnp.add, norms), functools.reduce(jnp.add, diagonals)


def _sq_lengths(vectors: Array) -> Array:
    """Return the squared lengths [B, P] of vectors [B, P, C]."""
    return jnp.sum(jnp.square(vectors.astype(at_least_float32(vectors.dtype))), axis=2)


def _inner(one: Array, other: Array) -> Array:
    """Return the inner products [B, P, Q] of all pairs of vectors."""
    dtype = at_least_float32(jnp.promote_types(one.dtype, other.dtype))
    return jnp.einsum("bpc,bqc->bpq", one, other, preferred_element_type=dtype)


def _product_sq_norm(rows: list[Array], cols: list[Array], _: tuple = ()) -> Array:
    """Return ‖Σ_i rows_iᵀ cols_i‖² of rows [P_i, C] and columns [P_i, F].

    G is formed some rows at a time, never more than the factors hold (or `_LEAST_CHUNK` entries).
    """
    if rows[0].shape[1] < cols[0].shape[1]:
        rows, cols = cols, rows
    length, width = rows[0].shape[1], cols[0].shape[1]
    most = max(_LEAST_CHUNK, sum(r.size + c.size for r, c in zip(rows, cols, strict=True)))
    count = math.ceil(length * width / most)
    size = math.ceil(length / count)
    padded = [jnp.pad(r, ((0, 0), (0, count * size - length))) for r in rows]

    def chunk(index: Array) -> Array:
        cuts = [lax.dynamic_slice_in_dim(r, index * size, size, axis=1) for r in padded]
        dtype = at_least_float32(jnp.promote_types(rows[0].dtype, cols[0].dtype))
        products = [
            jnp.einsum("pc,pf->cf", r, c, preferred_element_type=dtype) for r, c in zip(cuts, cols, strict=True)
        ]
        return leaf_sq_norm(functools.reduce(jnp.add, products))

    return chunk(jnp.int32(0)) if count == 1 else jnp.sum(lax.map(chunk, jnp.arange(count)))


_guarded_grams = guard(gram_sums, _product_sq_norm)
