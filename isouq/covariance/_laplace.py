"""Build covariances: the Laplace approximation in four structures, and the covariance of draws."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp

from isouq import _checks
from isouq._frozen import first_row, freeze
from isouq.covariance import _curvature, _limits
from isouq.covariance._curvature import CURVATURES
from isouq.covariance._dense import Dense
from isouq.covariance._family import Diagonal, Kronecker, LowRank
from isouq.density import LogDensity
from isouq.gradnorm._factors import at_least_float32

_MAX_ROUNDING = 0.1  # relative error by cancellation that a low-rank form may have in its stiffest direction
_BATCH_SIZE = 128
STRUCTURES = ("dense", "diagonal", "kronecker", "low_rank")


def laplace(
    log_density: Any,
    params: Any,
    curvature: str = "ggn",
    structure: str = "dense",
    *,
    damping: float = 0.0,
    rank: int = 20,
    key: Any = None,
    batch_size: int | None = None,
    max_bytes: int | None = None,
) -> Dense | Diagonal | Kronecker | LowRank:
    """Return the Laplace approximation Σ = (C + Λ + damping · I)⁻¹ around params, in one of four structures.

    C is a curvature of the negative log likelihood on the data of `log_density`, Λ the diagonal precision of the prior.

    Args:
        log_density: an `isouq.LogDensity`: model, data, prior and likelihood.
        params: the point θ* at which C is taken, a mode of the posterior.
        curvature: "hessian" (−∇² log likelihood), "ggn" (generalised Gauss-Newton, equal to the Fisher matrix for these
            likelihoods) or "empirical_fisher" (the sum of squares of the gradients at the labels).
        structure: "dense"; "diagonal", that of C; "kronecker", which is KFAC: the block of C of a weight is A ⊗ B, and
            the prior is added exactly in its eigenbasis; or "low_rank": the `rank` largest eigenpairs of C in units of
            the prior, by Lanczos (matfree), and the prior in all other directions.
        damping: a number that is added to the precision (units: 1/parameter²); 0 gives the posterior itself.
        rank: number of eigenpairs, for "low_rank".
        key: JAX key of the start of Lanczos, for "low_rank"; by default `jax.random.key(0)`.
        batch_size: largest number of data at a time, by default 128. Fewer data, and fewer outputs of each, are taken
            where they would need more than 256 MiB. It changes no number beyond rounding.
        max_bytes: memory that laplace may take beside log_density and params, in bytes, its result and the
            decompositions on the host included. As many data and outputs at a time as fit are used, after a few
            compilations. It cannot be given together with batch_size.

    Returns:
        A covariance for `isouq.uncertainty(..., covariance=...)`. A C that is not positive semidefinite, such as a
        Hessian away from a mode of the likelihood, is repaired: in coordinates scaled by the prior its eigenvalues (for
        "diagonal" its entries) below 0 are set to 0, so that no direction is wider than the prior. The field `clipped`
        is the share of them below −0.1 % of the prior's precision and below −10⁻⁷ of the largest, which float32 does
        not resolve. "low_rank" has no such field, because it keeps positive eigenvalues alone.

    Raises:
        ValueError: an unknown curvature or structure; "kronecker" for a Hessian, which has no such factors; a
            log_density that is no `LogDensity`; params that do not fit it; a curvature that is not finite; "low_rank"
            where the data outweigh the prior about 10⁶ times, which float32 cannot subtract; or a structure that takes
            more memory than max_bytes or the machine has. The message says what to do.
        MemoryError: memory ran out; the message says what took it and what would fit.

    Cost in gradients of the log likelihood, with R = 1 for "empirical_fisher" and the number of outputs for "ggn": 2P
    for a dense or diagonal Hessian, 4 (3 · rank + 10) for "low_rank", R otherwise.

    Memory: dense 40·P² bytes, and O(P³) time in float64 on the host; diagonal 4·P numbers; Kronecker C² + F² for a
    weight `[C, F]`; low rank (3 · rank + 10) · P while it is built. The data are read in batches, which take at most
    about 256 MiB more, or what one output of one datum needs if that is larger: its gradient for "dense", its
    activations for "diagonal" and "kronecker". A weight takes the memory of its gradients per output as well if it is
    used several times and no rule of the engine covers these uses, and for "diagonal" if it is used at several
    positions.

    The factor of an axis that is looked up (the words of an embedding) is diagonal and stored as a vector, so that time
    and memory grow with the vocabulary. Of a factor of more than 8,192 rows only the diagonal is used, which is an
    approximation. A "low_rank" covariance scores by a difference: see `LowRank`.

    Sources: MacKay (1992); Martens and Grosse (2015) and Ritter et al. (2018) for KFAC; Eschenhagen et al., arXiv
    2311.00636, for shared weights; Daxberger et al., arXiv 2106.14806, for the family.
    """
    if _checks.is_traced((log_density, params)):
        raise ValueError("laplace was called under jit or vmap; build the covariance outside and pass it in")
    _checks.one_of("curvature", curvature, CURVATURES)
    _checks.one_of("structure", structure, STRUCTURES)
    if batch_size is not None:
        _checks.positive_int("batch_size", batch_size)
        if max_bytes is not None:
            raise ValueError("batch_size and max_bytes were both given; max_bytes chooses the batch size, so give one")
    _checks.positive_int("rank", rank)
    if damping != 0:
        _checks.positive("damping", damping)
    if not isinstance(log_density, LogDensity):
        raise ValueError(
            f"log_density is a {type(log_density).__name__}; expected a LogDensity: build it with "
            "isouq.LogDensity.of(predict, params, xs, ys, kind)"
        )
    _checks.float_leaves("params", params)
    try:
        jax.eval_shape(log_density, params)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        raise ValueError("params do not fit the model of log_density; pass parameters of that model") from error
    _checks.finite("params", params)
    predict = freeze(log_density.predict, params, first_row(log_density.xs))
    log_density = dataclasses.replace(log_density, predict=predict)
    if structure == "kronecker" and curvature == "hessian":
        raise ValueError("curvature 'hessian' has no Kronecker factors; use curvature='ggn' or 'empirical_fisher'")
    request = _limits.Request(structure, log_density, params, curvature, rank)
    _limits.check_machine(request)
    # the standard deviation under prior and damping together, one number for each leaf
    scales = jax.tree.map(
        lambda s: jnp.asarray(1 / np.sqrt(1 / np.float64(s) ** 2 + damping), s.dtype), log_density.scales
    )
    batch_size = _BATCH_SIZE if batch_size is None else batch_size
    try:
        return _build(request, scales, key, batch_size, max_bytes)
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        if _limits.is_out_of_memory(error):
            raise _limits.out_of_memory(request, batch_size) from error
        raise


def _build(
    request: _limits.Request, scales: Any, key: Any, batch_size: int, max_bytes: int | None
) -> Dense | Diagonal | Kronecker | LowRank:
    """Return the structure, built by programs that keep to batch_size or to max_bytes."""
    structure, log_density, params, curvature, rank = request
    flat_sd = _spread(scales, params)
    depth = _limits.depth(rank)
    by_lanczos = structure == "low_rank" and depth < flat_sd.size
    program: Any
    args: tuple[Any, ...]
    if by_lanczos:
        start = jax.random.normal(jax.random.key(0) if key is None else key, flat_sd.shape, flat_sd.dtype)
        program, args = _krylov, (log_density, params, flat_sd, start, curvature, depth)
    else:
        programs = {"diagonal": _curvature.diagonal, "kronecker": _curvature.kronecker}
        program, args = programs.get(structure, _curvature.dense), (log_density, params, curvature)
    if max_bytes is not None:
        batch_size = log_density.ys.shape[0]
        rows = _limits.rows_within(max_bytes, lambda rows: program.lower(*args, batch_size, rows), request)
    else:
        rows = None
    curvatures = program(*args, batch_size, rows)
    if structure == "kronecker":
        return _kronecker(curvatures, scales, params)
    if structure == "diagonal":
        return _diagonal(curvatures, scales, params, curvature)
    if by_lanczos:
        values, vectors = _ritz_pairs(curvatures, log_density, params, flat_sd, curvature, batch_size, rows)
        return _low_rank(values, vectors, flat_sd, scales, params, rank)
    matrix = np.asarray(curvatures, np.float64)
    _check_finite(matrix)
    sd = np.asarray(flat_sd, np.float64)
    values, vectors = np.linalg.eigh(sd[:, None] * (matrix + matrix.T) / 2 * sd)
    if structure == "low_rank":
        return _low_rank(values, vectors, sd, scales, params, rank)
    factor = sd[:, None] * vectors / np.sqrt(1 + np.maximum(values, 0))
    return Dense(jnp.asarray(factor, flat_sd.dtype), _negative_share(values, curvature))


def from_draws(draws: Any, structure: str = "dense") -> Dense | Diagonal | LowRank:
    """Return the covariance Σ_s (θ_s − θ̄)(θ_s − θ̄)ᵀ / S of S draws, such as those of `sample_reference`.

    Args:
        draws: a pytree like the parameters with a leading axis of draws. Concatenate several chains; subtract the mean
            of each chain first if the covariance within chains is meant.
        structure: "dense"; "diagonal"; or "low_rank", which is exact: its directions are the centred draws / √S, and
            gᵀΣg is the variance of the projections g·θ_s.

    Raises:
        ValueError: an unknown structure, fewer than two draws, or a value that is not finite.

    Cost: "dense" takes P² numbers and O(P³) time. "low_rank" takes S · P numbers, and S · P multiplications for each
    gradient.
    """
    _checks.one_of("structure", structure, ("dense", "diagonal", "low_rank"))
    _checks.float_leaves("draws", draws)
    _checks.finite("draws", draws)
    size = _checks.count_rows(draws, "draws", "draw")
    if size < 2:
        raise ValueError("draws has one row; a covariance needs at least two draws")
    if structure == "diagonal":
        variances = jax.tree.map(lambda leaf: np.mean(np.square(_centre(leaf)), axis=0), draws)
        return Diagonal(jax.tree.map(_as_leaf, variances, draws))
    if structure == "low_rank":
        return LowRank(jax.tree.map(lambda leaf: _as_leaf(_centre(leaf) / np.sqrt(size), leaf), draws))
    flat = np.concatenate([_centre(leaf).reshape(size, -1) for leaf in jax.tree.leaves(draws)], axis=1)
    covariance = Dense.from_covariance(flat.T @ flat / size)
    dtype = functools.reduce(jnp.promote_types, map(_dtype, jax.tree.leaves(draws)))
    return dataclasses.replace(covariance, factor=covariance.factor.astype(dtype))


def _centre(leaf: Any) -> np.ndarray:
    """Return draws minus their mean, in float64: float32 loses digits where the mean is far above the spread."""
    leaf = np.asarray(leaf, np.float64)
    return leaf - leaf.mean(axis=0, keepdims=True)


def _as_leaf(array: np.ndarray, like: Any) -> jax.Array:
    """Return the array in the dtype that a covariance of the leaf `like` has."""
    return jnp.asarray(array, _dtype(like))


def _spread(scales: Any, params: Any) -> Any:
    """Return one number for each leaf spread over the entries of the leaf, as a flat vector."""
    return ravel_pytree(jax.tree.map(lambda s, leaf: jnp.full(jnp.shape(leaf), s, _dtype(leaf)), scales, params))[0]


def _dtype(leaf: Any) -> Any:
    """Return the dtype of a covariance of a leaf: the leaf's own, but at least float32."""
    return at_least_float32(jnp.result_type(leaf))


def _zeros(params: Any) -> Any:
    """Return a tree of zeros like params, with the dtypes of a covariance."""
    return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), _dtype(leaf)), params)


def _check_finite(*curvatures: Any) -> None:
    if not all(np.isfinite(np.asarray(c)).all() for c in curvatures):
        raise ValueError(
            "the curvature at params is not finite: predict or a derivative of it is NaN or infinite on some row "
            "of xs; look at log_density(params) and its gradient first"
        )


def _negative_share(values: Any, curvature: str) -> float:
    """Return the share of curvatures, in units of the prior's precision, that are negative by more than rounding."""
    if curvature != "hessian":
        return 0.0  # a sum of squares has none
    values = np.asarray(values)
    return float(np.mean(values < -max(1e-3, float(np.finfo(np.float32).eps * np.max(values)))))


def _diagonal(entries: Any, scales: Any, params: Any, curvature: str) -> Diagonal:
    _check_finite(entries)
    sd = _spread(scales, params)
    relative = entries * sd * sd
    variances = 1 / (jnp.maximum(entries, 0) + 1 / sd / sd)
    return Diagonal(ravel_pytree(_zeros(params))[1](variances), _negative_share(relative, curvature))


def _kronecker(factors: list[Any], scales: Any, params: Any) -> Kronecker:
    """Return the posterior in the eigenbasis of the two factors of each leaf, with variances 1 / (a ⊗ b + 1/scale²)."""
    pairs, variances = [], []
    for (first, second), scale, leaf in zip(factors, jax.tree.leaves(scales), jax.tree.leaves(params), strict=True):
        _check_finite(first, second)
        (a, left), (b, right) = _eigh(first), _eigh(second)
        curvature = np.outer(np.maximum(a, 0), np.maximum(b, 0))
        dtype = _dtype(leaf)
        pairs.append((jnp.asarray(left, dtype), jnp.asarray(right, dtype)))
        variances.append(jnp.asarray(1 / (curvature + 1 / float(scale) ** 2), dtype))
    tree = jax.tree.structure(params)
    return Kronecker(jax.tree.unflatten(tree, pairs), jax.tree.unflatten(tree, variances))


def _eigh(factor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors of a factor; those of a diagonal one are its entries and a vector of ones."""
    factor = np.asarray(factor, np.float64)
    if factor.ndim == 1:
        return factor, np.ones_like(factor)
    return np.linalg.eigh(factor)


def _ritz_pairs(
    basis: Any, log_density: Any, params: Any, sd: Any, curvature: str, batch_size: int, rows: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return Ritz values and vectors `[P, depth]` of C in units of the prior, from a basis of a Krylov space.

    Once the space is exhausted, the vectors of Lanczos lose their orthogonality in float32, and copies of eigenvectors
    would be subtracted twice. They are therefore made orthonormal in float64, and C is projected on them again.
    """
    basis = np.asarray(basis, np.float64)
    basis = np.linalg.qr(basis[np.isfinite(basis).all(axis=1)].T)[0]
    images = _products(log_density, params, sd, jnp.asarray(basis.T, sd.dtype), curvature, batch_size, rows)
    _check_finite(images)
    projected = basis.T @ np.asarray(images, np.float64).T
    values, vectors = np.linalg.eigh((projected + projected.T) / 2)
    return values, basis @ vectors


@functools.partial(jax.jit, static_argnames=("curvature", "depth", "batch_size", "rows"))
def _krylov(
    log_density: Any,
    params: Any,
    sd: Any,
    start: Any,
    curvature: str,
    depth: int,
    batch_size: int,
    rows: int | None = None,
) -> jax.Array:
    times = _curvature.product(log_density, params, curvature, batch_size, rows)
    return decomp.tridiag_sym(depth, custom_vjp=False)(lambda v: sd * times(sd * v), start).Q_tall


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def _products(
    log_density: Any,
    params: Any,
    sd: Any,
    vectors: Any,
    curvature: str,
    batch_size: int,
    rows: int | None = None,
) -> jax.Array:
    times = _curvature.product(log_density, params, curvature, batch_size, rows)
    return jax.lax.map(lambda v: sd * times(sd * v), vectors)


def _low_rank(values: Any, vectors: Any, sd: Any, scales: Any, params: Any, rank: int) -> LowRank:
    """Return Σ = S (I − V diag(λ / (1 + λ)) Vᵀ) S of the `rank` largest λ, of which negative ones count as 0."""
    values, vectors, sd = (np.asarray(a, np.float64) for a in (values, vectors, sd))
    top = np.argsort(values)[::-1][:rank]
    leading = np.maximum(values[top], 0)
    shaped = _zeros(params)
    flat, unravel = ravel_pytree(shaped)
    directions = sd[:, None] * vectors[:, top]
    if len(top) == len(sd):  # with all eigenpairs nothing has to be subtracted from the prior
        return LowRank(jax.vmap(unravel)(jnp.asarray((directions / np.sqrt(1 + leading)).T, flat.dtype)))
    if leading.max() * np.finfo(flat.dtype).eps > _MAX_ROUNDING:
        raise ValueError(
            f"the data outweigh the prior {leading.max():.1e} times in some direction, too much for a low-rank form in "
            f"{flat.dtype}; use structure='dense' or 'kronecker', or set jax_enable_x64"
        )
    directions = jax.vmap(unravel)(jnp.asarray(directions.T, flat.dtype))
    variances = jax.tree.map(lambda s, leaf: jnp.square(s.astype(leaf.dtype)), scales, shaped)
    return LowRank(directions, variances, jnp.asarray(-leading / (1 + leading), flat.dtype))
