"""Simulation-based calibration of the sampler (Talts et al. 2018), and a control that must fail it.

θ is drawn from the prior and data from the model; then the rank of a quantity of θ among posterior
draws is uniform, if and only if the sampler samples the posterior.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from isouq import models
from isouq.posterior import LogDensity, _blackjax

REPLICATES, KEPT, THIN, WARMUP, BINS = 400, 63, 8, 200, 8
LEVEL = 1e-3  # for the whole family of tests, split by Bonferroni
POINTS = jnp.array([[0.0, 0.0], [1.0, 0.5], [-1.0, 2.0]])


def replicate(predict, example, key, prior_scale):
    """The ranks of the predictions at three inputs and of the log density; shape [4]."""
    theta_key, x_key, y_key, start_key, warm_key, draw_key, length_key = jax.random.split(key, 7)

    def prior_draw(key):
        leaves, treedef = jax.tree.flatten(example)
        keys = jax.random.split(key, len(leaves))
        return jax.tree.unflatten(treedef, [jax.random.normal(k, v.shape) for k, v in zip(keys, leaves, strict=True)])

    theta = prior_draw(theta_key)
    xs = jax.random.normal(x_key, (30, 2))
    logits = jax.vmap(predict, (None, 0))(theta, xs)
    ys = jax.random.bernoulli(y_key, jax.nn.sigmoid(logits)).astype(jnp.int32)
    scales = jax.tree.map(lambda _: prior_scale, example)
    log_density = LogDensity(predict, scales, xs, ys, jnp.float32(1.0), "binary")

    def quantities(params):
        return jnp.append(jax.vmap(predict, (None, 0))(params, POINTS), log_density(params))

    lengths = jax.random.randint(length_key, (WARMUP + KEPT * THIN,), 4, 13)
    mass = jnp.ones(sum(leaf.size for leaf in jax.tree.leaves(example)))
    start = _blackjax.start(log_density, prior_draw(start_key))
    warmed = _blackjax.warm_up(
        "hmc", log_density, start, mass, warm_key, jnp.int32(0), lengths[:WARMUP], jnp.float32(0.8)
    )
    _, trace = _blackjax.draw_block(
        "hmc", log_density, warmed, mass, quantities, draw_key, jnp.int32(0), lengths[WARMUP:].reshape(KEPT, THIN)
    )
    return jnp.sum(trace.recorded < quantities(theta)[None], axis=0)


@cache
def program():
    """(keys, prior_scale) -> ranks; compiled once for both tests."""
    predict, init = models.mlp(2, (2,), 1)
    return jax.jit(jax.vmap(partial(replicate, predict, init(jax.random.key(0))), (0, None)))


def p_values(prior_scale):
    ranks = np.asarray(program()(jax.random.split(jax.random.key(7), REPLICATES), jnp.float32(prior_scale)))
    counts = [np.bincount(column * BINS // (KEPT + 1), minlength=BINS) for column in ranks.T]
    return np.array([scipy.stats.chisquare(count).pvalue for count in counts])


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_ranks_are_uniform():
    p = p_values(1.0)
    assert p.min() > LEVEL / len(p), p


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_the_test_sees_a_wrong_prior():
    p = p_values(2.0)
    assert p.min() < LEVEL / len(p), p
