"""Bayesian linear regression, whose posterior is known in closed form."""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from isouq import _checks


class GaussianPosterior(NamedTuple):
    """The posterior N(mean, covariance) over the weights [features] and, last, the bias."""

    mean: Float[np.ndarray, " params"]
    covariance: Float[np.ndarray, "params params"]

    def predictive_variance(self, xs: Any) -> Float[np.ndarray, " n"]:
        """Return Var_θ[xᵀw + b] for each row of xs, without the noise of y."""
        design = _design(xs)
        return np.einsum("ni,ij,nj->n", design, self.covariance, design)


def linear_regression(xs: Any, ys: Any, *, noise: float | None, sigma: float = 1.0) -> GaussianPosterior:
    """Return the posterior of y = xᵀw + b + N(0, noise²) with w, b ~ N(0, σ²): Σ = (ΦᵀΦ/noise² + I/σ²)⁻¹.

    Computed in float64. Source: Bishop (2006), equations 3.53 and 3.54.
    """
    _checks.dataset(xs, ys, "regression")
    _checks.positive("noise", noise)
    assert noise is not None
    _checks.positive("sigma", sigma)
    design = _design(xs)
    precision = design.T @ design / noise**2 + np.eye(design.shape[1]) / sigma**2
    covariance = np.linalg.inv(precision)
    return GaussianPosterior(covariance @ design.T @ np.asarray(ys, np.float64) / noise**2, covariance)


def _design(xs: Any) -> np.ndarray:
    """Return xs with a column of ones."""
    xs = np.asarray(xs, np.float64)
    return np.concatenate([xs, np.ones((len(xs), 1))], axis=1)
