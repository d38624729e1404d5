"""Builders: the Laplace approximation in four structures, and the covariance of draws."""

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

# of a low-rank form: the relative error that cancellation may bring where g lies in the stiffest direction
_MAX_ROUNDING = 0.1
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
    """The Laplace approximation Σ = (C + Λ + damping · I)⁻¹ around params, in one of four structures.

    C is a curvature of the negative log likelihood on the data of `log_density`, Λ the prior's precision (diagonal).

    Args:
        log_density: an `isouq.LogDensity`: model, data, prior and likelihood.
        params: where C is taken; θ*, a mode.
        curvature: "hessian" (−∇² log likelihood), "ggn" (generalised Gauss-Newton, equal to the Fisher matrix here)
            or "empirical_fisher" (from gradients at the labels).
        structure: "dense"; "diagonal", of C; "kronecker", KFAC: C's block of a weight is A ⊗ B, in the eigenbasis of
            which the prior is added exactly; "low_rank": C's `rank` largest eigenpairs in units of the prior, by
            Lanczos (matfree), the prior elsewhere.
        damping: added to the precision (units: 1/parameter²); 0 is the posterior itself.
        rank: number of eigenpairs, for "low_rank".
        key: JAX key of Lanczos' start, for "low_rank"; `jax.random.key(0)` by default.
        batch_size: data at a time at most, 128 by default; fewer are taken where they would take more than 256 MiB,
            and of one datum fewer outputs at a time. Bounds memory, changes no number beyond rounding.
        max_bytes: memory that laplace may take beside log_density and params, its result included, in bytes: the
            compiled programs' own account, and the host's decompositions. As many data and outputs at a time as
            fit are used (a few compilations). Not together with batch_size.

    Returns:
        A covariance for `isouq.uncertainty(..., covariance=...)`. An indefinite C (a Hessian away from a mode of the
        likelihood) is repaired: in coordinates scaled by the prior, eigenvalues (for "diagonal" entries) of C below 0
        are set to 0, so that no direction is wider than the prior. `clipped` is the share of them
        below −0.1 % of the prior's precision (and below −10⁻⁷ of the largest, which float32 does not resolve).
        "low_rank" has no such field: it keeps positive eigenvalues alone.

    Raises:
        ValueError: an unknown curvature or structure, "kronecker" of a Hessian (it has no such factors), a log
            density that is not a `LogDensity`, params that do not fit it, a curvature that is not finite, "low_rank" of
            data that outweigh the prior about 10⁶ times (float32 cannot subtract so closely), a structure that takes
            more memory than this machine has or than max_bytes; the message says which would fit.
        MemoryError: memory ran out; the message says what took it and what would fit.

    Cost in gradients of the log likelihood (R = 1 for "empirical_fisher", the number of outputs for "ggn"): Hessian,
    dense or diagonal, 2P; the others R; "low_rank" 4 (3 · rank + 10). Memory: dense 40·P² bytes and O(P³) time in
    float64 on the host; diagonal 4·P numbers; Kronecker C² + F² a weight `[C, F]`; low rank (3 · rank + 10) · P while
    it is built. A step adds at most about 256 MiB, or what one output of one datum takes: for "diagonal" and
    "kronecker" its activations and the gradients of those weights alone that are used several times, in a way no rule
    knows or, for "diagonal", at several positions; for "dense" its gradient. "low_rank" scores as a difference: see
    `LowRank`.

    The factor of an axis that is looked up (the words of an embedding) is diagonal, and kept as a vector: time and
    memory grow with the vocabulary. So is, as an approximation, every factor of more than 8,192 rows: its diagonal
    alone is kept.

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
    if not all(
        hasattr(log_density, name) for name in ("log_likelihood", "predict", "scales", "xs", "ys", "noise", "kind")
    ):
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
    # the sd under prior and damping together, one number a leaf
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
    """Build the structure by programs that keep to batch_size or to max_bytes."""
    structure, log_density, params, curvature, rank = request
    flat_scales = _flat(scales, params)
    depth = _limits.depth(rank)
    by_lanczos = structure == "low_rank" and depth < flat_scales.size
    program: Any
    args: tuple[Any, ...]
    if by_lanczos:
        start = jax.random.normal(jax.random.key(0) if key is None else key, flat_scales.shape, flat_scales.dtype)
        program, args = _krylov, (log_density, params, flat_scales, start, curvature, depth)
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
        values, vectors = _leading(curvatures, log_density, params, flat_scales, curvature, batch_size, rows)
        return _low_rank(values, vectors, flat_scales, scales, params, rank)
    matrix = np.asarray(curvatures, np.float64)
    _check_finite(matrix)
    wide = np.asarray(flat_scales, np.float64)
    values, vectors = np.linalg.eigh(wide[:, None] * (matrix + matrix.T) / 2 * wide)
    if structure == "low_rank":
        return _low_rank(values, vectors, wide, scales, params, rank)
    factor = wide[:, None] * vectors / np.sqrt(1 + np.maximum(values, 0))
    return Dense(jnp.asarray(factor, flat_scales.dtype), _share(values, curvature))


def from_draws(draws: Any, structure: str = "dense") -> Dense | Diagonal | LowRank:
    """The covariance of S draws of the parameters (divided by S), such as those of `sample_reference`.

    draws: a pytree like the parameters with a leading axis of draws (several chains: join them, after
    taking each chain's mean away if the covariance within chains is meant).
    structure: "dense", "diagonal", or "low_rank": U = centred draws / √S, exact, and gᵀΣg the variance of the
    projections g·θ: no P × P matrix, S multiplications a parameter.
    """
    _checks.one_of("structure", structure, ("dense", "diagonal", "low_rank"))
    _checks.float_leaves("draws", draws)
    _checks.finite("draws", draws)
    size = _checks.inputs(draws, "draws", "draw")
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
    """Subtract the mean of the draws in float64: in float32 it loses digits where the level is far above the spread."""
    leaf = np.asarray(leaf, np.float64)
    return leaf - leaf.mean(axis=0, keepdims=True)


def _as_leaf(array: np.ndarray, like: Any) -> jax.Array:
    """Return the array in the dtype that a covariance of the leaf `like` has."""
    return jnp.asarray(array, _dtype(like))


def _flat(scales: Any, params: Any) -> Any:
    """One number a leaf, spread over its entries."""
    return ravel_pytree(jax.tree.map(lambda s, leaf: jnp.full(jnp.shape(leaf), s, _dtype(leaf)), scales, params))[0]


def _dtype(leaf: Any) -> Any:
    """Of a covariance: the parameter's, float32 or better."""
    return jnp.promote_types(jnp.result_type(leaf), jnp.float32)


def _wide_enough(params: Any) -> Any:
    """A tree like params in the dtype of a covariance."""
    return jax.tree.map(lambda leaf: jnp.zeros(jnp.shape(leaf), _dtype(leaf)), params)


def _check_finite(*curvatures: Any) -> None:
    if not all(np.isfinite(np.asarray(c)).all() for c in curvatures):
        raise ValueError(
            "the curvature at params is not finite: predict or a derivative of it is NaN or infinite on some row "
            "of xs; look at log_density(params) and its gradient first"
        )


def _share(values: Any, curvature: str) -> float:
    """The share of negative curvatures, in units of the prior's precision; rounding does not count."""
    if curvature != "hessian":
        return 0.0  # a sum of squares has none
    values = np.asarray(values)
    return float(np.mean(values < -max(1e-3, float(np.finfo(np.float32).eps * np.max(values)))))


def _diagonal(entries: Any, scales: Any, params: Any, curvature: str) -> Diagonal:
    _check_finite(entries)
    wide = _flat(scales, params)
    in_units = entries * wide * wide
    variances = 1 / (jnp.maximum(entries, 0) + 1 / wide / wide)
    return Diagonal(ravel_pytree(_wide_enough(params))[1](variances), _share(in_units, curvature))


def _kronecker(factors: list[Any], scales: Any, params: Any) -> Kronecker:
    """The posterior in the eigenbasis of the two factors: v = 1 / (a ⊗ b + 1/scale²)."""
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
    """Eigenvalues and eigenvectors of a factor; of a diagonal one its entries, and the identity as a diagonal."""
    factor = np.asarray(factor, np.float64)
    if factor.ndim == 1:
        return factor, np.ones_like(factor)
    return np.linalg.eigh(factor)


def _leading(
    basis: Any, log_density: Any, params: Any, wide: Any, curvature: str, batch_size: int, rows: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Ritz values and vectors `[P, depth]` of C in units of the prior, from a basis of a Krylov space.

    In float32 Lanczos' vectors lose their orthogonality once the space is exhausted, and spurious copies of
    eigenvectors would be subtracted twice: so they are made orthonormal in float64, and C is projected on them anew.
    """
    basis = np.asarray(basis, np.float64)
    basis = np.linalg.qr(basis[np.isfinite(basis).all(axis=1)].T)[0]
    images = _products(log_density, params, wide, jnp.asarray(basis.T, wide.dtype), curvature, batch_size, rows)
    _check_finite(images)
    projected = basis.T @ np.asarray(images, np.float64).T
    values, vectors = np.linalg.eigh((projected + projected.T) / 2)
    return values, basis @ vectors


@functools.partial(jax.jit, static_argnames=("curvature", "depth", "batch_size", "rows"))
def _krylov(
    log_density: Any,
    params: Any,
    wide: Any,
    start: Any,
    curvature: str,
    depth: int,
    batch_size: int,
    rows: int | None = None,
) -> jax.Array:
    times = _curvature.product(log_density, params, curvature, batch_size, rows)
    return decomp.tridiag_sym(depth, custom_vjp=False)(lambda v: wide * times(wide * v), start).Q_tall


@functools.partial(jax.jit, static_argnames=("curvature", "batch_size", "rows"))
def _products(
    log_density: Any,
    params: Any,
    wide: Any,
    vectors: Any,
    curvature: str,
    batch_size: int,
    rows: int | None = None,
) -> jax.Array:
    times = _curvature.product(log_density, params, curvature, batch_size, rows)
    return jax.lax.map(lambda v: wide * times(wide * v), vectors)


def _low_rank(values: Any, vectors: Any, wide: Any, scales: Any, params: Any, rank: int) -> LowRank:
    """Σ = S (I − V diag(λ / (1 + λ)) Vᵀ) S of the `rank` largest positive λ."""
    values, vectors, wide = (np.asarray(a, np.float64) for a in (values, vectors, wide))
    top = np.argsort(values)[::-1][:rank]
    kept = np.maximum(values[top], 0)
    shaped = _wide_enough(params)
    flat, unravel = ravel_pytree(shaped)
    directions = wide[:, None] * vectors[:, top]
    if len(top) == len(wide):  # all of them: nothing is left to the prior, and nothing has to be subtracted
        return LowRank(jax.vmap(unravel)(jnp.asarray((directions / np.sqrt(1 + kept)).T, flat.dtype)))
    if kept.max() * np.finfo(flat.dtype).eps > _MAX_ROUNDING:
        raise ValueError(
            f"the data outweigh the prior {kept.max():.1e} times in some direction, too much for a low-rank form in "
            f"{flat.dtype}; use structure='dense' or 'kronecker', or set jax_enable_x64"
        )
    directions = jax.vmap(unravel)(jnp.asarray(directions.T, flat.dtype))
    variances = jax.tree.map(lambda s, leaf: jnp.square(s.astype(leaf.dtype)), scales, shaped)
    return LowRank(directions, variances, jnp.asarray(-kept / (1 + kept), flat.dtype))
