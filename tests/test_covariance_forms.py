"""gᵀΣg without gradients against two slow twins: the form of the gradient itself, and the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.flatten_util import ravel_pytree

import isouq
from isouq import models
from isouq.gradnorm import Form, value_and_grad_quadratic


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, float)


def everything(params, x):
    """Lookups, positions, a scan, a convolution, a concatenation, tied weights, a reshaped weight and a scalar."""
    ids, image = x
    h = jnp.tanh(params["table"][ids] @ params["w"] + params["bias"][None])
    h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"])[0]
    pixels = lax.conv_general_dilated(
        image[None], params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jnp.sum(h, axis=0) + jnp.sum(pixels, axis=(0, 1, 2)) * params["scale"]
    h = jnp.tanh(h @ params["flat"].reshape(6, 6))
    h = h @ jnp.concatenate([params["left"], params["right"]], axis=1)
    return h + (params["table"] @ jnp.tanh(jnp.tile(h, 2)[:6]))[:5]


SHAPES = {
    "table": (50, 6),
    "w": (6, 6),
    "bias": (6,),
    "layers": (3, 6, 6),
    "kernel": (3, 3, 2, 6),
    "scale": (),
    "flat": (36,),
    "left": (6, 3),
    "right": (6, 2),
}


def parameters():
    return {name: normal(i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


def examples():
    return jax.random.randint(jax.random.key(2), (4, 4), 0, 50), normal(3, 4, 5, 5, 2)


def factors(seed, leaf):
    last = leaf.shape[-1] if leaf.ndim else 1
    return normal(seed, leaf.size // last, 4), normal(seed + 1, last, 3)


def covariances(params, seed=20):
    return {
        "Identity": isouq.Identity(2.5),
        "Diagonal": isouq.Diagonal(jax.tree.map(lambda leaf: jnp.abs(normal(seed, *leaf.shape)), params)),
        "Kronecker": isouq.Kronecker(jax.tree.map(lambda leaf: factors(seed, leaf), params)),
        "LowRank": isouq.LowRank(jax.tree.map(lambda leaf: normal(seed, 5, *leaf.shape), params), 0.3),
    }


def dense(covariance, params):
    """Σ as a matrix, by its definition."""
    size = ravel_pytree(params)[0].size
    if isinstance(covariance, isouq.Identity):
        return covariance.scale * np.eye(size)
    if isinstance(covariance, isouq.Diagonal):
        return np.diag(ravel_pytree(covariance.variances)[0])
    if isinstance(covariance, isouq.LowRank):
        u = jax.vmap(lambda tree: ravel_pytree(tree)[0])(covariance.directions)
        return covariance.scale * np.eye(size) + u.T @ u
    pairs = jax.tree.leaves(covariance.factors, is_leaf=lambda node: isinstance(node, tuple))
    return scipy.linalg.block_diag(*[np.kron(a @ a.T, b @ b.T) for a, b in pairs])


@pytest.mark.parametrize("name", ["Identity", "Diagonal", "Kronecker", "LowRank"])
def test_equals_the_form_of_the_gradient_and_the_dense_matrix(name, x64):
    params, xs = parameters(), examples()
    covariance = covariances(params)[name]
    fast = isouq.uncertainty(everything, params, xs, "multiclass", covariance=covariance)
    slow = isouq.uncertainty(everything, params, xs, "multiclass", covariance=covariance, engine="vmap")
    matrix = isouq.Dense.from_covariance(dense(covariance, params))
    densest = isouq.uncertainty(everything, params, xs, "multiclass", covariance=matrix)
    np.testing.assert_allclose(fast.epistemic, slow.epistemic, rtol=1e-10)
    np.testing.assert_allclose(fast.epistemic, densest.epistemic, rtol=1e-8)
    np.testing.assert_array_equal(fast.target, slow.target)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from(["Diagonal", "Kronecker", "LowRank"]),
    st.integers(0, 100),
)
def test_generated_networks(widths, features, name, seed):
    predict, init = models.mlp(features, tuple(widths), 3)
    params = init(jax.random.key(seed))
    covariance = covariances(params, seed)[name]
    xs = jax.random.normal(jax.random.key(seed), (3, features))
    fast, slow = (
        isouq.uncertainty(predict, params, xs, "multiclass", covariance=covariance, engine=engine).epistemic
        for engine in ("jaxpr", "vmap")
    )
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-12)


def test_no_gradient_is_held_for_a_diagonal():
    predict, init = models.mlp(2, (256, 256), 3)
    params, xs = init(jax.random.key(0)), normal(1, 64, 2).astype(jnp.float32)
    covariance = covariances(params)["Diagonal"]

    def temporaries(engine):
        score = jax.jit(
            lambda params, xs: isouq.uncertainty(
                predict, params, xs, "multiclass", covariance=covariance, engine=engine
            )
        )
        return score.lower(params, xs).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("jaxpr") < temporaries("vmap") / 10


WRONG = {
    "other tree": (lambda p: isouq.Diagonal({"w": p["w"]}), "variances is not a pytree like the parameters"),
    "other shape": (lambda p: isouq.Diagonal({"w": p["w"].T, "b": p["b"]}), r"variances has shape \(2, 4\)"),
    "no pair": (lambda p: isouq.Kronecker(p), "expected a pair of matrices"),
    "wrong rows": (
        lambda p: isouq.Kronecker({"w": (jnp.eye(3), jnp.eye(2)), "b": (jnp.eye(1), jnp.eye(2))}),
        "rows of",
    ),
    "no K": (lambda p: isouq.LowRank(p), "leading axes"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_covariance_of_another_model_is_named(name):
    params = {"w": jnp.ones((4, 2)), "b": jnp.ones(2)}
    covariance, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        isouq.uncertainty(
            lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((3, 4)), "multiclass", covariance=covariance(params)
        )


def test_narrow_parameters_and_forms_give_float32():
    params = {"w": jnp.full((64, 32), 1.1, jnp.bfloat16), "b": jnp.zeros(32, jnp.bfloat16)}
    xs = jnp.linspace(-1, 1, 128).reshape(2, 64).astype(jnp.bfloat16)

    def predict(p, x):
        return jnp.sin(x @ p["w"] + p["b"]).sum()

    for covariance in covariances(params).values():
        narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), covariance)
        fast, slow = (
            isouq.uncertainty(predict, params, xs, "regression", covariance=narrow, engine=engine).epistemic
            for engine in ("jaxpr", "vmap")
        )
        assert fast.dtype == jnp.float32
        np.testing.assert_allclose(fast, slow, rtol=2e-2)


def test_one_form_for_each_parameter():
    quadratic = value_and_grad_quadratic(lambda p: p["a"] @ p["b"], [Form()] * 3)
    with pytest.raises(ValueError, match="there are 3 forms for 2 parameters"):
        quadratic({"a": jnp.ones(2), "b": jnp.ones(2)})
