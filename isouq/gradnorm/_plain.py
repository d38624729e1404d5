"""The plain engine: the gradient is formed by `jax.grad`, squared and summed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def tree_sq_norm(tree: Any) -> Float[Array, ""]:
    """Σ over all leaves and entries of entry²; accumulated in float32 or better."""
    leaves = jax.tree.leaves(tree)
    return functools.reduce(jnp.add, (jnp.sum(jnp.square(_at_least_float32(leaf))) for leaf in leaves))


def _at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def grad_sq_norm(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """Like `jax.grad`, but the function it returns gives ‖∂f/∂arg‖² of a scalar f.

    Args:
        f: a scalar function.
        argnums: which positional arguments to differentiate, as in `jax.grad`; with several the
            squared norms add up.

    Returns:
        A function of f's arguments that returns a scalar `[]` in float32 (float64 where the
        gradient is), whatever the dtype of the parameters. Composes with jit and vmap.

    Cost: one forward and one backward pass; memory of one gradient (under `jax.vmap`: one
    gradient an example).
    """
    with_value = value_and_grad_sq_norm(f, argnums)
    return lambda *args, **kwargs: with_value(*args, **kwargs)[1]


def value_and_grad_sq_norm(f: Callable, argnums: int | tuple[int, ...] = 0) -> Callable:
    """Like `grad_sq_norm`, but returns `(f(...), ‖∂f/∂arg‖²)`; the value costs nothing extra."""
    with_grad = jax.value_and_grad(f, argnums)

    def value_and_sq_norm(*args: Any, **kwargs: Any) -> tuple[Array, Array]:
        value, grad = with_grad(*args, **kwargs)
        return value, tree_sq_norm(grad)

    return value_and_sq_norm
