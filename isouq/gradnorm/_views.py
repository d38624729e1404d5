"""A view: how a variable of a jaxpr was reached from a parameter, by moves that only rearrange entries.

A gradient with respect to a rearranged parameter is the rearranged gradient, so its squared norm is
the same. That is why a weight may be reshaped, transposed, cast, sliced, split, concatenated or
scanned over before it meets data, and its norm can still be read off where it does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

Shape = tuple[int, ...]
Labels = tuple[int | None, ...]


@dataclass(frozen=True)
class View:
    """A variable that holds (part of) one parameter.

    leaf: index of the parameter; at or above the number of parameters it is a concatenation.
    chain: the moves from the parameter to `shape` that are not mere permutations, each a tuple: `("slice", ((axis,
        (start, limit, stride)), ...))`, `("reshape", order of axes, new shape)`; in a group's chain also `("part",
        (concatenation, start), order of axes, shape)`, a place in a concatenation.
    shape: the array after `chain`, called the base; its axes are what labels and loops speak of.
    labels: for every axis of the variable the base axis it is; None for an axis of size one.
    loops: one entry for each enclosing scan, outermost first: the base axis that the scan runs over,
        or None where every step sees the whole.
    """

    leaf: int
    chain: tuple
    shape: Shape
    labels: Labels
    loops: Labels = ()

    @classmethod
    def of_leaf(cls, leaf: int, shape: Shape) -> "View":
        """The parameter itself."""
        return cls(leaf, (), shape, tuple(None if size == 1 else axis for axis, size in enumerate(shape)))

    @property
    def sizes(self) -> Shape:
        """Shape of the variable."""
        return tuple(1 if label is None else self.shape[label] for label in self.labels)

    def axes(self, axes: Sequence[int]) -> Shape:
        """The base's axes that these axes of the variable are, without those of size one."""
        return named(tuple(self.labels[i] for i in axes))

    def transpose(self, permutation: Shape) -> "View":
        """Axes in another order: the same base, other labels."""
        return replace(self, labels=tuple(self.labels[axis] for axis in permutation))

    def reshape(self, shape: Shape) -> "View":
        """A new shape; a new base unless only axes of size one come or go."""
        kept = named(self.labels)
        if [self.shape[label] for label in kept] == [size for size in shape if size != 1]:
            rest = iter(kept)
            return replace(self, labels=tuple(None if size == 1 else next(rest) for size in shape))
        looped = named(self.loops)
        order = (*looped, *kept)  # loop axes first, then the variable's own: row-major, as a reshape reads
        base = (*(self.shape[axis] for axis in looped), *shape)
        numbers = iter(range(len(looped)))
        return View(
            self.leaf,
            (*self.chain, ("reshape", order, base)),
            base,
            tuple(None if size == 1 else len(looped) + axis for axis, size in enumerate(shape)),
            tuple(None if axis is None else next(numbers) for axis in self.loops),
        )

    def slice(self, starts: Shape, limits: Shape, strides: Shape | None) -> "View":
        """A box of the variable."""
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

    def enter_scan(self, scanned: bool) -> "View | None":
        """The view inside a scan's body; None where the scan runs over an axis of size one."""
        if not scanned:
            return replace(self, loops=(*self.loops, None))
        if self.labels[0] is None:
            return None
        return replace(self, labels=self.labels[1:], loops=(*self.loops, self.labels[0]))


def named(labels: Labels) -> Shape:
    """The labels that name an axis of the base."""
    return tuple(label for label in labels if label is not None)


def follow(chain: tuple, array: Array) -> Array:
    """An array shaped like a parameter, moved as the chain moves the parameter."""
    for move, what, *rest in chain:
        if move == "slice":
            for axis, (start, limit, stride) in what:
                array = lax.slice_in_dim(array, start, limit, stride, axis)
        else:
            order, shape = (what, *rest) if move == "reshape" else rest
            array = order_axes(array, order).reshape(shape)
    return array


def order_axes(array: Array, axes: Shape) -> Array:
    """These axes in this order; all others have size one and go."""
    array = jnp.squeeze(array, tuple(i for i in range(array.ndim) if i not in axes))
    ranks = sorted(axes)
    return array.transpose([ranks.index(axis) for axis in axes])


def is_float(aval: Any) -> bool:
    """True for real floating arrays, the small formats included."""
    return jnp.issubdtype(getattr(aval, "dtype", bool), jnp.floating)


def disjoint(one: tuple, other: tuple) -> bool:
    """True where two chains from the same parameter can be seen to share no entry.

    The first move that differs decides; a chain that begins another overlaps it.
    """
    for first, second in zip(one, other, strict=False):
        if first == second:
            continue
        if first[0] == second[0] == "part":
            return False
        if first[0] != "slice" or second[0] != "slice":
            return False
        boxes = dict(first[1]), dict(second[1])
        return any(
            boxes[0][axis][1] <= boxes[1][axis][0] or boxes[1][axis][1] <= boxes[0][axis][0]
            for axis in boxes[0].keys() & boxes[1].keys()
        )
    return False


def rearrange(eqn: Any, view: View) -> "list[View] | None":
    """The views that an equation's outputs are, where it only rearranges its first input; else None."""
    name, params = eqn.primitive.name, eqn.params
    out = eqn.outvars[0].aval
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
    if name == "broadcast_in_dim":  # only where it adds axes of size one
        return [view.reshape(out.shape)] if out.size == math.prod(view.sizes) else None
    if name == "slice":
        return [view.slice(params["start_indices"], params["limit_indices"], params["strides"])]
    if name == "split":
        views, axis, start = [], params["axis"], 0
        for size in map(int, params["sizes"]):
            starts = tuple(start if i == axis else 0 for i in range(len(view.labels)))
            limits = tuple(start + size if i == axis else n for i, n in enumerate(view.sizes))
            views.append(view.slice(starts, limits, None))
            start += size
        return views
    return None
