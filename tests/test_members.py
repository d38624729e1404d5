"""The networks that estimates are made of, against closed forms and training written as a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import twins

from experiments.synthetic.measure import members
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import set_up
from isouq import problems
from isouq.models import ACTIVATIONS
from isouq.posterior import linear_regression

KEY = jax.random.key(5)


def setting_of(name, **options):
    return set_up(Cell(name, 0, **options), problems.get(name))


@pytest.fixture(scope="module")
def linear():
    return setting_of("regression/linear", num_points=30)


@pytest.fixture(scope="module", params=["binary/xor", "multiclass/rings", "regression/nonlinear"])
def networks(request):
    """A setting with networks of 4 units, and 50 points, which are two batches and a half."""
    return setting_of(request.param, width=4, num_points=50, prior="fan_in", sigma=2.0)


def design(setting):
    """The inputs in the order of the flat parameters: the bias first."""
    xs = np.asarray(setting.data.xs, np.float64)
    return np.concatenate([np.ones((len(xs), 1)), xs], axis=1)


def test_map_and_mle_of_a_linear_regression_are_known(linear):
    posterior = linear_regression(linear.data.xs, linear.data.ys, noise=linear.problem.noise)
    exact = np.roll(posterior.mean, 1)
    least_squares = np.linalg.lstsq(design(linear), np.asarray(linear.data.ys, np.float64), rcond=None)[0]
    for kind, expected in (("map", exact), ("mle", least_squares)):
        trained = members.train_ensemble(linear, kind, 3, KEY)
        assert trained.num_steps >= 3
        for index in range(3):
            member = twins.flat(jax.tree.map(lambda leaf, i=index: leaf[i], trained.params))
            np.testing.assert_allclose(member, expected, atol=2e-3)


def test_an_anchored_member_of_a_linear_regression_is_the_mean_under_its_own_prior(linear):
    """θ = Σ(Φᵀy/noise² + a/σ²): over anchors from the prior its covariance is ΣΣ₀⁻¹Σ, below the posterior's Σ."""
    count, noise = 8, linear.problem.noise
    trained = members.train_ensemble(linear, "anchored", count, KEY)
    phi, ys = design(linear), np.asarray(linear.data.ys, np.float64)
    covariance = np.linalg.inv(phi.T @ phi / noise**2 + np.eye(phi.shape[1]))
    keys = jax.random.split(jax.random.split(KEY)[1], count)
    anchors = [twins.flat(members.draw_from_prior(linear.log_density, linear.zeros, key)) for key in keys]
    expected = np.array([covariance @ (phi.T @ ys / noise**2 + anchor) for anchor in anchors])
    got = np.concatenate([leaf.reshape(count, -1) for leaf in jax.tree.leaves(trained.params)], axis=1)
    np.testing.assert_allclose(got, expected, atol=0.02 * np.sqrt(np.diag(covariance)).min())
    assert np.all(got.var(axis=0) < 0.2 * np.diag(covariance))


def test_the_anchored_density_is_the_posterior_under_another_prior_mean(networks):
    density, params = networks.log_density, networks.init(KEY)
    assert float(members.anchored_density(density, networks.zeros, params)) == pytest.approx(float(density(params)))
    anchor = members.draw_from_prior(density, networks.zeros, jax.random.key(1))
    got = float(members.anchored_density(density, anchor, params))
    assert got == pytest.approx(twins.log_posterior(density, params, twins.flat(anchor)), rel=1e-4)
    assert got != pytest.approx(float(density(params)), rel=1e-3)


def test_draws_from_the_prior_have_its_scales(networks):
    keys = jax.random.split(KEY, 40)
    density = networks.log_density
    draws = np.array(
        [twins.flat(members.draw_from_prior(density, networks.zeros, key)) for key in keys]
    ) / twins.prior_sd(density, networks.zeros)
    assert abs(draws.mean()) < 5 / np.sqrt(draws.size)
    assert draws.var() == pytest.approx(1, abs=5 * np.sqrt(2 / draws.size))
    assert len(np.unique(draws)) == draws.size


# --- SWAG


def test_swag_is_stochastic_gradient_descent_by_hand(networks):
    density, theta = networks.log_density, networks.init(jax.random.key(2))
    got = members.train_swag(networks, theta, KEY)
    rate = 0.01 * (0.2**2 if density.kind == "regression" else 1)
    xs, ys, size = np.asarray(density.xs), np.asarray(density.ys), len(density.ys)
    sd = twins.prior_sd(density, theta)

    def loss(position, rows):
        part = density.__class__(None, density.scales, xs[rows], ys[rows], density.noise, density.kind)
        prior = -0.5 * np.sum((position / sd) ** 2)
        return -(batch_likelihood(part, twins.shaped(position, theta)) / 20 + prior / size)

    position, velocity, iterates = twins.flat(theta), 0.0, []
    for key in jax.random.split(KEY, 200):
        order = np.asarray(jax.random.permutation(key, size))
        for start in (0, 20):  # the last ten of fifty are left out
            rows = order[start : start + 20]
            gradient = twins.jacobian(lambda p, rows=rows: loss(p, rows), position)
            velocity = 0.9 * velocity + gradient
            position = position - rate * velocity
        iterates.append(position)
    last = np.array(iterates[100:])
    np.testing.assert_allclose(got.mean, last.mean(axis=0), rtol=1e-3, atol=1e-4)
    spread = last.std(axis=0).max()
    np.testing.assert_allclose(np.sqrt(got.variance), last.std(axis=0), rtol=0.01, atol=1e-3 * spread)
    assert got.deviations.shape == (20, len(position))
    np.testing.assert_allclose(got.deviations, last[-20:] - last.mean(axis=0), atol=0.01 * spread)


def batch_likelihood(density, params):
    """The log likelihood in one expression, up to a constant, because the loop takes ten thousands of them."""
    values = twins.outputs(params, density.xs)
    if density.kind == "regression":
        return -0.5 * np.sum((density.ys - values[:, 0]) ** 2) / float(density.noise) ** 2
    return np.sum(np.log(twins.classes(values, density.kind)[np.arange(len(values)), density.ys]))


def test_draws_of_swag_have_its_covariance():
    rng = np.random.default_rng(0)
    deviations = jnp.asarray(rng.normal(size=(5, 3)) * [1.0, 2.0, 0.5], jnp.float32)
    swag = members.Swag(jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.1, 2.0]), deviations)
    draws = np.asarray(swag.draw(KEY, 40_000), np.float64)
    d = np.asarray(deviations, np.float64)
    expected = (np.diag([0.3, 0.1, 2.0]) + d.T @ d / 4) / 2
    np.testing.assert_allclose(draws.mean(axis=0), [1.0, -2.0, 0.5], atol=0.05)
    np.testing.assert_allclose(np.cov(draws.T), expected, atol=0.05 * np.diag(expected).max())


# --- dropout


def draw_mask(key, depth, width):
    return jax.random.bernoulli(jax.random.fold_in(key, depth), 0.9, (width,))


def masks_of(key, params):
    """The masks of the hidden layers, from the keys that the network uses."""
    widths = [params["layers"][depth]["bias"].size for depth in range(len(params["layers"]) - 1)]
    return [np.asarray(draw_mask(key, depth, width)) for depth, width in enumerate(widths, 1)]


def dropped(params, x, masks):
    """The outputs of one input with the units outside the masks set to 0, and the others divided by 0.9."""
    for depth in range(len(params["layers"])):
        layer = params["layers"][depth]
        if depth:
            x = np.array(
                [np.tanh(value) / 0.9 if keep else 0.0 for value, keep in zip(x, masks[depth - 1], strict=True)]
            )
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"], np.float64)
    return x


def test_a_mask_drops_units_of_every_hidden_layer():
    setting = setting_of("multiclass/rings", width=30, depth=2, num_points=20)
    params, xs = setting.init(KEY), setting.data.xs[:3]
    keys = jax.random.split(jax.random.key(3), 4)
    got = members.predict_masks(params, xs, keys, "tanh")
    for row, key in zip(got, keys, strict=True):
        masks = masks_of(key, params)
        assert [len(mask) for mask in masks] == [30, 30]
        assert any(not mask.all() for mask in masks)
        for value, x in zip(row, np.asarray(xs, np.float64), strict=True):
            np.testing.assert_allclose(value, dropped(params, x, masks), rtol=1e-4, atol=1e-5)


def test_the_mean_over_masks_is_the_network_itself():
    """With one hidden layer the output is linear in the mask: mean f, variance Σ (h w)² r / (1 − r)."""
    setting = setting_of("regression/nonlinear", width=6, num_points=20)
    params, xs = setting.init(KEY), setting.data.xs[:4]
    got = np.asarray(members.predict_masks(params, xs, jax.random.split(KEY, 4000), "tanh"), np.float64)[..., 0]
    layers = params["layers"]
    hidden = np.tanh(twins.outputs({"layers": {0: layers[0]}}, xs))
    variance = np.square(hidden * np.asarray(layers[1]["kernel"])[:, 0]).sum(axis=1) / 9
    mean = twins.outputs(params, xs)[:, 0]
    np.testing.assert_allclose(got.mean(axis=0), mean, atol=5 * np.sqrt(variance.max() / 4000))
    np.testing.assert_allclose(got.var(axis=0), variance, rtol=0.25)


def test_training_with_dropout_is_adam_by_hand(networks, monkeypatch):
    """Five steps, each with a mask for each datum."""
    monkeypatch.setattr(members, "DROPOUT_STEPS", 5)
    density, kind = networks.log_density, networks.log_density.kind
    got = twins.flat(members.train_with_dropout(networks, "tanh", KEY))
    params = networks.init(KEY)
    position, sd = twins.flat(params), twins.prior_sd(density, params)
    xs, ys, size = np.asarray(density.xs, np.float64), np.asarray(density.ys), len(density.ys)
    mean, square = np.zeros_like(position), np.zeros_like(position)

    def loss(position, masks):
        values = np.array([dropped(twins.shaped(position, params), x, own) for x, own in zip(xs, masks, strict=True)])
        if kind == "regression":
            fit = -0.5 * np.sum((ys - values[:, 0]) ** 2) / float(density.noise) ** 2
        else:
            fit = np.sum(np.log(twins.classes(values, kind)[np.arange(size), ys]))
        return -(fit - 0.5 * np.sum((position / sd) ** 2)) / size

    for step, key in enumerate(jax.random.split(jax.random.fold_in(KEY, 1), 5), 1):
        masks = np.asarray(jax.vmap(lambda one: draw_mask(one, 1, 4))(jax.random.split(key, size)))[:, None]
        gradient = twins.jacobian(lambda p, masks=masks: loss(p, masks), position)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        position = position - 0.01 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(got, position, atol=2e-4)
    assert np.abs(got - twins.flat(params)).max() > 0.02


# --- the last layer


def test_the_last_layer_is_the_network_as_a_function_of_it(networks):
    density, theta = networks.log_density, networks.init(jax.random.key(4))
    last_density, last, features = members.last_layer(networks, theta, "tanh")
    xs = networks.data.xs[:5]
    hidden = np.tanh(twins.outputs({"layers": {0: theta["layers"][0]}}, xs))
    np.testing.assert_allclose(features(xs), hidden, atol=1e-6)
    for value, x in zip(features(xs), xs, strict=True):
        np.testing.assert_allclose(members.affine(last, value), networks.predict(theta, x), rtol=1e-5, atol=1e-6)
    assert float(last_density.log_likelihood(last)) == pytest.approx(float(density.log_likelihood(theta)), rel=1e-5)
    scale = twins.prior_sd(last_density, last)
    assert float(last_density.log_prior(last)) == pytest.approx(
        scipy.stats.norm.logpdf(twins.flat(last), scale=scale).sum(), rel=1e-5
    )
    assert {float(s) for s in jax.tree.leaves(last_density.scales)} == {2.0, 1.0}  # fan_in of 4 units, σ = 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_features_of_a_deep_network_end_before_its_last_layer(activation):
    setting = setting_of("binary/xor", width=5, depth=3, num_points=20, activation=activation)
    theta = setting.init(KEY)
    _, last, features = members.last_layer(setting, theta, activation)
    x = setting.data.xs[0]
    got = members.affine(last, features(x[None])[0])
    assert float(got) == pytest.approx(float(setting.predict(theta, x)), rel=1e-4, abs=1e-5)
