"""gᵀΣg without gradients against two slow twins: the form of the gradient itself, and the dense matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from networks import Layer, Network, run
from twins import dense

import isouq
from isouq import models
from isouq.gradnorm import Form, value_and_grad_quadratic


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float)


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


def sides(leaf):
    last = leaf.shape[-1] if leaf.ndim else 1
    return leaf.size // last if last else 0, last


def factors(seed, leaf):
    lead, last = sides(leaf)
    return normal(seed, lead, 4), normal(seed + 1, last, 3)


def covariances(params, seed=20):
    return {
        "Identity": isouq.Identity(2.5),
        "Diagonal": isouq.Diagonal(jax.tree.map(lambda leaf: jnp.abs(normal(seed, *leaf.shape)), params)),
        "Kronecker": isouq.Kronecker(jax.tree.map(lambda leaf: factors(seed, leaf), params)),
        "turned": isouq.Kronecker(
            jax.tree.map(lambda leaf: factors(seed, leaf), params),
            jax.tree.map(lambda leaf: jnp.abs(normal(seed + leaf.size, 4, 3)), params),
        ),
        "diagonal factors": isouq.Kronecker(
            jax.tree.map(lambda leaf: tuple(normal(seed, n) for n in sides(leaf)), params)
        ),
        "one diagonal factor": isouq.Kronecker(
            jax.tree.map(lambda leaf: (normal(seed, sides(leaf)[0]), factors(seed, leaf)[1]), params),
            jax.tree.map(lambda leaf: jnp.abs(normal(seed + leaf.size, sides(leaf)[0], 3)), params),
        ),
        "LowRank": isouq.LowRank(jax.tree.map(lambda leaf: normal(seed, 5, *leaf.shape), params), 0.3),
        "narrowed": isouq.LowRank(
            jax.tree.map(lambda leaf: normal(seed, 5, *leaf.shape) / 30, params),
            jax.tree.map(lambda leaf: 0.5 + jnp.abs(normal(leaf.size)), params),
            jnp.asarray([-3.0, 10.0, 3.0, -2.0, 20.0], float),
        ),
    }


SHAPED = ("Diagonal", "Kronecker", "turned", "LowRank", "narrowed")


@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=2),
    st.integers(1, 4),
    st.sampled_from(SHAPED),
    st.integers(0, 100),
)
def test_generated_networks(widths, features, name, seed):
    predict, init = models.mlp(features, tuple(widths), 3)
    params = init(jax.random.key(seed))
    covariance = covariances(params, seed)[name]
    xs = jax.random.normal(jax.random.key(seed), (3, features))

    def scores(*args):
        return [
            isouq.uncertainty(predict, *args[:2], "multiclass", target=1, covariance=args[2], engine=engine).epistemic
            for engine in ("jaxpr", "vmap")
        ]

    fast, slow = run(scores, params, xs, covariance)
    np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-12)


def by_every_way(f, params, examples, kind):
    """gᵀΣg of every covariance by name and way, and the gradients themselves, one a row."""
    forms, target = covariances(params), 0 if kind == "multiclass" else None

    def scores(params, examples, forms):
        engines = {
            engine: {
                name: isouq.uncertainty(
                    f, params, examples, kind, target=target, covariance=forms[name], engine=engine
                ).epistemic
                for name in names
            }
            for engine, names in {"jaxpr": forms, "vmap": ["narrowed"]}.items()
        }
        grads = jax.vmap(jax.grad(lambda p, x: scalar(f(p, x), kind)), (None, 0))(params, examples)
        return grads, engines | {"quadratic": {name: form.quadratic(grads) for name, form in forms.items()}}

    grads, ways = run(scores, params, examples, forms)
    leaves = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(grads)]
    return forms, np.concatenate(leaves, axis=1), ways


def scalar(outputs, kind):
    return jax.nn.softmax(outputs)[0] if kind == "multiclass" else outputs


def check(f, params, examples, kind):
    forms, rows, ways = by_every_way(f, params, examples, kind)
    for name, form in forms.items():
        want = np.einsum("bi,ij,bj->b", rows, dense(form, params), rows)
        for way in [way for way in ways if name in ways[way]]:
            np.testing.assert_allclose(ways[way][name], want, rtol=1e-8, err_msg=f"{name} by {way}")


def test_equals_the_dense_matrix(x64):
    check(everything, parameters(), examples(), "multiclass")


LAYERS = {
    "dense": ["dense_bias", "weight_on_the_left", "transposed", "heads_axis_merged", "layer_norm"],
    "convolutions": ["conv_same", "conv2d", "conv_default_layout", "conv_depthwise", "scalar"],
    "lookups and loops": ["embedding", "embedding_columns", "tied_embedding", "scan_over_layers", "recurrent"],
    "shared": ["used_three_times", "flat_and_shaped", "conv_used_twice", "concatenated_columns"],
    "direct": ["nonlinear_weight", "weights_added", "vmapped_ensemble", "unused_leaf", "empty_leaf"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_equals_the_dense_matrix(name, x64):
    network = Network(tuple(Layer(layer, 2) for layer in LAYERS[name]), nest="mixed")
    f, params, examples = network.parts(batch=2)
    check(f, params, examples, "regression")


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
    "other variances": (
        lambda p: isouq.Kronecker(
            {"w": (jnp.eye(4), jnp.eye(2)), "b": (jnp.eye(1), jnp.eye(2))},
            {"w": jnp.ones((2, 4)), "b": jnp.ones((1, 2))},
        ),
        r"variances has shape \(2, 4\) for a leaf that needs \(4, 2\)",
    ),
    "no K": (lambda p: isouq.LowRank(p), "leading axes"),
    "other weights": (
        lambda p: isouq.LowRank(jax.tree.map(lambda leaf: leaf[None], p), weights=jnp.ones(3)),
        r"weights has shape \(3,\); expected \(1,\)",
    ),
    "other scales": (
        lambda p: isouq.LowRank(jax.tree.map(lambda leaf: leaf[None], p), {"w": 1.0}),
        "scale is not a pytree like the parameters",
    ),
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
