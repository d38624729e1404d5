"""What every study starts from: data, model, θ*, and a sampled reference posterior with its verdict."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.configuration import Configuration
from isouq import models, problems, stats
from isouq._uncertainty import Uncertainty, uncertainty
from isouq.posterior import LogDensity

FLAT = 1e-3  # relative range of ‖g‖² below which θ* predicts the same at all inputs
# The columns of a study's row that come from its reference, and `flat`; see `is_flat`.
FACTS = (
    "accepted", "flat", "rhat", "ess_bulk", "divergent", "halves", "accepted_wide", "num_params",
    "map_grad_norm", "map_converged", "map_log_density", "map_spread", "map_escapes",
    "rounds", "step_size", "acceptance", "gradient_evaluations",
)  # fmt: skip


class Setting(NamedTuple):
    """Data, model and posterior of a cell, before anything is trained.

    held_out: the points at which the study compares maps; None where it compares them on a grid. zeros: parameters of
    the model's shapes. init: the function from a key to initial parameters. init_keys: its keys, one for each chain.
    chain_key, second_key: random keys, of the reference's chains and of everything else that a study draws.
    """

    problem: problems.Problem
    data: problems.Dataset
    held_out: problems.Dataset | None
    predict: Callable
    log_density: LogDensity
    zeros: Any
    init: Callable
    init_keys: Any
    chain_key: Any
    second_key: Any

    @property
    def inits(self) -> Any:
        """Return the initial parameters of every chain, with a leading axis of chains."""
        return _initialise(self.init, self.init_keys)


# it runs once, and at the full level of optimisation it takes a second to compile
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})
def _initialise(init: Callable, keys: Any) -> Any:
    return jax.vmap(init)(keys)


class Subject(NamedTuple):
    """What a study measures: a configuration with its trained parameters θ* and its reference posterior.

    starts: the trained parameters of every chain, with a leading axis of chains. theta: θ*, the best of them.
    xs: the evaluation inputs; the rows `grid` are the grid of the comparison, the rows `wide` a coarser, wider one.
    estimate: ‖g‖² and p(1 − p) at xs. variance: Var_θ[p_c] at xs `[points]`, float64.
    draws: the reference's draws `[chains, draws, P]`, flat as `ravel_pytree(theta)`.
    reference: the stored result: verdict, cost, and the maps over xs.
    seconds_estimate: the time that `estimate` took, compilation included.
    """

    cell: Configuration
    setting: Setting
    theta: Any
    starts: Any
    xs: Any
    grid: slice
    wide: slice
    estimate: Uncertainty
    variance: np.ndarray
    draws: np.ndarray
    reference: Result
    seconds_estimate: float

    @property
    def target(self) -> Any:
        """Return the class that was differentiated at each input of the grid; None for regression."""
        return None if self.estimate.target is None else self.estimate.target[self.grid]

    @property
    def kind(self) -> str:
        """Return the kind of the problem: "binary", "multiclass" or "regression"."""
        return self.setting.log_density.kind

    def facts(self) -> dict[str, Any]:
        """Return the columns that every study's row begins with: the configuration, the verdict, training and cost."""
        numbers = self.reference.numbers | {"flat": is_flat(self.estimate.epistemic[self.grid])}
        return {**dataclasses.asdict(self.cell), **{name: numbers[name] for name in FACTS}}


def set_up(cell: Configuration, problem: problems.Problem) -> Setting:
    """Draw data and random keys from the cell's seed."""
    hidden = problem.hidden if cell.width is None else (cell.width,) * cell.depth
    data_key, init_key, chain_key, second_key = jax.random.split(jax.random.key(cell.seed), 4)
    data = problem.sample(data_key, cell.num_points)
    predict, init = models.mlp(data.xs.shape[1], hidden, problem.num_outputs, cell.activation)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), jax.eval_shape(init, init_key))
    log_density = LogDensity.of(
        predict, zeros, data.xs, data.ys, problem.kind,
        prior=cell.prior, sigma=cell.sigma, noise=problem.noise,
    )  # fmt: skip
    init_keys = jax.random.split(init_key, cell.chains)
    held_out = problem.sample_held_out(data_key)
    if held_out is not None and held_out.xs.shape[1] != data.xs.shape[1]:
        raise ValueError(
            f"held-out points of {problem.name!r} have {held_out.xs.shape[1]} features; "
            f"expected {data.xs.shape[1]}, as its training points have"
        )
    return Setting(problem, data, held_out, predict, log_density, zeros, init, init_keys, chain_key, second_key)


def evaluation_inputs(cell: Configuration, setting: Setting) -> tuple[Any, slice, slice]:
    """Return the grid of the comparison followed by the coarser grid of the wide region, and the rows of each.

    Where the problem has held-out points, the comparison is at these, and the wide region has no rows.
    """
    if setting.held_out is not None:
        size = len(setting.held_out.xs)
        return setting.held_out.xs, slice(0, size), slice(size, None)
    xs = setting.data.xs
    coarse = max(2, cell.resolution // 2) if cell.resolution else (100 if xs.shape[1] == 1 else 25)
    grid = np.asarray(problems.evaluation_inputs(xs, cell.resolution))
    wide = np.asarray(problems.evaluation_inputs(xs, coarse, widen=None))
    return jnp.asarray(np.concatenate([grid, wide])), slice(0, len(grid)), slice(len(grid), None)


def subject(cell: Configuration, problem: problems.Problem, reference: Result) -> Subject:
    """Return what a study measures, from a reference that was computed before."""
    setting = set_up(cell, problem)
    ends = unravel_rows(reference.arrays["starts"], setting.zeros)
    theta = jax.tree.map(lambda leaf: jnp.asarray(leaf[reference.numbers["best"]]), ends)
    starts = jax.tree.map(jnp.asarray, ends)
    xs, grid, wide = evaluation_inputs(cell, setting)
    clock = Clock()
    estimate = uncertainty(setting.predict, theta, xs, setting.log_density.kind)
    clock.lap("seconds_estimate", estimate)
    variance, draws = reference.arrays["variance"], reference.arrays["draws"]
    seconds = clock.laps()["seconds_estimate"]
    return Subject(cell, setting, theta, starts, xs, grid, wide, estimate, variance, draws, reference, seconds)


def ravel_rows(tree: Any) -> np.ndarray:
    """Return parameters with a leading axis n as rows `[n, P]`, in the order of `ravel_pytree`."""
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in jax.tree.leaves(tree)], axis=1)


def unravel_rows(rows: np.ndarray, like: Any) -> Any:
    """Return rows `[n, P]` as a pytree like `like` with a leading axis n: the inverse of `ravel_rows`."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = np.split(rows, ends, axis=1)
    return jax.tree.unflatten(
        treedef, [part.reshape(-1, *np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    )


def epistemic_map(setting: Setting, theta: Any, xs: Any, covariance: Any = None) -> np.ndarray:
    """Return the epistemic uncertainty gᵀΣg at every input, float64; ‖g‖² without a covariance."""
    kind = setting.log_density.kind
    return np.asarray(uncertainty(setting.predict, theta, xs, kind, covariance=covariance).epistemic, np.float64)


def at_class(by_class: np.ndarray, target: np.ndarray | None) -> np.ndarray:
    """Return the values `[..., points]` of one class at each input; of the only row where there is one.

    by_class: `[classes, ..., points]`. target: the class at each input, `[points]`; None for regression.
    """
    if len(by_class) == 1 or target is None:
        return by_class[0]
    return np.take_along_axis(by_class, target.reshape(*[1] * (by_class.ndim - 1), -1), axis=0)[0]


def is_flat(estimate: Any) -> bool:
    """Return whether ‖g‖² is nearly the same at all inputs: its range is below `FLAT` of its mean.

    θ* then predicts the same everywhere, and a correlation would be that of rounding errors.
    """
    return relative_range(estimate) < FLAT


def relative_range(estimate: Any) -> float:
    """Return (max − min) / mean of a map, 0 for a constant one."""
    estimate = np.asarray(estimate, np.float64)
    size = np.ptp(estimate)
    return float(size / estimate.mean()) if size else 0.0


def correlations(name: str, one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return the correlations of two maps as the columns NAME_pearson and NAME_spearman."""
    return {f"{name}_pearson": stats.pearson(one, other), f"{name}_spearman": stats.spearman(one, other)}
