"""The dense covariance of a small model, and the Hessian of a log density."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from isouq import _checks
from isouq._frozen import freeze
from isouq.covariance._curvature import hessian
from isouq.covariance._draws import DrawDeviation, SampleMixin, standard_normal
from isouq.covariance._limits import check_matrix, num_params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dense(SampleMixin):
    """Σ = W Wᵀ for a model of P parameters, stored as the factor W `[P, P]`: gᵀΣg = ‖Wᵀg‖² ≥ 0.

    factor: W, whose rows are in the order of `jax.flatten_util.ravel_pytree(params)`.
    clipped: share of eigenvalues that were lifted to make the matrix a covariance.

    Memory: 4·P² bytes, which is 400 MB for P = 10,000.
    """

    factor: Any
    clipped: Any = 0.0

    @classmethod
    def from_precision(cls, precision: Any, floor: float = 1e-6) -> "Dense":
        """Return Σ = H⁻¹ of a symmetric H `[P, P]`, by an eigendecomposition in float64 on the host in O(P³) time.

        Eigenvalues below `floor`, which a Hessian has away from a mode, are lifted to it. `clipped` is the share of
        those that are below it by more than 0.1 %, so that rounding does not count. For the Hessian of a log posterior
        the smallest precision of the prior is a good floor.

        Raises:
            ValueError: H is not square, symmetric and finite, or floor is not positive.
        """
        _checks.positive("floor", floor)
        values, vectors = _eigh("precision", precision)
        lifted = np.maximum(values, floor)
        factor = vectors / np.sqrt(lifted)
        return cls(_as_array(factor, precision), float(np.mean(values < 0.999 * floor)))

    @classmethod
    def from_covariance(cls, covariance: Any) -> "Dense":
        """Return a symmetric Σ `[P, P]` as it is; negative eigenvalues are set to 0, and `clipped` is their share."""
        values, vectors = _eigh("covariance", covariance)
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
        # the tiny negative eigenvalues that rounding leaves in a singular covariance do not count
        tolerance = 1e-6 * max(float(values.max()), 0.0)
        return cls(_as_array(factor, covariance), float(np.mean(values < -tolerance)))

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """Return gᵀΣg of each gradient of a batch, leaves `[batch, ...]`, in O(batch · P²) time."""
        _checks.real_leaves("grads", grads, " with a covariance other than Identity")
        grads = jax.tree.map(lambda g: g.astype(self.factor.dtype), grads)
        flat = jax.vmap(lambda grad: ravel_pytree(grad)[0])(grads)
        if flat.shape[1] != self.factor.shape[0]:
            raise ValueError(
                f"the covariance is for {self.factor.shape[0]} parameters, the gradient has "
                f"{flat.shape[1]}; build it for the same model, with the same select"
            )
        projected = flat @ self.factor
        return jnp.sum(jnp.square(projected), axis=-1)

    def deviation(self, params: Any) -> DrawDeviation:
        """Return the function from a key to one draw of N(0, Σ), which is Wε with ε ~ N(0, I)."""
        size = num_params(params)
        if size != self.factor.shape[0]:
            raise ValueError(
                f"the covariance is for {self.factor.shape[0]} parameters, and params has {size}; build it for the "
                "same model"
            )

        def draw(key: Array) -> Any:
            noise, unravel = ravel_pytree(standard_normal(key, params))
            return unravel((self.factor @ noise.astype(self.factor.dtype)).astype(noise.dtype))

        return draw

    def scaled(self, factor: Any) -> "Dense":
        """Return factor · Σ."""
        return replace(self, factor=jnp.sqrt(factor) * self.factor)


def negative_hessian(log_density: Callable, params: Any) -> Float[Array, "params params"]:
    """Return H = −∇² log p(θ|D) at θ = params, `[P, P]` with rows in the order of `ravel_pytree(params)`.

    Raises:
        ValueError: the matrix needs more memory than the machine has.

    Cost: P forward-over-reverse products, as many at a time as fit in 256 MiB. It is meant for models of up to a few
    thousand parameters.
    """
    check_matrix(params)
    return _negative_hessian(freeze(log_density, params, name="log_density"), params)


@jax.jit
def _negative_hessian(log_density: Callable, params: Any) -> Array:
    return -hessian(log_density, params)


def _eigh(name: str, matrix: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors in float64; raise unless the matrix is square, finite and symmetric."""
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
