"""Every call into BlackJAX stands here: its interface changes often.

One chain is a pure function of (log density, position, key); `reference.py` maps it over chains and
devices. The data reach the compiled program as arguments (the log density is a pytree).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

INITIAL_STEP_SIZE = 0.1
MAX_NUM_DOUBLINGS = 8


class ChainState(NamedTuple):
    """Where a chain stands between blocks: position, log density and gradient, its step size."""

    hmc: Any
    step_size: Array


class Trace(NamedTuple):
    """What a block of kept draws returns; leading axis = kept draws.

    recorded: what `record` gave for each kept draw. divergences: divergent transitions behind each
    kept draw. acceptance: their mean acceptance probability. num_steps: gradient evaluations.
    """

    recorded: Any
    divergences: Array
    acceptance: Array
    num_steps: Array


def _transition(sampler: str) -> Callable:
    """(key, state, log_density, step_size, inverse_mass, num_steps) -> (state, accept, divergent, steps)."""
    if sampler == "nuts":
        nuts = blackjax.nuts.build_kernel()

        def step(key, state, log_density, step_size, inverse_mass, num_steps):  # type: ignore[no-untyped-def]
            state, info = nuts(key, state, log_density, step_size, inverse_mass, MAX_NUM_DOUBLINGS)
            return state, info.acceptance_rate, info.is_divergent, info.num_integration_steps

    else:
        hmc = blackjax.hmc.build_kernel()

        def step(key, state, log_density, step_size, inverse_mass, num_steps):  # type: ignore[no-untyped-def]
            state, info = hmc(key, state, log_density, step_size, inverse_mass, num_steps)
            return state, info.acceptance_rate, info.is_divergent, num_steps

    return step


def warm_up(
    sampler: str,
    log_density: Callable,
    position: Any,
    inverse_mass: Float[Array, " params"],
    keys: Array,
    num_steps: Int[Array, " warmup"],
    target_acceptance: Float[Array, ""],
) -> ChainState:
    """One chain's warm-up: the step size by dual averaging (Hoffman and Gelman 2014, 3.2.1).

    keys `[warmup]` and num_steps `[warmup]` (leapfrog steps of each transition).
    """
    step = _transition(sampler)
    init, update, final = dual_averaging_adaptation(target_acceptance)

    def body(carry: tuple[Any, Any], inputs: tuple[Array, Array]) -> tuple[tuple[Any, Any], None]:
        state, adaptation = carry
        key, steps = inputs
        step_size = jnp.exp(adaptation.log_step_size)
        state, acceptance, _, _ = step(key, state, log_density, step_size, inverse_mass, steps)
        # a trajectory that left the floats has acceptance NaN: that is a rejection
        return (state, update(adaptation, jnp.nan_to_num(acceptance))), None

    carry = (blackjax.hmc.init(position, log_density), init(INITIAL_STEP_SIZE))
    (state, adaptation), _ = jax.lax.scan(body, carry, (keys, num_steps))
    return ChainState(state, final(adaptation))


def draw_block(
    sampler: str,
    log_density: Callable,
    chain: ChainState,
    inverse_mass: Float[Array, " params"],
    record: Callable,
    keys: Array,
    num_steps: Int[Array, "kept thin"],
) -> tuple[ChainState, Trace]:
    """One chain's next kept draws at its fixed step size; keys and num_steps `[kept, thin]`."""
    step = _transition(sampler)

    def transition(state: Any, inputs: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array, Array]]:
        key, steps = inputs
        state, *info = step(key, state, log_density, chain.step_size, inverse_mass, steps)
        return state, tuple(info)

    def kept(state: Any, inputs: tuple[Array, Array]) -> tuple[Any, Trace]:
        state, (acceptance, divergent, steps) = jax.lax.scan(transition, state, inputs)
        trace = Trace(record(state.position), jnp.sum(divergent), jnp.mean(acceptance), jnp.sum(steps))
        return state, trace

    state, trace = jax.lax.scan(kept, chain.hmc, (keys, num_steps))
    return ChainState(state, chain.step_size), trace


def flat_diagonal(tree: Any, like: Any) -> Float[Array, " params"]:
    """A pytree of scalars spread over the entries of `like`, flat as BlackJAX wants a mass matrix."""
    return ravel_pytree(jax.tree.map(lambda value, leaf: jnp.full(jnp.shape(leaf), value), tree, like))[0]
