"""Squared gradient norms against `jax.grad`, leaf by leaf, on generated networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import LAYERS, SEQUENCE_LAYERS, Layer, Network, assert_equal, networks, run, twin

import isouq
from isouq.gradnorm import _plan


@pytest.fixture(autouse=True)
def no_weight_is_small(monkeypatch):
    """The weights of these tests are tiny; their norms are to be read off where the rules allow it."""
    monkeypatch.setattr(_plan, "SMALL", 0)


GENERATED = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def check_in_float64(network, batch):
    with jax.enable_x64(True):
        f, params, examples = network.parts(batch)

        def both(params, examples):
            ways = isouq.grad_sq_norm(f, per_leaf=True), twin(f)
            if batch == 1:
                one = jax.tree.map(lambda a: a[0], examples)
                return [way(params, one) for way in ways]
            return [jax.vmap(way, (None, 0))(params, examples) for way in ways]

        got, want = run(both, params, examples)
        assert_equal(got, want, 1e-6 if network.has("cast_up") else 1e-10, np.float64)


@pytest.mark.parametrize("count", [30, pytest.param(120, marks=pytest.mark.slow)])
def test_every_leaf_equals_jax_grad_in_float64(count):
    examples = given(network=networks(), batch=st.sampled_from([1, 2]))
    settings(GENERATED, max_examples=count)(examples(check_in_float64))()


@pytest.mark.parametrize("name", sorted(LAYERS | SEQUENCE_LAYERS))
def test_every_layer_equals_jax_grad_in_float64(name):
    check_in_float64(Network((Layer("dense_bias", 3), Layer(name))), batch=2)


def check_the_sum_in_float32(network):
    f, params, examples = network.parts(dtype=np.float32)
    one = jax.tree.map(lambda a: a[0], examples)
    value, got = run(isouq.value_and_grad_sq_norm(f), params, one)
    with jax.enable_x64(True):
        f, params, one = *network.parts()[:1], *jax.tree.map(np.float64, (params, one))
        one["ids"] = one["ids"].astype(int)
        want_value, want = run(lambda *args: (f(*args), twin(f)(*args)), params, one)
    assert got.dtype == np.float32
    np.testing.assert_allclose(value, want_value, rtol=1e-5, atol=1e-5)
    assert_equal(got, sum(jax.tree.leaves(want)), 1e-5, np.float32)


@pytest.mark.parametrize("count", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_the_sum_equals_jax_grad_in_float32(count):
    settings(GENERATED, max_examples=count)(given(network=networks(depth=3))(check_the_sum_in_float32))()


@pytest.mark.parametrize("name", ["dense_bias", "embedding", "conv_same", "scan_over_layers", "tied_embedding"])
def test_weights_cast_to_bfloat16_stay_close(name):
    f, params, examples = Network((Layer("dense", 3), Layer(name, 4), Layer("dense", 4)), 3, 3).parts(dtype=np.float32)
    one = jax.tree.map(lambda a: a[0], examples)

    def rounded(params, one):
        narrow = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
        return f(narrow, one | {"x": one["x"].astype(jnp.bfloat16)}).astype(jnp.float32)

    got, want = run(
        lambda *args: (isouq.grad_sq_norm(rounded, per_leaf=True)(*args), twin(rounded)(*args)), params, one
    )
    assert_equal(got, want, 0.02, np.float32)
