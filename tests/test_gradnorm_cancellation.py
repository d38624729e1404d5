"""Gradients whose positions cancel: as exact as `jax.grad` in the same precision, never negative, never NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import isouq
from benchmarks.cancellation import LEVELS, NETWORKS, centred, inputs, probability, two_levels, weights
from isouq.gradnorm import _plan

SEEDS = 8  # with 8 networks and 5 levels: 320 adversarial inputs


def squares(grads):
    return jax.tree.map(lambda g: jnp.sum(jnp.square(g.reshape(len(g), -1)), axis=1), grads)


@pytest.mark.parametrize("f", NETWORKS, ids=lambda f: f.__name__)
def test_norms_are_as_exact_as_jax_grad_at_every_level(f):
    rng = np.random.default_rng(1)
    examples = [inputs(level, SEEDS, rng) for level in LEVELS]
    p = probability(f)
    by_norms = jax.jit(jax.vmap(isouq.grad_sq_norm(p, per_leaf=True), (None, 0)))
    by_grads = jax.jit(lambda w, xs: squares(jax.vmap(jax.grad(p), (None, 0))(w, xs)))
    for level, xs in zip(LEVELS, examples, strict=True):
        single = jax.tree.map(np.float32, (weights(), xs))
        with jax.enable_x64(True):
            truth = jax.tree.map(np.asarray, by_grads(*jax.tree.map(np.float64, single)))
        got, plain = by_norms(*single), by_grads(*single)
        for name in truth:
            assert np.all(np.asarray(got[name]) >= 0), (name, level)
            scale = np.maximum(truth[name], 1e-12)
            error, allowed = (np.max(np.abs(np.asarray(a[name]) - truth[name]) / scale) for a in (got, plain))
            # the rounding of the data alone, level · 10⁻⁷ of the spread, is no matter of luck
            assert error <= 10 * max(allowed, level * 1e-7, 1e-6), (
                f"{name} at level {level}: {error}, jax.grad {allowed}"
            )


def test_one_example_and_a_nested_map_agree_with_a_batch():
    rng = np.random.default_rng(2)
    w = jax.tree.map(np.float32, weights())
    xs = jnp.stack([jnp.asarray(inputs(level, 3, rng), jnp.float32) for level in (0.0, 1e4)])
    norm = isouq.grad_sq_norm(probability(centred))
    nested = jax.vmap(jax.vmap(norm, (None, 0)), (None, 0))(w, xs)
    alone = [[norm(w, x) for x in row] for row in xs]
    np.testing.assert_allclose(nested[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(nested[1], alone[1], rtol=5e-2)  # the rounding of the inputs' level


def test_the_derivative_of_a_norm_that_cancels_is_that_of_jax_grad():
    rng = np.random.default_rng(3)
    w, x = jax.tree.map(np.float32, weights()), inputs(1e3, 1, rng)[0].astype(np.float32)
    p = probability(two_levels)

    def by_grad(w, x):
        return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(p)(w, x)))

    got = jax.jit(jax.grad(isouq.grad_sq_norm(p)))(w, x)
    with jax.enable_x64(True):
        truth = jax.tree.map(np.asarray, jax.jit(jax.grad(by_grad))(*jax.tree.map(np.float64, (w, x))))
    for name in ("w", "v"):
        np.testing.assert_allclose(got[name], truth[name], atol=1e-2 * np.abs(truth[name]).max())


def test_a_small_cotangent_beside_a_large_input_keeps_its_square():
    def f(w, x):
        return jnp.sum(jnp.tanh(x @ w)) * jnp.float32(1e-22)

    w = jnp.zeros((30, 20))
    for x in (jnp.full(30, 1e8), jnp.full((3, 30), 1e8)):
        want = sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.grad(f)(w, x)))
        np.testing.assert_allclose(isouq.grad_sq_norm(f)(w, x), want, rtol=1e-5)


COVARIANCES = {
    "norm": None,
    "diagonal": isouq.Diagonal({"w": jnp.full((4, 5), 2.0)}),
    "kronecker": isouq.Kronecker({"w": (jnp.full((4, 2), 0.5), jnp.eye(5))}),
    "low rank": isouq.LowRank({"w": jnp.ones((1, 4, 5))}),
}


@pytest.mark.parametrize("smallest", [0, 128], ids=["read off", "direct"])
@pytest.mark.parametrize("is_constant", [True, False], ids=["constant cotangent", "cotangent"])
@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("name", COVARIANCES)
def test_inputs_and_cotangents_whose_squares_are_no_float32(name, positions, is_constant, smallest, monkeypatch):
    """Their product is: a unit that is off at an input of 1e20 has the gradient 0, and not NaN."""
    monkeypatch.setattr(_plan, "SMALL", smallest)
    covariance = COVARIANCES[name]
    w = {"w": jnp.full((4, 5), 0.1)}
    for level, slope in [(1e20, 0.0), (1e20, 1e-20), (1e-25, 1e25)]:

        def f(p, x, slope=slope, level=level):
            unit = 1.0 if is_constant else jnp.tanh(x[0, 0] / level)  # XLA squares the constant slope by itself
            return jnp.sum(x @ p["w"]) * (unit * jnp.float32(slope))

        xs = jnp.full((1, positions, 4), level)
        jax.clear_caches()  # a program of the other limit
        got = isouq.uncertainty(f, w, xs, kind="regression", covariance=covariance).epistemic
        grad = jax.grad(f)(w, xs[0])
        want = (
            jnp.sum(grad["w"] ** 2)
            if covariance is None
            else covariance.quadratic(jax.tree.map(lambda g: g[None], grad))
        )
        np.testing.assert_allclose(got, np.ravel(want), rtol=1e-5)
