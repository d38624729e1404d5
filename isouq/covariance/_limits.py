"""Keep `laplace` to the memory of the machine or to `max_bytes`, and say which structure would fit."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq._memory import temporary_bytes
from isouq._room import steps
from isouq.covariance import _curvature

MAX_DENSE = 10_000  # parameters of a model whose dense covariance is built without being asked twice
_ORDER = ("diagonal", "kronecker", "low_rank", "dense")  # from the smallest, as a rule


class Request(NamedTuple):
    """The arguments of a call of `laplace` that decide how much memory it takes, beside the batch size."""

    structure: str
    log_density: Any
    params: Any
    curvature: str
    rank: int


def structure_bytes(request: Request) -> int:
    """Return the least bytes that a structure takes at any batch size, its result and the host's float64 included."""
    size, rank = num_params(request.params), request.rank
    leaves = jax.tree.leaves(request.params)
    item = max(jnp.promote_types(jnp.result_type(leaf), jnp.float32).itemsize for leaf in leaves)
    if request.structure == "low_rank" and depth(rank) < size:
        return depth(rank) * size * (2 * item + 3 * 8)
    if request.structure == "diagonal":
        return 4 * size * item
    if request.structure == "kronecker":
        factors = jax.tree.leaves(_curvature.moment_shapes(request.log_density, request.params, request.curvature))
        largest = max((f.shape[0] for f in factors if f.ndim == 2), default=0)
        return 2 * item * sum(math.prod(f.shape) for f in factors) + 40 * largest**2 + (8 + item) * size
    return 40 * size**2  # the matrix, a copy, eigenvectors and the work space of their decomposition in float64


def depth(rank: int) -> int:
    """Return the dimension of the Krylov space in which `rank` eigenpairs are looked for."""
    return 3 * rank + 10


def check_size(request: Request, max_bytes: int | None) -> None:
    """Raise ValueError for a dense covariance of a large model, unless max_bytes says that it is meant."""
    size = num_params(request.params)
    if request.structure == "dense" and size > MAX_DENSE and max_bytes is None:
        raise ValueError(
            f"structure='dense' of {size:,} parameters needs {structure_bytes(request):,} bytes and the time of "
            f"{size:,}³ operations, and is refused above {MAX_DENSE:,} parameters unless max_bytes is given, which "
            f"batches do not allow; {_list_smaller(request)}"
        )


def check_machine(request: Request) -> None:
    """Raise ValueError where a structure takes more memory than the machine has."""
    needed, machine = structure_bytes(request), machine_bytes()
    if needed > machine:
        raise ValueError(
            f"structure={request.structure!r} of {num_params(request.params):,} parameters needs {needed:,} bytes and "
            f"this machine has {machine:,}; {_list_smaller(request)}"
        )


def check_matrix(params: Any) -> None:
    """Raise ValueError where a matrix of all parameters takes more memory than the machine has."""
    size, machine = num_params(params), machine_bytes()
    if 8 * size**2 > machine:  # in float32, and its transpose
        raise ValueError(
            f"a matrix of {size:,} parameters needs {8 * size**2:,} bytes and this machine has {machine:,}; "
            "use isouq.laplace with another structure, or bind some parameters inside log_density"
        )


def machine_bytes() -> int:
    """Return the bytes of memory of this machine; `sys.maxsize` where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def rows_within(max_bytes: int, program: Any, request: Request) -> int:
    """Return how many rows (data × outputs) at a time keep `program(rows)` and the structure to max_bytes.

    `program(rows)` is a lowered program. It is compiled for fewer and fewer rows until it fits.
    """
    _checks.positive_int("max_bytes", max_bytes)
    fixed = structure_bytes(request)

    def needed(rows: int) -> int:
        compiled = program(rows).compile()
        return fixed + temporary_bytes(compiled) + int(compiled.memory_analysis().output_size_in_bytes)

    rows = request.log_density.ys.shape[0] * _rows_each(request)
    while (bytes_now := needed(rows)) > max_bytes:
        if rows == 1:
            raise ValueError(
                f"max_bytes is {max_bytes:,}, but structure={request.structure!r} of {num_params(request.params):,} "
                f"parameters needs {bytes_now:,} bytes with one output of one datum at a time; {_list_smaller(request)}"
            )
        share = (max_bytes - fixed) / max(1, bytes_now - fixed)
        rows = max(1, min(rows // 2, int(rows * share)))
    return rows


@contextmanager
def explain(request: Request, batch_size: int) -> Iterator[None]:
    """Turn an error that says that memory ran out into one that says what took it and what would fit."""
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if is_out_of_memory(error):
            raise out_of_memory(request, batch_size) from error
        raise


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory ran out, on the host or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(request: Request, batch_size: int) -> MemoryError:
    """Return the error that says what was asked for and what would fit; its numbers come from shapes."""
    structure, log_density, params, curvature, _ = request
    fixed = structure_bytes(request)
    one_row = _curvature.row_bytes(log_density, params, curvature, structure)
    step = steps(log_density.ys.shape[0], _rows_each(request), batch_size, one_row)
    step_bytes = one_row * step.data * step.each
    if step_bytes <= fixed:
        advice = _list_smaller(request)
    elif step.data > 1:
        fewer = max(1, step.data // 8)
        advice = f"batch_size={fewer} takes {one_row * fewer * step.each:,} a step"
    else:
        advice = "wrap the blocks of predict in jax.checkpoint"
    return MemoryError(
        f"laplace ran out of memory: structure={structure!r} of {num_params(params):,} parameters takes about "
        f"{fixed:,} bytes, and a step of {step.data} data, {step.each} outputs of each, up to {step_bytes:,}; {advice}"
    )


def _rows_each(request: Request) -> int:
    """Return how many rows of one datum may be taken at a time; for the Hessian, how many products."""
    if request.structure == "low_rank":
        return 1
    if request.curvature == "hessian":
        return _curvature.AT_ONCE
    return _curvature.num_rows(request.log_density, request.params, request.curvature)


def _list_smaller(request: Request) -> str:
    """List the structures that take less memory than the one of the request, and how much each takes."""
    needed = structure_bytes(request)
    sizes = {
        structure: structure_bytes(request._replace(structure=structure))
        for structure in _ORDER
        if structure != request.structure and not (structure == "kronecker" and request.curvature == "hessian")
    }
    smaller = [f"structure={structure!r} needs {size:,}" for structure, size in sizes.items() if size < needed]
    return "; ".join(smaller) or "give fewer parameters: bind the rest inside predict"


def num_params(params: Any) -> int:
    """Return the number of parameters."""
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))
