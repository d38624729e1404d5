"""Chains in blocks of transitions, over devices, from a checkpoint or afresh: always the same numbers.

A compiled program holds a fixed number of chains, the group: a batch of another size rounds otherwise, and chains
that differ in the last bit part ways. Devices run one group each, in as many rounds as it takes. The key of a
transition is that of its chain and number, so that neither blocks nor rounds show in the draws.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from isouq.density import check_starts
from isouq.posterior import _blackjax
from isouq.posterior._blackjax import ChainState, Trace
from isouq.posterior._checkpoint import Checkpoint, Saved, fingerprint

_TRANSITIONS = 100  # of a block, as long as a draw has no more


@dataclass(frozen=True)
class Plan:
    """What is run; see `sample_reference`. group: chains of one program."""

    sampler: str
    num_warmup: int
    num_draws: int
    thin: int
    num_leapfrog: int
    target_acceptance: float
    chains: int
    group: int


@dataclass(frozen=True)
class Blocks:
    """`count` blocks of one size hold `total` things; the last block may be filled up."""

    total: int
    count: int
    size: int

    @classmethod
    def of(cls, total: int, most: int) -> "Blocks":
        """Of size `most` at most, as even as they can be."""
        count = math.ceil(total / most)
        return cls(total, count, math.ceil(total / count))

    def done(self, count: int) -> int:
        """Things behind the first `count` blocks."""
        return min(max(count, 0) * self.size, self.total)

    def fill(self, values: np.ndarray) -> np.ndarray:
        """Values `[total, ...]` as `[count, size, ...]`, with zeros at the end."""
        missing = self.count * self.size - self.total
        padded = np.concatenate([values, np.zeros((missing, *values.shape[1:]), values.dtype)])
        return padded.reshape(self.count, self.size, *values.shape[1:])


def rounds(groups: int, devices: int) -> tuple[int, int]:
    """(rounds, devices of use) of so many groups."""
    count = math.ceil(groups / devices)
    return count, math.ceil(groups / count)


@dataclass(frozen=True)
class Layout:
    """Which chain runs where: `rounds` one after the other, in each a group of chains on every device of the mesh."""

    chains: int
    group: int
    rounds: int
    mesh: Mesh

    @classmethod
    def of(cls, chains: int, group: int) -> "Layout":
        """Over this process's devices, as few rounds as they allow and no device that such rounds do not need."""
        devices = jax.local_devices()
        count, used = rounds(chains // group, len(devices))
        return cls(chains, group, count, Mesh(np.array(devices[:used]), ("chains",)))

    def place(self, tree: Any) -> list[Any]:
        """Leaves `[chains, ...]` cut into rounds and put on the devices; a place too many repeats chain 0."""
        width = self.mesh.size * self.group
        order = np.arange(self.rounds * width)
        order[order >= self.chains] = 0
        where = NamedSharding(self.mesh, PartitionSpec("chains"))
        rows = np.split(order, self.rounds)
        return [jax.device_put(jax.tree.map(lambda leaf, r=r: leaf[r], tree), where) for r in rows]

    def everywhere(self, tree: Any) -> Any:
        """The whole tree on every device of the mesh."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def join(self, trees: Sequence[Any]) -> Any:
        """The way back, to NumPy arrays `[chains, ...]`."""
        return jax.tree.map(lambda *leaves: np.concatenate([np.asarray(a) for a in leaves])[: self.chains], *trees)


class Kept:
    """Draws on the host, in arrays that have their last size from the first block on."""

    def __init__(self, num_draws: int) -> None:
        self.num_draws, self.count = num_draws, 0
        self.trace: Any = None

    def add(self, trace: Trace) -> None:
        """Draws `[chains, n, ...]` after those that are there; what is more than num_draws is dropped."""
        if self.trace is None:
            self.trace = jax.tree.map(
                lambda leaf: np.empty((leaf.shape[0], self.num_draws, *leaf.shape[2:]), leaf.dtype), trace
            )
        rows = slice(self.count, min(self.count + trace.num_steps.shape[1], self.num_draws))
        for whole, new in zip(jax.tree.leaves(self.trace), jax.tree.leaves(trace), strict=True):
            whole[:, rows] = new[:, : rows.stop - rows.start]
        self.count = rows.stop

    def so_far(self) -> Any:
        """A view of them; None before the first."""
        return None if self.trace is None else jax.tree.map(lambda leaf: leaf[:, : self.count], self.trace)


def run(
    plan: Plan,
    log_density: Callable,
    record: Callable,
    inits: Any,
    inverse_mass: Array,
    key: Array,
    open_checkpoint: Callable[[str], Checkpoint] | None,
    report: Callable[[float], None],
) -> tuple[ChainState, Trace, int]:
    """The last state of every chain, its draws `[chains, draws, ...]`, and the leapfrog steps of a chain's warm-up.

    open_checkpoint: from the fingerprint of the run to its checkpoint. report: called with the share done.
    """
    layout = Layout.of(plan.chains, plan.group)
    sampler, mesh = plan.sampler, layout.mesh
    warm, draw = Blocks.of(plan.num_warmup, _TRANSITIONS), Blocks.of(plan.num_draws, max(1, _TRANSITIONS // plan.thin))
    warm_key, draw_key, length_key = jax.random.split(key, 3)
    warm_keys, draw_keys = (layout.place(jax.random.split(k, plan.chains)) for k in (warm_key, draw_key))
    total = plan.num_warmup + plan.num_draws * plan.thin
    low, high = math.ceil(plan.num_leapfrog / 2), plan.num_leapfrog + plan.num_leapfrog // 2
    lengths = np.asarray(jax.random.randint(length_key, (total,), low, high + 1))
    warm_lengths = warm.fill(lengths[: plan.num_warmup])
    draw_lengths = draw.fill(lengths[plan.num_warmup :].reshape(plan.num_draws, plan.thin))
    target = jnp.float32(plan.target_acceptance)
    log_density, record, inverse_mass, target = layout.everywhere((log_density, record, inverse_mass, target))

    states = [_start(log_density, positions, mesh) for positions in layout.place(inits)]
    first = layout.join(states)
    check_starts(first.hmc.logdensity, first.hmc.logdensity_grad)
    done, kept, checkpoint = 0, Kept(plan.num_draws), None
    if open_checkpoint is not None:
        settings = asdict(plan) | {"blackjax": _blackjax.VERSION}
        checkpoint = open_checkpoint(fingerprint(settings, (key, inverse_mass, log_density, record, first)))
        saved = checkpoint.load(first, _abstract_trace(record, first))
        if saved is not None:
            done, states = saved.blocks, layout.place(saved.state)
            if saved.kept is not None:
                kept.add(saved.kept)
    for block in range(done, warm.count + draw.count):
        after = block - warm.count
        if after < 0:
            index, steps = np.int32(warm.done(block)), warm_lengths[block]
            states = [
                _warm_up(log_density, state, inverse_mass, keys, index, steps, target, sampler, mesh)
                for state, keys in zip(states, warm_keys, strict=True)
            ]
            jax.block_until_ready(states)
        else:
            index, steps = np.int32(draw.done(after) * plan.thin), draw_lengths[after]
            results = [
                _draw(log_density, state, inverse_mass, record, keys, index, steps, sampler, mesh)
                for state, keys in zip(states, draw_keys, strict=True)
            ]
            states = [state for state, _ in results]
            kept.add(layout.join([trace for _, trace in results]))
        if checkpoint is not None and checkpoint.due():
            checkpoint.save(Saved(block + 1, layout.join(states), kept.so_far()))
        report((warm.done(block + 1) + draw.done(after + 1) * plan.thin) / total)
    return layout.join(states), kept.trace, int(lengths[: plan.num_warmup].sum())


def _abstract_trace(record: Callable, state: ChainState) -> Trace:
    """Dtypes of what is kept."""
    first = jax.tree.map(lambda leaf: leaf[0], state.hmc.position)
    number: Any = jax.ShapeDtypeStruct((), jnp.result_type(float))
    count: Any = jax.ShapeDtypeStruct((), jnp.result_type(int))
    return Trace(jax.eval_shape(record, first), count, number, count)


def _over_chains(run: Callable, mesh: Mesh, per_chain: tuple[bool, ...]) -> Callable:
    """`run` of one chain mapped over the chains of this device, and over the devices of the mesh."""
    axes = tuple(0 if chain else None for chain in per_chain)
    specs = tuple(PartitionSpec("chains") if chain else PartitionSpec() for chain in per_chain)
    mapped = jax.vmap(run, axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("chains"), check_vma=False)


@partial(jax.jit, static_argnames=("mesh",))
def _start(log_density: Callable, positions: Any, mesh: Mesh) -> ChainState:
    return _over_chains(_blackjax.start, mesh, (False, True))(log_density, positions)


@partial(jax.jit, static_argnames=("sampler", "mesh"))
def _warm_up(
    log_density: Callable,
    state: ChainState,
    mass: Array,
    keys: Array,
    first: Array,
    lengths: Array,
    target: Array,
    sampler: str,
    mesh: Mesh,
) -> ChainState:
    run = partial(_blackjax.warm_up, sampler)
    mapped = _over_chains(run, mesh, (False, True, False, True, False, False, False))
    return mapped(log_density, state, mass, keys, first, lengths, target)


@partial(jax.jit, static_argnames=("sampler", "mesh"))
def _draw(
    log_density: Callable,
    state: ChainState,
    mass: Array,
    record: Callable,
    keys: Array,
    first: Array,
    lengths: Array,
    sampler: str,
    mesh: Mesh,
) -> tuple[ChainState, Trace]:
    run = partial(_blackjax.draw_block, sampler)
    mapped = _over_chains(run, mesh, (False, True, False, False, True, False, False))
    return mapped(log_density, state, mass, record, keys, first, lengths)
