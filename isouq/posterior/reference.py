"""The reference posterior: BlackJAX's HMC in several chains on all local devices, and a verdict on the result."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy.special import expit

from isouq import _checks
from isouq._checkpoint import Checkpoint
from isouq._frozen import first_row, freeze
from isouq._predict import margin
from isouq.density import freeze_density
from isouq.posterior import _blackjax
from isouq.posterior._blackjax import Trace
from isouq.posterior._groups import check_alike, fill, groups, part, per_posterior
from isouq.posterior._sampling import Posterior, Sampling, run
from isouq.posterior.verdict import MIN_ESS, Verdict, judge

_OLD_NAMES = {
    "num_leapfrog": "num_integration_steps",
    "target_acceptance": "target_acceptance_rate",
    "inverse_mass": "inverse_mass_matrix",
}


class Cost(NamedTuple):
    """The cost of a reference, all chains together.

    gradient_evaluations: gradients of the log density. transitions: those of warm-up included. warmup_gradients: the
    gradients of warm-up, part of gradient_evaluations; None where they are not counted, and then not part of it.
    """

    gradient_evaluations: int
    transitions: int
    warmup_gradients: int | None = None


class Reference(NamedTuple):
    """Draws of a posterior, or predictions under them, and a verdict.

    draws: the parameters of every draw, a pytree with leading axes `[chains, draws, ...]`; None with a `record`.
    predictions: the value of `record` for every draw, with the same leading axes; None without a `record`.
    verdict: the result of `isouq.posterior.judge` on the predictions. None without a `record`, because parameters,
        which are symmetric, cannot be judged, and where no verdict was asked for.
    cost: gradient evaluations and transitions.
    divergent: share of divergent transitions after warm-up.
    step_size: the adapted step size, `[chains]`.
    acceptance_rate: mean acceptance probability after warm-up, `[chains]`.
    rounds: number of rounds of draws.
    """

    draws: Any
    predictions: Any
    verdict: Verdict | None
    cost: Cost
    divergent: float
    step_size: Any
    acceptance_rate: Any
    rounds: int = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Margins:
    """A `record` function: from parameters to the margin (log-odds of `target`, or the mean) at each of xs `[points]`.

    A margin takes four bytes, and `probabilities` turns margins into p_c without losing small digits. The class is a
    pytree, so that xs and target are arguments of the compiled program.
    """

    predict: Any
    xs: Any
    target: Any
    kind: str = field(metadata={"static": True})

    def __call__(self, params: Any) -> Float[Array, " points"]:
        """Return the margin of every input under one draw."""
        outputs = jax.vmap(self.predict, (None, 0))(params, self.xs)
        return jax.vmap(lambda out, label: margin(out, label, self.kind))(outputs, self.target)


def probabilities(margins: Any, kind: str) -> np.ndarray:
    """Return p_c of margins (for regression the mean itself) in float64, on the host."""
    return np.asarray(margins, np.float64) if kind == "regression" else expit(np.asarray(margins), dtype=np.float64)


def sample_reference(
    log_density: Callable,
    inits: Any,
    key: Array,
    *,
    sampling: Sampling | None = None,
    record: Callable | None = None,
    inverse_mass_matrix: Any = None,
    verdict: bool | Callable[[Any, float], Verdict] = True,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_seconds: float = 60.0,
    **settings: Any,
) -> Reference:
    """Sample exp(log_density) with HMC or NUTS and judge the result in prediction space.

    Args:
        log_density: function from parameters to a scalar. It and record are traced anew at every call; arrays that
            they close over are arguments of the compiled programs.
        inits: starting parameters with a leading axis of chains: at least 2, better 4 or more, each trained
            independently.
        key: a JAX key.
        sampling: the settings, a `Sampling`; by default `Sampling()`.
        **settings: fields of `Sampling` in place of `sampling`, such as num_draws=500.
        record: function from parameters to what is recorded of a draw, as a rule `Margins(...)`. Without it the
            parameters themselves are recorded, which takes the memory of chains × draws × parameters.
        inverse_mass_matrix: the diagonal, as a pytree of scalars or of arrays like the parameters: about the posterior
            variance of each. By default the identity. The variance of the prior is a safe choice.
        verdict: whether to judge the predictions; or a function from the recorded values of all draws so far and the
            share of divergent transitions to a `Verdict`. An accepted one ends the rounds of draws.
        progress: function that is called with the share that is done, between 0 and 1, about once every hundred
            transitions.
        checkpoint: a file from which an interrupted run continues. It is read if it exists and belongs to the same run
            (settings, key, inits, log density and gradient there, data in log_density and record, versions, kind of
            device), and written between blocks of a hundred transitions. Remove it when the result is safe. If the
            file is damaged or belongs to another run, a warning of one line says so, the file is renamed to
            NAME.unused and the run starts anew. If it cannot be written, a warning says so and the run goes on.
        checkpoint_seconds: shortest time between two writes; each writes all draws so far.

    Returns:
        A `Reference`. The same key on the same kind of machine gives the same numbers, on any number of devices, with
        and without a checkpoint, uninterrupted or continued.

    Raises:
        ValueError: a wrong shape or setting, or a log density or gradient that is not finite at the start of a chain;
            the message names the chain.

    Cost: (num_warmup + rounds × num_draws × thin) × num_integration_steps gradients for each chain; compiled once
    for a shape. Chains run side by side on the local devices. Memory: the recorded values on the host, those of one
    block of draws on the devices. With chains_at_once=1 one device runs its chains one after the other. `python -m
    benchmarks reference` measures what that costs: on a GPU that a small model leaves idle, up to the number of chains.

    Source: Neal (2011); Hoffman and Gelman (2014); Vehtari et al. (2021) for the diagnostics.
    """
    settings = _with_new_names(settings)
    inverse_mass_matrix = settings.pop("inverse_mass_matrix", inverse_mass_matrix)
    if sampling is not None and settings:
        raise ValueError(f"sampling and {', '.join(settings)} were both given; put all settings into sampling")
    sampling = sampling or Sampling(**settings)
    _checks.positive("checkpoint_seconds", checkpoint_seconds)
    task = _task(sampling, log_density, inits, key, record, inverse_mass_matrix, verdict)
    open_checkpoint = None if checkpoint is None else partial(Checkpoint, Path(checkpoint), checkpoint_seconds)
    return _sample([task], 1, sampling, open_checkpoint, progress or (lambda _: None))[0]


def sample_references(
    log_densities: Sequence[Callable],
    inits: Sequence[Any],
    keys: Sequence[Array] | Array,
    *,
    sampling: Sampling | None = None,
    records: Sequence[Callable] | None = None,
    inverse_mass_matrices: Sequence[Any] | None = None,
    verdicts: Sequence[bool | Callable[[Any, float], Verdict]] | None = None,
    progress: Callable[[float], None] | None = None,
    at_once: int | None = None,
) -> list[Reference]:
    """Sample several posteriors of one shape, on a GPU together in one program, and judge each by itself.

    No checkpoints are written: an interrupted call starts anew.

    Args:
        log_densities: the function of each posterior; see `sample_reference` for all arguments. They may differ in the
            values of arrays, and not in Python numbers, which are part of a program.
        inits: the starts of each.
        keys: the JAX key of each.
        sampling: the settings of all.
        records: the function of each that gives what is recorded.
        inverse_mass_matrices: the diagonal of each.
        verdicts: for each whether to judge the predictions, or the function that does; by default all are judged.
        progress: function that is called with the share that is done.
        at_once: the number of posteriors in one program; by default 1 on a CPU and all elsewhere. With 1, each
            reference is that of `sample_reference` to the bit. With more, their chains form one axis, on which each has
            its own log density and data. All chains take trajectories of the same random lengths, which come from the
            first key of a program. A posterior's draws end with the first round that its own verdict accepts; the
            program goes on until all are accepted or has made `max_rounds`.

    Returns:
        A `Reference` for each posterior, in order. The same arguments on the same kind of machine give the same
        numbers. Another `at_once` gives draws of the same distribution, which are not the same draws.

    Raises:
        ValueError: as for `sample_reference`; the posteriors differ in more than the values of their data; or a
            sequence is not as long as that of the log densities.

    Cost: that of `sample_reference` for each posterior; together all take as many rounds as the worst. Compiled once
    for a shape. Memory on the device: data and the draws of one block for every chain of a program. On the host: all
    recorded values of a program, at_once × chains × draws of the worst posterior.
    """
    sampling, count = sampling or Sampling(), len(log_densities)
    rows = per_posterior(
        count, log_densities=log_densities, inits=inits, keys=keys, records=records,
        inverse_mass_matrices=inverse_mass_matrices, verdicts=verdicts if verdicts is not None else [True] * count,
    )  # fmt: skip
    tasks = [_task(sampling, *row) for row in zip(*rows, strict=True)]
    check_alike([task.posterior for task in tasks])
    references: list[Reference] = []
    for group, size in groups(tasks, at_once):

        def report(share: float, before: int = len(references), size: int = len(group)) -> None:
            if progress is not None:
                progress((before + share * size) / count)

        references += _sample(group, size, sampling, None, report)
    return references


class _Task(NamedTuple):
    """A posterior to sample, and what becomes of its draws.

    judge: the function from recorded values and the share of divergent transitions to a verdict; None for no verdict.
    has_record: whether the recorded values are predictions, and not the parameters.
    """

    posterior: Posterior
    judge: Callable[[Any, float], Verdict] | None
    has_record: bool

    def judge_trace(self, trace: Trace, thin: int) -> Verdict | None:
        """Return the verdict on all draws so far; None where none is asked for."""
        if self.judge is None:
            return None
        verdict = self.judge(trace.recorded, _share_of_divergent(trace, thin))
        if not isinstance(verdict, Verdict):
            raise ValueError(f"the function verdict returned {verdict!r}; expected an isouq.posterior.Verdict")
        return verdict


def _task(
    sampling: Sampling,
    log_density: Callable,
    inits: Any,
    key: Array,
    record: Callable | None,
    inverse_mass_matrix: Any,
    verdict: bool | Callable[[Any, float], Verdict],
) -> _Task:
    """Check the arguments of a posterior and trace its functions."""
    check_inits(inits)
    first = jax.tree.map(lambda leaf: leaf[0], inits)
    _check_dtype(first)
    log_density = freeze_density(log_density, inits)
    frozen = freeze(_identity if record is None else record, first_row(inits), name="record")
    judge_draws: Callable[[Any, float], Verdict] | None = verdict if callable(verdict) else None
    if verdict is True and record is not None and getattr(frozen.outputs, "ndim", None) == 1:
        judge_draws = partial(judge_record, record)
        if sampling.num_draws < 4 or frozen.outputs.shape[0] < 2:
            raise ValueError(
                f"num_draws is {sampling.num_draws} and record gives {frozen.outputs.shape[0]} value(s) a draw; a "
                "verdict needs at least 4 draws of 2 values (or pass verdict=False)"
            )
    if inverse_mass_matrix is None:
        inverse_mass_matrix = jax.tree.map(lambda _: 1.0, first)
    _checks.positive_like("inverse_mass_matrix", inverse_mass_matrix, inits)
    diagonal = _blackjax.flat_diagonal(inverse_mass_matrix, first)
    posterior = Posterior(log_density, frozen, diagonal, jax.tree.map(np.asarray, inits), key)
    return _Task(posterior, judge_draws, record is not None)


def _sample(
    tasks: Sequence[_Task],
    size: int,
    sampling: Sampling,
    open_checkpoint: Callable[[str], Checkpoint] | None,
    progress: Callable[[float], None],
) -> list[Reference]:
    """Return the references of posteriors whose chains run together, in a program for `size` posteriors."""
    traces: list[Any] = [None] * len(tasks)
    verdicts: list[Verdict | None] = [None] * len(tasks)
    is_done = [False] * len(tasks)

    def is_enough(trace: Trace) -> bool:
        rounds = trace.num_steps.shape[1] // sampling.num_draws
        for index, task in enumerate(tasks):
            if not is_done[index]:
                traces[index] = part(trace, index, size)
                verdicts[index] = task.judge_trace(traces[index], sampling.thin)
                is_done[index] = _ends(verdicts[index], rounds, sampling)
        return all(is_done)

    posteriors = fill([task.posterior for task in tasks], size)
    state, trace, warm_steps = run(sampling, posteriors, open_checkpoint, progress, is_enough)
    if traces[0] is None:  # a checkpoint after the last block leaves nothing to run
        is_enough(trace)
    step_sizes = np.asarray(_blackjax.step_size(state))
    return [
        _reference(task.has_record, sampling, traces[index], verdicts[index], part(step_sizes, index, size), warm_steps)
        for index, task in enumerate(tasks)
    ]


def _ends(verdict: Verdict | None, rounds: int, sampling: Sampling) -> bool:
    """Return whether no draws are wanted after this verdict: it accepts, or `Sampling.give_up` says so."""
    if verdict is None:
        return False
    ess_at_the_end = verdict.ess_bulk * sampling.max_rounds / rounds
    return verdict.accepted or (sampling.give_up and rounds >= 2 and ess_at_the_end < MIN_ESS / 2)


def _reference(
    has_record: bool, sampling: Sampling, trace: Trace, verdict: Verdict | None, step_size: Any, warm_steps: int
) -> Reference:
    """Return the reference that the draws of one posterior's chains make."""
    chains, num_draws = trace.num_steps.shape
    warmup_gradients = warm_steps * chains if sampling.sampler == "hmc" else None  # NUTS does not count its warm-up's
    return Reference(
        draws=None if has_record else trace.recorded,
        predictions=trace.recorded if has_record else None,
        verdict=verdict,
        cost=Cost(
            (warmup_gradients or 0) + int(trace.num_steps.sum()),
            chains * (num_draws * sampling.thin + sampling.num_warmup),
            warmup_gradients,
        ),
        divergent=_share_of_divergent(trace, sampling.thin),
        step_size=step_size,
        acceptance_rate=trace.acceptance.mean(axis=1),
        rounds=num_draws // sampling.num_draws,
    )


def _share_of_divergent(trace: Trace, thin: int) -> float:
    return float(trace.divergences.sum()) / (trace.divergences.size * thin)


def judge_record(record: Any, predictions: Any, divergent: float) -> Verdict:
    """Return the verdict on the values of `record`; the variance maps of `Margins` are those of their probabilities."""
    maps = probabilities(predictions, record.kind) if isinstance(record, Margins) else predictions
    return judge(predictions, divergent, maps)


def _with_new_names(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords with the names of version 0.2, and warn of each old one; raise where one is unknown."""
    renamed = {}
    for name, value in settings.items():
        new = _OLD_NAMES.get(name, name)
        if new != name:
            warnings.warn(f"{name} is called {new} since version 0.2", DeprecationWarning, stacklevel=3)
        elif name not in Sampling.__dataclass_fields__:
            raise TypeError(
                f"sample_reference got {name}=, which is no argument and no setting; the settings are "
                f"{', '.join(Sampling.__dataclass_fields__)}"
            )
        renamed[new] = value
    return renamed


def check_inits(inits: Any) -> int:
    """Return the number of chains; raise unless the starts of at least two are finite floating arrays."""
    _checks.float_leaves("inits", inits)
    chains = _checks.count_rows(inits, "inits", "chain")
    if chains < 2:
        raise ValueError(
            f"inits has {chains} chain; expected at least 2 (4 or more for a verdict): "
            "jax.vmap(init)(jax.random.split(key, 4))"
        )
    _checks.finite("inits", inits)
    return chains


def _check_dtype(params: Any) -> None:
    """Raise unless the parameters have JAX's default precision, which the step size and the momentum have."""
    expected = jax.dtypes.canonicalize_dtype(float)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype != expected:
            where = jax.tree_util.keystr(path)
            raise ValueError(f"inits{where} is {leaf.dtype}; expected {expected} (cast it with .astype)")


def _identity(params: Any) -> Any:
    return params
