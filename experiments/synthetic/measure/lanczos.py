"""The spectrum of the likelihood's Hessian: every eigenpair of a small model, Lanczos for a larger one.

The operator is A = S H S, H = −∇² log p(D|θ) at θ* without the prior and S a diagonal: ones for H itself,
the prior's standard deviations for the Hessian in the prior's units. A product with A is one jvp of a grad.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp, stochtrace

from isouq.covariance import negative_hessian
from isouq.posterior import LogDensity

PROBES, NODES = 32, 256  # the quadrature; with 100 nodes the eigenvalue 0 merges with its neighbours
PROBES_AT_A_TIME = 8
FIRST_DEPTH, LAST_DEPTH = 256, 2048  # the Lanczos run that looks for eigenvectors
TOLERANCE = 0.01  # a Ritz pair's residual relative to its eigenvalue
BREAKDOWN = 1e-6  # relative to the largest entry so far: in float32 the Krylov space ends there


class Spectrum(NamedTuple):
    """A density of eigenvalues, and eigenpairs.

    nodes, weights: `[probes, nodes]` float64, eigenvalues and the share of all directions that each stands for;
    rows of weights sum to 1. One probe when exact. values, vectors: eigenpairs `[k]`, `[P, k]`, ascending: all
    when exact, else the Ritz pairs of one Lanczos run, of which those far from 0 are good. residuals: ‖Av − λv‖ `[k]`.
    """

    nodes: np.ndarray
    weights: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    residuals: np.ndarray

    @property
    def exact(self) -> bool:
        """Whether every eigenpair was computed."""
        return len(self.nodes) == 1

    def times(self, factor: float) -> "Spectrum":
        """Return the spectrum of a multiple of the matrix; the factor is positive."""
        return self._replace(nodes=factor * self.nodes, values=factor * self.values, residuals=factor * self.residuals)

    def average(self, function: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        """Return the normalised trace tr f(A)/P and its standard error over the probes (0 when exact)."""
        probes = (self.weights * function(self.nodes)).sum(axis=1)
        error = 0.0 if len(probes) == 1 else probes.std(ddof=1) / np.sqrt(len(probes))
        return float(probes.mean()), float(error)

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """Return the share of directions in each bin, see `histogram`."""
        return histogram(self.nodes.ravel(), edges, self.weights.ravel() / len(self.weights))


def histogram(values: np.ndarray, edges: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return the sum of weights (1/n each by default) by bin; the outermost bins also count what lies beyond them."""
    inside = np.clip(values, edges[0], np.nextafter(edges[-1], edges[0]))
    return np.histogram(inside, edges, weights=np.full(values.size, 1 / values.size) if weights is None else weights)[0]


def dense_spectra(log_density: LogDensity, theta: Any, scales: np.ndarray) -> tuple[Spectrum, Spectrum]:
    """Return the spectra of H and of S H S, S = diag(scales) `[P]`, by eigendecomposition in float64, O(P³)."""
    likelihood = jax.tree_util.Partial(_log_likelihood, log_density)
    hessian = np.asarray(negative_hessian(likelihood, theta), np.float64)
    spectrum = dense_spectrum(hessian)
    if np.ptp(scales) == 0:  # S H S is a multiple of H
        return spectrum, spectrum.times(float(scales[0]) ** 2)
    return spectrum, dense_spectrum(scales[:, None] * hessian * scales)


def dense_spectrum(matrix: np.ndarray) -> Spectrum:
    """Return the spectrum of a symmetric matrix `[P, P]`, exactly."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return Spectrum(values[None], np.full((1, len(values)), 1 / len(values)), values, vectors, np.zeros(len(values)))


def lanczos_spectrum(log_density: LogDensity, theta: Any, scales: np.ndarray, threshold: float, key: Any) -> Spectrum:
    """Return the spectrum of S H S without forming the matrix.

    The density by stochastic Lanczos quadrature: vᵀf(A)v for `PROBES` vectors v of random signs, each by a Gauss
    rule of `NODES` points (Golub and Meurant 1994; Ubaru, Chen and Saad 2017). The eigenpairs by one Lanczos run
    with full reorthogonalisation, made twice as deep until every Ritz pair with |λ| ≥ threshold has a residual
    below `TOLERANCE`·|λ|, or the depth is `LAST_DEPTH` or P. Cost: PROBES·NODES + 2·depth products. Of an
    eigenvalue that occurs m times a Krylov space holds one vector: count directions by the density, not by the
    pairs. (Hidden units that are equal make such eigenvalues; every gradient lies in the symmetric direction.)
    """
    start_key, probe_key = jax.random.split(key)
    diagonal = jnp.asarray(scales, jnp.float32)
    size = diagonal.size
    probes = stochtrace.sampler_signs(diagonal, num=PROBES)(probe_key)
    rules = np.asarray(_tridiagonals(log_density, theta, diagonal, probes, depth=min(NODES, size)), np.float64)
    nodes, rotations = np.linalg.eigh(rules)
    start = jax.random.normal(start_key, (size,))
    depth = min(FIRST_DEPTH, size)
    while True:
        values, vectors, residuals = _ritz(log_density, theta, diagonal, start, depth)
        leading = np.abs(values) >= threshold
        if depth == min(LAST_DEPTH, size) or np.all(residuals[leading] <= TOLERANCE * np.abs(values[leading])):
            return Spectrum(nodes, rotations[:, 0] ** 2, values, vectors, residuals)
        depth = min(2 * depth, LAST_DEPTH, size)


def _ritz(log_density: LogDensity, theta: Any, scales: Any, start: Any, depth: int) -> tuple[np.ndarray, ...]:
    """Return Ritz values `[depth]` ascending, vectors `[P, depth]`, and residual norms, from one Krylov space."""
    basis, tridiagonal, residual = _krylov(log_density, theta, scales, start, depth=depth)
    tridiagonal = np.asarray(tridiagonal, np.float64)
    beside = np.append(np.diag(tridiagonal, 1), np.linalg.norm(residual))
    # The entries after a breakdown are amplified rounding: they are dropped, and do not count for the scale.
    scale = np.maximum.accumulate(np.abs(np.diag(tridiagonal)) + np.abs(beside))
    ended = np.abs(beside) < BREAKDOWN * scale
    used = 1 + int(np.argmax(ended)) if ended.any() else depth
    values, rotation = np.linalg.eigh(tridiagonal[:used, :used])
    vectors = np.asarray(basis[:used], np.float64).T @ rotation
    return values, vectors, np.abs(beside[used - 1] * rotation[-1])


@jax.jit(static_argnames="depth")
def _krylov(log_density: LogDensity, theta: Any, scales: Any, start: Any, depth: int) -> tuple[Any, Any, Any]:
    lanczos = decomp.tridiag_sym(depth, reortho="full", custom_vjp=False)
    return lanczos(_product, start, log_density, theta, scales)[:3]


@jax.jit(static_argnames="depth")
def _tridiagonals(log_density: LogDensity, theta: Any, scales: Any, starts: Any, depth: int) -> Any:
    lanczos = decomp.tridiag_sym(depth, reortho="full", custom_vjp=False)

    def one(start: Any) -> Any:
        return lanczos(_product, start, log_density, theta, scales).J_small

    return jax.lax.map(one, starts, batch_size=min(PROBES_AT_A_TIME, len(starts)))


def _product(vector: Any, log_density: LogDensity, theta: Any, scales: Any) -> Any:
    """Return S H S v by forward mode over reverse mode: about four passes over the data."""
    flat, unravel = ravel_pytree(theta)
    gradient = jax.grad(lambda point: log_density.log_likelihood(unravel(point)))
    return -scales * jax.jvp(gradient, (flat,), (scales * vector,))[1]


def _log_likelihood(log_density: LogDensity, params: Any) -> Any:
    return log_density.log_likelihood(params)
