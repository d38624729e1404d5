"""Training to the maximum of the log posterior, θ*, with optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from isouq import _checks
from isouq.density import freeze_density
from isouq.gradnorm._plain import tree_sq_norm


class MapFit(NamedTuple):
    """Parameters trained from several starts.

    params: a pytree with a leading axis of starts.
    log_density: the log posterior at the end, `[starts]`.
    grad_norm: ‖∇ log p(θ|D)‖ at the end, `[starts]`.
    converged: whether grad_norm ≤ tolerance at a finite density, `[starts]`.
    num_steps: the number of optimiser steps, `[starts]`.
    """

    params: Any
    log_density: Float[Array, " starts"]
    grad_norm: Float[Array, " starts"]
    converged: Bool[Array, " starts"]
    num_steps: Int[Array, " starts"]

    def best_index(self) -> Array:
        """Return the index of the start with the highest log density, which NaN never is."""
        return jnp.argmax(jnp.where(jnp.isnan(self.log_density), -jnp.inf, self.log_density))

    def best(self) -> Any:
        """Return the parameters of the start with the highest log density (θ*)."""
        index = self.best_index()
        return jax.tree.map(lambda leaf: leaf[index], self.params)


def fit_map(log_density: Callable, inits: Any, *, max_steps: int = 3000, tolerance: float = 0.05) -> MapFit:
    """Maximise the log posterior from each start by full-batch L-BFGS with line search.

    Args:
        log_density: function from parameters to a scalar. It is traced anew at every call; arrays that it closes over
            are arguments of the compiled program.
        inits: a pytree of parameters with a leading axis of starts.
        max_steps: largest number of steps from each start.
        tolerance: a start has converged, and stops, when ‖∇ log p‖ falls to this, in nats per unit of parameter. In
            float32 a log posterior of a few hundred nats resolves about 1e-2.

    Returns:
        A `MapFit`, which also says which starts have not converged.

    Raises:
        ValueError: a wrong shape or setting, or NaN in inits.

    Cost: 1 to 3 gradients a step, all starts at once until the slowest has stopped.
    Source: Liu and Nocedal (1989); `optax.lbfgs`.
    """
    _checks.positive_int("max_steps", max_steps)
    _checks.positive("tolerance", tolerance)
    _checks.float_leaves("inits", inits)
    _checks.count_rows(inits, "inits", "start")
    _checks.finite("inits", inits)
    return _fit(freeze_density(log_density, inits), inits, max_steps, tolerance)


@jax.jit
def _fit(log_density: Callable, inits: Any, max_steps: Array, tolerance: Array) -> MapFit:
    """Return the fit from all starts; the compiled part of `fit_map`."""
    dtype = jnp.result_type(*jax.tree.leaves(inits))

    def loss(params: Any) -> Array:
        # the line search needs value and gradient in one dtype, and may step in a wider one than that of the start
        start = jax.tree.map(lambda leaf, init: leaf.astype(jnp.result_type(init)), params, inits)
        return -log_density(start).astype(dtype)

    optimiser = optax.lbfgs(memory_size=20)
    value_and_grad = optax.value_and_grad_from_state(loss)

    def fit(params: Any) -> MapFit:
        def continues(carry: tuple[Any, Any, Array, Array]) -> Array:
            _, _, step, norm = carry
            return (step < max_steps) & (norm > tolerance)

        def advance(carry: tuple[Any, Any, Array, Array]) -> tuple[Any, Any, Array, Array]:
            params, state, step, _ = carry
            value, grad = value_and_grad(params, state=state)
            updates, state = optimiser.update(grad, state, params, value=value, grad=grad, value_fn=loss)
            params = optax.apply_updates(params, updates)
            norm = jnp.sqrt(tree_sq_norm(optax.tree.get(state, "grad")))
            return params, state, step + 1, norm

        start = (params, optimiser.init(params), jnp.int32(0), jnp.array(jnp.inf))
        params, _, step, _ = jax.lax.while_loop(continues, advance, start)
        value, grad = jax.value_and_grad(log_density)(params)
        norm = jnp.sqrt(tree_sq_norm(grad))
        converged = (norm <= tolerance) & jnp.isfinite(value)
        return MapFit(params, value, norm, converged, step)

    return jax.vmap(fit)(inits)
