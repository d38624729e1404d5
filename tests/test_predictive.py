"""`isouq.predictive` and `isouq.fit_scale` against NumPy, and draws of covariances against their matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from jax.flatten_util import ravel_pytree
from test_covariance_builders import KINDS, NOISE, case
from twins import dense

import isouq
from isouq import stats
from isouq.covariance import Dense, Diagonal, Identity, Kronecker, LowRank, from_draws, laplace

KEY = jax.random.key(0)
STRUCTURES = ("dense", "diagonal", "kronecker", "low_rank")
RNG = np.random.default_rng(0)


def jacobian(predict, params, xs):
    """∂f/∂θ of every input, `[n, outputs, P]`, and the outputs `[n, outputs]`, float64."""
    flat, unravel = ravel_pytree(params)

    def outputs(theta, x):
        return predict(unravel(theta), x).reshape(-1)

    slopes = jax.vmap(jax.jacrev(outputs), (None, 0))(flat, xs)
    return np.asarray(slopes, np.float64), np.asarray(jax.vmap(outputs, (None, 0))(flat, xs), np.float64)


def covariances(log_density, params):
    return {structure: laplace(log_density, params, structure=structure, rank=4) for structure in STRUCTURES}


# draws


def many_kinds(params):
    """A covariance of every class and form, for the parameters of `case`."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    noise = jnp.asarray(RNG.normal(size=(3, size)), jnp.float32)
    directions = jax.vmap(ravel_pytree(params)[1])(noise)
    orthonormal = jax.vmap(ravel_pytree(params)[1])(jnp.linalg.qr(noise.T)[0].T)
    factors = jax.tree.map(
        lambda leaf: (
            jnp.asarray(RNG.normal(size=(leaf.size // leaf.shape[-1], 2)), jnp.float32),
            jnp.asarray(RNG.uniform(0.5, 2, size=leaf.shape[-1]), jnp.float32),
        ),
        params,
    )
    return {
        "identity": Identity(2.5),
        "diagonal": Diagonal(jax.tree.map(lambda leaf: 1 + jnp.abs(leaf), params)),
        "factors": Kronecker(factors),
        "directions": LowRank(directions),
        "scale and directions": LowRank(directions, 0.5),
        "weights of both signs": LowRank(orthonormal, 1.0, jnp.asarray([-0.9, -0.3, 2.0])),
        "correlated directions": LowRank(
            jax.tree.map(lambda leaf: 0.1 * leaf, directions), {"b1": 4.0, "b2": 1.0, "w1": 2.0, "w2": 3.0},
            jnp.asarray([-1.0, -0.5, 3.0]),
        ),
        "draws": from_draws(directions),
    }  # fmt: skip


def check_draws(covariance, params, num_samples=20_000):
    draws = covariance.sample(KEY, params, num_samples)
    flat = np.asarray(jax.vmap(lambda draw: ravel_pytree(draw)[0])(draws), np.float64)
    want = dense(covariance, params)
    sd = np.sqrt(np.diag(want))
    np.testing.assert_allclose(
        flat.mean(axis=0), ravel_pytree(params)[0], atol=5 * sd.max() / num_samples**0.5, rtol=1e-6
    )
    scale = np.outer(sd, sd) + 1e-6
    # the standard error of an entry is at most √(2/S) of the scale
    np.testing.assert_allclose(np.cov(flat.T) / scale, want / scale, atol=5 * (2 / num_samples) ** 0.5)


@pytest.mark.parametrize("name", many_kinds(case("binary")[1]))
def test_draws_have_the_covariance(name):
    params = case("binary")[1]
    check_draws(many_kinds(params)[name], params)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_draws_of_a_laplace_approximation_have_its_covariance(structure):
    log_density, params = case("multiclass")
    check_draws(covariances(log_density, params)[structure], params)


def test_draws_have_the_parameters_shapes_and_depend_on_the_key_alone():
    params = {"a": jnp.ones((2, 3), jnp.bfloat16), "b": (jnp.zeros(()), jnp.ones(4))}
    draws = Identity(1.0).sample(KEY, params, 5)
    assert jax.tree.map(jnp.shape, draws) == {"a": (5, 2, 3), "b": ((5,), (5, 4))}
    assert {leaf.dtype for leaf in jax.tree.leaves(draws)} == {jnp.dtype("float32")}
    again, other = Identity(1.0).sample(KEY, params, 5), Identity(1.0).sample(jax.random.key(1), params, 5)
    np.testing.assert_array_equal(draws["a"], again["a"])
    assert not np.array_equal(draws["a"], other["a"])
    with pytest.raises(ValueError, match="key is of type int; expected one random key"):
        Identity(1.0).sample(0, params, 5)
    with pytest.raises(ValueError, match="the covariance is for 2 parameters, and params has 11"):
        Dense(jnp.eye(2)).sample(KEY, params, 5)


@pytest.mark.parametrize("name", many_kinds(case("binary")[1]))
def test_a_scaled_covariance_is_a_multiple(name):
    params = case("binary")[1]
    covariance = many_kinds(params)[name]
    np.testing.assert_allclose(
        dense(covariance.scaled(0.3), params), 0.3 * dense(covariance, params), rtol=1e-5, atol=1e-6
    )


# predictions


def probit(outputs, variances, kind):
    moderated = outputs / np.sqrt(1 + np.pi / 8 * variances)
    if kind == "binary":
        return scipy.special.expit(moderated[:, 0])
    return scipy.special.softmax(moderated, axis=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_probit_is_the_formula(kind, structure):
    log_density, params = case(kind)
    covariance = covariances(log_density, params)[structure]
    slopes, outputs = jacobian(log_density.predict, params, log_density.xs)
    variances = np.einsum("ncp,pq,ncq->nc", slopes, dense(covariance, params), slopes)
    noise = NOISE if kind == "regression" else None
    for options in ({}, {"batch_size": 4}, {"batch_size": 1}):
        got = isouq.predictive(log_density.predict, params, log_density.xs, kind, covariance, noise=noise, **options)
        if kind == "regression":
            np.testing.assert_allclose(got.mean, outputs[:, 0], rtol=1e-5)
            np.testing.assert_allclose(got.epistemic, variances[:, 0], rtol=1e-3)
            np.testing.assert_allclose(got.variance, variances[:, 0] + NOISE**2, rtol=1e-3)
        else:
            np.testing.assert_allclose(got.mean, probit(outputs, variances, kind), rtol=1e-4)
            assert got.epistemic is None
            assert got.variance is None


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_logits_and_weights_are_means_over_the_draws(kind):
    log_density, params = case(kind)
    covariance = laplace(log_density, params, structure="kronecker").scaled(0.1)
    noise = NOISE if kind == "regression" else None
    draw, keys = covariance.deviation(params), jax.random.split(KEY, 7)
    slopes, outputs = jacobian(log_density.predict, params, log_density.xs)
    by_method = {"logits": [], "weights": []}
    for key in keys:
        deviation = draw(key)
        by_method["logits"].append(outputs + slopes @ np.asarray(ravel_pytree(deviation)[0], np.float64))
        moved = jax.tree.map(jnp.add, params, deviation)
        by_method["weights"].append(jacobian(log_density.predict, moved, log_density.xs)[1])
    for method, sampled in by_method.items():
        of_draws = np.array(sampled)
        if kind == "multiclass":
            p = scipy.special.softmax(of_draws, axis=2)
        else:
            p = of_draws[:, :, 0] if kind == "regression" else scipy.special.expit(of_draws[:, :, 0])
        for batch_size in (None, 3):
            got = isouq.predictive(
                log_density.predict, params, log_density.xs, kind, covariance, method=method, key=KEY, num_samples=7,
                noise=noise, batch_size=batch_size,
            )  # fmt: skip
            np.testing.assert_allclose(got.mean, p.mean(axis=0), rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(got.epistemic, p.var(axis=0, ddof=1), rtol=1e-3, atol=1e-7)
            if kind == "regression":
                np.testing.assert_allclose(got.variance, p.var(axis=0, ddof=1) + NOISE**2, rtol=1e-4)


def test_all_methods_agree_where_the_posterior_is_narrow():
    log_density, params = case("binary")
    covariance = laplace(log_density, params).scaled(1e-4)
    options = {"kind": "binary", "covariance": covariance, "key": KEY, "num_samples": 400}
    got = [
        isouq.predictive(log_density.predict, params, log_density.xs, method=method, **options)
        for method in ("probit", "logits", "weights")
    ]
    np.testing.assert_allclose(got[0].mean, got[1].mean, atol=2e-3)
    np.testing.assert_allclose(got[1].mean, got[2].mean, atol=2e-3)
    u = isouq.uncertainty(log_density.predict, params, log_density.xs, "binary", covariance=covariance)
    np.testing.assert_allclose(got[1].epistemic, u.epistemic, rtol=0.3)


# the scale


@pytest.mark.parametrize("kind", KINDS)
def test_the_scale_has_the_smallest_loss(kind):
    """Labels are drawn from a predictive with a known scale, which the fit then finds."""
    rng = np.random.default_rng(3)
    log_density, params = case(kind)
    xs = jnp.asarray(rng.normal(size=(3000, 2)), jnp.float32)
    slopes, outputs = jacobian(log_density.predict, params, xs)
    variances = np.sum(slopes**2, axis=2)
    true = 4.0 / variances.mean()
    noise = NOISE if kind == "regression" else None
    if kind == "regression":
        ys = rng.normal(outputs[:, 0], np.sqrt(true * variances[:, 0] + NOISE**2))
    elif kind == "binary":
        ys = (rng.random(len(xs)) < probit(outputs, true * variances, kind)).astype(int)
    else:
        ys = np.array([rng.choice(3, p=p) for p in probit(outputs, true * variances, kind)])
    fit = isouq.fit_scale(log_density.predict, params, xs, ys, kind, noise=noise)
    assert 0.5 * true < fit.scale < 2 * true
    assert fit.covariance == Identity(fit.scale)

    def loss(scale):
        got = isouq.predictive(log_density.predict, params, xs, kind, Identity(scale), noise=noise)
        if kind == "regression":
            return stats.gaussian_log_loss(got.mean, got.variance, ys)
        return stats.log_loss(got.mean, ys)

    assert fit.log_loss == pytest.approx(loss(fit.scale), rel=1e-5)
    assert fit.log_loss_of_params == pytest.approx(loss(0.0), rel=1e-5)
    assert fit.log_loss < fit.log_loss_of_params
    for factor in (0.5, 0.9, 1.1, 2):
        assert loss(factor * fit.scale) > fit.log_loss
    of_laplace = isouq.fit_scale(
        log_density.predict, params, xs, ys, kind, laplace(log_density, params, structure="diagonal"), noise=noise
    )
    assert isinstance(of_laplace.covariance, Diagonal)
    assert of_laplace.log_loss < of_laplace.log_loss_of_params


def test_the_scale_is_0_where_uncertainty_does_not_help():
    """Every label is the predicted class."""
    log_density, params = case("binary")
    xs = 4 * RNG.normal(size=(200, 2)).astype(np.float32)
    labels = (np.asarray(jax.vmap(log_density.predict, (None, 0))(params, xs)) > 0).astype(int)
    assert 0 < labels.mean() < 1
    fit = isouq.fit_scale(log_density.predict, params, xs, labels, "binary")
    assert fit.scale == 0
    assert fit.log_loss == fit.log_loss_of_params
    u = isouq.uncertainty(log_density.predict, params, log_density.xs, "binary", covariance=fit.covariance)
    np.testing.assert_array_equal(u.epistemic, 0)


def test_a_network_that_is_certain_and_wrong_has_a_finite_loss():
    """In float32 a probability is 1 from a logit of 17 on, and the loss of the other label is that of the logit."""
    params, xs = {"w": jnp.asarray([40.0])}, jnp.ones((4, 1))
    fit = isouq.fit_scale(lambda p, x: x @ p["w"], params, xs, np.array([1, 1, 1, 0]), "binary")
    assert fit.log_loss_of_params == pytest.approx(10.0)
    assert fit.log_loss < 2


@jax.tree_util.register_static
class Own:
    """A covariance of one's own: it has the quadratic form alone."""

    def quadratic(self, grads):
        return sum(jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(grads))


def test_a_covariance_of_ones_own_and_jit():
    log_density, params = case("multiclass")
    got = isouq.predictive(log_density.predict, params, log_density.xs, "multiclass", Own())
    want = isouq.predictive(log_density.predict, params, log_density.xs, "multiclass", Identity(1.0))
    np.testing.assert_allclose(got.mean, want.mean, rtol=1e-5)
    with pytest.raises(
        ValueError, match=r"covariance is a Own, which cannot be scaled; give it a method scaled\(factor\)"
    ):
        isouq.fit_scale(log_density.predict, params, log_density.xs, log_density.ys, "multiclass", Own())
    with pytest.raises(ValueError, match="covariance is a Own, which cannot be sampled; use method='probit'"):
        isouq.predictive(log_density.predict, params, log_density.xs, "multiclass", Own(), method="weights", key=KEY)

    @jax.jit
    def compiled(params, xs):
        return isouq.predictive(log_density.predict, params, xs, "multiclass", Identity(1.0)).mean

    np.testing.assert_allclose(compiled(params, log_density.xs), want.mean, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "laplace"}, "method is 'laplace'; expected"),
        ({"kind": "softmax"}, "kind is 'softmax'; expected"),
        ({"covariance": None}, "covariance is None; expected one, such as"),
        ({"covariance": Identity}, "covariance is Identity; expected an instance"),
        ({"covariance": Dense(jnp.eye(3))}, "the covariance is for 3 parameters"),
        ({"method": "logits"}, "key is of type NoneType; expected one random key"),
        ({"method": "logits", "key": KEY, "num_samples": 1}, "num_samples is 1; expected"),
        ({"noise": 0.1}, "noise"),
        ({"kind": "regression"}, "noise"),
        ({"xs": np.zeros((0, 2))}, "xs has no rows"),
        ({"xs": np.full((3, 2), np.nan)}, "NaN"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_a_wrong_call_is_one_clear_line(changes, message):
    log_density, params = case("binary")
    arguments = {"xs": log_density.xs, "kind": "binary", "covariance": Identity(1.0), **changes}
    with pytest.raises(ValueError, match=message) as error:
        isouq.predictive(log_density.predict, params, **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_predict_without_parameters_has_no_variance(kind):
    xs, outputs = np.zeros((4, 2), np.float32), np.float32(1) if kind == "binary" else np.arange(3, dtype=np.float32)

    def predict(params, x):
        return outputs

    got = isouq.predictive(predict, {"w": jnp.ones(2)}, xs, kind, Identity(1.0))
    want = 1 / (1 + np.exp(-1)) if kind == "binary" else np.exp(outputs) / np.exp(outputs).sum()
    np.testing.assert_allclose(got.mean, np.broadcast_to(want, got.mean.shape), rtol=1e-6)
    assert isouq.fit_scale(predict, {"w": jnp.ones(2)}, xs, np.array([0, 1, 1, 0]), kind).scale == 0


def test_labels_of_one_class_that_is_never_predicted_give_the_largest_scale_and_a_warning():
    log_density, params = case("multiclass")
    outputs = jax.vmap(log_density.predict, (None, 0))(params, log_density.xs)
    with pytest.warns(UserWarning, match="the largest that is tried; check that ys"):
        isouq.fit_scale(log_density.predict, params, log_density.xs, np.argmin(outputs, axis=1), "multiclass")


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker", "low_rank"])
def test_a_covariance_of_some_parameters_is_refused_for_all(structure):
    log_density, params = case("multiclass")
    some = laplace(log_density, params, structure=structure, select="w1")
    with pytest.raises(ValueError, match="with the same select"):
        isouq.predictive(log_density.predict, params, log_density.xs, "multiclass", some)
    density, chosen = log_density.condition(params, "w1")
    got = isouq.predictive(density.predict, chosen, log_density.xs, "multiclass", some)
    assert np.isfinite(got.mean).all()


def test_labels_that_do_not_fit_are_one_clear_line():
    log_density, params = case("multiclass")
    for ys, message in (
        (np.full(11, "cat"), r"ys is <U3; expected numbers: numpy.unique\(ys, return_inverse=True\)\[1\] turns names"),
        (np.arange(11), "ys holds labels from 0 to 10; multiclass expects 0 to 2"),
        (np.zeros((11, 3)), "one label for each"),
    ):
        with pytest.raises(ValueError, match=message):
            isouq.fit_scale(log_density.predict, params, log_density.xs, ys, "multiclass")
