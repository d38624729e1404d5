"""Runs chains in blocks of transitions over devices, from a checkpoint or from the start, with the same numbers.

A compiled program has a fixed number of chains, the group, because a batch of another size rounds differently and
chains that differ in the last bit diverge. Each device runs one group at a time, in as many turns as needed. The key
of a transition depends on its chain and its number alone, so that draws depend neither on blocks nor on turns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from isouq import _checks
from isouq._checkpoint import Checkpoint, Saved, fingerprint
from isouq.density import check_starts
from isouq.posterior import _blackjax
from isouq.posterior._blackjax import ChainState, Trace
from isouq.posterior._groups import part

_BLOCK = 100  # transitions of a block, unless a single draw takes more
SAMPLERS = ("hmc", "nuts")
MAX_TRANSITIONS = 10**8  # of a chain: the random lengths of all are drawn at the start, which takes seconds


@dataclass(frozen=True)
class Sampling:
    """The settings of `sample_reference`, checked when they are made.

    num_draws: draws of a chain in a round.
    max_rounds: largest number of rounds. After each round all draws so far are judged, and a verdict that accepts ends
        the sampling; without a verdict all rounds are made.
    give_up: whether sampling also ends, unaccepted, when max_rounds will hardly suffice: after two rounds or more, if
        the bulk ESS so far, multiplied by max_rounds / rounds, is below half of what the verdict asks for.
    num_warmup: transitions of a chain before the first draw, in which the step size is adapted.
    num_integration_steps: mean number of leapfrog steps of a transition. Each transition takes a random number between
        half and one and a half of it, the same in every chain, because a fixed length resonates on Gaussian-like
        posteriors.
    thin: transitions for each draw.
    target_acceptance_rate: acceptance rate that the step size is adapted to.
    sampler: "hmc" or "nuts". NUTS takes at most 2⁸ steps a transition and ignores num_integration_steps.
    chains_at_once: chains of one compiled program, a divisor of their number; by default 1 for one posterior on a CPU,
        and else all chains of all posteriors that are sampled together. It decides the last bit of the draws; the
        number of devices never does. Each device runs one program at a time, so that at most chains / chains_at_once
        devices are used.
    """

    num_draws: int = 1000
    num_warmup: int = 500
    num_integration_steps: int = 50
    thin: int = 1
    target_acceptance_rate: float = 0.8
    sampler: str = "hmc"
    chains_at_once: int | None = None
    max_rounds: int = 1
    give_up: bool = False

    def __post_init__(self) -> None:
        for name in ("num_draws", "thin", "num_integration_steps", "max_rounds"):
            _checks.positive_int(name, getattr(self, name))
        _checks.positive_int("num_warmup", self.num_warmup, 10)
        total = self.num_warmup + self.max_rounds * self.num_draws * self.thin
        if total > MAX_TRANSITIONS:
            raise ValueError(
                f"all rounds have {total} transitions; expected at most {MAX_TRANSITIONS}: fewer max_rounds"
            )
        _checks.boolean("give_up", self.give_up)
        _checks.one_of("sampler", self.sampler, SAMPLERS)
        _checks.positive("target_acceptance_rate", self.target_acceptance_rate)
        if self.target_acceptance_rate >= 1:
            raise ValueError(f"target_acceptance_rate is {self.target_acceptance_rate}; expected a number below 1")
        if self.chains_at_once is not None:
            _checks.positive_int("chains_at_once", self.chains_at_once)


def chains_of_program(sampling: Sampling, chains: int, posteriors: int = 1) -> int:
    """Return the number of chains of one compiled program; raise unless it divides that of all posteriors' chains."""
    one_by_one = posteriors == 1 and jax.default_backend() == "cpu"
    group = sampling.chains_at_once or (1 if one_by_one else chains * posteriors)
    if chains * posteriors % group:
        raise ValueError(f"chains_at_once is {group}; expected a divisor of the {chains * posteriors} chains")
    return group


class Posterior(NamedTuple):
    """A posterior to sample, all of it arrays.

    log_density, record: functions of parameters that are pytrees. inverse_mass_matrix: its diagonal, flat. inits: the
    starts, with a leading axis of chains. key: a JAX key.
    """

    log_density: Callable
    record: Callable
    inverse_mass_matrix: Array
    inits: Any
    key: Array


@dataclass(frozen=True)
class Blocks:
    """A number of transitions or draws, `total`, in `count` blocks of one size; the last block may be padded."""

    total: int
    count: int
    size: int

    @classmethod
    def of(cls, total: int, most: int) -> "Blocks":
        """Return the blocks of at most `most`, as even as possible."""
        count = math.ceil(total / most)
        return cls(total, count, math.ceil(total / count))

    def size_of_first(self, count: int) -> int:
        """Return how many there are in the first `count` blocks."""
        return min(max(count, 0) * self.size, self.total)


class Schedule(NamedTuple):
    """The blocks of warm-up and those of all rounds, which have one size: `[draws, thin]` transitions.

    num_warm: number of blocks of warm-up. draw: the blocks of a round. first: number of the first transition of each
    block. lengths: leapfrog steps of each transition, where 0 is padding, `[blocks, draws, thin]`.
    """

    num_warm: int
    draw: Blocks
    first: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, sampling: Sampling, key: Array) -> "Schedule":
        """Return the schedule of these settings with random numbers of steps."""
        draw = Blocks.of(sampling.num_draws, max(1, _BLOCK // sampling.thin))
        size, of_round = draw.size * sampling.thin, sampling.num_draws * sampling.thin
        mean, total = sampling.num_integration_steps, sampling.num_warmup + sampling.max_rounds * of_round
        random = np.asarray(jax.random.randint(key, (total,), math.ceil(mean / 2), mean + mean // 2 + 1))
        ends = sampling.num_warmup + of_round * np.arange(sampling.max_rounds + 1)
        stages = [range(start, end, size) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        lengths = np.zeros((sum(map(len, stages)), size), random.dtype)
        first = np.array([start for stage in stages for start in stage])
        last = np.array([min(start + size, stage.stop) for stage in stages for start in stage])
        for row, start, end in zip(lengths, first, last, strict=True):
            row[: end - start] = random[start:end]
        return cls(len(stages[0]), draw, first, lengths.reshape(-1, draw.size, sampling.thin))

    def draws_before(self, block: int) -> int:
        """Return the number of draws in the blocks before this one."""
        round_number, block_of_round = divmod(max(block - self.num_warm, 0), self.draw.count)
        return round_number * self.draw.total + self.draw.size_of_first(block_of_round)


def turns(groups: int, devices: int) -> tuple[int, int]:
    """Return the number of turns in which the devices run so many groups, and how many of the devices they need."""
    count = math.ceil(groups / devices)
    return count, math.ceil(groups / count)


@dataclass(frozen=True)
class Layout:
    """Which chain runs where: in each of `turns`, every device of the mesh runs a group of chains."""

    chains: int
    group: int
    turns: int
    mesh: Mesh

    @classmethod
    def of(cls, chains: int, group: int) -> "Layout":
        """Return the layout over this process's devices with the fewest turns, and the fewest devices for these."""
        devices = jax.local_devices()
        count, num_devices = turns(chains // group, len(devices))
        return cls(chains, group, count, Mesh(np.array(devices[:num_devices]), ("chains",)))

    def place(self, tree: Any) -> list[Any]:
        """Return leaves `[chains, ...]` split into turns and put on the devices, padded with chain 0."""
        width = self.mesh.size * self.group
        order = np.arange(self.turns * width)
        order[order >= self.chains] = 0
        where = NamedSharding(self.mesh, PartitionSpec("chains"))
        rows = np.split(order, self.turns)
        return [jax.device_put(jax.tree.map(lambda leaf, r=r: leaf[r], tree), where) for r in rows]

    def replicate(self, tree: Any) -> Any:
        """Return the tree with a copy on every device of the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def join(self, trees: Sequence[Any]) -> Any:
        """Return the leaves of all turns as NumPy arrays `[chains, ...]`: the inverse of `place`."""
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(a) for a in leaves])[: self.chains], *trees)


class Draws:
    """The draws so far, on the host, in arrays that have room for all from the first block on."""

    def __init__(self, room: int) -> None:
        self.room, self.count = room, 0
        self.trace: Any = None

    def add(self, trace: Trace, count: int) -> None:
        """Append the first `count` of draws `[chains, n, ...]`; the others are padding."""
        if self.trace is None:
            self.trace = jax.tree.map(
                lambda leaf: np.empty((leaf.shape[0], self.room, *leaf.shape[2:]), leaf.dtype), trace
            )
        rows = slice(self.count, self.count + count)
        for stored, new in zip(jax.tree.leaves(self.trace), jax.tree.leaves(trace), strict=True):
            stored[:, rows] = new[:, :count]
        self.count = rows.stop

    def view(self) -> Any:
        """Return a view of the draws so far; None before the first."""
        return None if self.trace is None else jax.tree.map(lambda leaf: leaf[:, : self.count], self.trace)


def run(
    sampling: Sampling,
    posteriors: Sequence[Posterior],
    open_checkpoint: Callable[[str], Checkpoint] | None,
    report: Callable[[float], None],
    is_enough: Callable[[Trace], bool],
) -> tuple[ChainState, Trace, int]:
    """Run the chains of all posteriors, which form one axis: those of the first, then those of the second, and so on.

    Return their last states, their draws `[chains, draws, ...]` and the steps of a chain's warm-up. The posteriors have
    equal structures and shapes. The numbers of steps are the same in all chains and come from the first one's key.

    open_checkpoint: function from the fingerprint of the run to its checkpoint, for one posterior.
    report: function that is called with the share that is done.
    is_enough: function that is asked after every round, with all draws so far, whether it was the last.
    """
    chains = jax.tree.leaves(posteriors[0].inits)[0].shape[0]
    group = chains_of_program(sampling, chains, len(posteriors))
    layout = Layout.of(chains * len(posteriors), group)
    sampler, mesh, is_shared = sampling.sampler, layout.mesh, len(posteriors) == 1
    chain_keys, length_keys = zip(*(jax.random.split(posterior.key) for posterior in posteriors), strict=True)
    keys = layout.place(_concatenate([jax.random.split(key, chains) for key in chain_keys]))
    schedule = Schedule.of(sampling, length_keys[0])
    num_draws = sampling.max_rounds * sampling.num_draws
    total = sampling.num_warmup + num_draws * sampling.thin
    target = layout.replicate(jnp.float32(sampling.target_acceptance_rate))
    functions = _place_functions(layout, posteriors)
    starts = layout.place(_concatenate([posterior.inits for posterior in posteriors]))

    states = [
        _start(log_density, positions, is_shared, mesh)
        for (log_density, _, _), positions in zip(functions, starts, strict=True)
    ]
    first = layout.join(states)
    _check_starts(first, len(posteriors))
    first_block, draws, checkpoint = 0, Draws(num_draws), None
    if open_checkpoint is not None:
        (posterior,) = posteriors
        checkpoint = open_checkpoint(_fingerprint(replace(sampling, chains_at_once=group), posterior, first))
        saved = checkpoint.load(first, _abstract_trace(posterior.record, first))
        if saved is not None:
            first_block, states = saved.blocks, layout.place(saved.state)
            if saved.results is not None:
                draws.add(saved.results, saved.results.num_steps.shape[1])
    for block in range(first_block, len(schedule.lengths)):
        is_warm_up = block < schedule.num_warm
        first_transition, steps = np.int32(schedule.first[block]), schedule.lengths[block]
        results = [
            _run_block(
                log_density, state, inverse_mass_matrix, record, key, first_transition, steps, target,
                np.bool_(is_warm_up), sampler, is_shared, mesh,
            )
            for (log_density, record, inverse_mass_matrix), state, key in zip(functions, states, keys, strict=True)
        ]  # fmt: skip
        states = [state for state, _ in results]
        count = schedule.draws_before(block + 1) - schedule.draws_before(block)
        if is_warm_up:
            jax.block_until_ready(states)
        else:
            draws.add(layout.join([trace for _, trace in results]), count)
            if draws.count % sampling.num_draws == 0 and is_enough(draws.view()):
                report(1.0)
                break
        if checkpoint is not None and checkpoint.due():
            checkpoint.save(Saved(block + 1, layout.join(states), draws.view()))
        report((schedule.first[block] + np.count_nonzero(steps)) / total)
    warm_steps = int(schedule.lengths[: schedule.num_warm].sum())
    return layout.join(states), draws.view(), warm_steps


def _place_functions(layout: Layout, posteriors: Sequence[Posterior]) -> list[Any]:
    """Return log density, record and inverse mass matrix for each turn of the devices, on the devices.

    One posterior has one copy on each device. Several have one for each chain, with a leading axis of chains.
    """
    functions = [(one.log_density, one.record, one.inverse_mass_matrix) for one in posteriors]
    if len(posteriors) == 1:
        return [layout.replicate(functions[0])] * layout.turns
    owners = np.repeat(np.arange(len(posteriors)), layout.chains // len(posteriors))
    return layout.place(jax.tree.map(lambda *leaves: np.stack(leaves)[owners], *functions))


def _concatenate(trees: Sequence[Any]) -> Any:
    """Return the leaves of all trees one after the other, along their first axis."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def _check_starts(first: ChainState, posteriors: int) -> None:
    """Raise unless log density and gradient are finite at the start of every chain of every posterior."""
    for index in range(posteriors):
        try:
            check_starts(*part((first.hmc.logdensity, first.hmc.logdensity_grad), index, posteriors))
        except ValueError as error:
            if posteriors == 1:
                raise
            raise ValueError(f"posterior {index} of {posteriors}, counted from 0: {error}") from error


def _fingerprint(sampling: Sampling, posterior: Posterior, first: ChainState) -> str:
    """Return the fingerprint of a run of one posterior's chains from these states."""
    chains = len(first.hmc.logdensity)
    settings = asdict(sampling) | {"chains": chains, "blackjax": _blackjax.VERSION}
    log_density, record, inverse_mass_matrix, _, key = posterior
    return fingerprint(settings, (key, inverse_mass_matrix, log_density, record, first))


def _abstract_trace(record: Callable, state: ChainState) -> Trace:
    """Return the dtypes of a trace."""
    first = jax.tree.map(lambda leaf: leaf[0], state.hmc.position)
    number: Any = jax.ShapeDtypeStruct((), jnp.result_type(float))
    count: Any = jax.ShapeDtypeStruct((), jnp.result_type(int))
    return Trace(jax.eval_shape(record, first), count, number, count)


def _over_chains(run: Callable, mesh: Mesh, per_chain: tuple[bool, ...]) -> Callable:
    """Return `run` of one chain mapped over the chains of a device, and over the devices of the mesh."""
    axes = tuple(0 if chain else None for chain in per_chain)
    specs = tuple(PartitionSpec("chains") if chain else PartitionSpec() for chain in per_chain)
    mapped = jax.vmap(run, axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("chains"), check_vma=False)


@partial(jax.jit, static_argnames=("is_shared", "mesh"))
def _start(log_density: Callable, positions: Any, is_shared: bool, mesh: Mesh) -> ChainState:
    return _over_chains(_blackjax.start, mesh, (not is_shared, True))(log_density, positions)


@partial(jax.jit, static_argnames=("sampler", "is_shared", "mesh"))
def _run_block(
    log_density: Callable,
    state: ChainState,
    inverse_mass_matrix: Array,
    record: Callable,
    keys: Array,
    first: Array,
    lengths: Array,
    target: Array,
    is_warm_up: Array,
    sampler: str,
    is_shared: bool,
    mesh: Mesh,
) -> tuple[ChainState, Trace]:
    """Return the states of all chains after a block; is_shared says whether they have one posterior."""
    run, own = partial(_blackjax.run_block, sampler), not is_shared
    mapped = _over_chains(run, mesh, (own, True, own, own, True, False, False, False, False))
    return mapped(log_density, state, inverse_mass_matrix, record, keys, first, lengths, target, is_warm_up)
