"""The spectra of the likelihood's Hessian and of the draws' covariance, and the share of ‖g‖² in the Hessian's bulk."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure.decomposition import gradients
from experiments.synthetic.measure.lanczos import Spectrum, dense_spectra, histogram, lanczos_spectrum
from experiments.synthetic.subject import Subject, correlations
from isouq import stats

DENSE_LIMIT = 8000  # parameters; up to there all eigenpairs take less time than Lanczos
_STREAM = 2  # folded into the subject's second key
_DECADES = np.logspace(-3, 6, 28)  # three bins a decade
HESSIAN_EDGES = np.concatenate([-_DECADES[::-1], _DECADES])  # eigenvalues λ; |λ| < 10⁻³ is one bin
COVARIANCE_EDGES = np.logspace(-6, 3, 46)


def measure(subject: Subject, dense_limit: int = DENSE_LIMIT) -> Result:
    """Return the spectra of the likelihood's Hessian and of the draws' covariance, and where ‖g‖² lies in them.

    Columns:
    bulk_threshold: the smallest prior precision. bulk_dimension: share of directions in the bulk, with its Monte Carlo
        standard error bulk_dimension_error. bulk_mean, bulk_total: the mean over the grid's inputs of
        s(x) = ‖P_bulk g‖²/‖g‖², and Σ‖P_bulk g‖²/Σ‖g‖² (s weighted by ‖g‖²).
    effective_dimension: Σ λ₊/(λ₊ + 1) over the eigenvalues of S H S, S the prior's standard deviations
        (MacKay 1992); effective_error its Monte Carlo standard error (0 when dense); effective_share divides by P.
    lowest_curvature: 1 + the smallest eigenvalue of S H S; below 0, θ* is a saddle and no maximum.
    inverse_pearson: corr(gᵀH⁻¹g, ‖g‖²) over the grid with (S⁻² + H)⁻¹ = S(I + λ₊)⁻¹S: negative curvature is repaired
        to the prior's.
    pooled_participation, within_participation: of the draws' covariance, over all draws and centred per chain.
    isotropic_participation: 1/(1 + P/S), what S independent draws of an isotropic Σ would show.
    whole_pearson, whole_spearman: corr(V, ‖g‖²), V = Var_θ[p_c].
    dense: whether every eigenpair was computed. leading_residual: the worst relative residual of an eigenvector outside
        the bulk.

    dense_limit: up to that many parameters every eigenpair, O(P³); above it the Hessian is never formed.
    """
    clock = Clock()
    setting, xs, theta = subject.setting, subject.xs[subject.grid], subject.theta
    g = gradients(setting.predict, theta, xs, subject.target, subject.kind)
    identity = np.sum(g**2, axis=1)
    scales = flat_scales(theta, setting.log_density.scales)
    precision = 1 / scales.max() ** 2
    hessian, whitened = _spectra(subject, scales, precision, dense_limit)
    bulk = bulk_shares(g, hessian, precision)
    numbers = _hessian_numbers(hessian, whitened, precision) | {
        "bulk_mean": float(np.nanmean(bulk)),
        "bulk_total": float(np.nansum(bulk * identity) / identity.sum()),
        "inverse_pearson": stats.pearson(inverse_quadratic(g, whitened, scales), identity),
        "isotropic_participation": 1 / (1 + len(scales) / (subject.draws.shape[0] * subject.draws.shape[1])),
        **correlations("whole", subject.variance[subject.grid], identity),
    }
    arrays = {"hessian_density": hessian.histogram(HESSIAN_EDGES), "bulk": bulk, "grid": np.asarray(xs)}
    if hessian.exact:
        arrays["hessian_eigenvalues"] = hessian.values
    for version, within in (("pooled", False), ("within", True)):
        values = covariance_eigenvalues(subject.draws, within)
        numbers[f"{version}_participation"] = participation(values)
        arrays[f"{version}_density"] = histogram(values, COVARIANCE_EDGES)
        arrays[f"{version}_eigenvalues"] = values
    arrays = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
    return Result({**subject.facts(), **numbers, "seconds": clock.laps()["seconds"]}, arrays)


def _spectra(subject: Subject, scales: np.ndarray, precision: float, dense_limit: int) -> tuple[Spectrum, Spectrum]:
    """Return the spectra of H and of S H S, by eigendecomposition for small models and by Lanczos for larger ones."""
    setting, theta = subject.setting, subject.theta
    if len(scales) <= dense_limit:
        return dense_spectra(setting.log_density, theta, scales)
    keys = jax.random.split(jax.random.fold_in(setting.second_key, _STREAM))
    hessian = lanczos_spectrum(setting.log_density, theta, np.ones_like(scales), precision, keys[0])
    return hessian, lanczos_spectrum(setting.log_density, theta, scales, 1.0, keys[1])


def _hessian_numbers(hessian: Spectrum, whitened: Spectrum, precision: float) -> dict[str, Any]:
    """Return the columns that follow from the two spectra alone."""
    size = len(hessian.vectors)
    effective, error = whitened.average(lambda values: np.maximum(values, 0) / (1 + np.maximum(values, 0)))
    bulk, bulk_error = hessian.average(lambda values: np.abs(values) < precision)
    outside = np.abs(hessian.values) >= precision
    residuals = hessian.residuals[outside] / np.abs(hessian.values[outside])
    return {
        "dense": hessian.exact,
        "bulk_threshold": precision,
        "bulk_dimension": bulk,
        "bulk_dimension_error": bulk_error,
        "effective_dimension": size * effective,
        "effective_error": size * error,
        "effective_share": effective,
        "lowest_curvature": float(1 + whitened.values[0]),
        "leading_residual": float(residuals.max(initial=0)),
    }


def flat_scales(theta: Any, scales: Any) -> Float[np.ndarray, " P"]:
    """Return the prior's standard deviation of every parameter, in the order of `ravel_pytree(theta)`."""
    pairs = zip(jax.tree.leaves(theta), jax.tree.leaves(scales), strict=True)
    return np.concatenate([np.full(leaf.size, float(scale)) for leaf, scale in pairs])


def bulk_shares(g: Float[np.ndarray, "points P"], hessian: Spectrum, threshold: float) -> Float[np.ndarray, " points"]:
    """Return s(x) = 1 − Σ (u·g)²/‖g‖² over the eigenvectors u with |λ| ≥ threshold; NaN where g is 0."""
    outside = hessian.vectors[:, np.abs(hessian.values) >= threshold]
    total = np.sum(g**2, axis=1)
    left = np.maximum(total - np.sum((g @ outside) ** 2, axis=1), 0)
    return np.divide(left, total, out=np.full_like(total, np.nan), where=total > 0)


def inverse_quadratic(
    g: Float[np.ndarray, "points P"], whitened: Spectrum, scales: Float[np.ndarray, " P"]
) -> Float[np.ndarray, " points"]:
    """Return gᵀ S(I + λ₊)⁻¹S g from the eigenpairs of S H S; directions that have no pair count as λ = 0."""
    scaled = g * scales
    parts = (scaled @ whitened.vectors) ** 2
    rest = 0 if whitened.exact else np.maximum(np.sum(scaled**2, axis=1) - parts.sum(axis=1), 0)
    return parts @ (1 / (1 + np.maximum(whitened.values, 0))) + rest


def covariance_eigenvalues(draws: Float[np.ndarray, "chains draws P"], within: bool) -> Float[np.ndarray, " P"]:
    """Return the eigenvalues of the draws' covariance, descending; `within` centres every chain on its own mean.

    From the smaller of the two Gram matrices, float64: O(S·P·min(S, P)) for S draws in all. S draws broaden the
    spectrum even where Σ = cI: independent ones spread it over c(1 ± √(P/S))² (Marchenko and Pastur 1967), and
    leave P − S zeros where P > S; correlated draws count as fewer.
    """
    chains, num_draws, size = draws.shape
    centre = draws.mean(axis=1 if within else (0, 1), dtype=np.float64, keepdims=True)
    centred = (draws - centre).reshape(-1, size)
    freedom = chains * num_draws - (chains if within else 1)
    gram = centred @ centred.T if len(centred) < size else centred.T @ centred
    values = np.maximum(np.linalg.eigvalsh(gram / freedom)[::-1], 0)
    return np.pad(values, (0, size - len(values)))


def participation(values: Float[np.ndarray, " P"]) -> float:
    """Return (tr Σ)²/(P tr Σ²): 1 for Σ = cI, 1/P for one direction. Sampling lowers it to 1/(1 + P/S) for Σ = cI."""
    return float(values.sum() ** 2 / (len(values) * np.sum(values**2)))
