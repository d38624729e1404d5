"""Aligning hidden units: the function stays, a scrambled θ* comes back, and no other match is closer."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from isouq import models
from isouq.alignment import align_hidden_units

NETS = [(5,), (6, 4)]


def network(hidden, seed=0, outputs=3, activation="tanh"):
    predict, init = models.mlp(2, hidden, outputs, activation)
    params = init(jax.random.key(seed))
    noise = np.random.default_rng(seed)
    return predict, jax.tree.map(lambda leaf: leaf + noise.normal(size=leaf.shape).astype(np.float32), params)


def scrambled(params, rng, odd=True):
    """The same function: hidden units exchanged and, if the activation is odd, flipped at random, layer by layer."""
    layers = {depth: {name: np.array(leaf) for name, leaf in one.items()} for depth, one in params["layers"].items()}
    for depth in range(len(layers) - 1):
        width = layers[depth]["bias"].size
        order, signs = rng.permutation(width), rng.choice([-1, 1] if odd else [1], width).astype(np.float32)
        layers[depth]["kernel"] = layers[depth]["kernel"][:, order] * signs
        layers[depth]["bias"] = layers[depth]["bias"][order] * signs
        layers[depth + 1]["kernel"] = layers[depth + 1]["kernel"][order] * signs[:, None]
    return {"layers": layers}


def flat(params):
    return np.asarray(ravel_pytree(params)[0])


@pytest.mark.parametrize("hidden", NETS)
def test_the_function_is_unchanged(hidden):
    predict, target = network(hidden)
    draws = np.random.default_rng(1).normal(size=(2, 7, flat(target).size)).astype(np.float32)
    aligned = align_hidden_units(draws, target)
    assert aligned.shape == draws.shape
    assert aligned.dtype == draws.dtype
    assert not np.array_equal(aligned, draws)
    xs = jnp.asarray(np.random.default_rng(2).normal(size=(9, 2)), jnp.float32)
    unravel = ravel_pytree(target)[1]
    outputs = jax.vmap(lambda theta: jax.vmap(predict, (None, 0))(unravel(theta), xs))
    before, after = (outputs(jnp.asarray(d.reshape(14, -1))) for d in (draws, aligned))
    np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("hidden", NETS)
def test_a_scrambled_target_comes_back_exactly(hidden):
    _, target = network(hidden)
    rng = np.random.default_rng(3)
    copies = np.stack([flat(scrambled(target, rng)) for _ in range(8)])
    assert (copies != flat(target)).any(axis=1).all()
    np.testing.assert_array_equal(align_hidden_units(copies, target), np.tile(flat(target), (8, 1)))


def test_twelve_layers_are_taken_in_their_order():
    _, target = network((2,) * 11)
    copy = flat(scrambled(target, np.random.default_rng(4)))
    np.testing.assert_array_equal(align_hidden_units(copy, target), flat(target))


@pytest.mark.parametrize("hidden", NETS)
def test_a_scrambled_relu_network_comes_back_without_flips(hidden):
    predict, target = network(hidden, activation="relu")
    rng = np.random.default_rng(10)
    copies = [scrambled(target, rng, odd=False) for _ in range(8)]
    xs = jnp.asarray(rng.normal(size=(9, 2)), jnp.float32)
    outputs = [jax.vmap(predict, (None, 0))(params, xs) for params in (target, *copies)]
    np.testing.assert_allclose(outputs[1:], [outputs[0]] * 8, atol=1e-5)  # a symmetry of the network
    draws = np.stack([flat(copy) for copy in copies])
    assert (draws != flat(target)).any(axis=1).all()
    np.testing.assert_array_equal(align_hidden_units(draws, target, odd=False), np.tile(flat(target), (8, 1)))


@pytest.mark.parametrize("hidden", NETS)
def test_without_an_odd_activation_no_sign_is_flipped(hidden):
    predict, target = network(hidden, activation="relu")
    draws = np.random.default_rng(11).normal(size=(20, flat(target).size)).astype(np.float32)
    aligned = align_hidden_units(draws, target, odd=False)
    np.testing.assert_array_equal(np.sort(aligned), np.sort(draws))  # the same numbers, in other places
    assert not np.array_equal(aligned, draws)
    assert not np.array_equal(np.sort(align_hidden_units(draws, target)), np.sort(draws))
    xs = jnp.asarray(np.random.default_rng(12).normal(size=(9, 2)), jnp.float32)
    unravel = ravel_pytree(target)[1]
    before, after = (jax.vmap(lambda d: jax.vmap(predict, (None, 0))(unravel(d), xs))(d) for d in (draws, aligned))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)


def test_no_symmetric_copy_is_closer():
    _, target = network((3,))
    for draw in np.random.default_rng(5).normal(size=(4, flat(target).size)).astype(np.float32):
        params = jax.tree.map(np.asarray, ravel_pytree(target)[1](jnp.asarray(draw)))
        copies = []
        for order in itertools.permutations(range(3)):
            for signs in itertools.product([-1, 1], repeat=3):
                s = np.array(signs)
                first, last = params["layers"][0], params["layers"][1]
                moved = {
                    0: {"kernel": first["kernel"][:, list(order)] * s, "bias": first["bias"][list(order)] * s},
                    1: {"kernel": last["kernel"][list(order)] * s[:, None], "bias": last["bias"]},
                }
                copies.append(np.sum((flat({"layers": moved}) - flat(target)) ** 2))
        best = np.sum((align_hidden_units(draw, target) - flat(target)) ** 2)
        np.testing.assert_allclose(best, min(copies), rtol=1e-5)


def test_blocks_change_nothing(monkeypatch):
    _, target = network((5,))
    draws = np.random.default_rng(6).normal(size=(11, flat(target).size)).astype(np.float32)
    whole = align_hidden_units(draws, target)
    monkeypatch.setattr("isouq.alignment._SIMILARITIES_AT_A_TIME", 3 * 25)
    np.testing.assert_array_equal(align_hidden_units(draws, target), whole)


def test_the_layout_in_memory_changes_nothing():
    _, target = network((5,))
    draws = np.random.default_rng(8).normal(size=(3, 4, flat(target).size)).astype(np.float32)
    strided = draws.swapaxes(0, 1).copy().swapaxes(0, 1)
    np.testing.assert_array_equal(align_hidden_units(strided, target), align_hidden_units(draws, target))
    assert not np.array_equal(align_hidden_units(draws, target), draws)


def test_without_a_hidden_layer_nothing_happens():
    _, target = network(())
    draws = np.random.default_rng(7).normal(size=(3, 4, 9))
    aligned = align_hidden_units(draws, target)
    np.testing.assert_array_equal(aligned, draws)
    assert aligned is not draws


LAYER = {"kernel": np.ones((2, 3)), "bias": np.ones(3)}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.ones(3), "target is ndarray"),
        ({"weights": LAYER}, r"target is \['weights'\]"),
        ({"layers": {}}, r"has layers \[\]"),
        ({"layers": {0: LAYER, 2: LAYER}}, r"has layers \['0', '2'\]"),
        ({"layers": {0: {"kernel": np.ones((2, 3))}}}, r"layer 0 of target holds \['kernel'\]"),
        ({"layers": {0: np.ones(3)}}, "layer 0 of target holds ndarray"),
        ({"layers": {0: {"kernel": np.ones((2, 3)), "bias": np.ones(2)}}}, r"kernel \(2, 3\) and bias \(2,\)"),
        ({"layers": {0: LAYER, 1: LAYER}}, "takes 2 inputs after 3 units"),
    ],
)
def test_a_wrong_tree_is_told_in_one_line(target, message):
    with pytest.raises(ValueError, match=message) as error:
        align_hidden_units(np.ones((2, 9)), target)
    assert "\n" not in str(error.value)


def test_wrong_draws_are_told():
    target = {"layers": {0: LAYER}}
    with pytest.raises(ValueError, match=r"draws have shape \(2, 8\); expected \[..., 9\]"):
        align_hidden_units(np.ones((2, 8)), target)
    with pytest.raises(ValueError, match="NaN or infinity"):
        align_hidden_units(np.full((2, 9), np.nan), target)


def test_a_common_level_of_the_weights_hides_no_unit():
    """Units' products are squares of the level; their differences are squares of the spread."""
    _, target = network((6,))
    target = jax.tree.map(lambda leaf: leaf + np.float32(1e4), target)
    rng = np.random.default_rng(9)
    draws = np.stack([flat(scrambled(target, rng)) for _ in range(8)])
    draws += rng.normal(size=draws.shape).astype(np.float32) * 0.01
    np.testing.assert_allclose(align_hidden_units(draws, target), np.tile(flat(target), (8, 1)), rtol=0, atol=0.1)
