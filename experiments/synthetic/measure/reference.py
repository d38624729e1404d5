"""The reference posterior: θ* is trained, and HMC chains that start there sample the posterior."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.configuration import Configuration
from experiments.synthetic.subject import evaluation_inputs, set_up
from isouq import problems
from isouq._predict import predicted_class
from isouq.posterior import Margins, Sampling, Verdict, fit_map, judge, probabilities, sample_reference


def measure_reference(
    cell: Configuration,
    problem: problems.Problem,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
) -> Result:
    """Train θ*, sample the reference by HMC, and compute its verdict: the part of a cell that takes the time.

    progress: called with the share of the sampling that is done. checkpoint: the file from which an interrupted
    sampling goes on; see `sample_reference`.

    Columns: those of the verdict. rounds: the rounds of draws until it accepted, or all that are allowed. map_NAME: log
    density and norm of its gradient at θ*, and whether training converged. map_spread: how far the log density at the
    end of the worst start lies below that at θ*, in nats. map_escapes: how often a start was led away from a saddle.
    """
    clock = Clock()
    setting = set_up(cell, problem)
    log_density, kind = setting.log_density, setting.log_density.kind
    xs, grid, wide = evaluation_inputs(cell, setting.data.xs)
    fit = fit_map(log_density, setting.inits)
    best = int(fit.best_index())
    clock.lap("seconds_map", fit.params)
    target = _predicted_classes(setting.predict, fit.best(), xs, kind)
    record = jax.tree_util.Partial(_margins_and_draw, Margins(setting.predict, xs, target, kind))

    def judge_grid(recorded: Any, divergent: float) -> Verdict:
        margins = recorded[0][:, :, grid]
        return judge(margins, divergent, probabilities(margins, kind))

    reference = sample_reference(
        log_density, fit.params, setting.chain_key, sampling=sampler_settings(cell), record=record,
        inverse_mass_matrix=jax.tree.map(jnp.square, log_density.scales), progress=progress, verdict=judge_grid,
        checkpoint=checkpoint,
    )  # fmt: skip
    clock.lap("seconds_reference")
    margins, draws = reference.predictions
    p = probabilities(margins, kind)
    flat = p.reshape(-1, len(xs))
    numbers = {
        **reference.verdict._asdict(),  # type: ignore[union-attr]
        "accepted_wide": judge(margins[:, :, wide], reference.divergent, p[:, :, wide]).accepted,
        "best": best,
        "num_params": draws.shape[-1],
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
    clock.lap("seconds_verdict")
    arrays = {
        "draws": draws,
        "starts": np.concatenate([leaf.reshape(cell.chains, -1) for leaf in jax.tree.leaves(fit.params)], axis=1),
        "variance": flat.var(axis=0),
        "mean": flat.mean(axis=0),
    }
    if kind != "regression":
        arrays["aleatoric"] = (flat * (1 - flat)).mean(axis=0)
    return Result({**dataclasses.asdict(cell), **numbers, **clock.laps()}, arrays)


def sampler_settings(cell: Configuration) -> Sampling:
    """Return how the chains of a configuration are sampled."""
    return Sampling(
        cell.num_draws, cell.num_warmup, cell.num_leapfrog, cell.thin, sampler=cell.sampler, max_rounds=cell.max_rounds
    )


@partial(jax.jit, static_argnames="kind")
def _predicted_classes(predict: Callable, theta: Any, xs: Any, kind: str) -> Any:
    """Return the class that is differentiated at each input; None for regression."""
    return jax.vmap(lambda x: predicted_class(predict(theta, x), kind))(xs)


def _margins_and_draw(margins: Margins, params: Any) -> tuple[Any, Any]:
    return margins(params), ravel_pytree(params)[0]
