"""The row of the experiment `estimators` as a whole: its columns, its cost, and what it does not depend on."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from made_up import made_up

from experiments.synthetic.measure import estimators
from experiments.synthetic.measure.estimators import ESTIMATORS, STATISTICS, agreement
from experiments.synthetic.measure.laboratory import Laboratory
from experiments.synthetic.real_data import REAL
from experiments.synthetic.study import Cell

TINY = {"num_points": 24, "chains": 2, "num_leapfrog": 5}
CELLS = {
    "regression/linear": Cell("regression/linear", resolution=20, **TINY),
    "binary/xor": Cell("binary/xor", width=3, resolution=5, **TINY),
    "multiclass/rings": Cell("multiclass/rings", width=3, resolution=5, **TINY),
    "real/iris": Cell("real/iris", width=3, **TINY),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CELLS if name != "regression/linear"]


@pytest.fixture(scope="module", params=["regression/linear", *SLOW])
def subject(request):
    return made_up(CELLS[request.param], REAL.get(request.param))


@pytest.fixture(scope="module")
def measured(subject):
    return estimators.measure(subject)


def exists(name, subject):
    if name == "control":
        return subject.kind != "regression"
    return name != "dropout" or len(subject.theta["layers"]) > 1


def test_every_estimate_has_its_columns_or_none(subject, measured):
    """The shares of the cost name parts that the laboratory timed: otherwise there would be no row."""
    numbers = measured.numbers
    for name in ESTIMATORS:
        columns = [f"{name}_{statistic}" for statistic in STATISTICS] + [f"seconds_{name}"]
        assert {column in numbers for column in columns} == {exists(name, subject)}, name
        assert (name in measured.arrays) == exists(name, subject)
        if exists(name, subject):
            assert numbers[f"seconds_{name}"] >= 0
            assert measured.arrays[name].shape == (len(subject.xs[subject.grid]),)
            assert np.isfinite(numbers[f"{name}_spearman"])
            assert np.isfinite(numbers[f"{name}_partial"]) == (subject.kind != "regression" and name != "control")
    assert numbers["accepted"]
    assert ("gradient_kept" in numbers) == (subject.setting.held_out is not None)


def test_statistics_are_those_of_the_maps(subject, measured):
    """Of the estimates about θ*, whose truth is the reference's own map."""
    truth = subject.variance[subject.grid]
    np.testing.assert_allclose(measured.arrays["reference"], truth, rtol=1e-6)
    for name in ("gradient", "perturbed", "prior_metric", "ggn", "hessian_logits"):
        values = measured.arrays[name]
        assert measured.numbers[f"{name}_pearson"] == pytest.approx(np.corrcoef(values, truth)[0, 1], abs=1e-4)
        assert measured.numbers[f"{name}_spearman"] == pytest.approx(scipy.stats.spearmanr(values, truth)[0], abs=0.02)


def test_a_linear_regression_is_known(subject, measured):
    """Every curvature is the exact one, the networks all end at the same maximum, and nothing is lost to Taylor."""
    if len(subject.theta["layers"]) > 1:
        pytest.skip("has a hidden layer")
    maps = measured.arrays
    np.testing.assert_allclose(maps["hessian"], maps["ggn"], rtol=1e-3)
    np.testing.assert_allclose(maps["last_layer_laplace"], maps["ggn"], rtol=1e-3)
    np.testing.assert_allclose(maps["ggn_sampled"], maps["ggn_logits"], rtol=1e-2)
    np.testing.assert_allclose(maps["perturbed"], maps["isotropic_logits"], rtol=1e-2)
    np.testing.assert_allclose(maps["all_classes"], maps["gradient"], rtol=1e-5)
    np.testing.assert_allclose(maps["last_layer"], maps["gradient"], rtol=1e-5)
    assert maps["between_map_10"].max() < 1e-3 * maps["ggn"].max()


def test_another_run_in_another_order_has_the_same_numbers_and_bits(subject, measured, monkeypatch):
    monkeypatch.setattr(estimators, "ESTIMATORS", dict(reversed(ESTIMATORS.items())))
    again = estimators.measure(subject)
    numbers = {name: value for name, value in measured.numbers.items() if not name.startswith("seconds")}
    assert repr({name: again.numbers[name] for name in numbers}) == repr(numbers)
    assert set(again.numbers) == set(measured.numbers)
    assert set(again.arrays) == set(measured.arrays)
    for name, values in measured.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], values, err_msg=name)


def test_another_seed_has_other_networks(subject):
    lab = Laboratory(subject)
    keys = {name: jax.random.key_data(lab.key(name)).tobytes() for name in ("map", "mle", "anchored", "swag", "masks")}
    assert len(set(keys.values())) == len(keys)
    other = subject.setting._replace(second_key=jax.random.key(99))
    assert jax.random.key_data(Laboratory(subject._replace(setting=other)).key("map")).tobytes() not in keys.values()


# --- statistics and cost


def test_statistics_of_an_estimate():
    rng = np.random.default_rng(0)
    truth, given = rng.random((2, 40))
    estimate = truth + rng.random(40)
    got = agreement(estimate, truth, given)
    assert set(got) == set(estimators.STATISTICS)
    assert got["spearman"] == pytest.approx(scipy.stats.spearmanr(estimate, truth).statistic)
    assert got["pearson"] == pytest.approx(np.corrcoef(estimate, truth)[0, 1])
    assert got["overlap"] == len(set(np.argsort(estimate)[-4:]) & set(np.argsort(truth)[-4:])) / 4
    assert np.isnan(agreement(estimate, truth, None)["partial"])


@pytest.mark.parametrize("value", [1.0, 0.0, np.nan, np.inf])
def test_a_map_that_is_constant_or_not_finite_has_no_statistics(value):
    truth, given = np.random.default_rng(0).random((2, 40))
    estimate = np.full(40, value)
    assert all(np.isnan(one) for one in agreement(estimate, truth, given).values())
    if not np.isfinite(value):
        estimate = truth.copy()
        estimate[3] = value
        assert all(np.isnan(one) for one in agreement(estimate, truth, given).values())


def test_seconds_are_those_of_the_map_and_its_share_of_the_parts():
    laps = {"between_map_5": 0.5, "train_map": 10.0, "ensemble_map_5": 2.0, "perturb_map_0_relative": 0.25}
    assert ESTIMATORS["between_map_5"].seconds("between_map_5", laps) == pytest.approx(0.5 + 10 / 2 + 2)
    laps |= {"gradient": 0.125, "both_perturbed_map_2": 1.0, "ensemble_map_2": 3.0, "perturb_map_1_relative": 0.5}
    assert ESTIMATORS["gradient"].seconds("gradient", laps) == pytest.approx(0.125 + 10 / 10)
    both = ESTIMATORS["both_perturbed_map_2"].seconds("both_perturbed_map_2", laps)
    assert both == pytest.approx(1 + 10 / 5 + 3 + 0.25 + 0.5)
    laps |= {"short_chains": 0.5, "sample_short": 4.0}
    assert ESTIMATORS["short_chains"].seconds("short_chains", laps) == pytest.approx(0.5 + 10 / 5 + 4)


def test_a_part_is_timed_once_and_not_within_another():
    lab = Laboratory(made_up(Cell("regression/linear", num_points=20, chains=2, resolution=8)))

    def busy(seconds):
        start = time.perf_counter()
        while time.perf_counter() - start < seconds:
            pass
        return seconds

    start = time.perf_counter()
    assert lab.time_part("outer", lambda: lab.compute_once("inner", lambda: busy(0.2)) + busy(0.05)) == 0.25
    total = time.perf_counter() - start
    assert lab.compute_once("inner", None) == 0.2
    assert lab.seconds["inner"] >= 0.2
    assert lab.seconds["outer"] >= 0.05
    assert lab.seconds["inner"] + lab.seconds["outer"] <= total


def test_tracing_and_compiling_are_no_cost():
    lab = Laboratory(made_up(Cell("regression/linear", num_points=20, chains=2, resolution=8)))

    @jax.jit
    def slow_to_trace(x):
        time.sleep(0.5)
        return x + 1

    assert lab.time_part("outer", lambda: lab.compute_once("inner", lambda: slow_to_trace(jnp.zeros(3)))).tolist() == [
        1,
        1,
        1,
    ]
    assert lab.seconds["inner"] < 0.5
    assert lab.seconds["outer"] < 0.5
