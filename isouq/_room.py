"""Choose how many data, outputs and products to take at a time, by the bytes that a jaxpr holds for each of them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from isouq.gradnorm._jaxpr import Body, Equation, bodies, walk

ROOM = 2**28  # bytes that the rows of one step may take, where no max_bytes says otherwise


class Steps(NamedTuple):
    """The size of one step: a number of data, and for each datum a number of rows or products."""

    data: int
    each: int


def steps(data: int, each: int, batch_size: int, bytes_each: int, rows: int | None = None) -> Steps:
    """Return the sizes of a step over `data` × `each` rows of `bytes_each`, equal steps as far as possible.

    At most `batch_size` data at a time, and at most `rows` rows; by default as many as `ROOM` has room for.
    """
    rows = max(1, ROOM // max(1, bytes_each)) if rows is None else rows
    at_once = min(each, rows)
    return Steps(even(data, min(batch_size, max(1, rows // each))), even(each, at_once))


def even(size: int, most: int) -> int:
    """Return the size of the fewest equal steps of at most `most`; the last may be smaller."""
    return math.ceil(size / math.ceil(size / max(1, min(most, size)))) if size else 1


def bytes_of_one(f: Callable, fixed: Any, *varying: Any) -> int:
    """Return the bytes of all that f(fixed, *varying) computes from `varying`: an upper bound for one row of a batch.

    An estimate from shapes: nothing is run or compiled, and what XLA fuses or frees early counts too.
    """
    closed = jax.make_jaxpr(f)(fixed, *varying)
    depends = [False] * len(jax.tree.leaves(fixed)) + [True] * len(jax.tree.leaves(varying))
    return _bytes(Body(closed.jaxpr), depends)[0]


def _bytes(body: Body, depends: list[bool]) -> tuple[int, list[bool]]:
    """Return the bytes of the equations that depend on the inputs marked in `depends`, and which outputs do so too."""
    total = 0

    def visit(equation: Equation, operands: list[Any]) -> list[bool]:
        nonlocal total
        if not any(operands):
            return [False] * len(equation.outputs)
        inner, results = bodies(equation), [True] * len(equation.outputs)
        if len(inner) == 1 and len(inner[0].inputs) == len(operands) and equation.name not in ("scan", "while"):
            size, results = _bytes(inner[0], list(map(bool, operands)))  # nothing is known of a constant: None
        else:  # one step of a loop, one branch of a choice, and what they hand out
            size = sum(map(nbytes, equation.outputs))
            size += max((_bytes(one, [True] * len(one.inputs))[0] for one in inner), default=0)
        total += size
        return results

    outputs = walk(body.jaxpr, depends, visit)
    return total, [bool(output) for output in outputs]


def nbytes(aval: Any) -> int:
    """Return the bytes of one array."""
    dtype = getattr(aval, "dtype", None)
    itemsize = getattr(dtype, "itemsize", 4) if dtype is not None else 0
    return math.prod(getattr(aval, "shape", ())) * itemsize
