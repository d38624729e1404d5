"""What the structures of `laplace` take of memory: refused if too much, kept to `max_bytes`, said when it ran out."""

import math
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq._memory import temporary_bytes
from isouq.covariance import _curvature
from isouq.covariance._room import steps

_ORDER = ("diagonal", "kronecker", "low_rank", "dense")  # from the smallest, as a rule


def structure_bytes(structure: str, log_density: Any, params: Any, curvature: str, rank: int) -> int:
    """Bytes that a structure takes whatever the batch size, its result and the host's float64 included, at least."""
    leaves = jax.tree.leaves(params)
    size = sum(map(jnp.size, leaves))
    item = max(jnp.promote_types(jnp.result_type(leaf), jnp.float32).itemsize for leaf in leaves)
    if structure == "low_rank" and depth(rank) < size:
        return depth(rank) * size * (2 * item + 3 * 8)
    if structure == "diagonal":
        return 4 * size * item
    if structure == "kronecker":
        factors = jax.tree.leaves(_curvature.moment_shapes(log_density, params, curvature))
        largest = max((f.shape[0] for f in factors if f.ndim == 2), default=0)
        return 2 * item * sum(math.prod(f.shape) for f in factors) + 40 * largest**2 + (8 + item) * size
    return 40 * size**2  # the matrix, a copy, eigenvectors and the work space of their decomposition in float64


def depth(rank: int) -> int:
    """The dimension of the Krylov space in which `rank` eigenpairs are looked for."""
    return 3 * rank + 10


def check_machine(structure: str, log_density: Any, params: Any, curvature: str, rank: int) -> None:
    """Raises where a structure takes more than the machine has."""
    needed, machine = structure_bytes(structure, log_density, params, curvature, rank), machine_bytes()
    if needed > machine:
        raise ValueError(
            f"structure={structure!r} of {_size(params):,} parameters needs {needed:,} bytes and this machine has "
            f"{machine:,}; {_others(structure, log_density, params, curvature, rank)}"
        )


def check_matrix(params: Any) -> None:
    """Raises where a matrix of all parameters is larger than the machine."""
    size, machine = _size(params), machine_bytes()
    if 8 * size**2 > machine:  # in float32, and its transpose
        raise ValueError(
            f"a matrix of {size:,} parameters needs {8 * size**2:,} bytes and this machine has {machine:,}; "
            "use isouq.laplace with another structure, or bind some parameters inside log_density"
        )


def machine_bytes() -> int:
    """Bytes of memory of this machine; `sys.maxsize` where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return sys.maxsize


def rows_within(
    max_bytes: int, program: Any, structure: str, log_density: Any, params: Any, curvature: str, rank: int
) -> int:
    """How many rows (data × outputs) at a time keep `program(rows)` and the structure to max_bytes.

    `program(rows)` is a lowered program. It is compiled for fewer and fewer rows until it fits.
    """
    _checks.positive_int("max_bytes", max_bytes)
    fixed = structure_bytes(structure, log_density, params, curvature, rank)

    def needed(rows: int) -> int:
        compiled = program(rows).compile()
        return fixed + temporary_bytes(compiled) + int(compiled.memory_analysis().output_size_in_bytes)

    rows = log_density.ys.shape[0] * _rows_each(structure, log_density, params, curvature)
    while (bytes_now := needed(rows)) > max_bytes:
        if rows == 1:
            others = _others(structure, log_density, params, curvature, rank)
            raise ValueError(
                f"max_bytes is {max_bytes:,}, but structure={structure!r} of {_size(params):,} parameters needs "
                f"{bytes_now:,} bytes with one output of one datum at a time; {others}"
            )
        share = (max_bytes - fixed) / max(1, bytes_now - fixed)
        rows = max(1, min(rows // 2, int(rows * share)))
    return rows


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out, on the host or on a device."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def out_of_memory(
    structure: str, log_density: Any, params: Any, curvature: str, rank: int, batch_size: int
) -> MemoryError:
    """The error that says what was asked for and what would fit; numbers from shapes."""
    fixed = structure_bytes(structure, log_density, params, curvature, rank)
    each = _rows_each(structure, log_density, params, curvature)
    one_row = _curvature.row_bytes(log_density, params, curvature, structure)
    step = steps(log_density.ys.shape[0], each, batch_size, one_row)
    of_step = one_row * step.data * step.each
    if of_step <= fixed:
        advice = _others(structure, log_density, params, curvature, rank)
    elif step.data > 1:
        fewer = max(1, step.data // 8)
        advice = f"batch_size={fewer} takes {one_row * fewer * step.each:,} a step"
    else:
        advice = "wrap the blocks of predict in jax.checkpoint"
    return MemoryError(
        f"laplace ran out of memory: structure={structure!r} of {_size(params):,} parameters takes about {fixed:,} "
        f"bytes, and a step of {step.data} data, {step.each} outputs of each, up to {of_step:,}; {advice}"
    )


def _rows_each(structure: str, log_density: Any, params: Any, curvature: str) -> int:
    """Rows of one datum, all of which may be taken at a time; products, for the Hessian."""
    if curvature == "hessian":
        return 1 if structure == "low_rank" else _curvature.AT_ONCE
    return 1 if structure == "low_rank" else _curvature.num_rows(log_density, params, curvature)


def _others(structure: str, log_density: Any, params: Any, curvature: str, rank: int) -> str:
    """The structures that take less, and how much."""
    sizes = {
        other: structure_bytes(other, log_density, params, curvature, rank)
        for other in _ORDER
        if other != structure and not (other == "kronecker" and curvature == "hessian")
    }
    own = structure_bytes(structure, log_density, params, curvature, rank)
    fewer = [f"structure={other!r} needs {size:,}" for other, size in sizes.items() if size < own]
    return "; ".join(fewer) or "give fewer parameters: bind the rest inside predict"


def _size(params: Any) -> int:
    return int(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))
