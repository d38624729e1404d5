"""The further networks that estimates are made of: ensembles, SWAG, and a network trained with dropout."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from experiments.synthetic.subject import Setting
from isouq.models import ACTIVATIONS
from isouq.posterior import LogDensity, MapFit, fit_map, fit_maps

ENSEMBLES = {"map": "MAP", "mle": "MLE", "anchored": "anchored"}
MLE_STEPS = 2000  # separable data have no maximum likelihood: training stops after so many steps
SWAG_EPOCHS, SWAG_BATCH, SWAG_RANK = 200, 20, 20
SGD_RATE, SGD_MOMENTUM = 0.01, 0.9
DROPOUT, DROPOUT_STEPS, DROPOUT_RATE = 0.1, 2000, 0.01


class Members(NamedTuple):
    """Trained networks: their parameters with a leading axis, and the steps of the optimiser of all together."""

    params: Any
    num_steps: int


def train_ensemble(setting: Setting, kind: str, count: int, key: Any) -> Members:
    """Train networks from new initial parameters.

    kind: "map" maximises the posterior; "mle" the likelihood; "anchored" the posterior under a prior whose mean is
    drawn anew for each member from the prior (Pearce et al. 2020, arXiv 1810.05546). For a linear Gaussian model the
    members' covariance is then ΣΣ₀⁻¹Σ, which is below the posterior's Σ; Σ₀ is the prior's.
    """
    init_key, anchor_key = jax.random.split(key)
    inits = jax.vmap(setting.init)(jax.random.split(init_key, count))
    density = setting.log_density
    if kind == "map":
        return _members([fit_map(density, inits, leave_saddles=False)])
    if kind == "mle":
        return _members([fit_map(density.log_likelihood, inits, max_steps=MLE_STEPS, leave_saddles=False)])
    anchors = [draw_from_prior(density, setting.zeros, key) for key in jax.random.split(anchor_key, count)]
    densities = [jax.tree_util.Partial(anchored_density, density, anchor) for anchor in anchors]
    starts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], inits) for i in range(count)]
    return _members(fit_maps(densities, starts, scales=[density.scales] * count, leave_saddles=False))


def _members(fits: list[MapFit]) -> Members:
    params = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *[fit.params for fit in fits])
    return Members(params, int(sum(fit.num_steps.sum() for fit in fits)))


def draw_from_prior(log_density: LogDensity, like: Any, key: Any) -> Any:
    """Return parameters drawn from the prior, with the shapes of `like`."""
    flat, unravel = ravel_pytree(like)
    noise = unravel(jax.random.normal(key, flat.shape, flat.dtype))
    return jax.tree.map(jnp.multiply, noise, log_density.scales)


def anchored_density(log_density: LogDensity, anchor: Any, params: Any) -> Float[Array, ""]:
    """Return the log posterior under the prior N(anchor, scale²) of every parameter."""
    terms = jax.tree.map(lambda p, a, s: jnp.sum(norm.logpdf(p, a, s)), params, anchor, log_density.scales)
    return log_density.log_likelihood(params) + jax.tree.reduce(jnp.add, terms)


class Swag(NamedTuple):
    """The Gaussian of SWAG: its mean and the variance of each parameter `[P]`, and the last deviations `[rank, P]`."""

    mean: Any
    variance: Any
    deviations: Any

    def draw(self, key: Any, count: int) -> Array:
        """Return draws `[count, P]` of N(mean, (diag(variance) + DᵀD/(rank − 1))/2)."""
        keys = jax.random.split(key)
        rank, size = self.deviations.shape
        diagonal = jnp.sqrt(self.variance)[None] * jax.random.normal(keys[0], (count, size))
        low_rank = jax.random.normal(keys[1], (count, rank)) @ self.deviations / jnp.sqrt(rank - 1)
        return self.mean[None] + (diagonal + low_rank) / jnp.sqrt(2)


def train_swag(setting: Setting, theta: Any, key: Any) -> Swag:
    """Run SGD on the log posterior from θ*, and return the Gaussian of its iterates after each of the last 100 epochs.

    Batches of 20, momentum 0.9, and a constant rate of 0.01 for the mean loss a datum, times the variance of the noise
    for regression. Source: Maddox et al. (2019), arXiv 1902.02476; rank 20 as there.
    """
    density = setting.log_density
    rate = SGD_RATE * (float(density.noise) ** 2 if density.kind == "regression" else 1.0)
    return _train_swag(density, theta, key, rate)


@jax.jit
def _train_swag(density: LogDensity, theta: Any, key: Any, rate: Any) -> Swag:
    flat, unravel = ravel_pytree(theta)
    size = len(density.ys)
    batch = min(SWAG_BATCH, size)
    optimiser = optax.sgd(rate, momentum=SGD_MOMENTUM)

    def loss(position: Array, rows: Array) -> Array:
        part = replace(density, xs=density.xs[rows], ys=density.ys[rows])
        params = unravel(position)
        return -(part.log_likelihood(params) / batch + part.log_prior(params) / size)

    def step(carry: tuple, rows: Array) -> tuple:
        position, state = carry
        updates, state = optimiser.update(jax.grad(loss)(position, rows), state)
        return (optax.apply_updates(position, updates), state), None

    def epoch(carry: tuple, key: Any) -> tuple:
        order = jax.random.permutation(key, size)[: size // batch * batch].reshape(-1, batch)
        carry, _ = jax.lax.scan(step, carry, order)
        return carry, carry[0]

    iterates: Array = jax.lax.scan(epoch, (flat, optimiser.init(flat)), jax.random.split(key, SWAG_EPOCHS))[1]
    last = iterates[SWAG_EPOCHS // 2 :]
    mean = last.mean(axis=0)
    return Swag(mean, last.var(axis=0), (last - mean[None])[-SWAG_RANK:])


def train_with_dropout(setting: Setting, activation: str, key: Any) -> Any:
    """Train a network whose hidden units are dropped with probability 0.1, anew for each datum and step.

    Maximises the log posterior of the dropped network by Adam over 2,000 full batches. Source: Gal and Ghahramani
    (2016), arXiv 1506.02142.
    """
    return _train_with_dropout(setting.log_density, setting.init(key), jax.random.fold_in(key, 1), activation)


@partial(jax.jit, static_argnames="activation")
def _train_with_dropout(density: LogDensity, params: Any, key: Any, activation: str) -> Any:
    optimiser = optax.adam(DROPOUT_RATE)

    def loss(params: Any, key: Any) -> Array:
        keys = jax.random.split(key, len(density.ys))
        predict = jax.tree_util.Partial(_predict_datum, activation)
        dropped = replace(density, predict=predict, xs=(density.xs, keys))
        return -dropped(params) / len(density.ys)

    def step(carry: tuple, key: Any) -> tuple:
        params, state = carry
        updates, state = optimiser.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(key, DROPOUT_STEPS))[0][0]


def _predict_datum(activation: str, params: Any, datum: tuple[Any, Any]) -> Array:
    x, key = datum
    return predict_dropped(params, x, key, ACTIVATIONS[activation])


def predict_dropped(params: Any, x: Any, key: Any, activation: Callable) -> Float[Array, " outputs"]:
    """Return the outputs of an MLP whose hidden units are each 0 with probability 0.1, and else divided by 0.9."""
    layers = params["layers"]
    for depth in range(len(layers)):
        if depth:
            x = activation(x)
            mask = jax.random.bernoulli(jax.random.fold_in(key, depth), 1 - DROPOUT, x.shape)
            x = jnp.where(mask, x / (1 - DROPOUT), 0)
        x = x @ layers[depth]["kernel"] + layers[depth]["bias"]
    return x


@partial(jax.jit, static_argnames="activation")
def predict_masks(params: Any, xs: Any, keys: Any, activation: str) -> Float[Array, "masks points outputs"]:
    """Return the outputs at every input under several masks, each the same for all inputs."""

    def one(key: Any) -> Array:
        return jax.vmap(lambda x: predict_dropped(params, x, key, ACTIVATIONS[activation]))(xs)

    return jax.lax.map(one, keys)


def last_layer(setting: Setting, theta: Any, activation: str) -> tuple[LogDensity, Any, Callable]:
    """Return the log density of the last layer's parameters, those at θ*, and the function from inputs to features.

    The other parameters are fixed at θ*. The features `[n, width]` are what enters the last layer.
    """
    number = len(theta["layers"]) - 1
    features = partial(_features, [theta["layers"][depth] for depth in range(number)], activation=activation)
    density = setting.log_density
    scales = density.scales["layers"][number]
    return replace(density, predict=affine, scales=scales, xs=features(density.xs)), theta["layers"][number], features


@partial(jax.jit, static_argnames="activation")
def _features(layers: list[Any], xs: Any, activation: str) -> Array:
    for layer in layers:
        xs = ACTIVATIONS[activation](xs @ layer["kernel"] + layer["bias"][None])
    return xs


def affine(layer: Any, features: Any) -> Float[Array, " outputs"]:
    """Return the outputs of one affine layer for one vector of features; a single output is a scalar."""
    outputs = features @ layer["kernel"] + layer["bias"]
    return outputs[0] if outputs.shape == (1,) else outputs
