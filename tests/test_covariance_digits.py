"""Covariances keep their digits in float32: large levels, saturated outputs, differences. The truth is in float64."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins import dense

import isouq
from isouq.covariance import _curvature, from_draws, laplace
from isouq.posterior import LogDensity

KINDS = ("binary", "multiclass")


def linear(params, x):
    return x @ params["w"]


def logistic(params, x):
    return (x @ params["w"]).reshape(())


def saturated(kind, margin, curvature, ys):
    """C of a linear model in float32, and by hand in float64 from log-probabilities."""
    x = np.array([[1.0, -0.5], [0.5, 1.0]])
    logits = np.array([0.0, -margin, -margin - 1])
    if kind == "binary":
        w = np.linalg.solve(x, np.array([margin, margin]))[:, None]
    else:
        w = np.linalg.solve(x, np.stack([logits, logits[[1, 0, 2]]]))
    params = {"w": jnp.asarray(w, jnp.float32)}
    predict = logistic if kind == "binary" else linear
    density = LogDensity.of(predict, params, jnp.asarray(x, jnp.float32), jnp.asarray(ys), kind)
    got = np.asarray(_curvature.diagonal(density, params, curvature, 2)).reshape(w.shape)
    f = x @ np.asarray(params["w"], np.float64)
    if kind == "binary":
        f = np.concatenate([0 * f, f], axis=1)
    log_p = f - np.log(np.sum(np.exp(f - f.max(1, keepdims=True)), 1, keepdims=True)) - f.max(1, keepdims=True)
    p = np.exp(log_p)
    rest = np.stack([np.delete(p, c, axis=1).sum(axis=1) for c in range(p.shape[1])], axis=1)  # 1 − p, its digits kept
    label = np.eye(p.shape[1])[np.asarray(ys)] == 1
    square = p * rest if curvature == "ggn" else np.where(label, rest, p) ** 2
    want = np.einsum("nf,nc->fc", x**2, square)
    return got, want[:, 1:] if kind == "binary" else want


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
@pytest.mark.parametrize("margin", [3.0, 20.0, 40.0])
def test_a_saturated_output_has_its_small_curvature(kind, curvature, margin):
    got, want = saturated(kind, margin, curvature, [1, 0] if kind == "binary" else [0, 1])
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("structure", ["dense", "diagonal", "low_rank"])
def test_draws_far_from_zero(structure):
    rng = np.random.default_rng(0)
    draws = {"w": (1e6 + rng.normal(size=(3001, 3))).astype(np.float32)}
    want = np.cov(draws["w"].astype(np.float64).T, ddof=0)
    if structure == "diagonal":
        want = np.diag(np.diag(want))
    got = dense(from_draws(jax.tree.map(jnp.asarray, draws), structure), {"w": jnp.zeros(3)})
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker"])
def test_a_prior_whose_variance_is_no_float32(structure):
    """σ² = 10⁴⁰ is infinite in float32; the posterior's variance is not."""
    params = {"w": jnp.asarray([0.5, 2.0])}
    xs = jnp.asarray([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]])
    density = LogDensity.of(lambda p, x: p["w"] @ x, params, xs, xs[:, 0], "regression", sigma=1e20, noise=1.0)
    got = dense(laplace(density, params, "ggn", structure), params)
    np.testing.assert_allclose(np.diag(got), [1 / 10, 1 / 4], rtol=1e-5)


@pytest.mark.parametrize("outweigh", [1e2, 1e4, 5e5])
@pytest.mark.parametrize("level", [0.0, 1e2, 1e4])
def test_a_low_rank_form_loses_no_more_than_it_says(outweigh, level):
    """2 · 10⁻⁷ of ‖g‖², and never below 0, where gᵀΣg is ‖g‖² / `outweigh` of it."""
    rng = np.random.default_rng(1)
    grads = (level + rng.normal(size=(50, 40))).astype(np.float32)
    direction = grads.astype(np.float64).mean(axis=0)
    direction /= np.linalg.norm(direction)
    weight = np.float32(-outweigh / (1 + outweigh))
    covariance = isouq.LowRank({"w": jnp.asarray(direction[None], jnp.float32)}, 1.0, jnp.asarray([weight]))
    u, g = np.asarray(covariance.directions["w"], np.float64)[0], grads.astype(np.float64)
    want = np.sum(g**2, axis=1) + float(weight) * (g @ u) ** 2
    by_gradient = covariance.quadratic({"w": jnp.asarray(grads)})
    by_engine = isouq.uncertainty(
        lambda p, x: jnp.vdot(p["w"], x), {"w": jnp.zeros(40)}, grads, "regression", covariance=covariance
    ).epistemic
    for got in (by_gradient, by_engine):
        assert (np.asarray(got) >= 0).all()
        assert (np.abs(got - want) <= 4e-7 * np.sum(g**2, axis=1)).all()


def test_what_rounding_makes_negative_is_zero():
    u = np.full(7, 1 / np.sqrt(7), np.float32)
    covariance = isouq.LowRank({"w": jnp.asarray(u[None])}, 1.0, jnp.asarray([-1.0]))  # no variance along u
    values = np.asarray(covariance.quadratic({"w": jnp.asarray(np.outer(np.linspace(1, 2, 99), u), jnp.float32)}))
    assert (values >= 0).all()
    assert (values < 1e-5).all()


def test_a_diagonal_of_factors_whose_squares_are_no_float32():
    """x² is 0 in float32 and x δ is not."""
    xs, scale = jnp.asarray([[3e-24, -1e-24]]), jnp.float32(1e20)
    params = {"w": jnp.ones((2, 2))}
    got = isouq.uncertainty(
        lambda p, x: jnp.sum(x @ p["w"]) * scale,
        params,
        xs,
        "regression",
        covariance=isouq.Diagonal({"w": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])}),
    ).epistemic
    np.testing.assert_allclose(got, [(3 * 9 + 7 * 1) * 1e-8], rtol=1e-5)


@pytest.mark.parametrize("name", ["Diagonal", "Kronecker", "LowRank", "Dense"])
def test_complex_gradients_are_for_the_identity(name):
    grads = {"w": jnp.asarray([[1.0 + 2.0j, 3.0j]])}
    np.testing.assert_allclose(isouq.Identity(2.0).quadratic(grads), [2.0 * (1 + 4 + 9)])
    covariance = {
        "Diagonal": isouq.Diagonal({"w": jnp.ones(2)}),
        "Kronecker": isouq.Kronecker({"w": (jnp.ones(1), jnp.ones(2))}),
        "LowRank": isouq.LowRank({"w": jnp.ones((1, 2))}),
        "Dense": isouq.Dense(jnp.eye(2)),
    }[name]
    with pytest.raises(ValueError, match=r"grads\['w'\] is complex64; expected a real array with a covariance other"):
        covariance.quadratic(grads)


def read_out(params, h):
    return jnp.tanh(h * jnp.arange(1.0, 7.0)[:, None] / 6).mean(0) @ params["v"]


def softmax_over_positions(params, x):
    return read_out(params, jax.nn.softmax(x @ params["w"], axis=0) * (x - x.mean(0)[None]))


def normalised_over_positions(params, x):
    h = x @ params["w"]
    return read_out(params, (h - h.mean(0)[None]) / jnp.sqrt(h.var(0) + 1e-5)[None])


def signed_uses(params, x):
    return jnp.tanh(x[0] @ params["w"] - x[1] @ params["w"]) @ params["v"]


def as_users_run(f, engine):
    """Compiled without the flags of the tests, under which XLA fuses otherwise."""

    def score(params, xs, covariance):
        return isouq.uncertainty(f, params, xs, "multiclass", target=1, covariance=covariance, engine=engine)

    has_other_emitters = "xla_cpu_use_fusion_emitters" in os.environ["XLA_FLAGS"]
    return jax.jit(score, compiler_options={"xla_cpu_use_fusion_emitters": True} if has_other_emitters else None)


@pytest.mark.parametrize("variances", [False, True])
@pytest.mark.parametrize(
    "f", [softmax_over_positions, normalised_over_positions, signed_uses], ids=lambda f: f.__name__
)
def test_a_kronecker_form_of_positions_that_cancel_is_as_exact_as_that_of_gradients(f, variances, optimised):
    """XLA rounds a cotangent otherwise where it is multiplied by a factor first: a sum of zero is none any more."""
    rng = np.random.default_rng(0)
    shapes = {"w": (24, 24), "v": (24, 3)}
    turns = {
        name: tuple(jnp.asarray(np.linalg.qr(rng.normal(size=(n, n)))[0], jnp.float32) for n in shape)
        for name, shape in shapes.items()
    }
    v = {name: jnp.asarray(np.exp(rng.normal(size=shape)), jnp.float32) for name, shape in shapes.items()}
    covariance = isouq.Kronecker(turns, v if variances else None)
    params = {name: (rng.normal(size=shape) / 5).astype(np.float32) for name, shape in shapes.items()}
    for level in (1.0, 100.0, 1e4):
        xs = (level + rng.normal(size=(4, 6, 24))).astype(np.float32)
        got, plain = (
            np.asarray(as_users_run(f, engine)(params, xs, covariance).epistemic) for engine in ("jaxpr", "vmap")
        )
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), (params, xs, covariance))
            want = isouq.uncertainty(f, *wide[:2], "multiclass", target=1, covariance=wide[2], engine="vmap").epistemic
        error, allowed = (np.max(np.abs(a / np.asarray(want) - 1)) for a in (got, plain))
        assert error <= 10 * max(allowed, level * 1e-7, 1e-6), f"level {level}: {error}, jax.grad {allowed}"


def test_a_map_over_covariances_is_one_by_one():
    rng = np.random.default_rng(1)
    params = {"w": (rng.normal(size=(4, 3))).astype(np.float32)}
    xs = rng.normal(size=(2, 5, 4)).astype(np.float32)
    factors = {"w": (rng.normal(size=(3, 4, 4)).astype(np.float32), rng.normal(size=(3, 3, 3)).astype(np.float32))}

    def score(covariance):
        return isouq.uncertainty(
            lambda p, x: jnp.tanh(x @ p["w"]).mean(0), params, xs, "multiclass", target=1, covariance=covariance
        )

    mapped = jax.vmap(lambda pair: score(isouq.Kronecker(pair)).epistemic)(factors)
    alone = [score(isouq.Kronecker(jax.tree.map(lambda leaf: leaf[i], factors))).epistemic for i in range(3)]  # noqa: B023
    np.testing.assert_allclose(mapped, alone, rtol=1e-5)
