"""One way to run a cell: data, θ*, estimates, reference posterior, and how well they agree.

A cell is a pure function of its frozen configuration. Its result is written once, atomically, under
`DIR/cells/`, and is never computed again.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks, models, problems, stats
from isouq.covariance import Dense, negative_hessian
from isouq.posterior import (
    PRIORS,
    LogDensity,
    MapFit,
    Margins,
    fit_map,
    judge,
    linear_regression,
    probabilities,
    sample_numpyro,
    sample_reference,
)
from isouq.posterior.reference import SAMPLERS
from isouq.uncertainty import uncertainty

# Part of every cell's key. Raise it when a change to the code changes the numbers of a cell.
CELL_VERSION = 1


@dataclass(frozen=True)
class Cell:
    """Everything a result depends on. `width` None is the problem's own model."""

    problem: str
    seed: int = 0
    width: int | None = None
    prior: str = "unit"
    sigma: float = 1.0
    num_points: int = 200
    chains: int = 4
    num_warmup: int = 500
    num_draws: int = 500
    thin: int = 1
    num_leapfrog: int = 50
    sampler: str = "hmc"
    resolution: int | None = None
    laplace: bool = False
    second_opinion: bool = False

    def __post_init__(self) -> None:
        _checks.positive_int("seed", self.seed, 0)
        if self.resolution is not None:
            _checks.positive_int("resolution", self.resolution, 2)
        _checks.one_of("prior", self.prior, PRIORS)
        _checks.one_of("sampler", self.sampler, SAMPLERS)
        _checks.positive("sigma", self.sigma)
        if self.width is not None:
            _checks.positive_int("width", self.width)
        _checks.positive_int("chains", self.chains, 2)
        _checks.positive_int("num_warmup", self.num_warmup, 10)
        _checks.positive_int("num_draws", self.num_draws, 4)
        for name in ("num_points", "thin", "num_leapfrog"):
            _checks.positive_int(name, getattr(self, name))
        for field in dataclasses.fields(self):  # equal cells have one key: 1, 1.0 and np.int64(1) are written alike
            value = getattr(self, field.name)
            if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value) if field.name == "sigma" else int(value))

    def key(self) -> str:
        """A hash of the configuration and of the code's version."""
        text = json.dumps({**dataclasses.asdict(self), "version": CELL_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def label(self) -> str:
        """How progress and errors name the cell."""
        width = "" if self.width is None else f", width {self.width}"
        return f"{self.problem}{width}, {self.prior} σ={self.sigma:g}, seed {self.seed}"

    def weight(self) -> float:
        """Expected seconds with two cores at work, from measured cells: for the estimate of the time left."""
        width = 32 if self.width is None else self.width
        gradients = self.chains * (self.num_warmup + self.num_draws * self.thin) * self.num_leapfrog
        judging = 2.2e-3 * self.chains * self.num_draws
        core_seconds = 4 + gradients * (3e-5 + 7.5e-7 * width) + judging + 60 * self.second_opinion
        return core_seconds / 2


class Result(NamedTuple):
    """numbers: one row of a table. arrays: maps over the evaluation inputs, and the data."""

    numbers: dict[str, Any]
    arrays: dict[str, np.ndarray]


def run_cell(
    cell: Cell,
    problem: problems.Problem | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Runs one cell.

    problem: a problem of one's own; by default the one that the cell names.
    progress: called with the share done.
    """
    laps = [("", time.perf_counter())]

    def lap(name: str, value: Any = None) -> None:
        jax.block_until_ready(value)
        laps.append((name, time.perf_counter()))

    trained = _train(cell, problems.get(cell.problem) if problem is None else problem)
    data, predict, log_density, fit, theta = trained[:5]
    kind = log_density.kind
    lap("seconds_map", theta)
    grid, wide = _evaluation_inputs(cell, data.xs)
    xs = jnp.concatenate([grid, wide])
    estimate = uncertainty(predict, theta, xs, kind)
    lap("seconds_estimate", estimate)
    maps = {"epistemic": np.asarray(estimate.epistemic, np.float64)}
    numbers: dict[str, Any] = {}
    if cell.laplace:
        covariance = _laplace(log_density, theta)
        laplace = uncertainty(predict, theta, xs, kind, covariance=covariance)
        maps["laplace"] = np.asarray(laplace.epistemic, np.float64)
        numbers["laplace_clipped"] = float(covariance.clipped)
        lap("seconds_laplace")

    record = Margins(predict, xs, estimate.target, kind)
    reference = sample_reference(
        log_density, fit.params, trained.chain_key, record=record,
        num_draws=cell.num_draws, num_warmup=cell.num_warmup, thin=cell.thin,
        num_leapfrog=cell.num_leapfrog, sampler=cell.sampler,
        inverse_mass=jax.tree.map(jnp.square, log_density.scales), progress=progress, verdict=False,
    )  # fmt: skip
    lap("seconds_reference")
    margins = reference.predictions
    p = probabilities(margins, kind)
    draws = p.reshape(-1, len(xs))
    maps["reference"] = draws.var(axis=0)
    if kind != "regression":
        maps["aleatoric"] = np.asarray(estimate.aleatoric, np.float64)
        maps["aleatoric_reference"] = (draws * (1 - draws)).mean(axis=0)

    here = slice(0, len(grid))
    there = slice(len(grid), None)
    best = fit.best_index()
    numbers |= {
        **judge(margins[:, :, here], reference.divergent, p[:, :, here])._asdict(),
        "accepted_wide": judge(margins[:, :, there], reference.divergent, p[:, :, there]).accepted,
        **_agreement(maps, {"": here, "_data": _inside(grid, data.xs), "_wide": there}),
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(theta)),
        "map_log_density": float(fit.log_density[best]),
        "map_grad_norm": float(fit.grad_norm[best]),
        "map_converged": bool(fit.converged[best]),
        "step_size": float(reference.step_size.mean()),
        "acceptance": float(reference.acceptance.mean()),
        "gradient_evaluations": reference.cost.gradient_evaluations,
    }
    if cell.problem == "regression/linear":
        exact = linear_regression(data.xs, data.ys, noise=trained.noise, sigma=cell.sigma)
        maps["exact"] = exact.predictive_variance(xs)
        for name in ("reference", "laplace"):
            if name in maps:
                numbers |= _against(f"exact_{name}", maps["exact"][here], maps[name][here])
    if cell.second_opinion:
        target = None if estimate.target is None else estimate.target[here]
        other = sample_numpyro(
            log_density, fit.params, trained.second_key,
            record=dataclasses.replace(record, xs=grid, target=target),
            num_draws=cell.num_draws, num_warmup=cell.num_warmup,
            map_scale=lambda m: probabilities(m, kind),
        )  # fmt: skip
        variance = probabilities(other.predictions, kind).var(axis=(0, 1))
        numbers |= _against("numpyro", variance, maps["reference"][here])
        numbers["numpyro_accepted"] = other.verdict is not None and other.verdict.accepted
    lap("seconds")
    numbers |= {name: end - start for (_, start), (name, end) in pairwise(laps)}
    numbers["seconds"] = laps[-1][1] - laps[0][1]
    arrays = {name: values[here].astype(np.float32) for name, values in maps.items()}
    arrays |= {"grid": np.asarray(grid), "xs": np.asarray(data.xs), "ys": np.asarray(data.ys)}
    arrays["mean"] = draws[:, here].mean(axis=0).astype(np.float32)
    arrays["probability"] = np.asarray(estimate.probability[here])
    return Result({**dataclasses.asdict(cell), **numbers}, arrays)


class _Trained(NamedTuple):
    data: problems.Dataset
    predict: Callable
    log_density: LogDensity
    fit: MapFit
    theta: Any
    noise: float | None
    chain_key: Any
    second_key: Any


def _train(cell: Cell, problem: problems.Problem) -> _Trained:
    """Data, model and θ*: the best of one trained start a chain."""
    hidden = problem.hidden if cell.width is None else (cell.width,)
    data_key, init_key, chain_key, second_key = jax.random.split(jax.random.key(cell.seed), 4)
    data = problem.sample(data_key, cell.num_points)
    predict, init = models.mlp(data.xs.shape[1], hidden, problem.num_outputs)
    inits = jax.jit(jax.vmap(init))(jax.random.split(init_key, cell.chains))
    example = jax.tree.map(lambda leaf: leaf[0], inits)
    log_density = LogDensity.of(
        predict, example, data.xs, data.ys, problem.kind,
        prior=cell.prior, sigma=cell.sigma, noise=problem.noise,
    )  # fmt: skip
    fit = fit_map(log_density, inits)
    return _Trained(data, predict, log_density, fit, fit.best(), problem.noise, chain_key, second_key)


def _evaluation_inputs(cell: Cell, xs: Any) -> tuple[Any, Any]:
    """The grid of the comparison, and the coarser grid of the wide region."""
    coarse = max(2, cell.resolution // 2) if cell.resolution else (100 if xs.shape[1] == 1 else 25)
    grid = problems.evaluation_inputs(xs, cell.resolution)
    return grid, problems.evaluation_inputs(xs, coarse, widen=None)


def _laplace(log_density: LogDensity, theta: Any) -> Dense:
    """H⁻¹ at θ*, its eigenvalues lifted to the widest prior's precision: our choice of repair."""
    widest = max(float(scale) for scale in jax.tree.leaves(log_density.scales))
    return Dense.from_precision(negative_hessian(log_density, theta), floor=1 / widest**2)


def _inside(grid: Any, xs: Any) -> np.ndarray:
    """Rows of the grid inside the data's range."""
    grid, xs = np.asarray(grid), np.asarray(xs)
    return np.flatnonzero(np.all((grid >= xs.min(axis=0)) & (grid <= xs.max(axis=0)), axis=1))


def _agreement(maps: dict[str, np.ndarray], regions: dict[str, Any]) -> dict[str, float]:
    """R and ρ of each estimate with its reference, in each region."""
    pairs = {"epistemic": "reference", "laplace": "reference", "aleatoric": "aleatoric_reference"}
    return {
        f"{name}_{statistic.__name__}{region}": statistic(maps[name][rows], maps[reference][rows])
        for name, reference in pairs.items()
        if name in maps
        for region, rows in regions.items()
        for statistic in (stats.pearson, stats.spearman)
    }


def _against(name: str, truth: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """r, ρ, and the scale: the ratio of the means, other to truth."""
    return {
        f"{name}_pearson": stats.pearson(truth, other),
        f"{name}_spearman": stats.spearman(truth, other),
        f"{name}_scale": float(np.mean(other) / np.mean(truth)),
    }


class Store:
    """Finished cells in a folder: `KEY.json` with the numbers beside `KEY.npz` with the arrays.

    The JSON is written last and atomically, so a cell either is whole or does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, cell: Cell) -> Result | None:
        """The stored result, or None if there is none or its files are damaged."""
        path = self.folder / cell.key()
        try:
            numbers = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
            with open(path.with_suffix(".npz"), "rb") as file, np.load(file, allow_pickle=False) as stored:
                return Result(numbers, dict(stored))
        except Exception:  # whatever the damage, and it shows in many ways: the cell is run again
            return None

    def save(self, cell: Cell, result: Result) -> None:
        """Writes both files through temporary names; a kill leaves the old state."""
        path = self.folder / cell.key()
        _replace(path.with_suffix(".npz"), lambda file: np.savez_compressed(file, allow_pickle=False, **result.arrays))
        text = json.dumps(result.numbers, indent=1)
        _replace(path.with_suffix(".json"), lambda file: file.write(text.encode()))


def _replace(path: Path, write: Callable[[Any], Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
