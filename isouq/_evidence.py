"""The evidence of a Laplace approximation, and the prior that it or held-out labels prefer."""

import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from isouq import _checks
from isouq._predictive import linear_moments, minimise_over_decades
from isouq.covariance._laplace import CurvatureFit, check_log_density, fit_curvature, sum_log_likelihood
from isouq.covariance._stream import NOT_FINITE, count_outputs, on_other_data
from isouq.covariance._structures import Curvature
from isouq.density import LogDensity

SCOPES = ("model", "layer")
_OPTIONS = ("rank", "key", "batch_size", "max_bytes", "batches", "progress", "checkpoint")
_DECADES = 4.0  # prior standard deviations are sought within a factor of 10⁴ of those of log_density


def log_marginal_likelihood(
    log_density: LogDensity,
    params: Any,
    curvature: str = "ggn",
    structure: str = "dense",
    **options: Any,
) -> float:
    """Return the Laplace approximation of log p(D), the evidence of the model and its prior (units: nats).

    log p(D|θ) + log p(θ) + P/2 log 2π + ½ log det Σ at θ = params, with the Σ of `isouq.laplace`.

    Args:
        log_density: model, data, prior and likelihood.
        params: a mode of log_density.
        curvature: as in `isouq.laplace`.
        structure: as in `isouq.laplace`. "low_rank" ignores the curvature in all but its leading directions, and so
            gives a larger evidence than "dense" does.
        **options: rank, key, batch_size, max_bytes, batches, progress and checkpoint, as in `isouq.laplace`.

    Raises:
        ValueError, MemoryError: as `isouq.laplace`.
        TypeError: an option that is not among those above.

    Cost: that of `isouq.laplace`, and one forward pass over the data.

    Source: MacKay (1992); Immer et al. (2021), arXiv 2104.04975, for networks.
    """
    _check_options("log_marginal_likelihood", options)
    fit = fit_curvature(log_density, params, curvature, structure, **options)
    return Evidence.of(fit)(np.asarray(fit.scales))[0]


class PriorChoice(NamedTuple):
    """A prior that `choose_prior` chose.

    log_density: the log density with that prior; its field `scales` holds the standard deviation of each leaf.
    covariance: the Laplace approximation under it.
    log_marginal_likelihood: its evidence.
    log_loss: mean −log p of the validation labels; None where the prior was chosen by the evidence.
    """

    log_density: LogDensity
    covariance: Any
    log_marginal_likelihood: float
    log_loss: float | None


def choose_prior(
    log_density: LogDensity,
    params: Any,
    curvature: str = "ggn",
    structure: str = "dense",
    *,
    per: str = "model",
    validation: tuple[Any, Any] | None = None,
    **options: Any,
) -> PriorChoice:
    """Return the prior under which the evidence, or the likelihood of held-out labels, is the largest at params.

    The parameters stay as they are, so that they are no longer a mode where the prior changes much; train them again
    under the new prior, `choice.log_density.scales`, and choose once more if that matters.

    Args:
        log_density: model, data, likelihood, and the prior from which the search starts.
        params: a mode of log_density.
        curvature: as in `isouq.laplace`.
        structure: as in `isouq.laplace`.
        per: "model" multiplies the standard deviations of the prior by one number; "layer" gives every layer, the
            leaves with one parent in params, a number of its own.
        validation: a pair (xs, ys) of held-out data. With it, the one number is chosen by the mean −log p(y) under
            `isouq.predictive` with "probit", and per must be "model".
        **options: rank, key, batch_size, max_bytes, batches, progress and checkpoint, as in `isouq.laplace`.

    Returns:
        `PriorChoice(log_density, covariance, log_marginal_likelihood, log_loss)`.

    Raises:
        ValueError, MemoryError: as `isouq.laplace`; or per is unknown, or "layer" with validation data; or validation
            data that do not fit the model, or on which it is not finite.
        TypeError: an option that is not among those above.

    Warns:
        UserWarning: the best standard deviation of a prior is the smallest or the largest that is tried; for layers,
            that of the one factor from which their search starts.

    Cost: that of `isouq.laplace` once. For the evidence each prior that is tried takes O(P) time and no pass over the
    data, for "dense" and "low_rank" with per="layer" a decomposition, of O(P³) and O(P · rank²) time. With validation
    data each prior takes a forward and a backward pass over them for each class. About 40 priors over eight decades
    are tried, and the best is refined by SciPy's bounded search; layers by L-BFGS-B from there.

    Sources: MacKay (1992); Daxberger et al. (2021), arXiv 2106.14806, whose `optimize_prior_precision` this replaces.
    """
    _check_options("choose_prior", options)
    _checks.one_of("per", per, SCOPES)
    if validation is not None and per != "model":
        raise ValueError("per is 'layer' and validation was given; layers are chosen by the evidence, so give one")
    if validation is not None:
        held_out = _check_validation(validation, log_density, params)
    fit = fit_curvature(log_density, params, curvature, structure, **options)
    data_curvature, start = fit.curvature, np.asarray(fit.scales)
    evidence = Evidence.of(fit)
    log_loss = None
    if validation is None:
        factor, border = minimise_over_decades(lambda factor: -evidence(factor * start)[0], 1.0, _DECADES)
        scales = factor * start
        if per == "layer":
            scales = _best_of_layers(evidence, scales, layers(params))
    else:

        def loss(scales: np.ndarray) -> float:
            try:
                covariance = data_curvature.covariance(scales)
            except ValueError:  # the data outweigh so wide a prior too much for a low-rank form
                return float("inf")
            return _held_out_loss(held_out, params, covariance, fit.batch_size)

        factor, border = minimise_over_decades(lambda factor: loss(factor * start), 1.0, _DECADES)
        scales = factor * start
        log_loss = loss(scales)
        if not np.isfinite(log_loss):
            raise ValueError("validation: the loss is not finite under any prior; is a gradient of predict NaN there?")
    if border:
        advice = "look at params (are they a mode?) and at the data before you use this prior"
        if validation is not None and border < 0:
            advice = "no variance makes the validation data likelier, as where isouq.fit_scale finds a scale of 0"
        warnings.warn(
            f"the best factor of the prior's standard deviation is {factor:.0e}, the "
            f"{'largest' if border > 0 else 'smallest'} that is tried; {advice}",
            stacklevel=2,
        )
    return PriorChoice(
        _with_scales(log_density, scales), data_curvature.covariance(scales), evidence(scales)[0], log_loss
    )


class Evidence(NamedTuple):
    """The evidence as a function of the prior's standard deviations, one for each leaf.

    log_likelihood: log p(D|θ). squares: ‖θ_l‖² of each leaf.
    """

    curvature: Curvature
    log_likelihood: float
    squares: np.ndarray

    @classmethod
    def of(cls, fit: CurvatureFit) -> "Evidence":
        """Return the evidence of the model and data of a curvature."""
        log_density, params = fit.request.log_density, fit.request.params
        squares = [np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in jax.tree.leaves(params)]
        log_likelihood = fit.log_likelihood
        if log_likelihood is None:
            log_likelihood = sum_log_likelihood(log_density, params)
        return cls(fit.curvature, log_likelihood, np.array(squares))

    def __call__(self, scales: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the evidence, and its derivative by the logarithm of each standard deviation."""
        determination = self.curvature.determine(scales)
        misfit = self.squares / scales**2
        return self.log_likelihood - (misfit.sum() + determination.log_determinant) / 2, misfit - determination.gamma


def _check_options(function: str, options: dict[str, Any]) -> None:
    """Raise unless a function of this name takes these options."""
    if "damping" in options:
        raise ValueError("damping was given; an evidence has a prior and no damping, so leave it out")
    if "select" in options:
        raise ValueError("select was given; pass the pair log_density.condition(params, select) in place of both")
    for name in options:
        if name not in _OPTIONS:
            raise TypeError(f"{function} has no argument {name!r}; its options are {', '.join(_OPTIONS)}")


def _check_validation(validation: Any, log_density: Any, params: Any) -> LogDensity:
    """Return the log density on the validation data; raise unless they are a pair (xs, ys) that fits the model."""
    check_log_density(log_density, params)
    if not (isinstance(validation, (tuple, list)) and len(validation) == 2):
        raise ValueError(f"validation is {_checks.shape_or_type(validation)}; expected a pair (xs, ys)")
    try:
        held_out = on_other_data(log_density, count_outputs(log_density, params), *validation)
    except ValueError as error:
        raise ValueError(f"validation: {error}") from error
    if not np.isfinite(sum_log_likelihood(held_out, params)):
        raise ValueError(f"validation: {NOT_FINITE}")
    return held_out


def _held_out_loss(held_out: LogDensity, params: Any, covariance: Any, batch_size: int) -> float:
    """Return the mean −log p(y) of the data of a log density under the predictive by "probit"."""
    ys, kind = held_out.ys, held_out.kind
    noise = float(held_out.noise) if kind == "regression" else None
    moments = linear_moments(
        held_out.predict, params, held_out.xs, kind, covariance, noise=noise, batch_size=min(batch_size, len(ys))
    )
    return moments.log_loss(ys, kind, noise)


def _best_of_layers(evidence: Evidence, scales: np.ndarray, layer_of_leaf: list[int]) -> np.ndarray:
    """Return the standard deviations of the largest evidence where the leaves of a layer keep their ratios."""
    index = np.asarray(layer_of_leaf)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        value, slopes = evidence(scales * np.exp(logs[index]))
        return -value, -np.bincount(index, weights=slopes)

    count = index.max() + 1
    width = _DECADES * np.log(10)
    optimum = scipy.optimize.minimize(
        loss, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(-width, width)] * count,
        options={"ftol": 1e-12, "gtol": 1e-6},
    )  # fmt: skip
    return scales * np.exp(optimum.x[index])


def layers(params: Any) -> list[int]:
    """Return the number of each leaf's layer: leaves with one parent in the tree have one number."""
    parents = [path[:-1] for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    numbers = {parent: number for number, parent in enumerate(dict.fromkeys(parents))}
    return [numbers[parent] for parent in parents]


def _with_scales(log_density: LogDensity, scales: np.ndarray) -> LogDensity:
    """Return the log density under a prior with these standard deviations of its leaves."""
    leaves, treedef = jax.tree.flatten(log_density.scales)
    new = [jnp.asarray(s, leaf.dtype) for s, leaf in zip(scales, leaves, strict=True)]
    return replace(log_density, scales=jax.tree.unflatten(treedef, new))
