"""A curvature C in one structure, to which any prior can be added: the covariance, the evidence and its derivative.

With the prior's standard deviations S = diag(s) and C in units of the prior, SCS, the Laplace approximation is

    Σ = S (I + SCS)⁻¹ S,    log p(D) ≈ log p(D|θ) + log p(θ) + P/2 log 2π + ½ log det Σ
                                     = log p(D|θ) − ½ ‖S⁻¹θ‖² − ½ log det(I + SCS),

    ∂ log p(D) / ∂ log s_l = ‖θ_l‖² / s_l² − γ_l,    γ_l = Σ_{j ∈ l} (1 − Σ_jj / s_l²),

where s_l is the standard deviation of leaf l, and γ_l, between 0 and the number of its parameters, says how many
of them the data determine. Eigenvalues of C below 0 count as 0. Source: MacKay (1992).

The argument `scales` of all functions is s, one number for each leaf in the order of `jax.tree.leaves(params)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from isouq.covariance._dense import Dense
from isouq.covariance._family import Diagonal, Kronecker, LowRank
from isouq.gradnorm._factors import at_least_float32

_MAX_ROUNDING = 0.1  # relative error by cancellation that a low-rank form may have in its stiffest direction
Scales = Sequence[float] | np.ndarray


class Determination(NamedTuple):
    """How far the data narrow the prior. log_determinant: log det(I + SCS). gamma: γ of each leaf `[leaves]`."""

    log_determinant: float
    gamma: np.ndarray


@runtime_checkable  # the tests check types while they run
class Curvature(Protocol):
    """A curvature in one structure."""

    def covariance(self, scales: Scales) -> Any:
        """Return Σ."""
        ...

    def determine(self, scales: Scales) -> Determination:
        """Return log det(I + SCS) and γ."""
        ...


@dataclass(frozen=True)
class DenseCurvature:
    """C as a matrix `[P, P]`, float64. curvature: its name. params: the parameters, for shapes and dtypes."""

    matrix: np.ndarray
    curvature: str
    params: Any
    _last: list[Any] = field(default_factory=list, repr=False, compare=False)  # the last S, with its eigenpairs

    def covariance(self, scales: Scales) -> Dense:
        """Return Σ; its factor is S V (I + λ)^−½ with the eigenpairs λ, V of SCS."""
        sd = spread(scales, self.params)
        values, vectors = self.eigh(sd)
        factor = sd[:, None] * vectors / np.sqrt(1 + np.maximum(values, 0))
        return Dense(jnp.asarray(factor, _flat_dtype(self.params)), _negative_share([values], self.curvature))

    def determine(self, scales: Scales) -> Determination:
        """Return log det(I + SCS) and γ, in O(P³) time."""
        values, vectors = self.eigh(spread(scales, self.params))
        return _determine(values, vectors, self.params)

    def eigh(self, sd: np.ndarray) -> Any:
        """Return eigenvalues and eigenvectors of SCS; sd: S `[P]`. A multiple of the last S has the same vectors."""
        if self._last:
            last, values, vectors = self._last
            factor = common_factor(sd, last)
            if factor is not None:
                return values * factor**2, vectors
        values, vectors = np.linalg.eigh(sd[:, None] * (self.matrix + self.matrix.T) / 2 * sd)
        self._last[:] = sd, values, vectors
        return values, vectors


@dataclass(frozen=True)
class DiagonalCurvature:
    """The diagonal of C: an array for each leaf."""

    entries: list[np.ndarray]
    curvature: str
    params: Any

    def covariance(self, scales: Scales) -> Diagonal:
        """Return Σ."""
        leaves = [
            jnp.asarray(1 / (np.maximum(entries, 0) + 1 / np.float64(s) ** 2), leaf_dtype(leaf))
            for entries, s, leaf in zip(self.entries, scales, jax.tree.leaves(self.params), strict=True)
        ]
        relative = [entries.ravel() * np.float64(s) ** 2 for entries, s in zip(self.entries, scales, strict=True)]
        tree = jax.tree.unflatten(jax.tree.structure(self.params), leaves)
        return Diagonal(tree, _negative_share(relative, self.curvature))

    def determine(self, scales: Scales) -> Determination:
        """Return log det(I + SCS) and γ."""
        relative = [
            np.maximum(entries, 0) * np.float64(s) ** 2 for entries, s in zip(self.entries, scales, strict=True)
        ]
        return _determine_blocks(relative)


class _Block(NamedTuple):
    """The eigenvalues of the two factors of a leaf, float64, and their eigenvectors; see `Kronecker`."""

    a: np.ndarray
    b: np.ndarray
    left: jax.Array
    right: jax.Array

    @property
    def curvature(self) -> np.ndarray:
        """The eigenvalues of A ⊗ B `[C, F]`."""
        return np.outer(np.maximum(self.a, 0), np.maximum(self.b, 0))


@dataclass(frozen=True)
class KroneckerCurvature:
    """KFAC's factors of every leaf by their eigenvalues and eigenvectors."""

    blocks: list[_Block]
    params: Any

    @classmethod
    def of(cls, factors: list[Any], params: Any) -> "KroneckerCurvature":
        """Return the eigendecomposition of the factors (A, B) of every leaf; the list of factors is emptied.

        Each pair is freed as soon as it is decomposed, because the factors may take more memory than the parameters.
        Bias and kernel of a layer have the same B, which is decomposed once.
        """
        blocks: list[_Block] = []
        second = None
        for leaf in jax.tree.leaves(params):
            dtype, last = leaf_dtype(leaf), second
            first, second = factors.pop(0)
            a, left = _eigh(first, dtype)
            if last is not None and np.array_equal(last, second):
                b, right = blocks[-1].b, jnp.asarray(blocks[-1].right, dtype)
            else:
                b, right = _eigh(second, dtype)
            blocks.append(_Block(a, b, left, right))
        return cls(blocks, params)

    def covariance(self, scales: Scales) -> Kronecker:
        """Return Σ in the eigenbasis of the two factors of each leaf, with variances 1 / (a ⊗ b + 1/s²)."""
        tree = jax.tree.structure(self.params)
        pairs = [(block.left, block.right) for block in self.blocks]
        variances = [
            jnp.asarray(1 / (block.curvature + 1 / np.float64(s) ** 2), block.left.dtype)
            for block, s in zip(self.blocks, scales, strict=True)
        ]
        return Kronecker(jax.tree.unflatten(tree, pairs), jax.tree.unflatten(tree, variances))

    def determine(self, scales: Scales) -> Determination:
        """Return log det(I + SCS) and γ."""
        return _determine_blocks(
            [block.curvature * np.float64(s) ** 2 for block, s in zip(self.blocks, scales, strict=True)]
        )


@dataclass(frozen=True)
class LowRankCurvature:
    """The largest eigenpairs of SCS for the prior at which they were computed: what is known of C.

    values: `[K]`. vectors: `[P, K]`, orthonormal. sd: S of that prior `[P]`.
    """

    values: np.ndarray
    vectors: np.ndarray
    sd: np.ndarray
    params: Any

    @classmethod
    def of(cls, values: Any, vectors: Any, sd: np.ndarray, params: Any, rank: int) -> "LowRankCurvature":
        """Return the `rank` largest of some eigenpairs."""
        values, vectors = np.asarray(values, np.float64), np.asarray(vectors, np.float64)
        top = np.argsort(values)[::-1][:rank]
        return cls(np.maximum(values[top], 0), vectors[:, top], sd, params)

    def covariance(self, scales: Scales) -> LowRank:
        """Return Σ = S (I − V diag(λ / (1 + λ)) Vᵀ) S."""
        sd = spread(scales, self.params)
        values, vectors = self._pairs(sd)
        dtype, directions = _flat_dtype(self.params), sd[:, None] * vectors
        unravel = jax.vmap(ravel_pytree(_zeros(self.params))[1])
        if len(values) == len(sd):  # with all eigenpairs nothing has to be subtracted from the prior
            return LowRank(unravel(jnp.asarray((directions / np.sqrt(1 + values)).T, dtype)))
        if values.max() * np.finfo(dtype).eps > _MAX_ROUNDING:
            raise ValueError(
                f"the data outweigh the prior {values.max():.1e} times in some direction, too much for a low-rank form "
                f"in {dtype}; use structure='dense' or 'kronecker', or set jax_enable_x64"
            )
        tree = jax.tree.structure(self.params)
        variances = [
            jnp.asarray(s, leaf_dtype(leaf)) ** 2 for s, leaf in zip(scales, jax.tree.leaves(self.params), strict=True)
        ]
        return LowRank(
            unravel(jnp.asarray(directions.T, dtype)),
            jax.tree.unflatten(tree, variances),
            jnp.asarray(-values / (1 + values), dtype),
        )

    def determine(self, scales: Scales) -> Determination:
        """Return log det(I + SCS) and γ, both from these eigenpairs alone."""
        values, vectors = self._pairs(spread(scales, self.params))
        return _determine(values, vectors, self.params)

    def _pairs(self, sd: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the eigenpairs of SCS under another prior, with the part of C that these eigenpairs make up."""
        factor = common_factor(sd, self.sd)
        if factor is not None:
            return self.values * factor**2, self.vectors
        left, roots, _ = np.linalg.svd(
            (sd / self.sd)[:, None] * self.vectors * np.sqrt(self.values), full_matrices=False
        )
        return np.square(roots), left


def common_factor(sd: np.ndarray, other: np.ndarray) -> float | None:
    """Return the factor of sd to another prior where it is one for all parameters; else None."""
    ratio = sd / other
    return float(ratio.mean()) if np.ptp(ratio) <= 1e-6 * ratio.max() else None


def _determine(values: np.ndarray, vectors: np.ndarray, params: Any) -> Determination:
    """Return log det(I + SCS) and γ from eigenpairs of SCS."""
    values = np.maximum(values, 0)
    of_parameters = np.square(vectors) @ (values / (1 + values))
    ends = np.cumsum([np.size(leaf) for leaf in jax.tree.leaves(params)])
    gamma = [part.sum() for part in np.split(of_parameters, ends[:-1])]
    return Determination(float(np.sum(np.log1p(values))), np.array(gamma))


def _determine_blocks(relative: Sequence[np.ndarray]) -> Determination:
    """Return log det(I + SCS) and γ from the eigenvalues of SCS of each leaf, which is a block of it."""
    log_determinant = sum(float(np.sum(np.log1p(values))) for values in relative)
    return Determination(log_determinant, np.array([np.sum(values / (1 + values)) for values in relative]))


def _eigh(factor: Any, dtype: Any) -> tuple[np.ndarray, jax.Array]:
    """Return the eigenvalues of a factor, float64, and its eigenvectors; those of a diagonal factor are ones."""
    factor = np.asarray(factor, np.float64)
    values, vectors = (factor, np.ones_like(factor)) if factor.ndim == 1 else np.linalg.eigh(factor)
    return values, jnp.asarray(vectors, dtype)


def _negative_share(relative: Sequence[np.ndarray], curvature: str) -> float:
    """Return the share of curvatures, in units of the prior's precision, that are negative by more than rounding."""
    if curvature != "hessian":
        return 0.0  # a sum of squares has none
    values = np.concatenate(relative)
    return float(np.mean(values < -max(1e-3, float(np.finfo(np.float32).eps * np.max(values)))))


def spread(scales: Scales, params: Any) -> np.ndarray:
    """Return the number of each leaf spread over its entries, as a flat vector `[P]`, float64."""
    sizes = [np.size(leaf) for leaf in jax.tree.leaves(params)]
    return np.repeat(np.asarray(scales, np.float64), sizes)


def leaf_dtype(leaf: Any) -> Any:
    """Return the dtype of a covariance of a leaf: the leaf's own, but at least float32."""
    return at_least_float32(jnp.result_type(leaf))


def _zeros(params: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), leaf_dtype(leaf)), params)


def _flat_dtype(params: Any) -> Any:
    """Return the dtype of all parameters of a covariance as one vector."""
    return jnp.result_type(*map(leaf_dtype, jax.tree.leaves(params)))
