"""The terms of the decomposition: the reference's variance V, its linearisation L, ‖g‖², and perturbations W of θ*."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from scipy.special import expit

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.subject import Subject, correlations
from isouq._predict import margin
from isouq.alignment import align_hidden_units
from isouq.posterior import Margins, probabilities

VERSIONS = {"pooled": "pooled over chains", "within": "within chains", "aligned": "units aligned to θ*"}
SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0)  # scales of the isotropic perturbation
NUM_DIRECTIONS = 512
ALIGNMENT_BUDGET = 2**27  # draws × width²: 2048 draws at width 256, 128 at width 1024, a minute on one core
_STREAM = 1  # folded into the subject's second key


def measure(subject: Subject) -> Result:
    """Return how V, L, I and the isotropic perturbations W correlate over the grid, with their maps.

    Columns, each with `_pearson` and `_spearman`: `whole` corr(V, I); for every Σ of `VERSIONS` `taylor_Σ`
    corr(V, L) and `isotropy_Σ` corr(L, I); for every σ of `SIGMAS` `perturbation_σ` corr(V, W).
    `scale_Σ`: mean(L) / mean(V), 1 where linearising keeps the size. `anisotropy_Σ`: standard deviation over mean of
    L / I over the grid, 0 where Σ acts on the gradients as a multiple of I. `aligned_draws`: the number of draws, of
    all chains together, whose hidden units were matched to those of θ*. These are all draws, or evenly spaced ones
    where draws × width² exceeds `ALIGNMENT_BUDGET`.
    """
    clock = Clock()
    xs, variance = subject.xs[subject.grid], subject.variance[subject.grid]
    g = gradients(subject.setting.predict, subject.theta, xs, subject.target, subject.kind)
    identity = np.sum(g**2, axis=1)
    draws = _subset(subject.draws, subject.theta)
    aligned = align_hidden_units(draws, subject.theta, odd=subject.cell.activation == "tanh")
    linearised = _linearisations(g, subject.draws, aligned)
    perturbed = _perturbations(subject, xs)
    numbers = correlations("whole", variance, identity)
    for version, values in linearised.items():
        numbers |= correlations(f"taylor_{version}", variance, values)
        numbers |= correlations(f"isotropy_{version}", values, identity)
        numbers[f"scale_{version}"] = float(values.mean() / variance.mean())
        numbers[f"anisotropy_{version}"] = _anisotropy(values, identity)
    for sigma, values in perturbed.items():
        numbers |= correlations(f"perturbation_{sigma}", variance, values)
    numbers["aligned_draws"] = draws.shape[0] * draws.shape[1]
    maps = {"V": variance, "I": identity}
    maps |= {f"L_{version}": values for version, values in linearised.items()}
    maps |= {f"W_{sigma}": values for sigma, values in perturbed.items()}
    arrays = {name: values.astype(np.float32) for name, values in maps.items()}
    return Result(
        {**subject.facts(), **numbers, "seconds": clock.laps()["seconds"]}, {**arrays, "grid": np.asarray(xs)}
    )


def _linearisations(g: np.ndarray, draws: np.ndarray, aligned: np.ndarray) -> dict[str, np.ndarray]:
    """Return L = gᵀΣg at every point for every covariance Σ of `VERSIONS`."""
    chain_means = draws.mean(axis=1, keepdims=True, dtype=np.float64)
    return {
        "pooled": linear_variance(g, draws, chain_means.mean(axis=0, keepdims=True)),
        "within": linear_variance(g, draws, chain_means),
        "aligned": linear_variance(g, aligned, aligned.mean(axis=(0, 1), keepdims=True, dtype=np.float64)),
    }


def _perturbations(subject: Subject, xs: Any) -> dict[str, np.ndarray]:
    """Return W at every point for every σ of `SIGMAS`, all with the same directions."""
    num_params = subject.draws.shape[-1]
    key = jax.random.fold_in(subject.setting.second_key, _STREAM)
    directions = jax.random.normal(key, (NUM_DIRECTIONS, num_params))
    margins = Margins(subject.setting.predict, xs, subject.target, subject.kind)
    return {f"{sigma:g}": perturbation(margins, subject.theta, directions, sigma) for sigma in SIGMAS}


def gradients(predict: Callable, theta: Any, xs: Any, target: Any, kind: str) -> Float[np.ndarray, "points P"]:
    """Return the gradient g = ∇_θ p_c at θ* for every input (of the mean for regression), float64.

    Flat as `ravel_pytree(theta)`. g = a∇m with the margin m and a = p_c(1 − p_c), as in `isouq.uncertainty`.
    Memory: points × parameters.
    """
    values, slopes = _margin_gradients(predict, theta, xs, target, kind)
    slopes = np.asarray(slopes, np.float64)
    if kind == "regression":
        return slopes
    m = np.asarray(values, np.float64)
    return (expit(m) * expit(-m))[:, None] * slopes


@jax.jit(static_argnames="kind")
def _margin_gradients(predict: Callable, theta: Any, xs: Any, target: Any, kind: str) -> tuple[Array, Array]:
    def one(x: Any, label: Any) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(lambda params: margin(predict(params, x), label, kind))(theta)
        return value, ravel_pytree(slope)[0]

    return jax.vmap(one)(xs, target)


def linear_variance(
    g: Float[np.ndarray, "points P"], draws: np.ndarray, centres: np.ndarray
) -> Float[np.ndarray, " points"]:
    """Return gᵀΣg at every point, Σ the mean of (θ_s − c)(θ_s − c)ᵀ over the draws θ_s of all chains.

    draws: `[chains, draws, P]`. centres: c, `[chains or 1, 1, P]`. The draws are centred in float64 before anything is
    multiplied, so that nothing cancels. The matrix Σ is formed where there are more draws than parameters; otherwise
    the draws are projected on the gradients.

    Cost: P² × (draws + points) multiplications, or draws × points × P. Memory: one chain in float64, and P² or draws of
    a chain × points.
    """
    centres = np.broadcast_to(centres, (len(draws), 1, g.shape[1]))
    centred = (chain - centre for chain, centre in zip(draws, centres, strict=True))
    count = draws.shape[0] * draws.shape[1]
    if count > g.shape[1]:
        covariance = sum(chain.T @ chain for chain in centred) / count
        return np.einsum("ij,ij->i", g @ covariance, g)
    return sum(np.square(chain @ g.T).sum(axis=0) for chain in centred) / count


def perturbation(
    margins: Margins, theta: Any, directions: Float[Array, "directions P"], sigma: float
) -> Float[np.ndarray, " points"]:
    """Return W = Var_ε[p_c(x|θ* + σε)] over the given directions ε ~ N(0, I): isotropic, but not linearised.

    W / σ² tends to ‖g‖² as σ → 0, up to the Monte Carlo error of that many directions. Cost: directions × points
    forward passes; memory directions × points, with the activations of one direction at a time.
    """
    return probabilities(_perturbed_margins(margins, theta, directions, sigma), margins.kind).var(axis=0)


@jax.jit
def _perturbed_margins(margins: Margins, theta: Any, directions: Array, sigma: float) -> Array:
    flat, unravel = ravel_pytree(theta)
    return jax.lax.map(lambda direction: margins(unravel(flat + sigma * direction)), directions)


def _subset(draws: np.ndarray, theta: Any) -> np.ndarray:
    """Return all draws `[chains, draws, P]`, or as many evenly spaced ones of every chain as the budget allows."""
    layers = theta["layers"]
    width = max((layers[depth]["bias"].size for depth in range(len(layers) - 1)), default=1)
    chains, count = draws.shape[:2]
    allowed = min(count, max(2, ALIGNMENT_BUDGET // (chains * width**2)))
    return draws[:, np.linspace(0, count - 1, allowed).round().astype(int)]


def _anisotropy(values: np.ndarray, identity: np.ndarray) -> float:
    """Return the standard deviation over the mean of L / I, where I is not 0."""
    positive = identity > 0
    ratio = values[positive] / identity[positive]
    return float(ratio.std() / ratio.mean()) if positive.any() else float("nan")
