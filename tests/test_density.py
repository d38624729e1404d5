"""One log density: against SciPy in float64, against NumPyro's own, and against the closed form."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.flatten_util import ravel_pytree
from numpyro.infer.util import log_density as numpyro_log_density
from scipy.special import expit, log_softmax

import isouq
from isouq import models, problems
from isouq.posterior import LogDensity, linear_regression, numpyro_model, prior_scales

NAMES = ("binary/xor", "multiclass/rings", "regression/nonlinear", "regression/linear")


def case(name, prior="unit", sigma=1.0, n=30):
    problem = problems.get(name)
    data = problem.sample(jax.random.key(3), n)
    predict, init = models.mlp(data.xs.shape[1], problem.hidden[:1] and (4,), problem.num_outputs)
    params = init(jax.random.key(4))
    options = {"prior": prior, "sigma": sigma, "noise": problem.noise}
    return data, predict, params, LogDensity.of(predict, params, data.xs, data.ys, problem.kind, **options)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("prior", "sigma"), [("unit", 1.0), ("fan_in", 2.5)])
def test_equals_scipy(name, prior, sigma, x64):
    data, predict, params, log_density = case(name, prior, sigma)
    log_prior = 0.0
    for leaf in jax.tree.leaves(params):
        fan_in = np.prod(leaf.shape[:-1]) if prior == "fan_in" and leaf.ndim > 1 else 1
        log_prior += scipy.stats.norm.logpdf(np.asarray(leaf, np.float64), scale=sigma / np.sqrt(fan_in)).sum()
    outputs = np.array([predict(params, x) for x in data.xs], np.float64)
    ys = np.asarray(data.ys)
    if log_density.kind == "binary":
        log_likelihood = scipy.stats.bernoulli.logpmf(ys, expit(outputs)).sum()
    elif log_density.kind == "multiclass":
        log_likelihood = log_softmax(outputs, axis=1)[np.arange(len(ys)), ys].sum()
    else:
        log_likelihood = scipy.stats.norm.logpdf(ys, outputs, problems.get(name).noise).sum()
    np.testing.assert_allclose(log_density.log_prior(params), log_prior, rtol=1e-6)
    np.testing.assert_allclose(log_density.log_likelihood(params), log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(log_density(params), log_prior + log_likelihood, rtol=1e-5)


def test_float64_keeps_the_digits_of_prior_and_noise(x64):
    """0.1 and 0.3 in float32 would be off by 1e-8."""
    data, predict, params, _ = case("regression/linear")
    params, xs, ys = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), (params, data.xs, data.ys))
    log_density = LogDensity.of(predict, params, xs, ys, "regression", sigma=0.3, noise=0.1)
    outputs = np.array([predict(params, x) for x in xs]).reshape(ys.shape)
    log_prior = scipy.stats.norm.logpdf(ravel_pytree(params)[0], scale=0.3).sum()
    np.testing.assert_allclose(log_density.log_prior(params), log_prior, rtol=1e-12)
    log_likelihood = scipy.stats.norm.logpdf(ys, outputs, 0.1).sum()
    np.testing.assert_allclose(log_density.log_likelihood(params), log_likelihood, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_numpyro_model(name):
    _, _, params, log_density = case(name, "fan_in", 3.0)
    sites = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    theirs, _ = numpyro_log_density(numpyro_model(log_density, params), (), {}, sites)
    np.testing.assert_allclose(log_density(params), theirs, rtol=1e-5)


def test_prior_scales():
    params = {"kernel": jnp.ones((8, 2)), "bias": jnp.ones(2), "conv": jnp.ones((3, 3, 4, 5))}
    assert set(map(float, jax.tree.leaves(prior_scales(params, "unit", 2.0)))) == {2.0}
    scales = prior_scales(params, "fan_in", 3.0)
    np.testing.assert_allclose(scales["kernel"], 3 / np.sqrt(8), rtol=1e-6)
    np.testing.assert_allclose(scales["bias"], 3.0)
    np.testing.assert_allclose(scales["conv"], 3 / 6, rtol=1e-6)


def test_closed_form_is_the_posterior_of_the_log_density(x64):
    data, _, params, log_density = case("regression/linear", sigma=0.7)
    exact = linear_regression(data.xs, data.ys, noise=0.3, sigma=0.7)
    flat, unravel = ravel_pytree(params)
    order = [int(i) for i in ravel_pytree(jax.tree.map(lambda a: a, unravel(jnp.arange(2.0))))[0]]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    order = [1, 0] if "bias" in paths[0] else order  # the closed form has the bias last
    mode = unravel(jnp.asarray(exact.mean[order], flat.dtype))
    hessian = isouq.negative_hessian(log_density, mode)
    np.testing.assert_allclose(np.linalg.inv(hessian), exact.covariance[np.ix_(order, order)], rtol=1e-4)
    assert float(jnp.linalg.norm(ravel_pytree(jax.grad(log_density)(mode))[0])) < 1e-2
    np.testing.assert_allclose(
        exact.predictive_variance(data.xs)[:1],
        [np.append(data.xs[0], 1) @ exact.covariance @ np.append(data.xs[0], 1)],
    )


def test_is_a_pytree_with_the_data_as_leaves():
    data, _, _, log_density = case("binary/xor")
    assert any(leaf is log_density.xs for leaf in jax.tree.leaves(log_density))
    again = LogDensity.of(log_density.predict, case("binary/xor")[2], data.xs + 1, data.ys, "binary", sigma=9.0)
    assert jax.tree.structure(again) == jax.tree.structure(log_density)


def as_float64(tree):
    return jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(jnp.asarray(a).dtype, jnp.floating) else a, tree
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("prior", ["unit", "fan_in"])
def test_equals_scipy_to_the_last_digits_in_double_precision(name, prior, x64):
    data, predict, params, log_density = as_float64(case(name, prior, 2.5))
    outputs = np.array([predict(params, x) for x in data.xs])
    assert outputs.dtype == np.float64
    ys = np.asarray(data.ys)
    rows = {
        "binary": lambda: scipy.stats.bernoulli.logpmf(ys, expit(outputs)),
        "multiclass": lambda: log_softmax(outputs, axis=1)[np.arange(len(ys)), ys],
        "regression": lambda: scipy.stats.norm.logpdf(ys, outputs, float(log_density.noise)),
    }[log_density.kind]()
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(log_density.scales), strict=True)
    want = rows.sum() + sum(scipy.stats.norm.logpdf(leaf, scale=float(scale)).sum() for leaf, scale in pairs)
    np.testing.assert_allclose(log_density(params), want, rtol=1e-11)


def test_closed_form_with_several_features(x64):
    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(40, 3)), rng.normal(size=40)

    def predict(params, x):
        return x @ params["a_weights"] + params["bias"]  # ravelled in the order of the closed form

    params = {"a_weights": jnp.zeros(3), "bias": jnp.zeros(())}
    log_density = LogDensity.of(predict, params, jnp.asarray(xs), jnp.asarray(ys), "regression", noise=0.5, sigma=2.0)
    exact = linear_regression(xs, ys, noise=0.5, sigma=2.0)
    mode = ravel_pytree(params)[1](jnp.asarray(exact.mean))
    np.testing.assert_allclose(np.linalg.inv(isouq.negative_hessian(log_density, mode)), exact.covariance, rtol=1e-8)
    np.testing.assert_allclose(ravel_pytree(jax.grad(log_density)(mode))[0], 0, atol=1e-10)
    design = np.column_stack([xs, np.ones(40)])
    np.testing.assert_allclose(exact.predictive_variance(xs), np.diag(design @ exact.covariance @ design.T), rtol=1e-12)


def test_a_predict_that_jax_cannot_batch_is_said():
    def predict(params, x):
        return jax.lax.ragged_dot(x, params, jnp.array([1, 1], jnp.int32)).mean(0)

    params, xs, ys = jnp.ones((2, 3, 2)), jnp.ones((4, 2, 3)), np.array([0, 1, 0, 1])
    density = LogDensity.of(predict, params, xs, ys, "multiclass")
    for run in (density, lambda params: isouq.laplace(density, params)):
        with pytest.raises(
            NotImplementedError, match=r"^predict cannot be batched \(ragged_dot.*\); a log density maps"
        ):
            run(params)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ((1.0, 5000.0), "standard deviations from"),
        ((1e-3, 2.0), "standardise them"),
        ((200.0, 200.0), "standardise them"),
    ],
)
def test_features_that_are_not_scaled_are_said(scales, message):
    xs = np.random.default_rng(0).normal(size=(50, 2)) * scales
    params = {"w": jnp.zeros(2)}
    with pytest.warns(UserWarning, match=message):
        LogDensity.of(lambda p, x: x @ p["w"], params, xs, np.arange(50) % 2, "binary")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (xs / xs.std(axis=0), np.stack([xs[:, 0] / scales[0], np.full(50, 0.1)], axis=1)):
            LogDensity.of(lambda p, x: x @ p["w"], params, fine, np.arange(50) % 2, "binary")
