"""What every study of a cell starts from: data, model, θ* and a judged reference posterior with its draws."""

import dataclasses
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.synthetic.cell import Cell, Result
from isouq import models, problems, stats
from isouq._uncertainty import Uncertainty, uncertainty
from isouq.posterior import LogDensity, Margins, Sampling, fit_map, judge, probabilities, sample_reference

# What a study's row takes over from its reference.
FACTS = (
    "accepted", "rhat", "ess_bulk", "divergent", "halves", "accepted_wide", "num_params", "map_log_density",
    "map_grad_norm", "map_converged", "step_size", "acceptance", "gradient_evaluations",
)  # fmt: skip


class Setting(NamedTuple):
    """Data, model and posterior of a cell, before anything is trained.

    inits: one set of parameters a chain. chain_key, second_key: for the samplers.
    """

    problem: problems.Problem
    data: problems.Dataset
    predict: Callable
    log_density: LogDensity
    inits: Any
    chain_key: Any
    second_key: Any


class Subject(NamedTuple):
    """A cell with its reference.

    theta: θ*, the best of one trained start a chain. starts: all of them, leading axis of chains.
    xs: the evaluation inputs, of which `here` are the grid of the comparison and `there` a coarser, wider one.
    estimate: ‖g‖² and p(1 − p) at xs. variance: Var_θ[p_c] at xs `[points]`, float64.
    draws: the reference's draws `[chains, draws, P]`, flat as `ravel_pytree(theta)`.
    reference: the stored result: verdicts, costs, and the maps over xs.
    seconds_estimate: what `estimate` took, compilation included.
    """

    cell: Cell
    setting: Setting
    theta: Any
    starts: Any
    xs: Any
    here: slice
    there: slice
    estimate: Uncertainty
    variance: np.ndarray
    draws: np.ndarray
    reference: Result
    seconds_estimate: float

    @property
    def target(self) -> Any:
        """The class that was differentiated at each input of the grid; None for regression."""
        return None if self.estimate.target is None else self.estimate.target[self.here]

    @property
    def kind(self) -> str:
        """Binary, multiclass or regression."""
        return self.setting.log_density.kind

    def facts(self) -> dict[str, Any]:
        """The columns that every study's row begins with: the cell, the verdict, training and cost."""
        numbers = self.reference.numbers
        return {**dataclasses.asdict(self.cell), **{name: numbers[name] for name in FACTS}}


def setting(cell: Cell, problem: problems.Problem) -> Setting:
    """Everything drawn from the cell's seed."""
    hidden = problem.hidden if cell.width is None else (cell.width,)
    data_key, init_key, chain_key, second_key = jax.random.split(jax.random.key(cell.seed), 4)
    data = problem.sample(data_key, cell.num_points)
    predict, init = models.mlp(data.xs.shape[1], hidden, problem.num_outputs)
    inits = jax.jit(jax.vmap(init))(jax.random.split(init_key, cell.chains))
    log_density = LogDensity.of(
        predict, _first(inits), data.xs, data.ys, problem.kind,
        prior=cell.prior, sigma=cell.sigma, noise=problem.noise,
    )  # fmt: skip
    return Setting(problem, data, predict, log_density, inits, chain_key, second_key)


def evaluation_inputs(cell: Cell, xs: Any) -> tuple[Any, slice, slice]:
    """The grid of the comparison followed by the coarser grid of the wide region, and where each stands."""
    coarse = max(2, cell.resolution // 2) if cell.resolution else (100 if xs.shape[1] == 1 else 25)
    grid = problems.evaluation_inputs(xs, cell.resolution)
    wide = problems.evaluation_inputs(xs, coarse, widen=None)
    return jnp.concatenate([grid, wide]), slice(0, len(grid)), slice(len(grid), None)


def measure_reference(
    cell: Cell,
    problem: problems.Problem,
    progress: Callable[[float], None] | None = None,
    checkpoint: Path | None = None,
) -> Result:
    """Trains θ*, samples the reference and judges it: the part of a cell that takes the time.

    checkpoint: of the sampling, from which it goes on; see `sample_reference`.
    """
    clock = Clock()
    made = setting(cell, problem)
    log_density, kind = made.log_density, made.log_density.kind
    xs, here, there = evaluation_inputs(cell, made.data.xs)
    fit = fit_map(log_density, made.inits)
    best = int(fit.best_index())
    clock.lap("seconds_map", fit.params)
    target = uncertainty(made.predict, fit.best(), xs, kind).target
    record = jax.tree_util.Partial(_margins_and_draw, Margins(made.predict, xs, target, kind))
    clock.lap("seconds_target")
    sampling = Sampling(cell.num_draws, cell.num_warmup, cell.num_leapfrog, cell.thin, sampler=cell.sampler)
    reference = sample_reference(
        log_density, fit.params, made.chain_key, sampling=sampling, record=record,
        inverse_mass_matrix=jax.tree.map(jnp.square, log_density.scales), progress=progress, verdict=False,
        checkpoint=checkpoint,
    )  # fmt: skip
    clock.lap("seconds_reference")
    margins, draws = reference.predictions
    p = probabilities(margins, kind)
    flat = p.reshape(-1, len(xs))
    numbers = {
        **judge(margins[:, :, here], reference.divergent, p[:, :, here])._asdict(),
        "accepted_wide": judge(margins[:, :, there], reference.divergent, p[:, :, there]).accepted,
        "best": best,
        "num_params": draws.shape[-1],
        "map_log_density": float(fit.log_density[best]),
        "map_grad_norm": float(fit.grad_norm[best]),
        "map_converged": bool(fit.converged[best]),
        "map_steps": int(fit.num_steps.sum()),
        "step_size": float(reference.step_size.mean()),
        "acceptance": float(reference.acceptance.mean()),
        "gradient_evaluations": reference.cost.gradient_evaluations,
    }
    clock.lap("seconds_verdict")
    arrays = {
        "draws": draws,
        "starts": np.asarray(jax.vmap(lambda params: ravel_pytree(params)[0])(fit.params)),
        "variance": flat.var(axis=0),
        "mean": flat.mean(axis=0),
    }
    if kind != "regression":
        arrays["aleatoric"] = (flat * (1 - flat)).mean(axis=0)
    return Result({**dataclasses.asdict(cell), **numbers, **clock.laps()}, arrays)


def _margins_and_draw(margins: Margins, params: Any) -> tuple[Any, Any]:
    return margins(params), ravel_pytree(params)[0]


def subject(cell: Cell, problem: problems.Problem, reference: Result) -> Subject:
    """The cell with a reference that was computed before."""
    made = setting(cell, problem)
    _, unravel = ravel_pytree(_first(made.inits))
    starts = jax.vmap(unravel)(jnp.asarray(reference.arrays["starts"]))
    theta = jax.tree.map(lambda leaf: leaf[reference.numbers["best"]], starts)
    xs, here, there = evaluation_inputs(cell, made.data.xs)
    clock = Clock()
    estimate = uncertainty(made.predict, theta, xs, made.log_density.kind)
    clock.lap("seconds_estimate", estimate)
    variance, draws = reference.arrays["variance"], reference.arrays["draws"]
    seconds = clock.laps()["seconds_estimate"]
    return Subject(cell, made, theta, starts, xs, here, there, estimate, variance, draws, reference, seconds)


def correlations(name: str, one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """The columns NAME_pearson and NAME_spearman of two maps."""
    return {f"{name}_pearson": stats.pearson(one, other), f"{name}_spearman": stats.spearman(one, other)}


class Clock:
    """Seconds between named points, and in all."""

    def __init__(self) -> None:
        self._points = [("", time.perf_counter())]

    def lap(self, name: str, value: Any = None) -> None:
        """Ends a lap once `value` is computed."""
        jax.block_until_ready(value)
        self._points.append((name, time.perf_counter()))

    def laps(self) -> dict[str, float]:
        """The laps by name, and `seconds`."""
        self.lap("seconds_rest")
        laps = {name: end - start for (_, start), (name, end) in pairwise(self._points)}
        return {**laps, "seconds": self._points[-1][1] - self._points[0][1]}


def _first(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], tree)
