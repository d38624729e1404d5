"""The reference posterior: θ* is trained, and HMC chains that start there sample the posterior."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.configuration import Configuration
from experiments.synthetic.subject import Setting, evaluation_inputs, ravel_rows, set_up
from isouq._predict import predicted_class
from isouq.posterior import (
    MapFit,
    Margins,
    Reference,
    Sampling,
    Verdict,
    fit_map,
    fit_maps,
    judge,
    probabilities,
    sample_reference,
    sample_references,
)
from isouq.problems import Problem

MAX_STORED = 20_000  # parameters of a model whose draws are stored; a thousand draws of it take 80 MB


def measure_reference(
    cell: Configuration,
    problem: Problem,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
) -> Result:
    """Train θ*, sample the reference by HMC, and compute its verdict: the part of a cell that takes the time.

    progress: called with the share of the sampling that is done. checkpoint: the file from which an interrupted
    sampling goes on; see `sample_reference`.

    The draws of a model of more than `MAX_STORED` parameters are not stored: their array has no columns.

    Columns: those of the verdict. rounds: the rounds of draws until it accepted, or all that are allowed. map_NAME: log
    density and norm of its gradient at θ*, and whether training converged. map_spread: how far the log density at the
    end of the worst start lies below that at θ*, in nats. map_escapes: how often a start was led away from a saddle.
    """
    clock = Clock()
    setting = set_up(cell, problem)
    fit = fit_map(setting.log_density, setting.inits)
    clock.lap("seconds_map", fit.params)
    trained = _prepare(cell, setting, fit)
    reference = sample_reference(
        setting.log_density, fit.params, setting.chain_key, sampling=sampler_settings(cell), record=trained.record,
        inverse_mass_matrix=trained.prior_variance, progress=progress, verdict=trained.judge, checkpoint=checkpoint,
    )  # fmt: skip
    clock.lap("seconds_reference")
    numbers, arrays = _summarise(trained, reference)
    clock.lap("seconds_verdict")
    return Result({**numbers, **clock.laps()}, arrays)


def measure_references(
    cells: Sequence[Configuration],
    problems: Sequence[Problem],
    progress: Callable[[float], None] | None = None,
    at_once: int | None = None,
) -> list[Result]:
    """Measure several references of one shape as `measure_reference` does, together on an accelerator.

    problems: that of each cell. at_once: the number of posteriors in one program; see `sample_references`.

    The columns are those of `measure_reference`; of the seconds each row has an equal share.
    """
    clock = Clock()
    samplings = {sampler_settings(cell) for cell in cells}
    if len(samplings) != 1:
        raise ValueError(
            f"the cells have {len(samplings)} different settings of the sampler; measure those of each apart"
        )
    settings = [set_up(*pair) for pair in zip(cells, problems, strict=True)]
    log_densities = [setting.log_density for setting in settings]
    fits = fit_maps(log_densities, [setting.inits for setting in settings], at_once=at_once)
    clock.lap("seconds_map", [fit.params for fit in fits])
    posteriors = [_prepare(*row) for row in zip(cells, settings, fits, strict=True)]
    references = sample_references(
        log_densities, [fit.params for fit in fits], [setting.chain_key for setting in settings],
        sampling=samplings.pop(), records=[trained.record for trained in posteriors],
        inverse_mass_matrices=[trained.prior_variance for trained in posteriors], progress=progress,
        verdicts=[trained.judge for trained in posteriors], at_once=at_once,
    )  # fmt: skip
    clock.lap("seconds_reference")
    summaries = [_summarise(*pair) for pair in zip(posteriors, references, strict=True)]
    clock.lap("seconds_verdict")
    seconds = {name: lap / len(cells) for name, lap in clock.laps().items()}
    return [Result({**numbers, **seconds}, arrays) for numbers, arrays in summaries]


class TrainedPosterior(NamedTuple):
    """A posterior that is ready to be sampled.

    xs: the evaluation inputs. grid, wide: the rows of xs where the study compares, and those of the wider region.
    record: the function from parameters to what is recorded of a draw. prior_variance: that of each leaf.
    """

    cell: Configuration
    setting: Setting
    fit: MapFit
    xs: Any
    grid: slice
    wide: slice
    record: Any
    prior_variance: Any

    @property
    def kind(self) -> str:
        """Return the kind of the problem: "binary", "multiclass" or "regression"."""
        return self.setting.log_density.kind

    def judge(self, recorded: Any, divergent: float) -> Verdict:
        """Return the verdict on the grid of the comparison."""
        margins = recorded[0][:, :, self.grid]
        return judge(margins, divergent, probabilities(margins, self.kind))


def _prepare(cell: Configuration, setting: Setting, fit: MapFit) -> TrainedPosterior:
    """Return the trained posterior with its evaluation inputs and the classes that are differentiated there."""
    kind = setting.log_density.kind
    xs, grid, wide = evaluation_inputs(cell, setting)
    target = _predicted_classes(setting.predict, fit.best(), xs, kind)
    values = _margins_alone if _num_params(setting) > MAX_STORED else _margins_and_draw
    record = jax.tree_util.Partial(values, Margins(setting.predict, xs, target, kind))
    return TrainedPosterior(
        cell, setting, fit, xs, grid, wide, record, jax.tree.map(jnp.square, setting.log_density.scales)
    )


def _summarise(trained: TrainedPosterior, reference: Reference) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the numbers, without seconds, and the arrays of a sampled posterior."""
    cell, fit, wide = trained.cell, trained.fit, trained.wide
    best = int(fit.best_index())
    margins, draws = reference.predictions
    p = probabilities(margins, trained.kind)
    flat = p.reshape(-1, len(trained.xs))
    verdict = reference.verdict
    assert verdict is not None
    has_wide = margins[0, 0, wide].size > 0
    numbers = {
        **dataclasses.asdict(cell),
        **verdict._asdict(),
        "accepted_wide": has_wide and judge(margins[:, :, wide], reference.divergent, p[:, :, wide]).accepted,
        "best": best,
        "num_params": _num_params(trained.setting),
        "map_grad_norm": float(fit.grad_norm[best]),
        "map_converged": bool(fit.converged[best]),
        "map_log_density": float(fit.log_density[best]),
        "map_spread": float(np.ptp(fit.log_density)),
        "map_escapes": int(fit.num_escapes.sum()),
        "rounds": reference.rounds,
        "step_size": float(reference.step_size.mean()),
        "acceptance": float(reference.acceptance_rate.mean()),
        "gradient_evaluations": reference.cost.gradient_evaluations,
    }
    arrays = {
        "draws": draws,
        "starts": ravel_rows(fit.params),
        "variance": flat.var(axis=0),
        "mean": flat.mean(axis=0),
    }
    if trained.kind != "regression":
        arrays["aleatoric"] = (flat * (1 - flat)).mean(axis=0)
    return numbers, arrays


def sampler_settings(cell: Configuration) -> Sampling:
    """Return how the chains of a configuration are sampled."""
    return Sampling(
        cell.num_draws,
        cell.num_warmup,
        cell.num_leapfrog,
        cell.thin,
        sampler=cell.sampler,
        max_rounds=cell.max_rounds,
        give_up=cell.give_up,
    )


@partial(jax.jit, static_argnames="kind")
def _predicted_classes(predict: Callable, theta: Any, xs: Any, kind: str) -> Any:
    """Return the class that is differentiated at each input; None for regression."""
    return jax.vmap(lambda x: predicted_class(predict(theta, x), kind))(xs)


def _num_params(setting: Setting) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(setting.zeros))


def _margins_alone(margins: Margins, params: Any) -> tuple[Any, Any]:
    return margins(params), jnp.zeros(0)


def _margins_and_draw(margins: Margins, params: Any) -> tuple[Any, Any]:
    return margins(params), ravel_pytree(params)[0]
