"""Build the Laplace approximation in four structures."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp

from isouq import _checks
from isouq._frozen import first_row, freeze
from isouq.covariance import _curvature, _limits
from isouq.covariance._curvature import CURVATURES
from isouq.covariance._dense import Dense
from isouq.covariance._family import Diagonal, Kronecker, LowRank
from isouq.covariance._stream import Stream, sum_over_batches
from isouq.covariance._structures import (
    Curvature,
    DenseCurvature,
    DiagonalCurvature,
    KroneckerCurvature,
    LowRankCurvature,
    spread,
)
from isouq.density import LogDensity

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
    batches: Iterable[Any] | None = None,
    progress: Callable[[int], None] | None = None,
    checkpoint: Path | str | None = None,
    select: Any = None,
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
            compilations. It cannot be given together with batch_size or batches.
        batches: an iterable of pairs (xs, ys), read once: the training data, in place of those of log_density, which
            then holds a few example rows, with at least two classes, that say what an input looks like. xs and ys are
            what `numpy.asarray` takes, such as tensors of a torch DataLoader. Batches of another size compile another
            program. Not for "low_rank", which takes many passes.
        progress: with batches, function that is called with the number of data so far after each of them.
        checkpoint: with batches, a file from which an interrupted sum goes on, if batches gives the same ones again.
            It is written every minute and at the end. A file that is damaged or belongs to another model, other
            parameters or another structure is put aside with a warning.
        select: the parameters that Σ is of, as in `isouq.uncertainty`, by default all; the others are fixed. The result
            goes with the same `select` there. `isouq.predictive` has no such argument: for it and `isouq.fit_scale`
            take `density, chosen = log_density.condition(params, select)`, then `density.predict` and `chosen`.

    Returns:
        A covariance for `isouq.uncertainty(..., covariance=...)`. A C that is not positive semidefinite, such as a
        Hessian away from a mode of the likelihood, is repaired: in coordinates scaled by the prior its eigenvalues (for
        "diagonal" its entries) below 0 are set to 0, so that no direction is wider than the prior. The field `clipped`
        is the share of them below −0.1 % of the prior's precision and below −10⁻⁷ of the largest, which float32 does
        not resolve. "low_rank" has no such field, because it keeps positive eigenvalues alone.

    Raises:
        ValueError: an unknown curvature or structure; "kronecker" for a Hessian, which has no such factors; a
            log_density that is no `LogDensity`; params that do not fit it; a curvature that is not finite; "low_rank"
            where the data outweigh the prior about 10⁶ times, which float32 cannot subtract; a structure that takes
            more memory than max_bytes or the machine has; or "dense" for more than 10,000 parameters without max_bytes.
            The message says what to do.
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
    if select is not None:
        check_log_density(log_density, params)
        log_density, params = log_density.condition(params, select)
    fit = fit_curvature(
        log_density, params, curvature, structure, damping=damping, rank=rank, key=key, batch_size=batch_size,
        max_bytes=max_bytes, batches=batches, progress=progress, checkpoint=checkpoint,
    )  # fmt: skip
    with _limits.explain(fit.request, fit.batch_size):
        return fit.curvature.covariance(fit.scales)


class CurvatureFit(NamedTuple):
    """A curvature with what it was fitted to.

    scales: the standard deviation under prior and damping, one number for each leaf. log_likelihood: that of the data
    in batches; None where the data are those of the log density.
    """

    curvature: Curvature
    scales: list[float]
    log_likelihood: float | None
    request: _limits.Request
    batch_size: int


def fit_curvature(
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
    batches: Iterable[Any] | None = None,
    progress: Callable[[int], None] | None = None,
    checkpoint: Path | str | None = None,
) -> CurvatureFit:
    """Return the curvature of `laplace`, to which any prior can be added; see there for the arguments."""
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
    check_log_density(log_density, params)
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
    _limits.check_size(request, max_bytes)
    stream = None
    if batches is not None:
        if structure == "low_rank":
            raise ValueError("structure 'low_rank' takes many passes, and batches are read once; use 'kronecker'")
        if max_bytes is not None:
            raise ValueError("max_bytes and batches were both given; give batch_size, or smaller batches")
        _checks.batches(batches, "pairs (xs, ys)")
        stream = Stream(batches, progress, None if checkpoint is None else Path(checkpoint))
    elif progress is not None or checkpoint is not None:
        raise ValueError("progress and checkpoint go with batches; pass the data as batches, or leave them out")
    scales = prior_and_damping(log_density, damping)
    batch_size = _BATCH_SIZE if batch_size is None else batch_size
    with _limits.explain(request, batch_size):
        if stream is None:
            return CurvatureFit(
                _curvature_in_memory(request, scales, key, batch_size, max_bytes), scales, None, request, batch_size
            )
        data_curvature, log_likelihood = _curvature_of_stream(request, stream, batch_size)
    return CurvatureFit(data_curvature, scales, log_likelihood, request, batch_size)


def check_log_density(log_density: Any, params: Any) -> None:
    """Raise unless log_density is one and params are real floating arrays."""
    if not isinstance(log_density, LogDensity):
        raise ValueError(
            f"log_density is a {type(log_density).__name__}; expected a LogDensity: build it with "
            "isouq.LogDensity.of(predict, params, xs, ys, kind)"
        )
    _checks.float_leaves("params", params)


def prior_and_damping(log_density: LogDensity, damping: float) -> list[float]:
    """Return the standard deviation under prior and damping together, one number for each leaf."""
    return [float(1 / np.sqrt(1 / np.float64(s) ** 2 + damping)) for s in jax.tree.leaves(log_density.scales)]


def _curvature_in_memory(
    request: _limits.Request, scales: list[float], key: Any, batch_size: int, max_bytes: int | None
) -> Curvature:
    """Return the curvature on the data of the log density, by programs that keep to batch_size or to max_bytes.

    scales: the prior in whose units "low_rank" looks for eigenpairs.
    """
    structure, log_density, params, curvature, rank = request
    depth = _limits.depth(rank)
    by_lanczos = structure == "low_rank" and depth < _limits.num_params(params)
    program: Any
    args: tuple[Any, ...]
    if by_lanczos:
        sd = jnp.asarray(spread(scales, params), jnp.result_type(jnp.float32, *jax.tree.leaves(params)))
        start = jax.random.normal(jax.random.key(0) if key is None else key, sd.shape, sd.dtype)
        program, args = _krylov, (log_density, params, sd, start, curvature, depth)
    else:
        program, args = _PROGRAMS[structure], (log_density, params, curvature)
    rows = None
    if max_bytes is not None:
        batch_size = log_density.ys.shape[0]
        rows = _limits.rows_within(max_bytes, lambda rows: program.lower(*args, batch_size, rows), request)
    sums = program(*args, batch_size, rows)
    if by_lanczos:
        values, vectors = _ritz_pairs(sums, log_density, params, sd, curvature, batch_size, rows)
        return LowRankCurvature.of(values, vectors, spread(scales, params), params, rank)
    if structure != "low_rank":
        return _curvature_from_sums(structure, sums, curvature, params)
    dense = _curvature_from_sums("dense", sums, curvature, params)
    flat_sd = spread(scales, params)
    values, vectors = dense.eigh(flat_sd)
    return LowRankCurvature.of(values, vectors, flat_sd, params, rank)


_PROGRAMS: dict[str, Any] = {
    "dense": _curvature.dense,
    "low_rank": _curvature.dense,  # of a small model
    "diagonal": _curvature.diagonal,
    "kronecker": _curvature.kronecker,
}


def _curvature_of_stream(request: _limits.Request, stream: Stream, batch_size: int) -> tuple[Curvature, float]:
    """Return the curvature on the data of a stream, and their log likelihood."""
    structure, log_density, params, curvature, _ = request

    def add(total: Any, batch: LogDensity) -> Any:
        sums, log_likelihood = total
        sums = _add_sums(sums, batch, params, structure, curvature, batch_size)
        return sums, log_likelihood + np.float64(log_likelihood_of(batch, params))

    shapes = jax.eval_shape(lambda batch: _sums(batch, params, structure, curvature, batch_size), log_density)
    zero = jax.tree.map(lambda aval: jnp.zeros(aval.shape, aval.dtype), shapes), np.float64(0)
    (sums, log_likelihood), rows = sum_over_batches(add, zero, stream, log_density, params, f"{curvature} {structure}")
    if structure == "kronecker":
        sums = [(first / rows, second) for first, second in sums]
    return _curvature_from_sums(structure, sums, curvature, params), float(log_likelihood)


def _sums(batch: LogDensity, params: Any, structure: str, curvature: str, batch_size: int) -> Any:
    """Return what the program of a structure computes, as sums over the data of a batch."""
    sums = _PROGRAMS[structure](batch, params, curvature, batch_size, None)
    if structure == "kronecker":  # the first factor is a mean
        sums = [(first * batch.ys.shape[0], second) for first, second in sums]
    return sums


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("structure", "curvature", "batch_size"))
def _add_sums(total: Any, batch: LogDensity, params: Any, structure: str, curvature: str, batch_size: int) -> Any:
    """Return the total with the sums of a batch added, in the memory of the total, which is used up."""
    return jax.tree.map(jnp.add, total, _sums(batch, params, structure, curvature, batch_size))


def sum_log_likelihood(log_density: LogDensity, params: Any, rows: int = 1024) -> float:
    """Return the log likelihood at params, summed in float64 over so many rows at a time."""
    size, total = log_density.ys.shape[0], 0.0
    for first in range(0, size, rows):
        xs, ys = jax.tree.map(lambda leaf, i=first: leaf[i : i + rows], (log_density.xs, log_density.ys))
        total += float(log_likelihood_of(dataclasses.replace(log_density, xs=xs, ys=ys), params))
    return total


@jax.jit
def log_likelihood_of(log_density: LogDensity, params: Any) -> jax.Array:
    """Return the log likelihood at params."""
    return log_density.log_likelihood(params)


def _curvature_from_sums(structure: str, sums: Any, curvature: str, params: Any) -> Any:
    """Return the curvature in one structure from what its program computes."""
    _check_finite(*jax.tree.leaves(sums))
    if structure == "kronecker":
        return KroneckerCurvature.of(sums, params)
    if structure == "dense":
        return DenseCurvature(np.asarray(sums, np.float64), curvature, params)
    leaves = jax.tree.leaves(params)
    parts = np.split(np.asarray(sums), np.cumsum([np.size(leaf) for leaf in leaves])[:-1])
    shaped = [part.reshape(np.shape(leaf)) for part, leaf in zip(parts, leaves, strict=True)]
    return DiagonalCurvature(shaped, curvature, params)


def _check_finite(*curvatures: Any) -> None:
    if not all(np.isfinite(np.asarray(c)).all() for c in curvatures):
        raise ValueError(
            "the curvature at params is not finite: predict or a derivative of it is NaN or infinite on some row "
            "of xs; look at log_density(params) and its gradient first"
        )


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
