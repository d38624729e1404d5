"""Squared gradient norms by way of the gradient, for functions that cannot be traced and as a check."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from isouq.gradnorm._factors import leaf_sq_norm


def tree_sq_norm(tree: Any) -> Float[Array, ""]:
    """Return Σ |entry|² over all leaves, accumulated in float32 or better."""
    return add([leaf_sq_norm(leaf) for leaf in jax.tree.leaves(tree)])


def add(norms: list[Array]) -> Float[Array, ""]:
    """Return the sum of some norms, 0 for none."""
    return functools.reduce(jnp.add, norms) if norms else jnp.zeros(())


def value_and_grad_sq_norm(f: Callable, argnums: Any = 0, has_aux: bool = False, per_leaf: bool = False) -> Callable:
    """Return the function of `isouq.value_and_grad_sq_norm`, made from `jax.value_and_grad`; memory of one gradient."""
    with_grad = jax.value_and_grad(f, argnums, has_aux)

    def value_and_sq_norm(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, grad = with_grad(*args, **kwargs)
        return value, jax.tree.map(leaf_sq_norm, grad) if per_leaf else tree_sq_norm(grad)

    return value_and_sq_norm
