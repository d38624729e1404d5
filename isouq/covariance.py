"""Covariances Σ of the parameters, for the quadratic form gᵀΣg.

`Identity` is the paper's isotropic choice. `Diagonal`, `Kronecker` and `LowRank` respect the shape of
the parameters, so that `isouq.uncertainty` needs no gradients for them. `Dense` holds any covariance
of a small model: the Laplace approximation is `Dense.from_precision(H)` with H from `negative_hessian`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from isouq import _checks
from isouq.gradnorm import Form
from isouq.gradnorm._forms import quadratic


@runtime_checkable
class Covariance(Protocol):
    """What `isouq.uncertainty(..., covariance=...)` asks of a covariance.

    A `StructuredCovariance` is applied without forming gradients.
    """

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """gᵀΣg for a batch: `grads` is a pytree like the parameters with a leading batch axis."""
        ...


class StructuredCovariance:
    """A covariance that is given by one `isouq.gradnorm.Form` for each leaf; subclass and define `forms`."""

    def forms(self, params: Any) -> list[Form]:
        """One `Form` for each leaf of params; raises where the shapes do not fit."""
        raise NotImplementedError

    def quadratic(self, grads: Any) -> Float[Array, " batch"]:
        """gᵀΣg for each gradient of the batch, leaves `[batch, ...]`; the form is applied to the gradient itself."""
        forms = self.forms(jax.tree.map(lambda g: g[0], grads))

        return jax.vmap(lambda grad: quadratic(grad, forms))(grads)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Identity(StructuredCovariance):
    """Σ = scale · I, so that gᵀΣg = scale · ‖g‖². The paper's U_E has scale 1."""

    scale: Any = 1.0  # a float or a scalar array; Any, for JAX rebuilds pytrees around placeholders

    def forms(self, params: Any) -> list[Form]:
        """Scale · I for every leaf."""
        return [Form(self.scale) for _ in jax.tree.leaves(params)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Diagonal(StructuredCovariance):
    """Σ = diag(variances): gᵀΣg = Σ_i variances_i g_i².

    variances: a pytree like the parameters, entries ≥ 0 (units: parameter²). One position of a weight
    `[C, F]` costs C·F multiplications; many positions form the gradient of one weight at a time.
    """

    variances: Any

    def forms(self, params: Any) -> list[Form]:
        """The variances of every leaf."""
        pairs = _like(params, self.variances, "variances")
        for leaf, variances in pairs:
            _expect("variances", jnp.shape(variances), jnp.shape(leaf))
        return [Form(diagonal=jnp.asarray(variances)) for _, variances in pairs]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kronecker(StructuredCovariance):
    """Block-diagonal Σ with a block A Aᵀ ⊗ B Bᵀ for every leaf: gᵀΣg = Σ ‖Aᵀ G B‖².

    factors: a pytree like the parameters with a pair `(A, B)` for each leaf. G is the leaf's gradient
    `[C, F]`, F its last axis and C all others together (1 for a vector); A is `[C, r]`, B `[F, s]`. KFAC's
    posterior has AAᵀ and BBᵀ the inverses of its two factors. One position costs C·r + F·s multiplications.
    """

    factors: Any

    def forms(self, params: Any) -> list[Form]:
        """The two factors of every leaf."""
        forms = []
        for leaf, pair in _like(params, self.factors, "factors"):
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(jnp.ndim(f) == 2 for f in pair)):
                raise ValueError(f"factors holds {_show(pair)} for a leaf; expected a pair of matrices (A, B)")
            last = jnp.shape(leaf)[-1] if jnp.ndim(leaf) else 1
            rows = (jnp.size(leaf) // last if last else 0, last)
            _expect("rows of factors", tuple(jnp.shape(f)[0] for f in pair), rows)
            forms.append(Form(kronecker=(jnp.asarray(pair[0]), jnp.asarray(pair[1]))))
        return forms


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(StructuredCovariance):
    """Σ = scale · I + U Uᵀ: gᵀΣg = scale · ‖g‖² + Σ_k (u_k·g)².

    directions: a pytree like the parameters whose leaves have a leading axis K, u_k = leaf[k] (scaled:
    for an eigenpair, √eigenvalue · eigenvector). Costs K multiplications a parameter, as K forward passes.
    """

    directions: Any
    scale: Any = 0.0

    def forms(self, params: Any) -> list[Form]:
        """The part of U that belongs to every leaf."""
        pairs = _like(params, self.directions, "directions")
        ranks = {jnp.shape(u)[:1] for _, u in pairs}
        if len(ranks) != 1 or ranks == {()}:
            raise ValueError(
                f"directions has leading axes {sorted(ranks)}; expected one axis K, the same for all leaves"
            )
        for leaf, u in pairs:
            _expect("directions", jnp.shape(u)[1:], jnp.shape(leaf))
        return [Form(self.scale, directions=jnp.asarray(u)) for _, u in pairs]


class _Pair(NamedTuple):
    leaf: Any
    other: Any


def _like(params: Any, tree: Any, name: str) -> list[tuple[Any, Any]]:
    """Leaves of params, each with what stands in its place in another tree."""
    try:
        return jax.tree.leaves(jax.tree.map(_Pair, params, tree), is_leaf=lambda node: isinstance(node, _Pair))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a pytree like the parameters; build it with jax.tree.map over them") from error


def _expect(name: str, given: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if given != expected:
        raise ValueError(f"{name} has shape {given} for a leaf that asks for {expected}; build it for the same model")


def _show(value: Any) -> str:
    return f"shape {tuple(value.shape)}" if hasattr(value, "shape") else f"a {type(value).__name__}"


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
        flat = jax.vmap(lambda grad: ravel_pytree(grad)[0])(grads)
        if flat.shape[1] != self.factor.shape[0]:
            raise ValueError(
                f"the covariance is for {self.factor.shape[0]} parameters, the gradient has "
                f"{flat.shape[1]}; build it for the same model"
            )
        projected = flat.astype(self.factor.dtype) @ self.factor
        return jnp.sum(jnp.square(projected), axis=-1)


def negative_hessian(log_density: Callable, params: Any) -> Float[Array, "params params"]:
    """H = −∇² log p(θ|D) at θ, dense `[P, P]`, rows in the order of `ravel_pytree(params)`.

    Cost: P forward-over-reverse products, memory of the batch times P. For models up to a few
    thousand parameters.
    """
    flat, unravel = ravel_pytree(params)
    return _negative_hessian(jax.tree_util.Partial(log_density), flat, jax.tree_util.Partial(unravel))


@jax.jit
def _negative_hessian(log_density: Callable, flat: Array, unravel: Callable) -> Array:
    return -jax.hessian(lambda theta: log_density(unravel(theta)))(flat)


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
