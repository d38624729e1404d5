"""Forward-mode estimates: unbiased, with the standard error they claim, for all outputs at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax import lax
from networks import run

import isouq

SIZE = 128  # wide enough for low-rank probes: 2 · 32 · (C + F) ≤ C · F


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def wide(params, x):
    """A reused, a stacked, a looked-up, a convolved and a tied weight, and vectors; three outputs."""
    h = params["table"][jnp.array([3, 5, 3])] + x + params["bias"][None]
    h = lax.scan(lambda h, w: (jnp.tanh(h @ w / 12), None), h, params["layers"])[0]
    h = lax.scan(lambda h, _: (jnp.tanh(h @ params["again"] / 12) + h, None), h, None, 2)[0]
    h = h + lax.conv(h.T[None], params["kernel"], (1,), "SAME")[0].T / 20
    return (jnp.tanh(h @ params["table"].T / 12) @ params["out"])[:, 0] * params["scale"]


def parameters():
    shapes = {
        "table": (200, SIZE),
        "layers": (2, SIZE, SIZE),
        "again": (SIZE, SIZE),
        "kernel": (SIZE, SIZE, 3),
        "bias": (SIZE,),
        "out": (200, 1),
        "scale": (),
    }
    return {name: normal(i, *shape) for i, (name, shape) in enumerate(shapes.items())}


def exact(f, params, x):
    jacobian = jax.jacrev(f)(params, x)
    return sum(jnp.sum(leaf.reshape(leaf.shape[0], -1) ** 2, axis=1) for leaf in jax.tree.leaves(jacobian))


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_unbiased_with_the_standard_deviation_of_full_gaussians():
    params, x, repetitions, num_probes = parameters(), normal(9, 3, SIZE), 400, 4
    one = jax.jit(lambda key: isouq.grad_sq_norm_probes(wide, 1, key)(params, x).estimate)
    samples = lax.map(one, jax.random.split(jax.random.key(2), num_probes * repetitions), batch_size=50)
    samples = np.asarray(samples, np.float64).reshape(repetitions, num_probes, 3).mean(axis=1)
    truth = np.asarray(exact(wide, params, x), np.float64)
    z = (samples.mean(axis=0) - truth) / (samples.std(axis=0, ddof=1) / np.sqrt(repetitions))
    assert np.all(np.abs(z) < scipy.stats.norm.isf(1e-3 / 2 / 3)), z
    np.testing.assert_allclose(samples.std(axis=0, ddof=1) / truth, np.sqrt(2 / num_probes), rtol=0.1)


def test_low_rank_probes_are_used_where_they_pay():
    from isouq.gradnorm._probes import _factored
    from isouq.gradnorm._trace import trace

    traced = trace(wide, (parameters(), normal(9, 3, SIZE)), {}, scalar=False)
    plan, factors = _factored(traced)
    names = sorted(parameters())
    assert {names[i] for i in plan.direct} == {"bias", "out", "scale"}
    assert len(factors) == 5  # table twice
    table = [factor for factor in factors.values() if factor.rows[-2] == 200 or factor.cols[-2] == 200]
    assert len({factor.cluster for factor in table}) == 1
    assert {factor.swapped for factor in table} == {True, False}


def test_small_networks_get_full_gaussians_and_the_same_key_the_same_numbers():
    def f(params, x):
        return {"logits": jnp.tanh(x @ params["a"]) @ params["b"], "sum": jnp.sum(params["a"])}

    params, x = {"a": normal(0, 4, 6), "b": normal(1, 6, 3)}, normal(2, 4)
    estimate = jax.jit(isouq.grad_sq_norm_probes(f, 4000, jax.random.key(0), chunk=100))
    got, again = estimate(params, x), estimate(params, x)
    jacobian = jax.jacrev(f)(params, x)
    for name, shape in {"logits": (3,), "sum": ()}.items():
        leaves = [leaf.reshape(*shape, -1) for leaf in jax.tree.leaves(jacobian[name])]
        truth = sum(jnp.sum(leaf**2, axis=-1) for leaf in leaves)
        np.testing.assert_allclose(got.estimate[name], truth, rtol=5 * np.sqrt(2 / 4000))
        np.testing.assert_allclose(got.standard_error[name], got.estimate[name] * np.sqrt(2 / 4000), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, got, again)


def test_chunks_change_nothing_but_rounding():
    params, x = parameters(), normal(9, 3, SIZE)
    one, many = (run(isouq.grad_sq_norm_probes(wide, 5, jax.random.key(3), chunk=chunk), params, x) for chunk in (1, 4))
    np.testing.assert_allclose(one.estimate, many.estimate, rtol=1e-4)


def test_under_vmap_and_for_other_arguments():
    params, xs = {"a": normal(0, 4, 3)}, normal(1, 5, 4)

    def f(x, params):
        return x @ params["a"]

    got = jax.vmap(isouq.grad_sq_norm_probes(f, 3000, jax.random.key(0), argnums=1, chunk=50), (0, None))(xs, params)
    truth = jnp.broadcast_to(jnp.sum(xs**2, axis=1, keepdims=True), (5, 3))
    np.testing.assert_allclose(got.estimate, truth, rtol=5 * np.sqrt(2 / 3000))


@pytest.mark.parametrize("num_probes", [0, -1, True])
def test_a_wrong_number_of_probes_is_named(num_probes):
    with pytest.raises(ValueError, match=f"num_probes is {num_probes}; expected a whole number of at least 1"):
        isouq.grad_sq_norm_probes(wide, num_probes, jax.random.key(0))


def test_integer_outputs_are_refused():
    with pytest.raises(TypeError, match="returned int32"):
        isouq.grad_sq_norm_probes(lambda w: jnp.argmax(w), 4, jax.random.key(0))(normal(0, 3))


@pytest.mark.parametrize("level", [1.0, 1e4])
@pytest.mark.parametrize("combine", ["differences", "centred"])
def test_low_rank_probes_keep_the_digits_of_jax_jvp_where_cotangents_cancel(monkeypatch, level, combine):
    """Root mean square over keys of the error in float32, against the same probes in float64."""
    size, count = 160, 16
    x = np.asarray(level + np.asarray(normal(0, 8, size)), np.float32)
    w, weights = np.asarray(normal(1, size, size)) / 9, np.asarray(normal(2, 8, size))

    def f(params, x):
        h = x @ params["w"]
        change = h - jnp.roll(h, 1, axis=0) if combine == "differences" else h - h.mean(axis=0, keepdims=True)
        return jnp.sum(change * weights.astype(x.dtype))

    def draw(key, shape, dtype):  # the same numbers in both precisions
        return jax.random.normal(key, shape, jnp.float32).astype(dtype)

    def low_rank(params, x):
        keys = jax.random.split(jax.random.key(4), count)
        return jax.vmap(lambda key: isouq.grad_sq_norm_probes(f, 1, key)(params, x).estimate)(keys)

    def full(params, x):
        draws = jax.vmap(lambda key: draw(key, (size, size), x.dtype))(jax.random.split(jax.random.key(5), count))
        return jax.vmap(lambda v: jax.jvp(lambda w: f({"w": w}, x), (params["w"],), (v,))[1] ** 2)(draws)

    def error(estimate):
        narrow = np.asarray(run(estimate, {"w": w}, x), np.float64)
        with jax.enable_x64(True):
            exact = np.asarray(run(estimate, {"w": w.astype(np.float64)}, x.astype(np.float64)))
        return np.sqrt(np.mean((narrow - exact) ** 2)) / np.mean(exact)

    monkeypatch.setattr("isouq.gradnorm._probes._normal", draw)
    assert error(low_rank) <= 10 * error(full)
