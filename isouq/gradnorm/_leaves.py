"""Tests of what a leaf of a pytree is: an array that JAX takes, a sparse matrix, or something else."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_NUMBERS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def is_inexact(leaf: Any) -> bool:
    """Return whether a leaf is a real or complex floating array or number that JAX takes."""
    if is_sparse(leaf) or is_foreign(leaf) or not is_array_like(leaf):
        return False
    return jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.inexact)


def is_array_like(leaf: Any) -> bool:
    """Return whether a leaf is an array of JAX or NumPy, a Python number, or an object that converts itself to one."""
    return isinstance(leaf, _NUMBERS) or hasattr(leaf, "__jax_array__")


def is_sparse(node: Any) -> bool:
    """Return whether a node is a sparse matrix of JAX or SciPy; neither is imported for that."""
    return type(node).__module__.startswith(("jax.experimental.sparse", "scipy.sparse"))


def is_foreign(leaf: Any) -> bool:
    """Return whether a leaf is a NumPy array that JAX does not take: of objects, text, dates, or another byte order."""
    if not isinstance(leaf, (np.ndarray, np.generic)):
        return False
    try:
        jax.dtypes.result_type(leaf)
    except TypeError:
        return True
    return not leaf.dtype.isnative


def describe(leaf: Any) -> str:
    """Return what a leaf is, for a message: its dtype or its type."""
    if is_sparse(leaf):
        return f"a sparse {type(leaf).__name__}"
    if is_foreign(leaf):
        return f"an array of {leaf.dtype}"
    return str(leaf.dtype) if isinstance(leaf, (jax.Array, np.ndarray, np.generic)) else type(leaf).__name__
