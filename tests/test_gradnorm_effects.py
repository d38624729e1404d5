"""Parameters that enter mutable Refs, at any nesting: the norm is that of `jax.grad`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import isouq

PARAMS = {
    "w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32),
    "b": jnp.array([0.3, -0.2, 0.5, 0.1]),
}
X = jnp.arange(1.0, 4.0) / 3


def squares(ref):
    return jnp.sum(jnp.tanh(ref[...]) ** 2)


def accumulated(p, x):
    acc = jax.new_ref(x @ p["w"])
    jax.ref.addupdate(acc, ..., p["b"])
    return squares(acc)


def in_place(p, x):
    acc = jax.new_ref(x @ p["w"])
    acc[...] += p["b"]
    return squares(acc)


def one_row(p, x):
    acc = jax.new_ref(jnp.zeros((2, 4)))
    acc[0] = p["b"]
    jax.ref.addupdate(acc, 1, x @ p["w"])
    return jnp.sum(jnp.tanh(acc[...].sum(0)) ** 2)


def made_of_the_parameter(p, x):
    ref = jax.new_ref(p["b"])
    jax.ref.addupdate(ref, ..., x @ p["w"])
    return squares(ref)


def in_loop(p, x):
    acc = jax.new_ref(x @ p["w"])

    def body(i, nothing):
        jax.ref.addupdate(acc, ..., p["b"] * (i + 1))
        return nothing

    lax.fori_loop(0, 3, body, 0)
    return squares(acc)


def weight_in_loop(p, x):
    buffer = jax.new_ref(jnp.zeros((3, 4)))

    def body(i, nothing):
        buffer[i] = jnp.tanh((i + 1.0) * x @ p["w"] + p["b"])
        return nothing

    lax.fori_loop(0, 3, body, 0)
    return squares(buffer)


def made_in_loop(p, x):
    def step(carry, scale):
        ref = jax.new_ref(carry)
        jax.ref.addupdate(ref, ..., jnp.tanh(scale * x @ p["w"]) * p["b"])
        return ref[...], None

    return jnp.sum(lax.scan(step, jnp.zeros(4), jnp.arange(1.0, 4.0))[0] ** 2)


def in_jit(p, x):
    buffer = jax.new_ref(jnp.zeros(4))

    @jax.jit
    def write(buffer, w, b):
        buffer[...] = jnp.tanh(x @ w + b)

    write(buffer, p["w"], p["b"])
    return squares(buffer)


def jit_in_loop_in_jit(p, x):
    acc = jax.new_ref(jnp.zeros(4))

    @jax.jit
    def add(acc, w, scale):
        jax.ref.addupdate(acc, ..., scale * x @ w)

    @jax.jit
    def loop(acc, p):
        def body(i, nothing):
            add(acc, p["w"], i + 1.0)
            jax.ref.addupdate(acc, ..., p["b"])
            return nothing

        lax.fori_loop(0, 2, body, 0)

    loop(acc, p)
    return squares(acc)


def in_cond(p, x):
    return lax.cond(x[0] > 0, functools.partial(accumulated, p), lambda x: jnp.sum(x), x)


def beside_a_read_only_weight(p, x):
    """The weight meets data in the ordinary way, and its product goes through a Ref."""
    acc = jax.new_ref(jnp.zeros(4))
    jax.ref.addupdate(acc, ..., jnp.tanh(x @ p["w"]))
    return jnp.sum(acc[...] * p["b"])


FUNCTIONS = (
    accumulated, in_place, one_row, made_of_the_parameter, in_loop, weight_in_loop, made_in_loop, in_jit,
    jit_in_loop_in_jit, in_cond, beside_a_read_only_weight,
)  # fmt: skip


@pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)
def test_the_norm_is_that_of_jax_grad(f):
    want = jax.tree.map(lambda g: jnp.sum(g**2), jax.grad(f)(PARAMS, X))
    norms = isouq.grad_sq_norm(f, per_leaf=True)
    for got in (norms(PARAMS, X), jax.jit(norms)(PARAMS, X)):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), got, want)
    batch = jnp.stack([X, 2 * X])
    want = jax.vmap(lambda x: jax.tree.map(lambda g: jnp.sum(g**2), jax.grad(f)(PARAMS, x)))(batch)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4), jax.vmap(norms, (None, 0))(PARAMS, batch), want
    )


def test_explain_names_the_ref():
    routes = {row.leaf: row.route for row in isouq.explain(accumulated)(PARAMS, X)}
    assert routes == {"['b']": "direct: addupdate with a mutable Ref", "['w']": "direct: cheaper (at most 128 entries)"}
