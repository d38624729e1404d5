"""Every estimate of the leaderboard against a slow twin: NumPy in float64, derivatives by differences, plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from made_up import made_up, shifted

from experiments.synthetic.measure import estimates, estimators
from experiments.synthetic.measure.estimators import posterior_moments
from experiments.synthetic.measure.laboratory import Laboratory, Moments, pool
from experiments.synthetic.measure.members import Members, Swag
from experiments.synthetic.study import Cell
from isouq.posterior import Sampling, sample_reference

KINDS = {"binary": "binary/xor", "multiclass": "multiclass/rings", "regression": "regression/nonlinear"}
SIGMA = 0.1
DRAWS = 8  # of each of the short chains


@pytest.fixture(scope="module", params=KINDS)
def lab(request):
    """A laboratory whose networks are not trained: the estimates are functions of whatever networks there are."""
    resolution = 16 if request.param == "regression" else 4
    cell = Cell(KINDS[request.param], 0, 4, "fan_in", 2.0, num_points=30, chains=2, resolution=resolution)
    made = Laboratory(made_up(cell))
    for number, kind in enumerate(("map", "mle", "anchored")):
        params = jax.vmap(made.setting.init)(jax.random.split(jax.random.key(number), 10))
        params = jax.tree.map(lambda leaf: 1.5 * leaf, params)
        made.compute_once(f"train_{kind}", lambda params=params: Members(params, 300))
    made.compute_once("train_dropout", lambda: made.theta)
    flat = made.theta_flat
    deviations = 0.3 * jax.random.normal(jax.random.key(6), (20, flat.size))
    made.compute_once("train_swag", lambda: Swag(flat, jnp.full(flat.shape, 0.04), deviations))
    chains = shifted(made.theta, 2 * DRAWS, 0.4).reshape(2, DRAWS, -1)
    made.compute_once("sample_short", lambda: jax.vmap(jax.vmap(lambda row: twins.shaped(row, made.theta)))(chains))
    return made


# --- the twins


def close(estimate, values, target="theta", lab=None, rtol=2e-3):
    np.testing.assert_allclose(estimate.values, values, rtol=rtol, atol=1e-5 * np.max(values))
    assert estimate.values.dtype == np.float64
    expected = lab.target if isinstance(target, str) else target
    assert (estimate.target is None) if expected is None else np.array_equal(estimate.target, expected)


def probabilities(lab, vector):
    """The probability of every class at every input, `[points, classes]`."""
    return twins.classes(twins.outputs(twins.shaped(np.asarray(vector, np.float64), lab.theta), lab.xs), lab.kind)


def pick(values, target):
    """Each row's value at its class."""
    return np.array([row[0 if target is None else target[i]] for i, row in enumerate(values)])


def gradient(lab, vector, target):
    """∇p_c `[points, P]`."""
    return twins.jacobian(lambda moved: pick(probabilities(lab, moved), target), np.asarray(vector, np.float64))


def sq_norms(lab, vector, target):
    return np.square(gradient(lab, vector, target)).sum(axis=1)


def members_of(lab, kind, count):
    return [twins.flat(lab.member(kind, index)) for index in range(count)]


def about_theta(lab, rows):
    """The variance over parameters of the probability of the class of θ*."""
    return pick(np.var([probabilities(lab, row) for row in rows], axis=0), lab.target)


def about_mean(lab, rows):
    """The variance over parameters of the class of the largest mean probability, and that class."""
    p = np.array([probabilities(lab, row) for row in rows])
    target = None if lab.kind == "regression" else p.mean(axis=0).argmax(axis=1)
    return pick(p.var(axis=0), target), target


def rms(vector):
    return np.sqrt(np.mean(np.square(vector)))


def theta_of(lab):
    return twins.flat(lab.theta)


def directions_of(lab):
    return np.asarray(lab.directions, np.float64)


# --- one network


def test_control_is_the_variance_of_a_bernoulli_variable(lab):
    got = estimates.control(lab)
    if lab.kind == "regression":
        assert got is None
        return
    p = pick(probabilities(lab, theta_of(lab)), lab.target)
    close(got, p * (1 - p), lab=lab)
    np.testing.assert_array_equal(lab.target, probabilities(lab, theta_of(lab)).argmax(axis=1))


def test_gradient_is_its_squared_norm(lab):
    close(estimates.gradient(lab), sq_norms(lab, theta_of(lab), lab.target), lab=lab)


def test_last_layer_is_that_of_the_last_affine_map(lab):
    size = twins.flat(lab.theta["layers"][1]).size
    g = gradient(lab, theta_of(lab), lab.target)
    close(estimates.last_layer(lab), np.square(g[:, -size:]).sum(axis=1), lab=lab)


def test_all_classes_are_a_sum(lab):
    if lab.kind == "multiclass":
        expected = sum(sq_norms(lab, theta_of(lab), np.full(len(lab.xs), c)) for c in range(3))
    else:
        expected = sq_norms(lab, theta_of(lab), lab.target)
    close(estimates.all_classes(lab), expected, lab=lab)


def test_the_metric_of_the_prior_weighs_each_parameter_by_its_variance(lab):
    g, sd = gradient(lab, theta_of(lab), lab.target), twins.prior_sd(lab.setting.log_density, lab.theta)
    assert len(set(sd)) > 1
    close(estimates.prior_metric(lab), np.square(g * sd).sum(axis=1), lab=lab)


@pytest.mark.parametrize("relative", [False, True])
def test_perturbed_is_a_variance_over_256_networks(lab, relative):
    scale = SIGMA * (rms(theta_of(lab)) if relative else 1)
    rows = [theta_of(lab) + scale * direction for direction in directions_of(lab)]
    assert len(rows) == 256
    close(estimates.perturbed(lab, relative), about_theta(lab, rows), lab=lab)


def test_smoothed_is_a_mean_over_32_networks(lab):
    rows = [theta_of(lab) + SIGMA * direction for direction in directions_of(lab)[:32]]
    expected = np.mean([sq_norms(lab, row, lab.target) for row in rows], axis=0)
    close(estimates.smoothed(lab), expected, lab=lab)


def logits_at(lab, vector):
    return twins.outputs(twins.shaped(vector, lab.theta), lab.xs)


def linear_logits(lab, steps):
    """The probabilities `[steps, points, classes]` of f + Jδ for every step δ."""
    jacobian = twins.jacobian(lambda vector: logits_at(lab, vector), theta_of(lab))
    return np.array([twins.classes(logits_at(lab, theta_of(lab)) + jacobian @ step, lab.kind) for step in steps])


def test_isotropic_logits_are_linear_in_the_perturbation(lab):
    p = linear_logits(lab, SIGMA * directions_of(lab))
    close(estimates.isotropic_logits(lab), pick(p.var(axis=0), lab.target), lab=lab)


# --- a network that is trained in another way


def test_swag_is_a_variance_over_draws_of_its_gaussian(lab):
    gaussian = lab.compute_once("train_swag", None)
    rows = gaussian.draw(lab.key("swag draws"), 256)
    values, target = about_mean(lab, rows)
    close(estimates.swag(lab), values, target)


def test_dropout_is_a_variance_over_masks(lab):
    layers, p = lab.theta["layers"], []
    hidden = np.tanh(twins.outputs({"layers": {0: layers[0]}}, lab.xs))
    for key in jax.random.split(lab.key("masks"), 256):
        mask = np.asarray(jax.random.bernoulli(jax.random.fold_in(key, 1), 0.9, (4,)))
        p.append(twins.classes(twins.outputs({"layers": {0: layers[1]}}, hidden * mask / 0.9), lab.kind))
    target = None if lab.kind == "regression" else np.mean(p, axis=0).argmax(axis=1)
    close(estimates.dropout(lab), pick(np.var(p, axis=0), target), target)


# --- several networks


@pytest.mark.parametrize("kind", ["map", "mle", "anchored"])
def test_parts_of_an_ensemble(lab, kind):
    rows = members_of(lab, kind, 5)
    between, target = about_mean(lab, rows)
    within = np.mean([sq_norms(lab, row, target) for row in rows], axis=0)
    both = between / between.mean() + within / within.mean()
    for part, expected in (("between", between), ("within", within), ("epistemic", both)):
        close(estimates.ensemble_part(lab, kind, 5, part), expected, target)


@pytest.mark.parametrize("kind", ["map", "mle", "anchored"])
def test_between_and_perturbed_are_each_relative_to_their_means(lab, kind):
    rows = members_of(lab, kind, 2)
    between, target = about_mean(lab, rows)
    within = np.zeros(len(lab.xs))
    for row in rows:
        p = [probabilities(lab, row + SIGMA * rms(row) * direction) for direction in directions_of(lab)]
        within += pick(np.var(p, axis=0), target) / len(rows)
    expected = between / between.mean() + within / within.mean()
    close(estimates.between_and_perturbed(lab, kind, 2), expected, target)


def test_two_equal_networks_disagree_about_nothing():
    values = np.array([1.0, 3.0])
    np.testing.assert_array_equal(estimates.add_relative(np.zeros(2), values), values / 2)
    np.testing.assert_array_equal(estimates.add_relative(np.zeros(2), np.zeros(2)), [0, 0])


@pytest.mark.parametrize("relative", [False, True])
def test_mixture_is_the_variance_of_all_perturbed_networks_together(lab, relative):
    rows = [
        row + SIGMA * (rms(row) if relative else 1) * direction
        for row in members_of(lab, "map", 2)
        for direction in directions_of(lab)
    ]
    values, target = about_mean(lab, rows)
    close(estimates.mixture(lab, 2, relative), values, target)


def test_pooled_moments_are_those_of_all_networks_together():
    outputs = np.random.default_rng(0).normal(size=(10, 4, 3))
    parts = [Moments.of(part, "multiclass") for part in (outputs[:3], outputs[3:])]
    whole = Moments.of(outputs, "multiclass")
    for got, expected in zip(pool(parts, [3, 7]), whole, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12)


# --- training data


def scaled_inverse(curvature, sd):
    """(C + diag(1/sd²))⁻¹, where in coordinates scaled by the prior the negative part of C is set to 0."""
    values, vectors = np.linalg.eigh(sd[:, None] * (curvature + curvature.T) / 2 * sd)
    repaired = vectors @ np.diag(np.maximum(values, 0)) @ vectors.T
    return sd[:, None] * np.linalg.inv(repaired + np.eye(len(sd))) * sd


def ggn(outputs_of, density, vector):
    """Σ JᵀΛJ over the data, Λ the second derivative of −log p of the label in the outputs."""
    total = np.zeros((len(vector), len(vector)))
    for j, value in zip(twins.jacobian(outputs_of, vector), outputs_of(vector), strict=True):
        if density.kind == "regression":
            inner = np.eye(1) / float(density.noise) ** 2
        else:
            p = twins.classes(value, density.kind)
            inner = p[:1, None] * p[1:, None] if density.kind == "binary" else np.diag(p) - np.outer(p, p)
        total += j.T @ inner @ j
    return total


def laplace_of(lab, curvature, vector):
    """The covariance of the Laplace approximation at a network."""
    density = lab.setting.log_density
    if curvature == "ggn":
        c = ggn(lambda v: twins.outputs(twins.shaped(v, lab.theta), density.xs), density, vector)
    else:
        c = -twins.hessian(lambda v: twins.log_likelihood(density, twins.shaped(v, lab.theta)), vector)
    return scaled_inverse(c, twins.prior_sd(density, lab.theta))


def quadratic(g, covariance):
    return np.array([row @ covariance @ row for row in g])


def test_last_layer_laplace_is_a_dense_inverse(lab):
    density, last = lab.setting.log_density, lab.theta["layers"][1]
    data, grid = (np.tanh(twins.outputs({"layers": {0: lab.theta["layers"][0]}}, xs)) for xs in (density.xs, lab.xs))

    def of_features(features):
        return lambda vector: twins.outputs({"layers": {0: twins.shaped(vector, last)}}, features)

    vector = twins.flat(last)
    sd = twins.prior_sd(density, lab.theta)[-len(vector) :]
    covariance = scaled_inverse(ggn(of_features(data), density, vector), sd)
    g = twins.jacobian(lambda v: pick(twins.classes(of_features(grid)(v), lab.kind), lab.target), vector)
    close(estimates.last_layer_laplace(lab), quadratic(g, covariance), lab=lab)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_laplace_is_a_dense_inverse(lab, curvature):
    covariance = laplace_of(lab, curvature, theta_of(lab))
    g = gradient(lab, theta_of(lab), lab.target)
    close(estimates.linearised_laplace(lab, curvature), quadratic(g, covariance), lab=lab, rtol=5e-3)
    factor = np.asarray(lab.compute_once(f"build_{curvature}", None).factor, np.float64)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=2e-3 * covariance.max())
    steps = directions_of(lab) @ factor.T
    sampled = about_theta(lab, theta_of(lab) + steps)
    close(estimates.sampled_laplace(lab, curvature), sampled, lab=lab)
    logits = pick(linear_logits(lab, steps).var(axis=0), lab.target)
    close(estimates.laplace_logits(lab, curvature), logits, lab=lab)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_a_mixture_of_laplace_has_a_covariance_for_each_of_five_networks(lab, curvature):
    rows = members_of(lab, "map", 5)
    between, target = about_mean(lab, rows)
    within = [quadratic(gradient(lab, row, target), laplace_of(lab, curvature, row)) for row in rows]
    close(estimates.laplace_mixture(lab, curvature), between + np.mean(within, axis=0), target, rtol=5e-3)


# --- chains


def test_short_chains_are_a_variance_over_their_draws(lab):
    rows = shifted(lab.theta, 2 * DRAWS, 0.4)
    np.testing.assert_allclose(estimates.short_draws(lab), rows, rtol=1e-6)
    values, target = about_mean(lab, rows)
    close(estimates.short_chains(lab), values, target)
    spaced = [rows[i] for i in (0, 2, 4, 6, 9, 11, 13, 15)]
    expected = np.mean([sq_norms(lab, row, lab.target) for row in spaced], axis=0)
    close(estimates.gradient_of_draws(lab), expected, lab=lab)


@pytest.mark.parametrize(("num_steps", "draws"), [(1, 8), (175, 16), (315, 16)])
def test_short_chains_take_as_many_gradients_as_training(num_steps, draws):
    """Two chains of as many transitions before the first draw as after it, of five steps, and two gradients a step."""
    subject = made_up(Cell("regression/linear", num_points=20, chains=2, resolution=8, num_leapfrog=5))
    lab = Laboratory(subject)
    params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1, leaf + 2]), subject.theta)
    lab.compute_once("train_map", lambda: Members(params, num_steps))
    got = estimates.short_draws(lab)
    assert got.shape == (2 * draws, lab.theta_flat.size)
    assert draws == 8 or 2 * (draws + draws) * 5 <= 2 * num_steps < 2 * 2 * (draws + draws) * 5
    density = subject.setting.log_density
    starts = jax.tree.map(lambda leaf: leaf[:2], params)
    expected = sample_reference(
        density, starts, lab.key("short"), sampling=Sampling(draws, max(10, draws), 5), verdict=False,
        inverse_mass_matrix=jax.tree.map(jnp.square, density.scales),
    )  # fmt: skip
    rows = [
        twins.flat(jax.tree.map(lambda leaf, c=chain, i=i: leaf[c, i], expected.draws))
        for chain in range(2)
        for i in range(draws)
    ]
    np.testing.assert_array_equal(got, np.float32(rows))


# --- truth


def test_moments_of_the_posterior_are_those_of_all_draws(lab):
    subject = lab.subject
    got = posterior_moments(lab, at_once=7)
    rows = subject.draws.reshape(-1, subject.draws.shape[-1])
    p = np.array([probabilities(lab, row) for row in rows])
    np.testing.assert_allclose(got.mean, p.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.variance, p.var(axis=0), rtol=1e-3, atol=1e-8)
    stored = pick(got.variance, lab.target)
    np.testing.assert_allclose(stored, subject.variance[subject.grid], rtol=1e-3, atol=1e-8)


def test_the_truth_is_about_the_class_of_the_estimate(lab):
    own, variances = lab.subject.variance[lab.subject.grid], posterior_moments(lab).variance
    np.testing.assert_array_equal(estimators._truth(lab.subject, variances, lab.target), own)
    if lab.kind != "regression":
        other = lab.target.copy()
        other[::2] = (other[::2] + 1) % variances.shape[1]
        got = estimators._truth(lab.subject, variances, other)
        np.testing.assert_array_equal(got[1::2], own[1::2])
        np.testing.assert_array_equal(got[::2], [variances[i, other[i]] for i in range(0, len(own), 2)])
