"""The reference posterior: BlackJAX HMC over all chains and local devices, with a verdict."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float
from scipy.special import expit

from isouq import _checks
from isouq._checks import as_pytree_callable
from isouq._uncertainty import margin
from isouq.posterior import _blackjax
from isouq.posterior.verdict import Verdict, judge

SAMPLERS = ("hmc", "nuts")
_BLOCK = 100


class Cost(NamedTuple):
    """What a reference cost, all chains together: gradients of the log density, transitions."""

    gradient_evaluations: int
    transitions: int


class Reference(NamedTuple):
    """Draws of a posterior, or predictions under them, and a verdict.

    predictions: what `record` gave, a pytree with leading axes `[chains, draws, ...]`; the draws
        themselves (parameters) when no `record` was passed.
    verdict: the test of `isouq.posterior.verdict`; None when draws of parameters were kept, which
        cannot be judged (they are symmetric).
    cost: gradient evaluations. divergent: share of divergent transitions after warm-up.
    step_size, acceptance `[chains]`.
    """

    predictions: Any
    verdict: Verdict | None
    cost: Cost
    divergent: float
    step_size: Any
    acceptance: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Margins:
    """A `record` function: θ ↦ the margin (log-odds of `target`, or the mean) at each of xs `[points]`.

    Four bytes a point and draw; `probabilities` turns margins into p_c without losing small digits.
    A pytree, so that xs and target are arguments of the compiled program.
    """

    predict: Any
    xs: Any
    target: Any
    kind: str = field(metadata={"static": True})

    def __call__(self, params: Any) -> Float[Array, " points"]:
        """The margin of every input under one draw."""
        outputs = jax.vmap(self.predict, (None, 0))(params, self.xs)
        return jax.vmap(lambda out, label: margin(out, label, self.kind))(outputs, self.target)


def probabilities(margins: Any, kind: str) -> np.ndarray:
    """p_c of margins (or the mean itself, for regression) in float64, on the host."""
    values = np.asarray(margins, np.float64)
    return values if kind == "regression" else expit(values)


def sample_reference(
    log_density: Callable,
    inits: Any,
    key: Array,
    *,
    record: Callable | None = None,
    num_draws: int = 1000,
    num_warmup: int = 500,
    num_leapfrog: int = 50,
    thin: int = 1,
    target_acceptance: float = 0.8,
    inverse_mass: Any = None,
    sampler: str = "hmc",
    map_scale: Callable | None = None,
    verdict: bool = True,
    progress: Callable[[float], None] | None = None,
) -> Reference:
    """Samples exp(log_density) with HMC (or NUTS) and judges the result in prediction space.

    Args:
        log_density: scalar function of the parameters. A callable pytree (`LogDensity`, or
            `jax.tree_util.Partial(f, data)`) keeps the data out of the compiled program.
        inits: starting parameters with a leading axis of chains (at least 2, better 4 or more,
            each trained independently).
        key: a JAX key.
        record: what to keep of a draw, `params -> array`; `Margins(...)` as a rule. Without it the
            draws themselves are kept: memory chains × draws × parameters.
        num_draws: kept draws a chain.
        thin: transitions a kept draw.
        num_warmup: transitions in which the step size is adapted, then thrown away.
        num_leapfrog: mean leapfrog steps a transition; each transition takes a random number between
            half and one and a half of it, the same in every chain. A fixed length resonates on
            Gaussian-like posteriors.
        target_acceptance: of dual averaging.
        inverse_mass: a pytree of scalars or arrays like the parameters, about the posterior
            variance of each; the identity by default. The prior's variance is a safe choice.
        sampler: "hmc" or "nuts" (at most 2⁸ steps a transition; num_leapfrog unused; its warm-up
            gradients are not counted).
        map_scale: elementwise NumPy function from recorded values to the scale whose variance is
            compared between halves of the chains; for `Margins` it is `probabilities`.
        verdict: False leaves the judging to the caller.
        progress: called with the share done, between 0 and 1, about once a hundred draws.

    Returns:
        `Reference`. Same key, machine and devices: the same numbers.

    Cost: (num_warmup + num_draws × thin) × num_leapfrog gradients a chain. Chains run side by side
    on all local devices whose number divides theirs; compiled once per shape.

    Source: Neal (2011); Hoffman and Gelman (2014); Vehtari et al. (2021) for the diagnostics.
    """
    for name, value in dict(num_draws=num_draws, thin=thin, num_leapfrog=num_leapfrog).items():
        _checks.positive_int(name, value)
    _checks.positive_int("num_warmup", num_warmup, 10)
    _checks.one_of("sampler", sampler, SAMPLERS)
    _checks.positive("target_acceptance", target_acceptance)
    if target_acceptance >= 1:
        raise ValueError(f"target_acceptance is {target_acceptance}; expected a number below 1")
    _checks.float_leaves("inits", inits)
    chains = _checks.inputs(inits, "inits", "chain")
    _checks.several_chains(chains)
    _checks.finite("inits", inits)
    log_density = as_pytree_callable(log_density, "log_density")
    keep_draws = record is None
    if isinstance(record, Margins):
        record = replace(record, predict=as_pytree_callable(record.predict))
        map_scale = map_scale or partial(probabilities, kind=record.kind)
    record = as_pytree_callable(_identity if record is None else record, "record")
    first = jax.tree.map(lambda leaf: leaf[0], inits)
    _check_dtype(first)
    kept = jax.eval_shape(record, first)
    judged_later = verdict and not keep_draws and getattr(kept, "ndim", None) == 1
    if judged_later and (num_draws < 4 or kept.shape[0] < 2):
        raise ValueError(
            f"num_draws is {num_draws} and record gives {kept.shape[0]} value(s) a draw; a verdict needs at least "
            "4 draws of 2 values (or pass verdict=False)"
        )
    ones = jax.tree.map(lambda _: 1.0, first)
    mass = _blackjax.flat_diagonal(ones if inverse_mass is None else inverse_mass, first)

    warm_key, draw_key, length_key = jax.random.split(key, 3)
    low, high = math.ceil(num_leapfrog / 2), num_leapfrog + num_leapfrog // 2
    lengths = jax.random.randint(length_key, (num_warmup + num_draws * thin,), low, high + 1)
    mesh = _mesh(chains)
    per_chain = NamedSharding(mesh, PartitionSpec("chains"))
    inits = jax.device_put(inits, per_chain)
    warm_keys = jax.device_put(_keys(warm_key, chains, (num_warmup,)), per_chain)
    report = progress or (lambda _: None)

    state = _warm_up(
        log_density, inits, mass, warm_keys, lengths[:num_warmup], jnp.float32(target_acceptance), sampler, mesh
    )
    jax.block_until_ready(state)
    total = num_warmup + num_draws * thin
    report(num_warmup / total)
    block = _block_size(num_draws)
    draw_lengths = lengths[num_warmup:].reshape(num_draws // block, block, thin)
    traces = []
    for index, steps in enumerate(draw_lengths):
        keys = jax.device_put(_keys(jax.random.fold_in(draw_key, index), chains, (block, thin)), per_chain)
        state, trace = _draw(log_density, state, mass, record, keys, steps, sampler, mesh)
        traces.append(jax.tree.map(np.asarray, trace))
        report((num_warmup + (index + 1) * block * thin) / total)
    trace = jax.tree.map(lambda *blocks: np.concatenate(blocks, axis=1), *traces)

    transitions = chains * num_draws * thin
    divergent = float(trace.divergences.sum()) / transitions
    warm_steps = int(lengths[:num_warmup].sum()) * chains if sampler == "hmc" else 0
    cost = Cost(warm_steps + int(trace.num_steps.sum()), transitions + chains * num_warmup)
    judged = None
    if judged_later:
        maps = trace.recorded if map_scale is None else map_scale(trace.recorded)
        judged = judge(trace.recorded, divergent, maps)
    acceptance = trace.acceptance.mean(axis=1)
    return Reference(trace.recorded, judged, cost, divergent, np.asarray(state.step_size), acceptance)


def _check_dtype(params: Any) -> None:
    """Positions have the precision of the mode: step size and momentum do."""
    expected = jax.dtypes.canonicalize_dtype(float)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype != expected:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"inits{where} is {leaf.dtype}; expected {expected} (cast it with .astype)")


def _identity(params: Any) -> Any:
    return params


def _keys(key: Array, chains: int, shape: tuple[int, ...]) -> Array:
    return jax.vmap(lambda k: jax.random.split(k, shape))(jax.random.split(key, chains))


def _block_size(num_draws: int) -> int:
    """The largest divisor of num_draws up to 100: blocks of one shape compile once."""
    return max(size for size in range(1, min(_BLOCK, num_draws) + 1) if num_draws % size == 0)


def _mesh(chains: int) -> Mesh:
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if chains % n == 0)
    return Mesh(np.array(devices[:count]), ("chains",))


def _over_chains(run: Callable, mesh: Mesh, per_chain: tuple[bool, ...]) -> Callable:
    """`run` of one chain mapped over the chains of this device, and over the devices of the mesh."""
    axes = tuple(0 if chain else None for chain in per_chain)
    specs = tuple(PartitionSpec("chains") if chain else PartitionSpec() for chain in per_chain)
    mapped = jax.vmap(run, axes)
    return jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("chains"), check_vma=False)


@partial(jax.jit, static_argnames=("sampler", "mesh"))
def _warm_up(
    log_density: Callable, inits: Any, mass: Array, keys: Array, lengths: Array, target: Array, sampler: str, mesh: Mesh
) -> Any:
    run = partial(_blackjax.warm_up, sampler)
    mapped = _over_chains(run, mesh, (False, True, False, True, False, False))
    return mapped(log_density, inits, mass, keys, lengths, target)


@partial(jax.jit, static_argnames=("sampler", "mesh"))
def _draw(
    log_density: Callable,
    state: Any,
    mass: Array,
    record: Callable,
    keys: Array,
    lengths: Array,
    sampler: str,
    mesh: Mesh,
) -> Any:
    run = partial(_blackjax.draw_block, sampler)
    mapped = _over_chains(run, mesh, (False, True, False, False, True, False))
    return mapped(log_density, state, mass, record, keys, lengths)
