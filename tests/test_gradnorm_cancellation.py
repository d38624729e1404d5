"""Gradients whose positions cancel: as exact as `jax.grad` in the same precision, never negative, never NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import isouq

POSITIONS, FEATURES, WIDTH = 6, 24, 24
LEVELS = (1.0, 10.0, 100.0, 1e3, 1e4)
SEEDS = 8


def weights():
    rng = np.random.default_rng(0)
    shapes = {"w": (FEATURES, WIDTH), "v": (WIDTH, 3), "table": (40, WIDTH), "kernel": (2, FEATURES, WIDTH)}
    return {name: rng.normal(size=shape) / np.sqrt(FEATURES) for name, shape in shapes.items()}


def read_out(h, p):
    return jnp.tanh(h * jnp.arange(1.0, len(h) + 1)[:, None] / len(h)).mean(0) @ p["v"]


def centred(p, x):
    h = x @ p["w"]
    return read_out((h - h.mean(0, keepdims=True)) / (h.std(0, keepdims=True) + 1e-3), p)


def differences(p, x):
    h = x @ p["w"]
    return read_out(h[1:] - h[:-1], p)


def two_levels(p, x):
    """Two groups of positions, each on a level of its own and each centred: removing one mean is not enough."""
    h = jnp.concatenate([x[:3], -3 * x[3:]]) @ p["w"]
    return read_out(jnp.concatenate([h[:3] - h[:3].mean(0, keepdims=True), h[3:] - h[3:].mean(0, keepdims=True)]), p)


def siamese(p, x):
    """One weight at two sites whose cotangents have opposite signs."""
    return read_out(x[:3] @ p["w"] - x[3:] @ p["w"], p)


def attention_over_positions(p, x):
    """Keys under a softmax: a shift of all keys changes nothing."""
    scores = jax.nn.softmax((x @ p["w"]) @ jnp.ones(WIDTH) / 10)
    return jnp.tanh(scores @ (x - x.mean(0, keepdims=True)) @ jnp.ones((FEATURES, 3)) / 5) * jnp.arange(1.0, 4.0)


def in_a_scan(p, x):
    """A weight that every step sees; the carry takes differences."""

    def step(last, row):
        return row @ p["w"], row @ p["w"] - last

    return read_out(lax.scan(step, x[0] @ p["w"], x)[1], p)


def convolved(p, x):
    h = lax.conv_general_dilated(x[None], p["kernel"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))[0]
    return read_out(h - h.mean(0, keepdims=True), p)


def looked_up(p, x):
    """The same rows, looked up with opposite signs, and the rows of a tied output layer."""
    ids = jnp.array([3, 7, 3, 7, 5, 3])
    h = p["table"][ids] + x[:, :WIDTH]
    h = h - p["table"][ids[::-1]]
    return read_out(h, p) + (jnp.tanh(h - h.mean(0, keepdims=True)) @ p["table"].T).mean(0)[:3]


NETWORKS = (centred, differences, two_levels, siamese, attention_over_positions, in_a_scan, convolved, looked_up)
# 8 networks × 5 levels × 8 seeds: 320 adversarial inputs


def probability(f):
    def p(w, x):
        outputs = f(w, x)
        return jax.nn.softmax(outputs)[jnp.argmax(outputs)]

    return p


def squares(grads):
    return jax.tree.map(lambda g: jnp.sum(jnp.square(g.reshape(len(g), -1)), axis=1), grads)


@pytest.mark.parametrize("f", NETWORKS, ids=lambda f: f.__name__)
def test_norms_are_as_exact_as_jax_grad_at_every_level(f):
    rng = np.random.default_rng(1)
    inputs = [level + rng.normal(size=(SEEDS, POSITIONS, FEATURES)) for level in LEVELS]
    p = probability(f)
    by_norms = jax.jit(jax.vmap(isouq.grad_sq_norm(p, per_leaf=True), (None, 0)))
    by_grads = jax.jit(lambda w, xs: squares(jax.vmap(jax.grad(p), (None, 0))(w, xs)))
    for level, xs in zip(LEVELS, inputs, strict=True):
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
    xs = jnp.asarray([0.0, 1e4])[:, None, None, None] + rng.normal(size=(2, 3, POSITIONS, FEATURES)).astype(np.float32)
    norm = isouq.grad_sq_norm(probability(centred))
    nested = jax.vmap(jax.vmap(norm, (None, 0)), (None, 0))(w, xs)
    alone = [[norm(w, x) for x in row] for row in xs]
    np.testing.assert_allclose(nested[0], alone[0], rtol=1e-5)
    np.testing.assert_allclose(nested[1], alone[1], rtol=5e-2)  # the rounding of the inputs' level


def test_the_derivative_of_a_norm_that_cancels_is_that_of_jax_grad():
    rng = np.random.default_rng(3)
    w, x = jax.tree.map(np.float32, weights()), (1e3 + rng.normal(size=(POSITIONS, FEATURES))).astype(np.float32)
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


@pytest.mark.parametrize("is_constant", [True, False], ids=["constant cotangent", "cotangent"])
@pytest.mark.parametrize("positions", [1, 3])
@pytest.mark.parametrize("name", COVARIANCES)
def test_inputs_and_cotangents_whose_squares_are_no_float32(name, positions, is_constant):
    """Their product is: a unit that is off at an input of 1e20 has the gradient 0, and not NaN."""
    covariance = COVARIANCES[name]
    w = {"w": jnp.full((4, 5), 0.1)}
    for level, slope in [(1e20, 0.0), (1e20, 1e-20), (1e-25, 1e25)]:

        def f(p, x, slope=slope, level=level):
            unit = 1.0 if is_constant else jnp.tanh(x[0, 0] / level)  # XLA squares the constant slope by itself
            return jnp.sum(x @ p["w"]) * (unit * jnp.float32(slope))

        xs = jnp.full((1, positions, 4), level)
        got = isouq.uncertainty(f, w, xs, kind="regression", covariance=covariance).epistemic
        grad = jax.grad(f)(w, xs[0])
        want = (
            jnp.sum(grad["w"] ** 2)
            if covariance is None
            else covariance.quadratic(jax.tree.map(lambda g: g[None], grad))
        )
        np.testing.assert_allclose(got, np.ravel(want), rtol=1e-5)
