"""A view says how a variable of a jaxpr was reached from a parameter, by moves that only rearrange entries.

The gradient with respect to a rearranged parameter is the rearranged gradient, and its squared norm is the same. A
weight may therefore be reshaped, transposed, cast, sliced, split, concatenated or scanned over before it meets data,
and its norm can still be read off at the place where it does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
from jax import Array, lax

from isouq.gradnorm._jaxpr import Equation, is_float

Shape = tuple[int, ...]
Labels = tuple[int | None, ...]


@dataclass(frozen=True)
class View:
    """A variable that holds one parameter, or a part of one.

    leaf: index of the parameter; at or above the number of parameters it is a concatenation.
    chain: the moves from the parameter to `shape` that are not mere permutations, each a tuple: `("slice", ((axis,
        (start, limit, stride)), ...))`, `("reshape", order of axes, new shape)`; in a group's chain also `("part",
        (concatenation, start), order of axes, shape)`, a place in a concatenation.
    shape: the shape of the array after `chain`. That array is called the base; labels and loops name its axes.
    labels: for every axis of the variable the axis of the base that it is; None for an axis of size one.
    loops: one entry for each enclosing scan, outermost first: the axis of the base that the scan runs over,
        or None where every step sees the whole.
    """

    leaf: int
    chain: tuple
    shape: Shape
    labels: Labels
    loops: Labels = ()

    @classmethod
    def of_leaf(cls, leaf: int, shape: Shape) -> "View":
        """Return the view of a whole parameter."""
        return cls(leaf, (), shape, tuple(None if size == 1 else axis for axis, size in enumerate(shape)))

    @property
    def sizes(self) -> Shape:
        """The shape of the variable."""
        return tuple(1 if label is None else self.shape[label] for label in self.labels)

    def axes(self, axes: Sequence[int]) -> Shape:
        """Return the axes of the base that these axes of the variable are, without those of size one."""
        return base_axes(tuple(self.labels[i] for i in axes))

    def transpose(self, permutation: Shape) -> "View":
        """Return the view with its axes in another order: the same base, other labels."""
        return replace(self, labels=tuple(self.labels[axis] for axis in permutation))

    def reshape(self, shape: Shape) -> "View":
        """Return the view in a new shape; its base is new unless only axes of size one come or go."""
        axes = base_axes(self.labels)
        if [self.shape[axis] for axis in axes] == [size for size in shape if size != 1]:
            rest = iter(axes)
            return replace(self, labels=tuple(None if size == 1 else next(rest) for size in shape))
        loop_axes = base_axes(self.loops)
        order = (*loop_axes, *axes)  # axes of scans first, then the variable's own: row-major, as a reshape reads
        base = (*(self.shape[axis] for axis in loop_axes), *shape)
        numbers = iter(range(len(loop_axes)))
        return View(
            self.leaf,
            (*self.chain, ("reshape", order, base)),
            base,
            tuple(None if size == 1 else len(loop_axes) + axis for axis, size in enumerate(shape)),
            tuple(None if axis is None else next(numbers) for axis in self.loops),
        )

    def slice(self, starts: Shape, limits: Shape, strides: Shape | None) -> "View":
        """Return the view of a box of the variable."""
        strides = strides or (1,) * len(starts)
        box = {
            label: cut
            for label, cut in zip(self.labels, zip(starts, limits, strides, strict=True), strict=True)
            if label is not None and cut != (0, self.shape[label], 1)
        }
        if not box:
            return self
        shape = tuple(
            math.ceil((box[axis][1] - box[axis][0]) / box[axis][2]) if axis in box else size
            for axis, size in enumerate(self.shape)
        )
        labels = tuple(None if label is not None and shape[label] == 1 else label for label in self.labels)
        return replace(self, chain=(*self.chain, ("slice", tuple(sorted(box.items())))), shape=shape, labels=labels)

    def split(self, axis: int, sizes: Sequence[int]) -> "list[View]":
        """Return the views of consecutive parts of these sizes along one axis."""
        views, start = [], 0
        for size in sizes:
            starts = tuple(start if i == axis else 0 for i in range(len(self.labels)))
            limits = tuple(start + size if i == axis else n for i, n in enumerate(self.sizes))
            views.append(self.slice(starts, limits, None))
            start += size
        return views

    def enter_scan(self, sliced: bool) -> "View | None":
        """Return the view inside the body of a scan; None where the scan slices an axis of size one."""
        if not sliced:
            return replace(self, loops=(*self.loops, None))
        if self.labels[0] is None:
            return None
        return replace(self, labels=self.labels[1:], loops=(*self.loops, self.labels[0]))


def base_axes(labels: Labels) -> Shape:
    """Return the labels that name an axis of the base, without None."""
    return tuple(label for label in labels if label is not None)


def follow(chain: tuple, array: Array) -> Array:
    """Return an array shaped like a parameter, moved as the chain moves the parameter."""
    for move, what, *rest in chain:
        if move == "slice":
            for axis, (start, limit, stride) in what:
                array = lax.slice_in_dim(array, start, limit, stride, axis)
        else:
            order, shape = (what, *rest) if move == "reshape" else rest
            array = order_axes(array, order).reshape(shape)
    return array


def order_axes(array: Array, axes: Shape) -> Array:
    """Return the array with these axes in this order; all others must have size one and are dropped."""
    array = jnp.squeeze(array, tuple(i for i in range(array.ndim) if i not in axes))
    ranks = sorted(axes)
    return array.transpose([ranks.index(axis) for axis in axes])


def are_disjoint(one: tuple, other: tuple) -> bool:
    """Return whether two chains from the same parameter can be seen to share no entry.

    The first move that differs decides; a chain that begins another overlaps it.
    """
    for first, second in zip(one, other, strict=False):
        if first == second:
            continue
        if first[0] != "slice" or second[0] != "slice":
            return False
        boxes = dict(first[1]), dict(second[1])
        return any(
            boxes[0][axis][1] <= boxes[1][axis][0] or boxes[1][axis][1] <= boxes[0][axis][0]
            for axis in boxes[0].keys() & boxes[1].keys()
        )
    return False


def rearrange(equation: Equation, view: View) -> list[View] | None:
    """Return the views that the results are where an equation only rearranges its first operand; else None."""
    name, params, out = equation.name, equation.params, equation.outputs[0]
    if name in ("copy", "copy_p", "name", "sharding_constraint", "reduce_precision"):
        return [view]
    if name == "convert_element_type":
        return [view] if is_float(out) else None
    if name == "transpose":
        return [view.transpose(params["permutation"])]
    if name == "reshape":
        return [view.reshape(out.shape)] if params.get("dimensions") is None else None
    if name in ("squeeze", "expand_dims"):
        return [view.reshape(out.shape)]
    if name == "broadcast_in_dim":  # a rearrangement only where it adds axes of size one
        return [view.reshape(out.shape)] if out.size == math.prod(view.sizes) else None
    if name == "slice":
        return [view.slice(params["start_indices"], params["limit_indices"], params["strides"])]
    if name == "split":
        return view.split(params["axis"], [int(size) for size in params["sizes"]])
    return None
