"""Simulation-based calibration of the sampler (Talts et al. 2018), and controls that must fail it.

θ is drawn from the prior and data from the model; then the rank of a quantity of θ among posterior
draws is uniform, if and only if the sampler samples the posterior. The second half samples in rounds that a
rule ends, as every reference of the study is sampled.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from isouq import models
from isouq.posterior import LogDensity, Margins, Sampling, Verdict, _blackjax, judge, sample_reference

REPLICATES, KEPT, THIN, WARMUP, BINS = 400, 63, 8, 200, 8
LEVEL = 1e-3  # for the whole family of tests, split by Bonferroni
POINTS = jnp.array([[0.0, 0.0], [1.0, 0.5], [-1.0, 2.0]])


def replicate(predict, example, key, prior_scale):
    """The ranks of the predictions at three inputs and of the log density; shape [4]."""
    theta_key, x_key, y_key, start_key, chain_key, length_key = jax.random.split(key, 6)

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

    lengths = jax.random.randint(length_key, ((WARMUP // THIN) + KEPT, THIN), 4, 13)
    mass = jnp.ones(sum(leaf.size for leaf in jax.tree.leaves(example)))
    start = _blackjax.start(log_density, prior_draw(start_key))
    run = partial(_blackjax.run_block, "hmc", log_density)
    warm, rest = lengths[: WARMUP // THIN], lengths[WARMUP // THIN :]
    target = jnp.float32(0.8)
    warmed, _ = run(start, mass, quantities, chain_key, jnp.int32(0), warm, target, jnp.bool_(True))
    _, trace = run(warmed, mass, quantities, chain_key, jnp.int32(WARMUP), rest, target, jnp.bool_(False))
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


DATA_SETS, CHAINS, INPUTS = 400, 4, 3
ROUNDS = Sampling(num_draws=5, num_warmup=60, num_integration_steps=3, max_rounds=12)


def accept_good_draws(margins, divergent):
    """The verdict with smaller bounds, which draws of a few seconds reach."""
    verdict = judge(margins, divergent)
    return verdict._replace(accepted=verdict.rhat <= 1.1 and verdict.ess_bulk >= 40)


def accept_high_draws(margins, divergent):
    """A rule that waits until the last margins happen to be high."""
    high = margins.mean(axis=(0, 1)) + 0.3 * margins.std(axis=(0, 1))
    return Verdict(bool(np.any(margins[:, -1].mean(axis=0) > high)), 1.0, 1.0, divergent, 1.0)


def logistic_regression(seed):
    """A true margin at each of the inputs, the posterior of its data, starts, and what to record."""
    rng = np.random.default_rng(seed)
    predict, init = models.mlp(1, (), 1)
    leaves, tree = jax.tree.flatten(jax.eval_shape(init, jax.random.key(0)))

    def prior_draws(count):
        return jax.tree.unflatten(tree, [rng.normal(size=(count, *v.shape)).astype(np.float32) for v in leaves])

    theta = jax.tree.map(lambda leaf: leaf[0], prior_draws(1))
    xs, inputs = rng.normal(size=(10, 1)).astype(np.float32), np.float32([[0.0], [1.0], [-1.5]])
    slope, bias = (np.ravel(leaf)[0] for leaf in sorted(jax.tree.leaves(theta), key=np.ndim, reverse=True))
    ys = (rng.uniform(size=10) < scipy.special.expit(slope * xs[:, 0] + bias)).astype(np.int32)
    scales, xs, ys = jax.tree.map(jnp.asarray, (jax.tree.map(lambda _: np.float32(1), theta), xs, ys))
    log_density = LogDensity(predict, scales, xs, ys, jnp.float32(1), "binary")  # `of` refuses labels of one class
    record = Margins(predict, jnp.asarray(inputs), jnp.ones(INPUTS, jnp.int32), "binary")
    return slope * inputs[:, 0] + bias, log_density, prior_draws(CHAINS), record


def ranks_of_truth(rule):
    """The ranks of the true margins among the last draws of the chains and among random ones, and the rounds.

    Draws of different chains are independent for a fixed number of rounds; the last depend most on the rule.
    """
    ranks, rounds, rng = [], [], np.random.default_rng(0)
    for seed in range(DATA_SETS):
        truth, log_density, starts, record = logistic_regression(seed)
        reference = sample_reference(
            log_density, starts, jax.random.key(seed), sampling=ROUNDS, record=record, verdict=rule
        )
        margins = reference.predictions
        some = margins[np.arange(CHAINS), rng.integers(margins.shape[1], size=CHAINS)]
        ranks.append([rank for draws in (margins[:, -1], some) for rank in np.sum(draws < truth, axis=0)])
        rounds.append(reference.rounds)
    return np.array(ranks), np.array(rounds)


def smallest_p_value(ranks):
    """The smallest of χ² tests of uniformity and tests of the mean, one of each a column."""
    uniform = [scipy.stats.chisquare(np.bincount(column, minlength=CHAINS + 1)).pvalue for column in ranks.T]
    z = (ranks.mean(axis=0) - CHAINS / 2) / np.sqrt(((CHAINS + 1) ** 2 - 1) / 12 / len(ranks))
    return min([*uniform, *2 * scipy.stats.norm.sf(np.abs(z))])


@pytest.mark.slow
def test_ranks_are_uniform_where_a_verdict_ends_the_rounds():
    ranks, rounds = ranks_of_truth(accept_good_draws)
    assert len(set(rounds)) >= 5
    assert np.mean(rounds < ROUNDS.max_rounds) > 0.9  # the rule, and not the cap, ends them
    assert smallest_p_value(ranks) > LEVEL


@pytest.mark.slow
def test_the_test_sees_a_rule_that_waits_for_high_draws():
    ranks, rounds = ranks_of_truth(accept_high_draws)
    assert len(set(rounds)) >= 5
    assert smallest_p_value(ranks) < LEVEL
