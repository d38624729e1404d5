"""A gradient in factors, G = Σ_p rows_p ⊗ cols_p, and what can be read off without multiplying out.

With positions p (tokens, pixels, time steps), rows [B, P, C] and cols [B, P, F],

    G[b] = rows[b]ᵀ cols[b]                                   [C, F]
    ‖G‖² = Σ_b ‖rows[b]‖² ‖cols[b]‖²                          one position
         = Σ_b ⟨rows[b] rows[b]ᵀ, cols[b] cols[b]ᵀ⟩           Gram form,    B·P²·(C + F) multiplications
         = Σ_b ‖rows[b]ᵀ cols[b]‖²                            product form, B·P·C·F multiplications

The batch axis B is for axes that a weight shares with data (heads, groups, scanned layers).
Goodfellow, "Efficient per-example gradient computations" (arXiv 1510.01799) for one position; Rochette et
al. (arXiv 1912.06015) for convolutions; Li et al. (arXiv 2110.05679) for the Gram form.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from isouq.gradnorm._views import Shape


class OneHot(NamedTuple):
    """Rows of an embedding lookup: one-hot vectors of length `size`, their ones at `at` [B, P]."""

    at: Array
    size: int


class Layout(NamedTuple):
    """Which axes of the base (see `View`) make up B, C and F, and the base's shape."""

    batch: Shape
    rows: Shape
    cols: Shape
    shape: Shape

    def size(self, axes: Shape) -> int:
        """Entries along these axes together."""
        return math.prod(self.shape[axis] for axis in axes)


class Factors(NamedTuple):
    """A gradient in factors; see the module's docstring."""

    rows: Array | OneHot  # [B, P, C]
    cols: Array  # [B, P, F]
    layout: Layout

    @property
    def positions(self) -> int:
        """P."""
        return self.cols.shape[1]


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype in which norms of `dtype` gradients are accumulated."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)


def leaf_sq_norm(leaf: Array) -> Array:
    """Σ |entry|² of one array, accumulated in float32 or better."""
    if jnp.iscomplexobj(leaf):
        return leaf_sq_norm(leaf.real) + leaf_sq_norm(leaf.imag)
    flat = leaf.astype(at_least_float32(leaf.dtype)).reshape(-1)  # XLA fuses the square of a flat array into the sum
    return jnp.sum(jnp.square(flat))


def sq_norm(factors: list[Factors]) -> Array:
    """‖Σ_i G_i‖² of gradients that share a base; cross terms included; the cheaper of the two forms."""
    form, _ = route([f.layout for f in factors], [f.positions for f in factors])
    if form == "outer":
        ((rows, cols, _),) = factors
        if isinstance(rows, OneHot):
            return leaf_sq_norm(cols)
        if cols.shape[0] == 1:
            return leaf_sq_norm(rows) * leaf_sq_norm(cols)
        return jnp.sum(jax.vmap(leaf_sq_norm)(rows) * jax.vmap(leaf_sq_norm)(cols))
    if form == "gram":
        total = jnp.zeros((), at_least_float32(factors[0].cols.dtype))
        for i, one in enumerate(factors):
            for j, other in enumerate(factors[: i + 1]):
                total = total + (1 if i == j else 2) * _gram(one, other)
        return total
    if len(factors) == 1:
        return leaf_sq_norm(_product(factors[0]))
    return leaf_sq_norm(functools.reduce(jnp.add, [dense(f) for f in factors]))


def route(layouts: list[Layout], positions: list[int]) -> tuple[str, int]:
    """The form with fewer multiplications, from shapes and how many: "outer" (one position), "gram" or "product"."""
    first = layouts[0]
    same = all(
        layout.batch == first.batch and {layout.rows, layout.cols} == {first.rows, first.cols} for layout in layouts
    )
    batch, rows, cols = map(first.size, first[:3])
    if positions == [1]:
        return "outer", batch * (rows + cols)
    pairs = sum(p * q for i, p in enumerate(positions) for q in positions[: i + 1])
    gram, product = batch * pairs * (rows + cols), batch * sum(positions) * rows * cols
    return ("gram", gram) if same and gram < product else ("product", product)


def dense(factors: Factors) -> Array:
    """G in the layout of its base."""
    layout = factors.layout
    axes = (*layout.batch, *layout.rows, *layout.cols)
    array = _product(factors).reshape([layout.shape[axis] for axis in axes])
    return array.transpose(sorted(range(len(axes)), key=axes.__getitem__)).reshape(layout.shape)


def window(factors: Factors, axis: int, start: int, stop: int) -> Factors:
    """The part of G whose index along a base axis lies in [start, stop)."""
    rows, cols, layout = factors
    shape = tuple(stop - start if i == axis else size for i, size in enumerate(layout.shape))

    def cut(array: Array, axes: Shape) -> Array:
        if axis not in axes:
            return array
        at = axes.index(axis) + 2
        array = array.reshape(*array.shape[:2], *(layout.shape[i] for i in axes))
        array = jax.lax.slice_in_dim(array, start, stop, axis=at)
        return array.reshape(*array.shape[:2], -1)

    if isinstance(rows, OneHot) or axis in layout.batch:
        raise NotImplementedError("a window of looked-up or batch axes")  # the analysis lets none through
    return Factors(cut(rows, layout.rows), cut(cols, layout.cols), layout._replace(shape=shape))


def _product(factors: Factors) -> Array:
    """G as [B, C, F]."""
    rows, cols, _ = factors
    dtype = at_least_float32(cols.dtype)
    if isinstance(rows, OneHot):
        zeros = jnp.zeros((cols.shape[0], rows.size, cols.shape[2]), dtype)
        return jax.vmap(lambda zero, index, col: zero.at[index].add(col))(zeros, rows.at, cols.astype(dtype))
    return jnp.einsum("bpc,bpf->bcf", rows, cols, preferred_element_type=dtype)


def _gram(one: Factors, other: Factors) -> Array:
    """⟨G_one, G_other⟩ = Σ_pq ⟨rows_p, rows_q⟩ ⟨cols_p, cols_q⟩, of the same or of swapped layouts."""
    swapped = one.layout.rows != other.layout.rows
    rows, cols = (other.cols, other.rows) if swapped else (other.rows, other.cols)
    values = _inner(one.cols, cols)
    return jnp.sum(_inner(one.rows, rows).astype(values.dtype) * values)  # rows: True where look-ups meet


def _inner(one: Array | OneHot, other: Array | OneHot) -> Array:
    """Inner products [B, P, Q] of all pairs of vectors."""
    if isinstance(one, OneHot) and isinstance(other, OneHot):
        return one.at[:, :, None] == other.at[:, None, :]
    if isinstance(other, OneHot):
        return _inner(other, one).transpose(0, 2, 1)
    if isinstance(one, OneHot):
        return jax.vmap(lambda index, vectors: vectors[:, index].T)(one.at, other)
    return jnp.einsum("bpc,bqc->bpq", one, other, preferred_element_type=at_least_float32(one.dtype))
