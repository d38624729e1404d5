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


def shaped(vector, like):
    """The tree whose leaves, one after the other, are the vector: the inverse of `flat`."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    parts = [part.reshape(np.shape(leaf)) for part, leaf in zip(np.split(vector, ends), leaves, strict=True)]
    return jax.tree.unflatten(treedef, parts)


def outputs(params, xs, activation=np.tanh):
    """The outputs `[n, outputs]` of an MLP in NumPy and float64."""
    xs = np.asarray(xs, np.float64)
    for depth in range(len(params["layers"])):
        layer = params["layers"][depth]
        xs = activation(xs) if depth else xs
        xs = xs @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
    return xs


def classes(values, kind):
    """The probability of every class `[..., classes]` of outputs; for regression the outputs themselves."""
    if kind == "regression":
        return values
    logits = np.concatenate([np.zeros_like(values), values], axis=-1) if kind == "binary" else values
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def jacobian(function, vector, step=1e-5):
    """The derivatives of a function of a vector `[..., P]` by central differences, which share nothing with JAX."""
    columns = []
    for i in range(len(vector)):
        move = np.zeros(len(vector))
        move[i] = step
        columns.append((function(vector + move) - function(vector - move)) / (2 * step))
    return np.stack(columns, axis=-1)


def hessian(function, vector, step=1e-4):
    """The second derivatives `[P, P]` of a scalar function by central differences."""
    return jacobian(lambda inner: jacobian(function, inner, step), vector, step)


def normal(distance, sd):
    """The log density of a normal variable at a distance from its mean."""
    return -0.5 * (distance / sd) ** 2 - np.log(sd * np.sqrt(2 * np.pi))


def log_likelihood(density, params):
    """Σ log p(yᵢ | xᵢ, θ) of an MLP, datum by datum."""
    values, total = outputs(params, density.xs), 0.0
    for value, p, y in zip(values, classes(values, density.kind), np.asarray(density.ys), strict=True):
        if density.kind == "regression":
            total += normal(y - value[0], float(density.noise))
        else:
            total += np.log(p[y])
    return total


def prior_sd(density, like):
    """The standard deviation of the prior of every parameter, flat."""
    return flat(jax.tree.map(lambda scale, leaf: np.full(np.shape(leaf), float(scale)), density.scales, like))


def log_posterior(density, params, mean=0.0):
    """The log likelihood plus the log density of N(mean, sd²) of every parameter."""
    return log_likelihood(density, params) + sum(normal(flat(params) - mean, prior_sd(density, params)))
