"""The reference posterior: right on what is known, the same twice, compiled once, spread over devices."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats

from isouq import models, problems, stats
from isouq._uncertainty import uncertainty
from isouq.posterior import (
    LogDensity,
    Margins,
    Sampling,
    Verdict,
    _blackjax,
    _sampling,
    fit_map,
    judge,
    linear_regression,
    probabilities,
    sample_reference,
)

COVARIANCE = np.array([[1.0, 0.8], [0.8, 2.0]])


def gaussian(params):
    z = jnp.array([params["a"], params["b"]]) - jnp.array([1.0, -2.0])
    return -0.5 * z @ jnp.asarray(np.linalg.inv(COVARIANCE), z.dtype) @ z


def chains(n=4):
    return {"a": jnp.linspace(-1.0, 1.0, n), "b": jnp.zeros(n)}


@functools.cache
def case(name, *, seed=0, n=60, width=None, resolution=12, sigma=1.0, starts=4):
    problem = problems.get(name)
    data = problem.sample(jax.random.key(seed), n)
    hidden = problem.hidden if width is None else (width,)
    predict, init = models.mlp(data.xs.shape[1], hidden, problem.num_outputs)
    inits = jax.vmap(init)(jax.random.split(jax.random.key(seed + 1), starts))
    one = jax.tree.map(lambda leaf: leaf[0], inits)
    log_density = LogDensity.of(predict, one, data.xs, data.ys, problem.kind, noise=problem.noise, sigma=sigma)
    fit = fit_map(log_density, inits)
    grid = problems.evaluation_inputs(data.xs, resolution)
    estimate = uncertainty(predict, fit.best(), grid, problem.kind)
    return data, log_density, fit, Margins(predict, grid, estimate.target, problem.kind)


@pytest.mark.parametrize("sampler", ["hmc", "nuts"])
def test_a_gaussian_is_sampled_right(sampler):
    got = sample_reference(
        gaussian, chains(), jax.random.key(0), sampling=Sampling(1000, 200, num_integration_steps=8, sampler=sampler)
    )
    assert got.predictions is None
    draws = np.stack([got.draws["a"], got.draws["b"]], axis=-1)
    assert draws.shape == (4, 1000, 2)
    a, b = np.moveaxis(draws.astype(float) - [1, -2], -1, 0)
    moments = ((a, 0.0), (b, 0.0), (a * a, 1.0), (a * b, 0.8), (b * b, 2.0))
    for statistic, truth in moments:
        size = float(array_stats.ess(statistic, chain_axis=0, draw_axis=1, method="mean"))
        assert abs(statistic.mean() - truth) < 4 * statistic.std() / np.sqrt(size)
    assert got.verdict is None  # parameters are not judged
    assert got.divergent == 0
    assert 0.6 < got.acceptance_rate.mean() < 0.97
    assert got.cost.transitions == 4 * 1200
    if sampler == "hmc":
        assert 4 * 1200 * 4 <= got.cost.gradient_evaluations <= 4 * 1200 * 12
    else:
        assert 4 * 1000 * 2 < got.cost.gradient_evaluations <= 4 * 1000 * 2**_blackjax.MAX_NUM_DOUBLINGS


def test_gold_case():
    data, log_density, fit, record = case("regression/linear", n=200, resolution=50)
    got = sample_reference(log_density, fit.params, jax.random.key(0), sampling=Sampling(1000, 300, 30), record=record)
    exact = linear_regression(data.xs, data.ys, noise=0.3).predictive_variance(record.xs)
    variance = got.predictions.var(axis=(0, 1))
    assert stats.pearson(exact, variance) >= 0.99
    assert abs(variance.mean() / exact.mean() - 1) <= 0.05
    assert got.verdict.accepted


def test_same_key_same_numbers_and_the_shape_of_what_is_kept():
    _, log_density, fit, record = case("binary/xor")
    options = {"record": record, "sampling": Sampling(30, 20, 5, thin=2)}
    shares = []
    first = sample_reference(log_density, fit.params, jax.random.key(0), progress=shares.append, **options)
    again = sample_reference(log_density, fit.params, jax.random.key(0), **options)
    other = sample_reference(log_density, fit.params, jax.random.key(1), **options)
    assert first.draws is None
    assert first.predictions.shape == (4, 30, 144)
    np.testing.assert_array_equal(first.predictions, again.predictions)
    assert first.verdict == judge(first.predictions, first.divergent, probabilities(first.predictions, "binary"))
    assert not np.array_equal(first.predictions, other.predictions)
    assert first.cost == again.cost
    assert first.cost.transitions == 4 * (20 + 30 * 2)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_draws_come_in_rounds_until_a_verdict_accepts(tmp_path):
    """A verdict after three rounds gives the first draws of a run of five, also where a kill came in between."""
    _, log_density, fit, record = case("binary/xor")
    sampling = Sampling(30, 20, 5, thin=2, max_rounds=5)
    asked = []

    def accept_ninety(recorded, divergent):
        asked.append(recorded.shape[1])
        return Verdict(recorded.shape[1] >= 90, 1.0, 500.0, divergent, 1.0)

    def sample(verdict, **options):
        return sample_reference(
            log_density, fit.params, jax.random.key(0), sampling=sampling, record=record, verdict=verdict, **options
        )

    shares = []
    got, every = sample(accept_ninety, progress=shares.append), sample(False)
    assert asked == [30, 60, 90]
    assert shares[-1] == 1.0
    assert (got.rounds, every.rounds, every.predictions.shape[1]) == (3, 5, 150)
    np.testing.assert_array_equal(got.predictions, every.predictions[:, :90])
    assert got.verdict.accepted
    assert got.cost.transitions == 4 * (20 + 90 * 2)

    def stop(share):
        if share > 0.5:
            raise KeyboardInterrupt

    checkpoint = {"checkpoint": tmp_path / "state.npz", "checkpoint_seconds": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        sample(accept_ninety, progress=stop, **checkpoint)
    asked.clear()
    again = sample(accept_ninety, **checkpoint)
    assert asked[0] > 30
    np.testing.assert_array_equal(again.predictions, got.predictions)


def test_settings_may_be_keywords_and_old_names_are_said():
    sampling = Sampling(num_draws=20, num_warmup=10, num_integration_steps=4)
    want = sample_reference(gaussian, chains(), jax.random.key(0), sampling=sampling)
    with pytest.warns(DeprecationWarning, match="num_leapfrog is called num_integration_steps"):
        got = sample_reference(gaussian, chains(), jax.random.key(0), num_draws=20, num_warmup=10, num_leapfrog=4)
    np.testing.assert_array_equal(got.draws["a"], want.draws["a"])
    with pytest.warns(DeprecationWarning, match="inverse_mass is called inverse_mass_matrix"):
        scaled = sample_reference(
            gaussian, chains(), jax.random.key(0), sampling=sampling, inverse_mass={"a": 2.0, "b": 2.0}
        )
    assert not np.array_equal(scaled.draws["a"], want.draws["a"])
    with pytest.raises(ValueError, match="sampling and num_draws were both given"):
        sample_reference(gaussian, chains(), jax.random.key(0), sampling=sampling, num_draws=20)
    with pytest.raises(TypeError, match="got num_steps=, which is no argument and no setting; the settings are num_dr"):
        sample_reference(gaussian, chains(), jax.random.key(0), num_steps=20)


def test_compiles_once_for_a_shape():
    sampling = Sampling(40, 20, 5)
    _, log_density, fit, record = case("binary/xor", width=3)
    sample_reference(log_density, fit.params, jax.random.key(0), sampling=sampling, record=record, verdict=False)
    programs = (_sampling._start, _sampling._run_block)
    compiled = [program._cache_size() for program in programs]
    for seed in (1, 2):  # other data, other prior, other key, other trajectory lengths: one shape
        _, log_density, fit, record = case("binary/xor", width=3, seed=seed, sigma=1.0 + seed)
        other = replace(sampling, num_integration_steps=4 + seed)
        sample_reference(log_density, fit.params, jax.random.key(seed), sampling=other, record=record, verdict=False)
    # blocks and turns are runs of the same programs: 3 chains on 2 devices take two turns
    three = jax.tree.map(lambda leaf: leaf[:3], fit.params)
    longer = replace(sampling, num_draws=120)
    sample_reference(log_density, three, jax.random.key(0), sampling=longer, record=record, verdict=False)
    assert [program._cache_size() for program in programs] == [compiled[0], compiled[1] + 1]  # longer blocks


def test_chains_take_as_few_turns_as_the_devices_allow():
    expected = {(8, 8): (1, 8), (5, 8): (1, 5), (9, 8): (2, 5), (3, 2): (2, 2), (1, 8): (1, 1), (7, 1): (7, 1)}
    assert {sizes: _sampling.turns(*sizes) for sizes in expected} == expected
    assert _sampling.Layout.of(6, 2).mesh.size == 2
    assert _sampling.Layout.of(6, 2).turns == 2


@pytest.mark.slow
def test_double_precision_gives_the_same_map():
    def variance(dtype):
        _, log_density, fit, record = case("binary/xor", width=4)
        cast = jax.tree.map(
            lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, (log_density, fit.params, record)
        )
        got = sample_reference(cast[0], cast[1], jax.random.key(0), sampling=Sampling(1000, 300, 20), record=cast[2])
        assert got.predictions.dtype == dtype
        return probabilities(got.predictions, "binary").var(axis=(0, 1))

    single = variance(jnp.float32)
    with jax.enable_x64(True):
        double = variance(jnp.float64)
    assert stats.spearman(single, double) >= 0.95
    assert abs(single.mean() / double.mean() - 1) <= 0.1


def test_probabilities_keep_small_digits():
    p = probabilities(np.float32([-30.0, 0.0]), "binary")
    np.testing.assert_allclose(p, [1 / (1 + np.exp(30)), 0.5], rtol=1e-6)
    np.testing.assert_array_equal(probabilities(np.float32([3.0]), "regression"), [3.0])


def test_thin_keeps_every_second_draw():
    every = sample_reference(gaussian, chains(), jax.random.key(0), sampling=Sampling(40, 10, 3))
    second = sample_reference(gaussian, chains(), jax.random.key(0), sampling=Sampling(20, 10, 3, thin=2))
    assert second.draws["a"].shape == (4, 20)
    np.testing.assert_allclose(second.draws["a"], every.draws["a"][:, 1::2], rtol=1e-5)
    assert second.cost == every.cost
    np.testing.assert_allclose(second.divergent, every.divergent)


def test_progress_is_reported_block_by_block():
    shares = []
    sampling = Sampling(300, 100, 2)
    got = sample_reference(gaussian, chains(2), jax.random.key(0), sampling=sampling, progress=shares.append)
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.75, 1.0])
    a = np.asarray(got.draws["a"])
    assert not np.array_equal(a[:, :100], a[:, 100:200])  # every block has keys of its own
    assert len(np.unique(a[0])) > 200


def test_gradients_are_those_of_one_jittered_length_in_every_chain():
    counts = []
    for leapfrog, low, high in ((1, 1, 1), (5, 3, 7), (8, 4, 12)):
        got = sample_reference(gaussian, chains(), jax.random.key(0), sampling=Sampling(30, 20, leapfrog, thin=3))
        transitions = 4 * (20 + 30 * 3)
        assert got.cost.transitions == transitions
        assert transitions * low <= got.cost.gradient_evaluations <= transitions * high
        assert got.cost.gradient_evaluations % 4 == 0
        counts.append(got.cost.gradient_evaluations / transitions)
    np.testing.assert_allclose(counts, [1, 5, 8], rtol=0.15)


def test_a_plain_function_is_compiled_once_for_a_shape():
    traces = []

    def predict(params, x):  # no pytree, as `LogDensity.of` and `uncertainty` take it
        traces.append(1)
        return params @ x

    def run(seed):
        data = problems.get("binary/xor").sample(jax.random.key(seed), 40)
        inits = jax.random.normal(jax.random.key(seed), (4, 2))
        log_density = LogDensity.of(predict, inits[0], data.xs, data.ys, "binary", sigma=1.0 + seed)
        record = Margins(predict, data.xs, jnp.ones(40, jnp.int32), "binary")
        traces.clear()  # the check of predict's shape traces too
        sampling = Sampling(num_draws=200, num_warmup=10)
        got = sample_reference(log_density, inits, jax.random.key(seed), sampling=sampling, record=record)
        assert got.predictions.shape == (4, 200, 40)
        return len(traces)

    assert run(0) > 0
    assert run(1) == 2  # log_density and record are read anew; the programs are not traced again
    assert run(2) == 2


def test_chains_are_where_the_layout_puts_them_and_equal_those_of_one_device(monkeypatch):
    states = []
    run_block = _sampling._run_block

    def spy(*args):
        result = run_block(*args)
        states.append(result[0])
        return result

    monkeypatch.setattr(_sampling, "_run_block", spy)
    sampling = Sampling(10, 10, 3)
    many = sample_reference(gaussian, chains(3), jax.random.key(0), sampling=sampling)
    assert len(states) == 2 * 2  # two turns, a block of warm-up and one of draws
    assert all(len(leaf.sharding.device_set) == 2 for leaf in jax.tree.leaves(states))
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    one = sample_reference(gaussian, chains(3), jax.random.key(0), sampling=sampling)
    assert len(states) == 2 * 5
    assert all(len(leaf.sharding.device_set) == 1 for leaf in jax.tree.leaves(states[4:]))
    at_once = replace(sampling, chains_at_once=3)
    together = sample_reference(gaussian, chains(3), jax.random.key(0), sampling=at_once)
    assert len(states) == 2 * 6
    for name in ("a", "b"):
        np.testing.assert_array_equal(one.draws[name], many.draws[name])
        np.testing.assert_allclose(one.draws[name], together.draws[name], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(one.step_size, many.step_size)


def test_divergences_are_counted():
    def cliff(x):  # the gradient explodes at the wall, and the step size stays too large for it
        return jnp.where(jnp.abs(x) < 1, -0.5 * x**2, -1e6 * (jnp.abs(x) - 1))

    sampling = Sampling(num_draws=100, num_warmup=10, target_acceptance_rate=0.05)
    got = sample_reference(cliff, jnp.linspace(-0.5, 0.5, 4), jax.random.key(0), sampling=sampling)
    assert 0 < got.divergent <= 1
    assert got.verdict is None


def test_without_a_verdict_the_predictions_are_the_same():
    def record(params):
        return jnp.stack([params["a"], params["b"], params["a"] - params["b"]])

    options = {"record": record, "sampling": Sampling(20, 10, 2)}
    quiet = sample_reference(gaussian, chains(), jax.random.key(0), verdict=False, **options)
    judged = sample_reference(gaussian, chains(), jax.random.key(0), **options)
    assert quiet.verdict is None
    assert judged.verdict is not None
    np.testing.assert_array_equal(quiet.predictions, judged.predictions)
    assert quiet.predictions.shape == (4, 20, 3)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ([1.0, 1.0, -1.0], r"the log density is not finite \(nan\) at the start of chain 2 of 3"),
        ([0.0, 1.0, -1.0], r"the log density is not finite \(-inf, nan\) at the start of chain 0, 2 of 3"),
        ([1.0, 4.0, 1.0], r"the gradient of the log density is not finite at the start of chain 1 of 3"),
    ],
)
def test_a_start_that_is_not_finite_names_the_chain(scales, message):
    def log_density(params):
        w, s = params["w"], params["s"]
        kink = jnp.sqrt(jnp.abs(s - 4))  # its slope at 4 is infinite
        return -jnp.sum(w**2) / 2 + 4 * jnp.log(s) - s - kink

    inits = {"w": jnp.ones((3, 2)), "s": jnp.array(scales)}
    with pytest.raises(ValueError, match=message):
        sample_reference(log_density, inits, jax.random.key(0), sampling=Sampling(num_draws=10, num_warmup=10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"verdict": lambda recorded, divergent: True}, "the function verdict returned True; expected an isouq"),
        (
            {"inverse_mass_matrix": {"a": 0.0, "b": 1.0}},
            r"inverse_mass_matrix\['a'\] holds 0.0; expected numbers above 0",
        ),
        ({"inverse_mass_matrix": 1.0}, "inverse_mass_matrix is not a pytree like inits"),
        (
            {"max_rounds": 10**9},
            "all rounds have 10000000010 transitions; expected at most 100000000: fewer max_rounds",
        ),
    ],
)
def test_arguments_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        sample_reference(gaussian, chains(), jax.random.key(0), num_draws=10, num_warmup=10, **options)
