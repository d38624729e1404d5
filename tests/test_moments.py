"""KFAC's factors of one gradient against explicit gradients, and against rows and columns written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import Layer, Network, run
from twins import matrix

from isouq.gradnorm._moments import factor_moments


def arrays(*shapes):
    rng = np.random.default_rng(3)
    return [rng.normal(size=shape) for shape in shapes]


def loss(h):
    return jnp.sum(jnp.sin(h) * jnp.asarray(np.linspace(0.5, 2, h.size).reshape(h.shape)))


def slope(h):
    """What comes back to h from the loss."""
    return np.cos(h) * np.linspace(0.5, 2, h.size).reshape(h.shape)


def windows(x, size):
    return np.array([x[i : i + size].ravel() for i in range(len(x) - size + 1)])


def conv(kernel, x):
    return jax.lax.conv_general_dilated(x[None], kernel, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))[0]


X, W, LEFT, KERNEL, TABLE = arrays((5, 3), (3, 2), (2, 3), (3, 3, 2), (30, 2))
IDS = np.array([4, 1, 4, 29])
ONE_PRODUCT = {  # the function, its weight; the rows and the columns of the gradient
    "one position": (lambda w: loss(X[0] @ w), W, X[:1], slope(X[0] @ W)[None]),
    "positions": (lambda w: loss(X @ w), W, X, slope(X @ W)),
    "data behind": (lambda w: loss(w @ X.T), LEFT, slope(LEFT @ X.T).T, X),
    "transposed": (lambda w: loss(X @ w.T), LEFT, slope(X @ LEFT.T), X),
    "convolution": (
        lambda w: loss(conv(w, jnp.asarray(X))),
        KERNEL,
        windows(X, 3),
        slope(windows(X, 3) @ KERNEL.reshape(9, 2)),
    ),
    "lookup": (lambda w: loss(w[IDS]), TABLE, np.eye(30)[IDS], slope(TABLE[IDS])),
}


@pytest.mark.parametrize("name", ONE_PRODUCT)
def test_a_weight_that_is_used_once(name, x64):
    f, weight, rows, cols = ONE_PRODUCT[name]
    gradient = rows.T @ cols
    np.testing.assert_allclose(jax.grad(f)(jnp.asarray(weight)).reshape(gradient.shape), gradient, rtol=1e-10)
    ((first, second),) = factor_moments(lambda p: f(p["w"]))({"w": jnp.asarray(weight)})
    want = np.kron(rows.T @ rows, cols.T @ cols) / len(rows)  # the mean of one times the sum of the other
    np.testing.assert_allclose(np.kron(matrix(first), second), want, rtol=1e-9, atol=1e-12)


OTHERWISE = {
    "twice": (lambda w: loss(jnp.sin(np.linspace(-1, 1, 8) @ w) @ w), (8, 8)),
    "twice, at many positions": (lambda w: loss(jnp.sin(X @ w) @ w), (3, 3)),
    "tied": (lambda w: loss(w[IDS] @ w.T), (30, 2)),
    "in a loop": (lambda w: loss(jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), X, w)[0]), (2, 3, 3)),
    "no rule": (lambda w: loss(X @ jnp.sin(w)), (3, 2)),
    "another split": (lambda w: loss(X @ w.reshape(3, 8)), (3, 2, 4)),
    "vector": (lambda w: loss(X * w[None]), (3,)),
    "scalar": (lambda w: loss(X * w), ()),
    "one row": (lambda w: loss(X[:, :1] @ w), (1, 4)),
    "unused": (lambda w: loss(X) + 0 * jnp.sum(w), (3, 2)),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_every_other_use_has_the_trace_of_its_gradient(name, x64):
    f, shape = OTHERWISE[name]
    (weight,) = map(jnp.asarray, arrays(shape))
    ((first, second),) = factor_moments(f)(weight)
    gradient = np.asarray(jax.grad(f)(weight))
    last = shape[-1] if shape else 1
    assert first.shape == (weight.size // last,) * 2
    assert second.shape == (last, last)
    if name == "one row":  # one product at five positions: its mean row times its summed columns
        np.testing.assert_allclose(first, [[np.mean(X[:, 0] ** 2)]])
        return
    gradient = gradient.reshape(-1, last)
    assert np.trace(first) == pytest.approx(1)
    np.testing.assert_allclose(second, gradient.T @ gradient, rtol=1e-9, atol=1e-12)
    if np.any(gradient):
        np.testing.assert_allclose(first * np.sum(gradient**2), gradient @ gradient.T, rtol=1e-9, atol=1e-12)
    if len(gradient) == 1:
        np.testing.assert_allclose(np.kron(first, second), np.outer(gradient, gradient), rtol=1e-9)


@pytest.mark.parametrize(
    "layers",
    [
        ("dense_bias", "weight_on_the_left", "transposed", "scale", "embedding", "scalar"),
        ("flat", "heads_axis_merged", "split_gates", "tied_embedding", "nonlinear_weight", "empty_leaf"),
    ],
)
def test_one_position_has_the_trace_of_its_gradient(layers, x64):
    """‖x‖²‖δ‖² = ‖G‖² of every leaf of a network over single vectors, whichever way it went."""
    f, params, examples = Network(tuple(Layer(name, 2) for name in layers), length=None).parts()
    one = jax.tree.map(lambda a: a[0], examples)
    moments, gradient = run(lambda p, x: (factor_moments(f)(p, x), jax.grad(f)(p, x)), params, one)
    got = [np.trace(matrix(first)) * np.trace(matrix(second)) for first, second in moments]
    want = [np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-15)
