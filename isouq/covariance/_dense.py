"""Any covariance of a small model, and the Hessian that the Laplace approximation inverts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from isouq import _checks
from isouq._frozen import freeze
from isouq.covariance._curvature import hessian
from isouq.covariance._limits import check_matrix


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense:
    """Σ = W Wᵀ for a model of P parameters, kept as the factor W `[P, P]`: gᵀΣg = ‖Wᵀg‖² ≥ 0.

    Rows follow `jax.flatten_util.ravel_pytree(params)`. Memory 4·P² bytes, so for small models:
    P = 10,000 takes 400 MB. `clipped` is the share of eigenvalues that had to be lifted to make
    the matrix a covariance (0 when nothing was repaired).
    """

    factor: Any
    clipped: Any = 0.0

    @classmethod
    def from_precision(cls, precision: Any, floor: float = 1e-6) -> "Dense":
        """Σ = H⁻¹ from a symmetric H `[P, P]`, by an eigendecomposition in float64 on the host.

        Eigenvalues below `floor` (an indefinite Hessian away from a mode) are lifted to it; their
        share is `clipped` (below it by more than 0.1 %, so that rounding does not count). A choice for a
        Hessian of a log posterior is the smallest prior precision. O(P³) time.
        """
        _checks.positive("floor", floor)
        values, vectors = _eigh("precision", precision)
        lifted = np.maximum(values, floor)
        factor = vectors / np.sqrt(lifted)
        return cls(_as_array(factor, precision), float(np.mean(values < 0.999 * floor)))

    @classmethod
    def from_covariance(cls, covariance: Any) -> "Dense":
        """Σ `[P, P]` itself; negative eigenvalues are set to 0 and counted in `clipped`."""
        values, vectors = _eigh("covariance", covariance)
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
        # rounding leaves tiny negative eigenvalues in a singular covariance: those are no repair
        tolerance = 1e-6 * max(float(values.max()), 0.0)
        return cls(_as_array(factor, covariance), float(np.mean(values < -tolerance)))

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """gᵀΣg for each gradient of the batch, O(batch · P²)."""
        _checks.real_leaves("grads", grads, " with a covariance other than Identity")
        grads = jax.tree.map(lambda g: g.astype(self.factor.dtype), grads)
        flat = jax.vmap(lambda grad: ravel_pytree(grad)[0])(grads)
        if flat.shape[1] != self.factor.shape[0]:
            raise ValueError(
                f"the covariance is for {self.factor.shape[0]} parameters, the gradient has "
                f"{flat.shape[1]}; build it for the same model"
            )
        projected = flat @ self.factor
        return jnp.sum(jnp.square(projected), axis=-1)


def negative_hessian(log_density: Callable, params: Any) -> Float[Array, "params params"]:
    """H = −∇² log p(θ|D) at θ, dense `[P, P]`, rows in the order of `ravel_pytree(params)`.

    Raises:
        ValueError: a matrix of more bytes than the machine has.

    Cost: P forward-over-reverse products, as many at a time as fit in 256 MiB. For models up to a few thousand
    parameters.
    """
    check_matrix(params)
    return _negative_hessian(freeze(log_density, params, name="log_density"), params)


@jax.jit
def _negative_hessian(log_density: Callable, params: Any) -> Array:
    return -hessian(log_density, params)


def _eigh(name: str, matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.shape[0] == 0:
        raise ValueError(f"{name} has shape {matrix.shape}; expected a square matrix [P, P]")
    _checks.finite(name, matrix)
    if not np.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-3 * np.abs(matrix).max()):
        raise ValueError(f"{name} is not symmetric; expected a symmetric matrix [P, P]")
    return np.linalg.eigh((matrix + matrix.T) / 2)


def _as_array(factor: np.ndarray, like: Any) -> Array:
    dtype = jnp.promote_types(getattr(like, "dtype", jnp.float32), jnp.float32)
    return jnp.asarray(factor, jax.dtypes.canonicalize_dtype(dtype))
