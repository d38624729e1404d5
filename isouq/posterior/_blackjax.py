"""Every call into BlackJAX stands here: its interface changes often.

One chain is a pure function of (log density, position, key), run in blocks of transitions; `_sampling.py` maps it
over chains and devices. The data reach the compiled program as arguments (the log density is a pytree).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

VERSION = blackjax.__version__
INITIAL_STEP_SIZE = 0.1
MAX_NUM_DOUBLINGS = 8


class ChainState(NamedTuple):
    """Where a chain stands between blocks: position, log density and gradient; how its step size was adapted."""

    hmc: Any
    adaptation: Any


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


def start(log_density: Callable, position: Any) -> ChainState:
    """One chain before its warm-up."""
    init, _, _ = dual_averaging_adaptation(0.5)  # the target plays no part in it
    state = ChainState(blackjax.hmc.init(position, log_density), init(INITIAL_STEP_SIZE))
    # Python numbers and weak types would be another program than the arrays that a block returns
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jax.dtypes.result_type(leaf)), state)


def step_size(state: ChainState) -> Array:
    """What the adaptation has come to; one per chain if the state has an axis of chains."""
    _, _, final = dual_averaging_adaptation(0.5)
    return final(state.adaptation)


def warm_up(
    sampler: str,
    log_density: Callable,
    state: ChainState,
    inverse_mass: Float[Array, " params"],
    key: Array,
    first: Int[Array, ""],
    num_steps: Int[Array, " block"],
    target_acceptance: Float[Array, ""],
) -> ChainState:
    """One chain's next warm-up transitions: the step size by dual averaging (Hoffman and Gelman 2014, 3.2.1).

    first: number of transitions made before; transition t has the key `fold_in(key, t)`.
    num_steps: leapfrog steps of each transition; one of 0 steps fills up a block and changes nothing.
    """
    step = _transition(sampler)
    _, update, _ = dual_averaging_adaptation(target_acceptance)

    def body(state: ChainState, inputs: tuple[Array, Array]) -> tuple[ChainState, None]:
        index, steps = inputs
        size = jnp.exp(state.adaptation.log_step_size)
        moved, acceptance, _, _ = step(
            jax.random.fold_in(key, index), state.hmc, log_density, size, inverse_mass, steps
        )
        # a trajectory that left the floats has acceptance NaN: that is a rejection
        new = ChainState(moved, update(state.adaptation, jnp.nan_to_num(acceptance)))
        return jax.tree.map(lambda a, b: jnp.where(steps > 0, a, b).astype(b.dtype), new, state), None

    return jax.lax.scan(body, state, (first + jnp.arange(num_steps.shape[0]), num_steps))[0]


def draw_block(
    sampler: str,
    log_density: Callable,
    state: ChainState,
    inverse_mass: Float[Array, " params"],
    record: Callable,
    key: Array,
    first: Int[Array, ""],
    num_steps: Int[Array, "kept thin"],
) -> tuple[ChainState, Trace]:
    """One chain's next kept draws at its fixed step size; `first` and keys as in `warm_up`."""
    step = _transition(sampler)
    size = step_size(state)
    index = first + jnp.arange(num_steps.size).reshape(num_steps.shape)

    def transition(hmc: Any, inputs: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array, Array]]:
        index, steps = inputs
        hmc, *info = step(jax.random.fold_in(key, index), hmc, log_density, size, inverse_mass, steps)
        return hmc, tuple(info)

    def kept(hmc: Any, inputs: tuple[Array, Array]) -> tuple[Any, Trace]:
        hmc, (acceptance, divergent, steps) = jax.lax.scan(transition, hmc, inputs)
        trace = Trace(record(hmc.position), jnp.sum(divergent), jnp.mean(acceptance), jnp.sum(steps))
        return hmc, trace

    hmc, trace = jax.lax.scan(kept, state.hmc, (index, num_steps))
    return ChainState(hmc, state.adaptation), trace


def flat_diagonal(tree: Any, like: Any) -> Float[Array, " params"]:
    """A pytree of scalars spread over the entries of `like`, flat as BlackJAX wants a mass matrix."""
    return ravel_pytree(jax.tree.map(lambda value, leaf: jnp.full(jnp.shape(leaf), value), tree, like))[0]
