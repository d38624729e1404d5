"""Where a parameter meets data: one rule for each primitive, from its operands to `Factors`.

A rule looks at an equation one of whose operands is a `View` of a parameter. It returns a `Site`, or None where it
does not know the form; the parameter is then differentiated directly.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from isouq.gradnorm._factors import Factors, Layout, OneHot, at_least_float32, leaf_sq_norm
from isouq.gradnorm._jaxpr import Equation, is_float, varying_axes
from isouq.gradnorm._views import Shape, View, base_axes

_SMALL_PATCHES = 2**13  # entries up to which the patches of a convolution are gathered and multiplied at once


@dataclass(frozen=True, eq=False)
class Site:
    """One use of a parameter. A rule fills in the first seven fields, `site` and the analysis the others.

    view: the operand that is the parameter. layout: axes of B, C and F. positions: P. Both belong to one step of the
        enclosing scans; see `stacked`.
    keep: function from the operands of the equation to the data that the rule needs.
    factors: function from (data, cotangent of the result) to `(rows [B, P, C], cols [B, P, F])`.
    lookup: whether the rows are looked up by index.
    product_sq_norm: the norm by the product form with less memory, where a rule has such a way.
    data, result: shape and dtype of the data and of the result.
    varying: the axes of the mesh along which these two differ inside shard_map.
    steps: lengths of the enclosing scans.
    number: index of the site among those of its plan.
    collect: whether the backward pass hands out the pair (data, cotangent); otherwise it hands out its norm.
    """

    view: View
    layout: Layout
    positions: int
    keep: Callable
    factors: Callable
    lookup: bool = False
    product_sq_norm: Callable | None = None
    data: Any = None
    result: Any = None
    varying: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    steps: Shape = ()
    number: int = -1
    collect: bool = False

    @property
    def stacked(self) -> tuple[Layout, int]:
        """Layout and positions of what `gather` returns.

        Where pairs are collected, the steps of scans over the weight are part of B, and those of all others of P.
        """
        if not self.collect:
            return self.layout, self.positions
        layout = self.layout._replace(batch=(*base_axes(self.view.loops), *self.layout.batch))
        repeats = (n for n, axis in zip(self.steps, self.view.loops, strict=True) if axis is None)
        return layout, self.positions * math.prod(repeats)

    @property
    def pair_size(self) -> int:
        """Number of entries of the pairs of all steps together."""
        return math.prod(self.steps) * (self.data.size + self.result.size)

    def gather(self, data: Array, cotangent: Array) -> Factors:
        """Return the factors of one step's pair, or of the pairs of all steps stacked on leading axes."""
        rule, loops = self.factors, self.view.loops if self.collect else ()
        for _ in loops:
            rule = jax.vmap(rule)
        rows, cols = rule(data, cotangent)
        over = [i for i, axis in enumerate(loops) if axis is not None]  # scans over the weight: part of B
        along = [i for i, axis in enumerate(loops) if axis is None]  # scans that reuse it: more positions
        n = len(loops)
        order = (*over, n, *along, n + 1, n + 2)

        def merge(array: Array, order: Sequence[int]) -> Array:
            moved = array.transpose(order)
            b = math.prod(moved.shape[: len(over) + 1])
            p = math.prod(moved.shape[len(over) + 1 : n + 2])
            return moved.reshape(b, p, *moved.shape[n + 2 :])

        layout, _ = self.stacked
        if self.lookup:
            return Factors(OneHot(merge(rows, order[:-1]), layout.size(layout.rows)), merge(cols, order), layout)
        return Factors(merge(rows, order), merge(cols, order), layout)


def site(equation: Equation, operand: int, view: View, steps: Shape) -> Site | None:
    """Return the site where operand number `operand` of an equation meets the others; None where no rule knows it."""
    rule = RULES.get(equation.name)
    result = equation.outputs[0]
    match = rule(equation, operand, view) if rule and is_float(result) else None
    if match is None:
        return None
    others = (aval for i, aval in enumerate(equation.inputs) if i != operand)
    data = jax.eval_shape(match.keep, *equation.inputs)
    return replace(match, data=data, result=result, varying=(varying_axes(*others), varying_axes(result)), steps=steps)


def _dot_general(equation: Equation, operand: int, view: View) -> Site | None:
    """Return the site of a matrix product: the free axes of the data are positions."""
    (contract, batch) = equation.params["dimension_numbers"]
    of_weight, of_data = operand, 1 - operand
    data, weight = equation.inputs[of_data], equation.inputs[of_weight]
    if not is_float(data):
        return None
    data_batch, data_contract = list(batch[of_data]), list(contract[of_data])
    data_free = [i for i in range(data.ndim) if i not in (*data_batch, *data_contract)]
    weight_batch, weight_contract = list(batch[of_weight]), list(contract[of_weight])
    weight_free = [i for i in range(weight.ndim) if i not in (*weight_batch, *weight_contract)]
    b, p = len(data_batch), len(data_free)
    sizes = [math.prod(data.shape[i] for i in axes) for axes in (data_batch, data_free, data_contract)]
    num_cols = math.prod(weight.shape[i] for i in weight_free)

    def factors(x: Array, cotangent: Array) -> tuple[Array, Array]:
        rows = x.transpose(*data_batch, *data_free, *data_contract).reshape(sizes)
        if of_weight == 0:  # the axes of the result are those of the batch, the weight and the data
            f = len(weight_free)
            order = (*range(b), *range(b + f, b + f + p), *range(b, b + f))
            cotangent = cotangent.transpose(order)
        return rows, cotangent.reshape(sizes[0], sizes[1], num_cols)

    layout = Layout(
        view.axes(weight_batch),
        view.axes(weight_contract),
        view.axes(weight_free),
        view.shape,
    )
    return Site(view, layout, sizes[1], lambda *operands: operands[of_data], factors)


def _gather(equation: Equation, operand: int, view: View) -> Site | None:
    """Return the site of a look-up of whole rows by an array of indices."""
    if operand != 0:
        return None
    table, out = equation.inputs[0], equation.outputs[0]
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    looked_up = numbers.start_index_map
    whole = all(sizes[i] == table.shape[i] for i in range(table.ndim) if i not in looked_up)
    if set(looked_up) != set(numbers.collapsed_slice_dims) or numbers.operand_batching_dims or not whole:
        return None
    extents = tuple(table.shape[i] for i in looked_up)
    mode = equation.params["mode"]
    positions_axes = [i for i in range(out.ndim) if i not in numbers.offset_dims]
    num_positions = math.prod(out.shape[i] for i in positions_axes)

    def keep(_: Array, indices: Array) -> Array:
        """Return the row-major index of the row that each position reads; −1 where it is out of bounds and dropped."""
        indices = _signed(indices)
        limit = jnp.asarray(extents, indices.dtype) - 1
        limit = limit.reshape((1,) * (indices.ndim - 1) + (-1,))
        inside = jnp.all((indices >= 0) & (indices <= limit), axis=-1)
        clipped = jnp.clip(indices, 0, limit)
        linear = _linear_index([clipped[..., i] for i in range(len(extents))], extents)
        if mode != lax.GatherScatterMode.CLIP:  # the transpose is a scatter, which drops what is out of bounds
            linear = jnp.where(inside, linear, -1)
        return linear.reshape(num_positions)

    def factors(index: Array, cotangent: Array) -> tuple[Array, Array]:
        cols = cotangent.transpose(*positions_axes, *numbers.offset_dims).reshape(1, num_positions, -1)
        index = index.astype(jnp.int32)[None]
        return index, jnp.where((index >= 0)[..., None], cols, jnp.zeros((), cols.dtype))

    return _lookup(view, looked_up, num_positions, keep, factors)


def _lookup(view: View, looked_up: Sequence[int], positions: int, keep: Callable, factors: Callable) -> Site:
    """Return a site whose rows are one-hot along the axes looked up, with all other axes for columns."""
    rest = [i for i in range(len(view.labels)) if i not in looked_up]
    layout = Layout((), view.axes(looked_up), view.axes(rest), view.shape)
    return Site(view, layout, positions, keep, factors, lookup=True)


def _signed(indices: Array) -> Array:
    """Return indices in a type that can hold every row: a table may be longer than uint8 or int8 can count."""
    if jnp.issubdtype(indices.dtype, jnp.unsignedinteger):
        top = min(int(jnp.iinfo(indices.dtype).max), 2**31 - 1)
        return jnp.minimum(indices, jnp.asarray(top, indices.dtype)).astype(jnp.int32)
    return indices.astype(jnp.int32) if indices.dtype.itemsize < 4 else indices


def _linear_index(indices: list[Array], extents: Shape) -> Array:
    """Return the row-major linear index."""
    linear = indices[0]
    for index, extent in zip(indices[1:], extents[1:], strict=True):
        linear = linear * extent + index
    return linear


def _dynamic_slice(equation: Equation, operand: int, view: View) -> Site | None:
    """Return the site of `table[i]` with a traced i: a look-up of one row."""
    if operand != 0:
        return None
    table, sizes = equation.inputs[0], equation.params["slice_sizes"]
    looked_up = [i for i in range(table.ndim) if sizes[i] != table.shape[i]]
    if not looked_up or any(sizes[i] != 1 for i in looked_up):
        return None
    extents = tuple(table.shape[i] for i in looked_up)

    def keep(_: Array, *starts: Array) -> Array:
        clipped = [jnp.clip(_signed(starts[i]), 0, table.shape[i] - 1) for i in looked_up]
        return _linear_index(clipped, extents).reshape(1)

    def factors(index: Array, cotangent: Array) -> tuple[Array, Array]:
        return index.astype(jnp.int32)[None], cotangent.reshape(1, 1, -1)

    return _lookup(view, looked_up, 1, keep, factors)


def _convolution(equation: Equation, operand: int, view: View) -> Site | None:
    """Return the site of a convolution: every output pixel is a position, its row the patch of the input under it."""
    params = equation.params
    if operand != 1 or params["batch_group_count"] != 1:
        return None
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    data, kernel, out = *equation.inputs, equation.outputs[0]
    num_out, num_in, *window_axes = numbers.rhs_spec
    window_shape = [kernel.shape[i] for i in window_axes]
    out_shape = [out.shape[i] for i in numbers.out_spec[2:]]
    examples = data.shape[numbers.lhs_spec[0]]
    positions = examples * math.prod(out_shape)
    if not data.size or not out.size:
        return None
    grouped = view
    if groups > 1:  # the outputs of the kernel are pairs (group, output within the group)
        shape = list(kernel.shape)
        shape[num_out : num_out + 1] = [groups, kernel.shape[num_out] // groups]
        grouped = view.reshape(tuple(shape))
    shift = [i + (1 if groups > 1 and i > num_out else 0) for i in range(kernel.ndim)]
    batch = (grouped.labels[num_out],) if groups > 1 else ()
    rows = tuple(grouped.labels[shift[i]] for i in (*window_axes, num_in))
    cols = (grouped.labels[num_out + 1 if groups > 1 else num_out],)
    stride, lhs, rhs = params["window_strides"], params["lhs_dilation"], params["rhs_dilation"]

    offsets = [*itertools.product(*map(range, window_shape))]
    is_small = positions * len(offsets) * data.shape[numbers.lhs_spec[1]] <= _SMALL_PATCHES
    spans = [(n - 1) * s + 1 for n, s in zip(out_shape, stride, strict=True)]

    def padded(x: Array) -> Array:
        """Return the input [N, *space, C] with its padding and its dilation."""
        x = x.transpose(numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])
        edges = [(low, high, dilation - 1) for (low, high), dilation in zip(params["padding"], lhs, strict=True)]
        return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *edges, (0, 0, 0)])

    def shifted(x: Array, offset: Any) -> Array:
        """Return what an entry of the kernel's window meets of the padded input, [N, *out_shape, C]."""
        starts = [jnp.int32(i) for i in (0, *(o * d for o, d in zip(offset, rhs, strict=True)), 0)]  # of one dtype
        x = lax.dynamic_slice(x, starts, (examples, *spans, x.shape[-1]))
        return lax.slice(x, (0,) * x.ndim, x.shape, (1, *stride, 1))

    def pixels_met(offset: Sequence[int], space: Shape) -> np.ndarray:
        """Return the indices [*out_shape] of the padded pixels that an entry of the kernel's window meets."""
        starts = [o * d for o, d in zip(offset, rhs, strict=True)]
        window = (slice(a, a + n, s) for a, n, s in zip(starts, spans, stride, strict=True))
        return np.arange(math.prod(space)).reshape(space)[*window]

    def split_groups(x: Array) -> Array:
        """Return an array [N, *out_shape, ...] as [groups, P, ...], with the groups taken from its last axis."""
        x = x.reshape(positions, *x.shape[1 + len(out_shape) : -1], groups, -1)
        return jnp.moveaxis(x, -2, 0)

    def columns(cotangent: Array) -> Array:
        return split_groups(cotangent.transpose(numbers.out_spec[0], *numbers.out_spec[2:], numbers.out_spec[1]))

    def factors(x: Array, cotangent: Array) -> tuple[Array, Array]:
        x = padded(x)
        if is_small:
            at = np.stack([pixels_met(offset, x.shape[1:-1]) for offset in offsets], axis=-1)
            patches = x.reshape(examples, -1, x.shape[-1]).at[:, at].get(mode="promise_in_bounds")
        else:
            patches = jnp.stack([shifted(x, offset) for offset in offsets], axis=-2)  # [N, *out_shape, K, C]
        return split_groups(patches).reshape(groups, positions, -1), columns(cotangent)

    def product_sq_norm(x: Array, cotangent: Array) -> Array:
        """Return ‖XᵀΔ‖², one entry of the window after the other, so that the patches are never stacked."""
        x, cols = padded(x), columns(cotangent)

        def entry_sq_norm(offset: Array) -> Array:
            dtype = at_least_float32(cols.dtype)
            rows = split_groups(shifted(x, offset))
            return leaf_sq_norm(jnp.einsum("gpc,gpf->gcf", rows, cols, preferred_element_type=dtype))

        return jnp.sum(lax.map(entry_sq_norm, jnp.asarray(offsets, jnp.int32)))

    layout = Layout(base_axes(batch), base_axes(rows), base_axes(cols), grouped.shape)
    lean = None if is_small else product_sq_norm
    return Site(grouped, layout, positions, lambda x, _: x, factors, product_sq_norm=lean)


RULES: dict[str, Callable[[Equation, int, View], Site | None]] = {
    "dot_general": _dot_general,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "conv_general_dilated": _convolution,
}
