"""Builds the covariance of draws of a posterior."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq.covariance._dense import Dense
from isouq.covariance._family import Diagonal, LowRank
from isouq.covariance._structures import leaf_dtype


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
    dtype = functools.reduce(jnp.promote_types, map(leaf_dtype, jax.tree.leaves(draws)))
    return dataclasses.replace(covariance, factor=covariance.factor.astype(dtype))


def _centre(leaf: Any) -> np.ndarray:
    """Return draws minus their mean, in float64: float32 loses digits where the mean is far above the spread."""
    leaf = np.asarray(leaf, np.float64)
    return leaf - leaf.mean(axis=0, keepdims=True)


def _as_leaf(array: np.ndarray, like: Any) -> jax.Array:
    """Return the array in the dtype that a covariance of the leaf `like` has."""
    return jnp.asarray(array, leaf_dtype(like))
