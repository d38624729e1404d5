"""θ*: a stationary point, the closed form where there is one, and a word when it was not reached."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from isouq import models, problems
from isouq.posterior import LogDensity, fit_map, linear_regression


def case(name, starts=3):
    problem = problems.get(name)
    data = problem.sample(jax.random.key(0), 60)
    predict, init = models.mlp(data.xs.shape[1], problem.hidden, problem.num_outputs)
    inits = jax.vmap(init)(jax.random.split(jax.random.key(1), starts))
    one = jax.tree.map(lambda leaf: leaf[0], inits)
    return data, predict, inits, LogDensity.of(predict, one, data.xs, data.ys, problem.kind, noise=problem.noise)


@pytest.mark.parametrize("name", ["binary/xor", "multiclass/rings"])
def test_reaches_a_stationary_point_from_every_start(name):
    _, _, inits, log_density = case(name)
    fit = fit_map(log_density, inits)
    assert fit.converged.all()
    for start in range(3):
        params = jax.tree.map(lambda leaf, i=start: leaf[i], fit.params)
        norm = jnp.linalg.norm(ravel_pytree(jax.grad(log_density)(params))[0])
        np.testing.assert_allclose(norm, fit.grad_norm[start], rtol=0.5, atol=0.01)
        assert norm < 0.06
        before = jax.tree.map(lambda leaf, i=start: leaf[i], inits)
        assert log_density(params) > log_density(before)
    assert log_density(fit.best()) == pytest.approx(float(fit.log_density.max()), rel=1e-5)


def test_agrees_with_the_closed_form():
    data, predict, inits, log_density = case("regression/linear")
    theta = fit_map(log_density, inits).best()
    exact = linear_regression(data.xs, data.ys, noise=0.3)
    want = np.asarray(data.xs) @ exact.mean[:-1] + exact.mean[-1]
    np.testing.assert_allclose([predict(theta, x) for x in data.xs], want, atol=2e-3)


def test_says_when_it_has_not_converged():
    _, _, inits, log_density = case("multiclass/rings")
    fit = fit_map(log_density, inits, max_steps=2)
    assert not fit.converged.any()
    np.testing.assert_array_equal(fit.num_steps, 2)
    assert (fit.grad_norm > 0.05).all()


def test_a_start_that_runs_into_nan_is_never_the_best():
    def log_density(params):
        return jnp.where(params > 5, jnp.nan, -((params - 1.0) ** 2))

    fit = fit_map(log_density, jnp.array([9.0, 0.0]))
    assert not fit.converged[0]
    np.testing.assert_allclose(fit.best(), 1.0, atol=0.05)


def test_compiles_once_for_a_shape():
    from isouq.posterior.map import _fit

    _, _, inits, log_density = case("binary/xor")
    fit_map(log_density, inits)
    compiled = _fit._cache_size()
    _, _, _, other = case("binary/xor")
    fit_map(other, jax.tree.map(lambda leaf: leaf + 0.1, inits), max_steps=7)
    assert _fit._cache_size() == compiled


def test_single_precision_parameters_in_double_precision_mode(x64):
    _, _, inits, log_density = case("regression/linear")
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), inits)
    assert fit_map(log_density, single).converged.all()


def test_a_tight_tolerance_is_kept_in_double_precision(x64):
    _, _, inits, log_density = case("binary/xor")
    inits, log_density = jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, (inits, log_density)
    )
    fit = fit_map(log_density, inits, tolerance=1e-6)
    assert fit.converged.all()
    for start in range(3):
        params = jax.tree.map(lambda leaf, i=start: leaf[i], fit.params)
        assert jnp.linalg.norm(ravel_pytree(jax.grad(log_density)(params))[0]) <= 1e-6
        np.testing.assert_allclose(log_density(params), fit.log_density[start], rtol=1e-12)


def test_the_best_start_is_that_of_the_highest_density():
    def two_hills(x):
        return jnp.logaddexp(-0.5 * (x + 3) ** 2, -0.5 * (x - 3) ** 2 + 2.0)

    fit = fit_map(two_hills, jnp.array([-4.0, 3.5, -3.5, 2.5]), tolerance=1e-3)
    assert fit.converged.all()
    np.testing.assert_allclose(fit.params, [-3, 3, -3, 3], atol=0.01)
    assert int(fit.best_index()) in (1, 3)
    np.testing.assert_allclose(fit.best(), 3.0, atol=0.01)


def test_steps_are_counted_start_by_start():
    fit = fit_map(lambda x: -0.5 * jnp.sum(x**2), jnp.array([[0.0, 0.0], [5.0, 3.0]]), max_steps=50)
    assert fit.converged.all()
    assert fit.num_steps[0] <= fit.num_steps[1] < 50


@pytest.mark.parametrize("scales", [None, jnp.array([1.0, 0.01])])
def test_a_start_on_a_ridge_leaves_it(scales):
    """Along the first axis the origin is a saddle, and the gradient there is zero."""

    def two_hills(x):
        return -((x[0] ** 2 - 1) ** 2) - 0.5 * (x[1] / 0.01) ** 2

    fit = fit_map(two_hills, jnp.array([[0.0, 0.0], [0.0, 0.02], [0.8, 0.0]]), scales=scales, tolerance=1e-3)
    assert fit.converged.all()
    np.testing.assert_allclose(jnp.abs(fit.params[:, 0]), 1.0, atol=0.01)
    np.testing.assert_array_equal(fit.num_escapes, [1, 1, 0])


def valleys(x):
    """Return a density with a maximum at ±1 and a minimum at 0 along each axis, which leads up along one at a time."""
    return -jnp.sum(jnp.arange(1, len(x) + 1) * (x**2 - 1) ** 2)


@pytest.mark.parametrize("count", [10, 11])
def test_a_start_is_led_away_from_ten_saddles_and_no_more(count):
    fit = fit_map(valleys, jnp.zeros((1, count)))
    assert fit.num_escapes[0] == 10
    assert fit.converged[0] == (count == 10)


def test_a_saddle_at_one_start_leaves_the_others_as_they_ended():
    def density(x):
        return -100 * (x[1] - x[0] ** 2) ** 2 - (1 - x[0]) ** 2 - (x[2] ** 2 - 1) ** 2

    unfinished, saddle = [-1.5, 2.0, 1.1], [1.0, 1.0, 0.0]
    alone = fit_map(density, jnp.array([unfinished]), max_steps=5)
    beside = fit_map(density, jnp.array([unfinished, saddle]), max_steps=5)
    np.testing.assert_array_equal(beside.num_escapes, [0, 1])
    assert not beside.converged[0]
    assert beside.num_steps[0] == 5
    np.testing.assert_array_equal(beside.params[:1], alone.params)


def test_starts_beside_one_another_end_as_each_alone():
    """The first is at a saddle twice, the second at a maximum, and the others at a saddle once."""
    inits = jnp.array([[0.0, 0.0], [1.2, 1.5], [0.0, 0.8], [-1.0, 0.0]])
    together = fit_map(valleys, inits, tolerance=1e-3)
    np.testing.assert_array_equal(together.num_escapes, [2, 0, 1, 1])
    for start in range(4):
        alone = fit_map(valleys, inits[start : start + 1], tolerance=1e-3)
        for name, one, among in zip(alone._fields, alone, together, strict=True):
            np.testing.assert_array_equal(one[0], among[start], err_msg=name)


def test_a_start_stays_at_a_saddle_where_none_is_to_be_left():
    fit = fit_map(valleys, jnp.array([[0.0, 0.0], [1.2, 0.9]]), tolerance=1e-3, leave_saddles=False)
    assert fit.converged.all()
    np.testing.assert_allclose(fit.params, [[0, 0], [1, 1]], atol=0.01)
    np.testing.assert_array_equal(fit.num_escapes, 0)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ({"a": 0.0, "b": 1.0}, r"scales\['a'\] holds 0.0; expected numbers above 0"),
        ({"a": 1.0, "b": jnp.array([1.0, -2.0])}, r"scales\['b'\] holds -2.0"),
        ({"a": 1.0, "b": jnp.ones(3)}, r"scales\['b'\] has shape \(3,\); expected a scalar or shape \(2,\)"),
        ({"a": 1.0}, "scales is not a pytree like inits"),
        (1.0, "scales is not a pytree like inits"),
    ],
)
def test_scales_that_do_not_fit(scales, message):
    with pytest.raises(ValueError, match=message):
        fit_map(lambda p: -jnp.sum(p["b"] ** 2) - p["a"] ** 2, {"a": jnp.ones(2), "b": jnp.ones((2, 2))}, scales=scales)


def test_one_start_without_its_axis_is_told_how_to_get_it():
    with pytest.raises(ValueError, match=r"; for one start, jax.tree.map\(lambda leaf: leaf\[None\], inits\)$"):
        fit_map(lambda p: -jnp.sum(p["b"] ** 2) - p["a"] ** 2, {"a": jnp.ones(2), "b": jnp.ones(3)})


def test_training_cannot_be_traced():
    with pytest.raises(ValueError, match="call it outside jit and vmap"):
        jax.jit(lambda inits: fit_map(lambda x: -jnp.sum(x**2), inits))(jnp.ones((2, 3)))


def test_the_coordinates_are_those_of_the_prior():
    """The tolerance holds for the gradient in units of the prior, and the default is the prior of the log density."""
    data, predict, inits, _ = case("multiclass/rings")
    one = jax.tree.map(lambda leaf: leaf[0], inits)
    log_density = LogDensity.of(predict, one, data.xs, data.ys, "multiclass", prior="fan_in", sigma=0.5)
    fit = fit_map(log_density, inits)
    for start in range(3):
        params = jax.tree.map(lambda leaf, i=start: leaf[i], fit.params)
        grad = jax.tree.map(jnp.multiply, jax.grad(log_density)(params), log_density.scales)
        norm = jnp.linalg.norm(ravel_pytree(grad)[0])
        np.testing.assert_allclose(norm, fit.grad_norm[start], rtol=0.5, atol=0.01)
    same = fit_map(lambda params: log_density(params), inits, scales=log_density.scales)
    np.testing.assert_allclose(same.log_density, fit.log_density, atol=1e-3)
