"""The cheap estimates of the posterior variance Var_θ[p_c]: each a function of the laboratory that returns a map.

A map holds a value for each input. It is about one class c at each: the class that θ* predicts or, for an estimate from
several networks, the class of the largest mean probability. For regression p_c is the predicted mean.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import isouq
from experiments.synthetic.measure import members
from experiments.synthetic.measure.laboratory import SAMPLES, Laboratory, Moments, pool
from experiments.synthetic.subject import at_class, unravel_rows
from isouq.covariance import Dense, Diagonal, laplace
from isouq.posterior import Sampling, sample_reference

SIGMA = 0.1  # standard deviation of the perturbations: absolute, or in units of the weights' root mean square
SMOOTHING = 32  # perturbations over which ‖g‖² is averaged
LAPLACE_MEMBERS = 5  # networks of a mixture of Laplace approximations
FEWEST_DRAWS = 8  # of a short chain
GRADIENT_DRAWS = 8  # draws of the short chains over which ‖g‖² is averaged


class Estimate(NamedTuple):
    """A map over the inputs, float64, and the class that it is about at each input; None for regression."""

    values: np.ndarray
    target: np.ndarray | None


def _about_theta(lab: Laboratory, values: Any) -> Estimate:
    return Estimate(np.asarray(values, np.float64), lab.target)


def _variance_about_theta(lab: Laboratory, moments: Moments) -> Estimate:
    return Estimate(at_class(moments.variance.T, lab.target), lab.target)


def _variance_about_mean(moments: Moments) -> Estimate:
    return Estimate(at_class(moments.variance.T, moments.target), moments.target)


def _labels(uncertainty: Any) -> np.ndarray | None:
    return None if uncertainty.target is None else np.asarray(uncertainty.target)


# --- one network


def control(lab: Laboratory) -> Estimate | None:
    """Return p_c(1 − p_c) at θ*; None for regression."""
    return None if lab.kind == "regression" else _about_theta(lab, lab.uncertainty().aleatoric)


def gradient(lab: Laboratory) -> Estimate:
    """Return ‖g‖² = ‖∇_θ p_c‖² at θ*, over all parameters: the estimate of the paper."""
    return _about_theta(lab, lab.uncertainty().epistemic)


def last_layer(lab: Laboratory) -> Estimate:
    """Return ‖g‖² over the parameters of the last affine map alone."""
    last = len(lab.theta["layers"]) - 1
    select = {"layers": {depth: depth == last for depth in lab.theta["layers"]}}
    return _about_theta(lab, lab.uncertainty(select=select).epistemic)


def all_classes(lab: Laboratory) -> Estimate:
    """Return Σ_c ‖∇p_c‖², the sum over the classes; for two classes it is twice ‖g‖², for regression ‖g‖²."""
    if lab.kind != "multiclass":
        return gradient(lab)
    classes = range(lab.setting.problem.num_outputs)
    return _about_theta(lab, sum(np.asarray(lab.uncertainty(target=c).epistemic, np.float64) for c in classes))


def prior_metric(lab: Laboratory) -> Estimate:
    """Return gᵀΣg with the prior's covariance Σ, which is diagonal."""
    scales = lab.setting.log_density.scales
    variances = jax.tree.map(lambda s, leaf: jnp.full(leaf.shape, s**2, leaf.dtype), scales, lab.theta)
    return _about_theta(lab, lab.uncertainty(covariance=Diagonal(variances)).epistemic)


def smoothed(lab: Laboratory) -> Estimate:
    """Return the mean of ‖g‖² over θ* + SIGMA · ε, ε ~ N(0, I)."""
    return _mean_gradient(lab, lab.theta_flat[None] + SIGMA * lab.directions[:SMOOTHING])


def _mean_gradient(lab: Laboratory, rows: Any) -> Estimate:
    """Return the mean of ‖g‖² over parameters `[S, P]`, about the class of θ*."""
    params = jax.tree.map(jnp.asarray, unravel_rows(np.asarray(rows), lab.setting.zeros))
    return _about_theta(lab, lab.uncertainty(params, ensemble=True).within)


def relative_scale(params: Any) -> float:
    """Return `SIGMA` times the root mean square of all parameters together."""
    return SIGMA * float(np.sqrt(np.mean(np.square(ravel_pytree(params)[0], dtype=np.float64))))


def perturbed(lab: Laboratory, relative: bool) -> Estimate:
    """Return Var_ε[p_c(θ* + σε)], ε ~ N(0, I), with σ = SIGMA, or relative to the weights; see `isouq.perturbation`."""
    scale = relative_scale(lab.theta) if relative else SIGMA
    return _variance_about_theta(lab, lab.moments(lab.theta_flat[None] + scale * lab.directions))


def isotropic_logits(lab: Laboratory) -> Estimate:
    """Return Var_ε[p_c] where the outputs are f(θ*) + σJε, linear in ε ~ N(0, I), with σ = SIGMA and J = ∂f/∂θ."""
    return _variance_about_theta(lab, lab.linearised_moments(SIGMA * lab.directions))


# --- a network that is trained in another way


def swag(lab: Laboratory) -> Estimate:
    """Return the variance of the predictions under SWAG, about the class of their mean."""
    gaussian = lab.compute_once("train_swag", lambda: members.train_swag(lab.setting, lab.theta, lab.key("swag")))
    return _variance_about_mean(lab.moments(gaussian.draw(lab.key("swag draws"), SAMPLES)))


def dropout(lab: Laboratory) -> Estimate | None:
    """Return the variance over dropout masks of a network trained with dropout; None where there is no hidden layer."""
    if len(lab.theta["layers"]) == 1:
        return None
    params = lab.compute_once(
        "train_dropout", lambda: members.train_with_dropout(lab.setting, lab.activation, lab.key("dropout"))
    )
    keys = jax.random.split(lab.key("masks"), SAMPLES)
    return _variance_about_mean(Moments.of(members.predict_masks(params, lab.xs, keys, lab.activation), lab.kind))


# --- several networks


def ensemble_part(lab: Laboratory, kind: str, count: int, part: str) -> Estimate:
    """Return a field of `isouq.uncertainty(..., ensemble=True)`: between, within, or epistemic, which is both."""
    result = lab.ensemble(kind, count)
    return Estimate(np.asarray(getattr(result, part), np.float64), _labels(result))


def between_and_perturbed(lab: Laboratory, kind: str, count: int) -> Estimate:
    """Return the variance between networks plus their mean variance under the relative perturbation.

    Each part is divided by its mean over the inputs before they are added.
    """
    between, target = ensemble_part(lab, kind, count, "between")
    variances = [at_class(_perturbed_member(lab, kind, i, True).variance.T, target) for i in range(count)]
    return Estimate(add_relative(between, np.mean(variances, axis=0)), target)


def add_relative(between: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Return the sum of two maps, each divided by its mean; a map of zeros stays out."""
    return sum((part / part.mean() for part in (between, within) if part.mean() > 0), np.zeros_like(between))


def mixture(lab: Laboratory, count: int, relative: bool) -> Estimate:
    """Return Var[p_c] over K MAP networks and the perturbations of each: the variance between plus the mean within."""
    return _variance_about_mean(pool([_perturbed_member(lab, "map", i, relative) for i in range(count)]))


def _perturbed_member(lab: Laboratory, kind: str, index: int, relative: bool) -> Moments:
    """Return the moments of p over perturbations of one member."""

    def perturb() -> Moments:
        params = lab.member(kind, index)
        scale = relative_scale(params) if relative else SIGMA
        return lab.moments(ravel_pytree(params)[0][None] + scale * lab.directions)

    return lab.compute_once(f"perturb_{kind}_{index}{'_relative' if relative else ''}", perturb)


# --- training data


def last_layer_laplace(lab: Laboratory) -> Estimate:
    """Return gᵀΣg over the last layer's parameters, Σ their Laplace covariance from the GGN, the others fixed."""
    density, last, features = members.last_layer(lab.setting, lab.theta, lab.activation)
    covariance = laplace(density, last, "ggn")
    result = isouq.uncertainty(
        members.affine, last, features(lab.xs), lab.kind, target=lab.target, covariance=covariance
    )
    return _about_theta(lab, result.epistemic)


def _covariance(lab: Laboratory, curvature: str) -> Dense:
    covariance = lab.compute_once(f"build_{curvature}", lambda: laplace(lab.setting.log_density, lab.theta, curvature))
    assert isinstance(covariance, Dense)
    return covariance


def linearised_laplace(lab: Laboratory, curvature: str) -> Estimate:
    """Return gᵀΣg over all parameters, Σ the dense Laplace covariance."""
    return _about_theta(lab, lab.uncertainty(covariance=_covariance(lab, curvature)).epistemic)


def _laplace_directions(lab: Laboratory, curvature: str) -> Any:
    """Return draws `[SAMPLES, P]` of N(0, Σ)."""
    return lab.directions @ jnp.asarray(_covariance(lab, curvature).factor).T


def sampled_laplace(lab: Laboratory, curvature: str) -> Estimate:
    """Return the variance of the predictions over draws of N(θ*, Σ)."""
    return _variance_about_theta(lab, lab.moments(lab.theta_flat[None] + _laplace_directions(lab, curvature)))


def laplace_logits(lab: Laboratory, curvature: str) -> Estimate:
    """Return Var_δ[p_c] where the outputs are f(θ*) + Jδ, linear in δ ~ N(0, Σ), with J = ∂f/∂θ."""
    return _variance_about_theta(lab, lab.linearised_moments(_laplace_directions(lab, curvature)))


def laplace_mixture(lab: Laboratory, curvature: str) -> Estimate:
    """Return the variance between MAP networks plus the mean of gᵀΣ_k g, each with its own Laplace covariance."""
    result = lab.ensemble("map", LAPLACE_MEMBERS)
    within = []
    for index in range(LAPLACE_MEMBERS):
        params = lab.member("map", index)
        covariance = laplace(lab.setting.log_density, params, curvature)
        within.append(np.asarray(lab.uncertainty(params, target=result.target, covariance=covariance).epistemic))
    return Estimate(np.asarray(result.between, np.float64) + np.mean(within, axis=0), _labels(result))


# --- chains


def short_draws(lab: Laboratory) -> np.ndarray:
    """Return draws `[S, P]` of HMC with about as many gradients as training ten networks took.

    A step of the optimiser counts as two gradients. Two chains start at the first two MAP networks, and each takes as
    many transitions of warm-up as it has draws, but at least 10. The number of draws of a chain is a power of two, at
    least `FEWEST_DRAWS`, so that few programs are compiled.
    """
    trained, steps = lab.train("map"), lab.subject.cell.num_leapfrog
    affordable = max(1.0, 2 * trained.num_steps / (4 * steps))
    draws = max(FEWEST_DRAWS, 2 ** int(np.log2(affordable)))
    density = lab.setting.log_density

    def sample() -> Any:
        starts = jax.tree.map(lambda leaf: leaf[:2], trained.params)
        mass = jax.tree.map(jnp.square, density.scales)
        sampling = Sampling(draws, max(10, draws), steps)
        return sample_reference(
            density, starts, lab.key("short"), sampling=sampling, inverse_mass_matrix=mass, verdict=False
        ).draws

    tree = lab.compute_once("sample_short", sample)
    return np.concatenate([np.asarray(leaf).reshape(2 * draws, -1) for leaf in jax.tree.leaves(tree)], axis=1)


def short_chains(lab: Laboratory) -> Estimate:
    """Return the variance of the predictions over the draws of the short chains."""
    return _variance_about_mean(lab.moments(short_draws(lab)))


def gradient_of_draws(lab: Laboratory) -> Estimate:
    """Return the mean of ‖g‖² over `GRADIENT_DRAWS` evenly spaced draws of the short chains, about the class of θ*."""
    draws = short_draws(lab)
    return _mean_gradient(lab, draws[np.linspace(0, len(draws) - 1, GRADIENT_DRAWS).round().astype(int)])
