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
from jaxtyping import Array, Bool, Float, Int

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


def run_block(
    sampler: str,
    log_density: Callable,
    state: ChainState,
    inverse_mass_matrix: Float[Array, " params"],
    record: Callable,
    key: Array,
    first: Int[Array, ""],
    num_integration_steps: Int[Array, "draws thin"],
    target_acceptance: Float[Array, ""],
    is_warm_up: Bool[Array, ""],
) -> tuple[ChainState, Trace]:
    """Return one chain's state after its next transitions, and their trace.

    Warm-up and draws are the same program, which takes more than a second to compile. In warm-up the step size is
    adapted by dual averaging (Hoffman and Gelman 2014, section 3.2.1), and zeros are recorded.

    first: number of transitions made before; transition t has the key `fold_in(key, t)`.
    num_integration_steps: leapfrog steps of each transition; one of 0 steps pads a block and changes nothing.
    """
    step = _transition(sampler)
    _, update, _ = dual_averaging_adaptation(target_acceptance)
    shapes = jax.eval_shape(record, state.hmc.position)

    def transition(state: ChainState, inputs: tuple[Array, Array]) -> tuple[ChainState, tuple[Array, Array, Array]]:
        index, steps = inputs
        size = jnp.where(is_warm_up, jnp.exp(state.adaptation.log_step_size), step_size(state))
        hmc, acceptance, divergent, count = step(
            jax.random.fold_in(key, index), state.hmc, log_density, size, inverse_mass_matrix, steps
        )
        # a trajectory that overflowed has acceptance NaN, which counts as a rejection
        adaptation = _select(is_warm_up, update(state.adaptation, jnp.nan_to_num(acceptance)), state.adaptation)
        return _select(steps > 0, ChainState(hmc, adaptation), state), (acceptance, divergent, count)

    def draw(state: ChainState, inputs: tuple[Array, Array]) -> tuple[ChainState, Trace]:
        state, (acceptance, divergent, count) = jax.lax.scan(transition, state, inputs)
        recorded = jax.lax.cond(
            is_warm_up,
            lambda _: jax.tree.map(lambda aval: jnp.zeros(aval.shape, aval.dtype), shapes),
            lambda position: record(position),
            state.hmc.position,
        )
        return state, Trace(recorded, jnp.sum(divergent), jnp.mean(acceptance), jnp.sum(count))

    index = first + jnp.arange(num_integration_steps.size).reshape(num_integration_steps.shape)
    return jax.lax.scan(draw, state, (index, num_integration_steps))


def _select(condition: Array, new: Any, old: Any) -> Any:
    """Return the leaves of `new` where the condition holds, else those of `old`, with their dtypes."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b).astype(b.dtype), new, old)


def flat_diagonal(tree: Any, like: Any) -> Float[Array, " params"]:
    """Return a pytree of scalars spread over the entries of `like`, as a flat vector: a diagonal for BlackJAX."""
    return ravel_pytree(jax.tree.map(lambda value, leaf: jnp.full(jnp.shape(leaf), value), tree, like))[0]
