"""A gradient in factors, G = Σ_p rows_p ⊗ cols_p, and its squared norm without multiplying out.

With positions p (tokens, pixels, time steps), rows [B, P, C] and cols [B, P, F],

    G[b] = rows[b]ᵀ cols[b]                                   [C, F]
    ‖G‖² = Σ_b ‖rows[b]‖² ‖cols[b]‖²                          one position
         = Σ_b ⟨rows[b] rows[b]ᵀ, cols[b] cols[b]ᵀ⟩           Gram form,    B·P²·(C + F) multiplications, see `_gram.py`
         = Σ_b ‖rows[b]ᵀ cols[b]‖²                            product form, B·P·C·F multiplications

The batch axis B is for axes that a weight shares with data (heads, groups, scanned layers).
Sources: Goodfellow, "Efficient per-example gradient computations" (arXiv 1510.01799) for one position; Rochette et
al. (arXiv 1912.06015) for convolutions; Li et al. (arXiv 2110.05679) for the Gram form.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from isouq.gradnorm._gram import at_least_float32, gram_sq_norm, leaf_sq_norm
from isouq.gradnorm._views import Shape


class OneHot(NamedTuple):
    """The rows of an embedding look-up: one-hot vectors of length `size`, with their ones at `at` [B, P]."""

    at: Array
    size: int


class Layout(NamedTuple):
    """The axes of the base (see `View`) that make up B, C and F, and the shape of the base."""

    batch: Shape
    rows: Shape
    cols: Shape
    shape: Shape

    def size(self, axes: Shape) -> int:
        """Return the number of entries along these axes together."""
        return math.prod(self.shape[axis] for axis in axes)


class Factors(NamedTuple):
    """A gradient in factors; see the module's docstring."""

    rows: Array | OneHot  # [B, P, C]
    cols: Array  # [B, P, F]
    layout: Layout

    @property
    def positions(self) -> int:
        """The number of positions, P."""
        return self.cols.shape[1]


def sq_norm(factors: list[Factors]) -> Array:
    """Return ‖Σ_i G_i‖² of gradients that share a base, cross terms included, by the form that `route` names."""
    form = route(
        [f.layout for f in factors], [f.positions for f in factors], [isinstance(f.rows, OneHot) for f in factors]
    ).form
    if form == "outer":
        ((rows, cols, _),) = factors
        if isinstance(rows, OneHot):
            return leaf_sq_norm(cols)
        return jnp.sum(jax.vmap(_outer_sq_norm)(rows, cols))
    if form == "lookup":
        return leaf_sq_norm(_merge_all(factors)[1])
    if form == "gram":
        return _gram_sq_norm(factors)
    if len(factors) == 1:
        return leaf_sq_norm(_product(factors[0]))
    return leaf_sq_norm(functools.reduce(jnp.add, [dense(f) for f in factors]))


def _outer_sq_norm(row: Array, col: Array) -> Array:
    """Return ‖row‖² ‖col‖²."""
    row, col = rescale(row, col)
    return leaf_sq_norm(row) * leaf_sq_norm(col)


def rescale(rows: Array, cols: Array) -> tuple[Array, Array]:
    """Return factors with the same product whose squares are finite wherever those of the product are.

    A power of two brings the largest entry of the rows to about 1, so that the columns are as large as the gradient. In
    float32 the square of an input of 10²⁰ overflows and that of a cotangent of 10⁻²⁵ vanishes; the square of their
    product does neither.
    """
    # Without the barrier XLA computes the square (c s)² of a constant c and the scale s as c² s², which overflows.
    rows, cols = jax.lax.optimization_barrier((rows, cols))
    rows, cols = (array.astype(at_least_float32(array.dtype)) for array in (rows, cols))
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), initial=0))
    info = jnp.finfo(largest.dtype)
    limit = 2.0 ** (info.maxexp - 3)  # the scale and its reciprocal are normal numbers
    scale = jnp.clip(jax.lax.reduce_precision(largest, info.nexp, 0), 1 / limit, limit)
    return rows / scale, cols * scale


def _gram_sq_norm(factors: list[Factors]) -> Array:
    """Return ‖G‖² of uses that split their base alike: form the looked-up rows, take the Gram form of all others."""
    lookups = [f for f in factors if isinstance(f.rows, OneHot)]
    layout = (lookups or factors)[0].layout
    rows, cols = [], []
    for f in factors:
        if not isinstance(f.rows, OneHot):
            straight = f.layout.rows == layout.rows
            rows.append(f.rows if straight else f.cols)
            cols.append(f.cols if straight else f.rows)
    if not lookups:
        return gram_sq_norm(rows, cols)
    at, sums = _merge_all(lookups)
    size = layout.size(layout.rows)
    for i, (row, col) in enumerate(zip(rows, cols, strict=True)):
        entries = jax.vmap(lambda r, index: r[:, jnp.minimum(index, size - 1)])(row, at)
        sums += jnp.einsum("bpu,bpf->buf", entries, col, preferred_element_type=sums.dtype)
        rows[i] = jax.vmap(lambda r, index: r.at[:, index].set(0, mode="drop"))(row, at)
    looked_up = leaf_sq_norm(jnp.where((at < size)[..., None], sums, 0))
    return looked_up + gram_sq_norm(rows, cols)


def _merge_all(lookups: list[Factors]) -> tuple[Array, Array]:
    """Return `merge_lookups` of several look-ups of one table together."""
    rows = [f.rows for f in lookups if isinstance(f.rows, OneHot)]
    at = jnp.concatenate([row.at for row in rows], axis=1)
    return merge_lookups(at, jnp.concatenate([f.cols for f in lookups], axis=1), rows[0].size)


def merge_lookups(at: Array, cols: Array, size: int) -> tuple[Array, Array]:
    """Add the columns [B, P, F] of positions that look up the same row; return indices [B, P] and sums [B, P, F].

    Each row stands once. The places that are left over have the index `size`, past the last row, and sums of zero.
    """

    def merge(index: Array, col: Array) -> tuple[Array, Array]:
        unique, inverse = jnp.unique(index, size=index.size, fill_value=size, return_inverse=True)
        return jnp.where(unique < 0, size, unique), jnp.zeros_like(col).at[inverse.reshape(-1)].add(col)

    return jax.vmap(merge)(at, cols.astype(at_least_float32(cols.dtype)))


class Choice(NamedTuple):
    """A form and its multiplications, and the form that it was chosen over; empty where there is no other."""

    form: str
    cost: int
    instead_of: str = ""
    other_cost: int = 0


def route(layouts: list[Layout], positions: list[int], lookups: list[bool]) -> Choice:
    """Return the form for uses of these layouts, the cheaper one where there are two.

    "outer" is one position, "lookup" look-ups alone, "gram" and "product" several positions. A Gram form also reads its
    P² products again and tests them for cancellation; it is taken below ¾ of the multiplications of the product form.
    Look-ups along different axes of one table have the product form alone.
    """
    first = layouts[0]
    tables = {layout for layout, lookup in zip(layouts, lookups, strict=True) if lookup}
    same = len(tables) <= 1 and all(
        layout.batch == first.batch and {layout.rows, layout.cols} == {first.rows, first.cols} for layout in layouts
    )
    batch, rows, cols = map(first.size, first[:3])
    product = batch * sum(positions) * rows * cols
    if positions == [1]:
        return Choice("outer", batch * (rows + cols), "product", product)
    if all(lookups) and len(tables) == 1:
        return Choice("lookup", batch * sum(positions) * cols)
    pairs = sum(p * q for i, p in enumerate(positions) for q in positions[: i + 1])
    if not same:
        return Choice("product", product)
    gram = batch * pairs * (rows + cols)
    if 4 * gram < 3 * product:
        return Choice("gram", gram, "product", product)
    return Choice("product", product, "gram", gram)


def dense(factors: Factors) -> Array:
    """Return G in the shape of its base."""
    layout = factors.layout
    axes = (*layout.batch, *layout.rows, *layout.cols)
    array = _product(factors).reshape([layout.shape[axis] for axis in axes])
    return array.transpose(sorted(range(len(axes)), key=axes.__getitem__)).reshape(layout.shape)


def window(factors: Factors, axis: int, start: int, stop: int) -> Factors:
    """Return the factors of the part of G whose index along an axis of the base lies in [start, stop)."""
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
        raise NotImplementedError("a window of axes that are looked up or in B")  # the analysis lets none through
    return Factors(cut(rows, layout.rows), cut(cols, layout.cols), layout._replace(shape=shape))


def _product(factors: Factors) -> Array:
    """Return G as [B, C, F]."""
    rows, cols, _ = factors
    dtype = at_least_float32(cols.dtype)
    if isinstance(rows, OneHot):
        zeros = jnp.zeros((cols.shape[0], rows.size, cols.shape[2]), dtype)
        return jax.vmap(lambda zero, index, col: zero.at[index].add(col))(zeros, rows.at, cols.astype(dtype))
    return jnp.einsum("bpc,bpf->bcf", rows, cols, preferred_element_type=dtype)
