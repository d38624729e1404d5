"""All calls into BlackJAX, whose interface changes often.

One chain is a pure function of (log density, position, key), run in blocks of transitions. `_sampling.py` maps it over
chains and devices. The log density is a pytree, so that its data are arguments of the compiled program.
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
    """The state of a chain between blocks: position, log density and gradient, and the adaptation of its step size."""

    hmc: Any
    adaptation: Any


class Trace(NamedTuple):
    """The results of a block of draws; the leading axis is that of the draws.

    recorded: the value of `record` for each draw. divergences: the number of divergent transitions that led to it.
    acceptance: their mean acceptance probability. num_steps: their gradient evaluations.
    """

    recorded: Any
    divergences: Array
    acceptance: Array
    num_steps: Array


def _transition(sampler: str) -> Callable:
    """Return the function that makes one transition.

    It maps (key, state, log_density, step_size, inverse_mass_matrix, num_integration_steps) to (state, acceptance
    probability, whether the transition diverged, gradient evaluations).
    """
    if sampler == "nuts":
        nuts = blackjax.nuts.build_kernel()

        def step(key, state, log_density, step_size, inverse_mass_matrix, num_integration_steps):  # type: ignore[no-untyped-def]
            state, info = nuts(key, state, log_density, step_size, inverse_mass_matrix, MAX_NUM_DOUBLINGS)
            return state, info.acceptance_rate, info.is_divergent, info.num_integration_steps

    else:
        hmc = blackjax.hmc.build_kernel()

        def step(key, state, log_density, step_size, inverse_mass_matrix, num_integration_steps):  # type: ignore[no-untyped-def]
            state, info = hmc(key, state, log_density, step_size, inverse_mass_matrix, num_integration_steps)
            return state, info.acceptance_rate, info.is_divergent, num_integration_steps

    return step


def start(log_density: Callable, position: Any) -> ChainState:
    """Return the state of one chain before its warm-up."""
    init, _, _ = dual_averaging_adaptation(0.5)  # init does not depend on the target
    state = ChainState(blackjax.hmc.init(position, log_density), init(INITIAL_STEP_SIZE))
    # with Python numbers and weak types the first block would be another program than those after it
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jax.dtypes.result_type(leaf)), state)


def step_size(state: ChainState) -> Array:
    """Return the adapted step size; one for each chain if the state has an axis of chains."""
    _, _, final = dual_averaging_adaptation(0.5)
    return final(state.adaptation)


def warm_up(
    sampler: str,
    log_density: Callable,
    state: ChainState,
    inverse_mass_matrix: Float[Array, " params"],
    key: Array,
    first: Int[Array, ""],
    num_integration_steps: Int[Array, " block"],
    target_acceptance: Float[Array, ""],
) -> ChainState:
    """Return one chain's state after its next warm-up transitions.

    The step size is adapted by dual averaging (Hoffman and Gelman 2014, section 3.2.1).
    first: number of transitions made before; transition t has the key `fold_in(key, t)`.
    num_integration_steps: leapfrog steps of each transition; one of 0 steps pads a block and changes nothing.
    """
    step = _transition(sampler)
    _, update, _ = dual_averaging_adaptation(target_acceptance)

    def body(state: ChainState, inputs: tuple[Array, Array]) -> tuple[ChainState, None]:
        index, steps = inputs
        size = jnp.exp(state.adaptation.log_step_size)
        moved, acceptance, _, _ = step(
            jax.random.fold_in(key, index), state.hmc, log_density, size, inverse_mass_matrix, steps
        )
        # a trajectory that overflowed has acceptance NaN, which counts as a rejection
        new = ChainState(moved, update(state.adaptation, jnp.nan_to_num(acceptance)))
        return jax.tree.map(lambda a, b: jnp.where(steps > 0, a, b).astype(b.dtype), new, state), None

    return jax.lax.scan(body, state, (first + jnp.arange(num_integration_steps.shape[0]), num_integration_steps))[0]


def draw_block(
    sampler: str,
    log_density: Callable,
    state: ChainState,
    inverse_mass_matrix: Float[Array, " params"],
    record: Callable,
    key: Array,
    first: Int[Array, ""],
    num_integration_steps: Int[Array, "draws thin"],
) -> tuple[ChainState, Trace]:
    """Return one chain's state after its next draws, and their trace; `first` and keys as in `warm_up`."""
    step = _transition(sampler)
    size = step_size(state)
    index = first + jnp.arange(num_integration_steps.size).reshape(num_integration_steps.shape)

    def transition(hmc: Any, inputs: tuple[Array, Array]) -> tuple[Any, tuple[Array, Array, Array]]:
        index, steps = inputs
        hmc, *info = step(jax.random.fold_in(key, index), hmc, log_density, size, inverse_mass_matrix, steps)
        return hmc, tuple(info)

    def draw(hmc: Any, inputs: tuple[Array, Array]) -> tuple[Any, Trace]:
        hmc, (acceptance, divergent, steps) = jax.lax.scan(transition, hmc, inputs)
        trace = Trace(record(hmc.position), jnp.sum(divergent), jnp.mean(acceptance), jnp.sum(steps))
        return hmc, trace

    hmc, trace = jax.lax.scan(draw, state.hmc, (index, num_integration_steps))
    return ChainState(hmc, state.adaptation), trace


def flat_diagonal(tree: Any, like: Any) -> Float[Array, " params"]:
    """Return a pytree of scalars spread over the entries of `like`, as a flat vector: a diagonal for BlackJAX."""
    return ravel_pytree(jax.tree.map(lambda value, leaf: jnp.full(jnp.shape(leaf), value), tree, like))[0]
