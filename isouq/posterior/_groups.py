"""Divides posteriors of one shape into groups that share a compiled program, and checks that they can share it."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from isouq import _checks


def groups(items: Sequence[Any], at_once: int | None) -> Iterator[tuple[list[Any], int]]:
    """Yield the items in groups, and with each the number of items that the program takes, which all groups share.

    The last group may be smaller; `fill` pads it.
    at_once: the largest size of a group; by default 1 on a CPU, where a batch gains nothing, and all items elsewhere.
    """
    if at_once is not None:
        _checks.positive_int("at_once", at_once)
    else:
        at_once = 1 if jax.default_backend() == "cpu" else len(items)
    if items:
        size = math.ceil(len(items) / math.ceil(len(items) / at_once))
        for start in range(0, len(items), size):
            yield list(items[start : start + size]), size


def fill(group: Sequence[Any], size: int) -> list[Any]:
    """Return the group with its last item repeated up to this size, so that no further program is compiled."""
    return [*group, *[group[-1]] * (size - len(group))]


def part(tree: Any, index: int, count: int) -> Any:
    """Return one of `count` equal parts of the leading axis of every leaf; of NumPy arrays it is a view."""

    def rows(leaf: Any) -> Any:
        size = len(leaf) // count
        return leaf[index * size : (index + 1) * size]

    return jax.tree.map(rows, tree)


def per_posterior(count: int, **sequences: Any) -> list[list[Any]]:
    """Return the sequences as lists, with None for each posterior where one is None; raise where a length differs."""
    for name, sequence in sequences.items():
        if sequence is not None and len(sequence) != count:
            raise ValueError(f"{name} has {len(sequence)} entries for {count} log densities; pass one for each")
    return [[None] * count if sequence is None else list(sequence) for sequence in sequences.values()]


def check_alike(posteriors: Sequence[Any]) -> None:
    """Raise unless all posteriors are pytrees of one structure, whose leaves have the same shapes and dtypes."""
    structures = [
        (jax.tree.structure(posterior), [_shape_and_dtype(leaf) for leaf in jax.tree.leaves(posterior)])
        for posterior in posteriors
    ]
    for index, structure in enumerate(structures):
        if structure != structures[0]:
            raise ValueError(
                f"posterior {index}, counted from 0, has other shapes or computes something else than posterior 0; "
                "they cannot share a program, so pass it in a call of its own"
            )


def _shape_and_dtype(leaf: Any) -> tuple[Any, Any]:
    aval = jax.typeof(leaf)
    return aval.shape, aval.dtype
