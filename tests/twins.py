"""Slow twins that several tests share."""

import jax
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree

import isouq


def dense(covariance, params):
    """Σ as a matrix `[P, P]` in float64, by its definition."""
    size = ravel_pytree(params)[0].size
    structure = jax.tree.structure(params)
    if isinstance(covariance, isouq.Identity):
        return float(covariance.scale) * np.eye(size)
    if isinstance(covariance, isouq.Diagonal):
        return np.diag(flat(covariance.variances))
    if isinstance(covariance, isouq.Dense):
        factor = np.asarray(covariance.factor, np.float64)
        return factor @ factor.T
    if isinstance(covariance, isouq.LowRank):
        k = jax.tree.leaves(covariance.directions)[0].shape[0]
        u = np.array([flat(jax.tree.map(lambda leaf, i=i: leaf[i], covariance.directions)) for i in range(k)])
        one = jax.tree.structure(covariance.scale) == jax.tree.structure(0)
        scales = [covariance.scale] * structure.num_leaves if one else structure.flatten_up_to(covariance.scale)
        own = [np.full(np.size(leaf), float(s)) for s, leaf in zip(scales, jax.tree.leaves(params), strict=True)]
        weights = np.ones(len(u)) if covariance.weights is None else np.asarray(covariance.weights, np.float64)
        return np.diag(np.concatenate(own)) + u.T @ np.diag(weights) @ u
    blocks = []
    pairs = structure.flatten_up_to(covariance.factors)
    variances = [None for _ in pairs] if covariance.variances is None else jax.tree.leaves(covariance.variances)
    for pair, v in zip(pairs, variances, strict=True):
        root = np.kron(*(matrix(np.asarray(factor, np.float64)) for factor in pair))
        blocks.append(root @ np.diag(np.ones(root.shape[1]) if v is None else np.ravel(v)) @ root.T)
    return scipy.linalg.block_diag(*blocks)


def matrix(factor):
    """A factor of a Kronecker product; one with one axis is diagonal."""
    return np.diag(factor) if np.ndim(factor) == 1 else factor


def flat(tree):
    """The leaves of a tree, one after the other, in float64."""
    return np.concatenate([np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)])
