"""The reference posterior: BlackJAX HMC over all chains and local devices, with a verdict."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.special import expit

from isouq import _checks
from isouq._frozen import first_row, freeze
from isouq._predict import margin
from isouq.density import freeze_density
from isouq.posterior import _blackjax
from isouq.posterior._checkpoint import Checkpoint
from isouq.posterior._sampling import Plan, run
from isouq.posterior.verdict import Verdict, judge

SAMPLERS = ("hmc", "nuts")


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
    chains_at_once: int | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_seconds: float = 60.0,
) -> Reference:
    """Samples exp(log_density) with HMC (or NUTS) and judges the result in prediction space.

    Args:
        log_density: scalar function of the parameters. It and record are traced anew at every call; arrays that
            they close over are arguments of the compiled programs.
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
        progress: called with the share done, between 0 and 1, about once a hundred transitions.
        chains_at_once: chains of one compiled program, a divisor of their number; 1 by default on a CPU, elsewhere
            all. It decides the last bit of the draws; the number of devices never does. Devices run a program each,
            in as many rounds as it takes, so that up to chains / chains_at_once devices are of use.
        checkpoint: a file to go on from after a kill. It is read if it is there and belongs to the same run (settings,
            key, inits, log density and gradient there, data in log_density and record, versions, kind of device), and
            written between blocks of a hundred transitions. Remove it when the result is safe. A file that is damaged,
            belongs to another run (it is put aside, as NAME.unused) or cannot be written is a warning of one line and
            stops nothing.
        checkpoint_seconds: least time between two writes; each writes all that is kept so far.

    Returns:
        `Reference`. Same key and kind of machine: the same numbers, on any number of devices, with and without
        checkpoint, in one go or after kills.

    Raises:
        ValueError: a wrong shape or setting, or a log density or gradient that is not finite at the start of a chain;
            the message names the chain.

    Cost: (num_warmup + num_draws × thin) × num_leapfrog gradients a chain, compiled once per shape. Chains run side
    by side on the local devices. Memory: what is kept, on the host; of a block of draws, on the devices.
    With chains_at_once=1 one device runs its chains one after the other. `python -m benchmarks reference` measures
    what that costs; on a GPU that a small model leaves idle it can be up to the number of chains.

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
    if chains_at_once is None:
        chains_at_once = 1 if jax.default_backend() == "cpu" else chains
    _checks.positive_int("chains_at_once", chains_at_once)
    if chains % chains_at_once:
        raise ValueError(f"chains_at_once is {chains_at_once}; expected a divisor of the {chains} chains")
    _checks.positive("checkpoint_seconds", checkpoint_seconds)
    first = jax.tree.map(lambda leaf: leaf[0], inits)
    _check_dtype(first)
    log_density = freeze_density(log_density, inits)
    keep_draws = record is None
    if isinstance(record, Margins):
        map_scale = map_scale or partial(probabilities, kind=record.kind)
    record = freeze(_identity if record is None else record, first_row(inits), name="record")
    kept = record.outputs
    judged_later = verdict and not keep_draws and getattr(kept, "ndim", None) == 1
    if judged_later and (num_draws < 4 or kept.shape[0] < 2):
        raise ValueError(
            f"num_draws is {num_draws} and record gives {kept.shape[0]} value(s) a draw; a verdict needs at least "
            "4 draws of 2 values (or pass verdict=False)"
        )
    ones = jax.tree.map(lambda _: 1.0, first)
    mass = _blackjax.flat_diagonal(ones if inverse_mass is None else inverse_mass, first)

    plan = Plan(sampler, num_warmup, num_draws, thin, num_leapfrog, float(target_acceptance), chains, chains_at_once)
    open_checkpoint = None
    if checkpoint is not None:
        open_checkpoint = partial(Checkpoint, Path(checkpoint), checkpoint_seconds)
    state, trace, warm_steps = run(
        plan, log_density, record, jax.tree.map(np.asarray, inits), mass, key, open_checkpoint,
        progress or (lambda _: None),
    )  # fmt: skip

    transitions = chains * num_draws * thin
    divergent = float(trace.divergences.sum()) / transitions
    warm_gradients = warm_steps * chains if sampler == "hmc" else 0
    cost = Cost(warm_gradients + int(trace.num_steps.sum()), transitions + chains * num_warmup)
    judged = None
    if judged_later:
        maps = trace.recorded if map_scale is None else map_scale(trace.recorded)
        judged = judge(trace.recorded, divergent, maps)
    acceptance = trace.acceptance.mean(axis=1)
    return Reference(trace.recorded, judged, cost, divergent, np.asarray(_blackjax.step_size(state)), acceptance)


def _check_dtype(params: Any) -> None:
    """Positions have the precision of the mode: step size and momentum do."""
    expected = jax.dtypes.canonicalize_dtype(float)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype != expected:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"inits{where} is {leaf.dtype}; expected {expected} (cast it with .astype)")


def _identity(params: Any) -> Any:
    return params
