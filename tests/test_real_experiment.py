"""The real data: prediction on held-out points by brute force, numbers, report and figure."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stages
import twins
from made_up import made_up
from synthetic_rows import fake

from experiments.run.job import Result
from experiments.synthetic.measure import held_out
from experiments.synthetic.measure.estimators import ESTIMATORS, posterior_moments
from experiments.synthetic.measure.laboratory import Laboratory, Moments
from experiments.synthetic.measure.members import Members
from experiments.synthetic.numbers.real import CURVES
from experiments.synthetic.presets import real as presets
from experiments.synthetic.real_data import REAL
from experiments.synthetic.registry import EXPERIMENTS
from experiments.synthetic.study import Cell

summarise = partial(stages.summarise, EXPERIMENTS["real"])


@pytest.fixture(scope="module", params=["real/iris", "real/breast_cancer", "real/diabetes"])
def lab(request):
    """A laboratory over held-out points, whose networks are not trained."""
    cell = Cell(request.param, 0, num_points=40, chains=2)
    made = Laboratory(made_up(cell, REAL[request.param]))
    params = jax.vmap(made.setting.init)(jax.random.split(jax.random.key(1), 10))
    made.compute_once("train_map", lambda: Members(params, 100))
    return made


def probabilities(lab, vectors):
    return np.array([twins.classes(twins.outputs(twins.shaped(v, lab.theta), lab.xs), lab.kind) for v in vectors])


def test_held_out_points_are_those_of_the_comparison(lab):
    held_out = lab.setting.held_out
    np.testing.assert_array_equal(lab.xs, held_out.xs)
    training = {tuple(row) for row in np.asarray(lab.setting.data.xs).tolist()}
    assert len(training & {tuple(row) for row in np.asarray(held_out.xs).tolist()}) <= 2  # iris holds a row twice


def test_prediction_by_brute_force(lab):
    rng, ys = np.random.default_rng(0), np.asarray(lab.setting.held_out.ys)
    posterior = posterior_moments(lab)
    maps = {"one": rng.random(len(ys)), "broken": np.full(len(ys), np.nan)}
    numbers, curves = held_out.measure_held_out(lab, posterior, maps)
    theta = probabilities(lab, [twins.flat(lab.theta)])
    networks = probabilities(lab, [twins.flat(lab.member("map", i)) for i in range(10)])
    draws = probabilities(lab, lab.subject.draws.reshape(-1, lab.theta_flat.size))
    is_regression = lab.kind == "regression"
    errors = (theta[0, :, 0] - ys) ** 2 if is_regression else (theta[0].argmax(axis=1) != ys).astype(float)

    def mean(rows):
        return np.sqrt(np.mean(rows)) if is_regression else np.mean(rows)

    assert numbers["error"] == pytest.approx(mean(errors), rel=1e-4)
    order = np.argsort(maps["one"])
    kept = order[: round(0.8 * len(ys))]
    assert numbers["one_kept"] == pytest.approx(mean(errors[kept]), abs=1e-5)
    for share, value in zip(np.arange(10) / 10, curves["rejection_one"], strict=True):
        assert value == pytest.approx(mean(errors[order[: round((1 - share) * len(ys))]]), rel=1e-4, abs=1e-6)
    for name, p in (("theta", theta), ("ensemble", networks), ("posterior", draws)):
        centre, spread = p.mean(axis=0), p.var(axis=0)
        if is_regression:
            variance = 0.7**2 + spread[:, 0]
            density = np.exp(-((ys - centre[:, 0]) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
        else:
            density = centre[np.arange(len(ys)), ys]
        assert numbers[f"nll_{name}"] == pytest.approx(-np.mean(np.log(density)), rel=1e-3)
        assert (f"ece_{name}" in numbers) != is_regression
    if not is_regression:
        wrong, right = maps["one"][errors > 0], maps["one"][errors == 0]
        pairs = [(a > b) + 0.5 * (a == b) for a in wrong for b in right]
        assert numbers["one_auroc"] == pytest.approx(np.mean(pairs), abs=1e-5)
        assert np.isnan(numbers["broken_auroc"])
    assert ("one_auroc" in numbers) != is_regression


def test_a_prediction_without_errors_has_no_auroc(monkeypatch, lab):
    """All labels are those that θ* predicts."""
    if lab.kind == "regression":
        return
    setting = lab.setting
    labels = jnp.asarray(lab.target, setting.held_out.ys.dtype)
    monkeypatch.setattr(lab, "setting", setting._replace(held_out=setting.held_out._replace(ys=labels)))
    numbers, _ = held_out.measure_held_out(lab, posterior_moments(lab), {"one": np.arange(len(labels)) * 1.0})
    assert numbers["error"] == 0
    assert np.isnan(numbers["one_auroc"])


def test_a_probability_of_zero_has_a_finite_likelihood():
    moments = Moments(np.array([[1.0, 0.0], [0.5, 0.5]]), np.zeros((2, 2)))
    value = held_out.log_loss(moments, np.array([1, 0]), None)
    assert np.isfinite(value)
    assert value > 300


def test_rejection_keeps_one_point_at_least():
    errors = np.array([0.0, 1.0, 1.0])
    np.testing.assert_allclose(
        held_out.errors_after_rejection(errors, np.array([1.0, 2.0, 3.0]), "binary", [0, 0.3, 0.99]), [2 / 3, 1 / 2, 0]
    )
    # of equal values the first stay
    np.testing.assert_allclose(held_out.errors_after_rejection(errors, np.ones(3), "binary", [0.5]), [0.5])
    squares = np.array([1.0, 9.0])
    np.testing.assert_allclose(
        held_out.errors_after_rejection(squares, np.arange(2.0), "regression", [0, 0.5]), [5**0.5, 1]
    )


# --- numbers, report, figure


def row(cell, accepted=True, flat=False, value=0.5):
    regression = cell.problem == "real/diabetes"
    names = [name for name in ("reference", *ESTIMATORS) if not (regression and name == "control")]
    columns = {f"{name}_kept": value for name in names}
    columns |= {f"{name}_{s}": value for name in names if name != "reference" for s in ("spearman", "pearson")}
    columns |= {"error": value} | {f"nll_{name}": value for name in held_out.PREDICTORS}
    if not regression:
        columns |= {f"{name}_auroc": value for name in names} | {f"ece_{n}": value for n in held_out.PREDICTORS}
    one = fake(cell, accepted, flat=flat, **columns)
    curves = {f"rejection_{name}": np.linspace(value, 0, 10) for name in CURVES if name in names}
    return one._replace(arrays=curves)


IRIS, DIABETES = Cell("real/iris", study="estimators"), Cell("real/diabetes", study="estimators")


@pytest.fixture(scope="module")
def outputs():
    cells = [IRIS, dataclasses.replace(IRIS, prior="fan_in", sigma=3.0), DIABETES]
    return summarise([row(dataclasses.replace(c, seed=s), value=0.2 + 0.1 * s) for c in cells for s in range(3)])


def test_numbers_are_means_over_seeds(outputs):
    groups = outputs.numbers.groups
    assert list(groups) == ["real/iris", "real/iris, fan_in σ = 3", "real/diabetes"]
    for column in ("error", "gradient_kept", "gradient_auroc", "gradient_spearman", "nll_posterior", "ece_theta"):
        assert groups["real/iris"][column].mean == pytest.approx(0.3)
        assert groups["real/iris"][column].count == 3
    assert groups["real/iris"]["rejection_ggn_0.0"].mean == pytest.approx(0.3)
    assert groups["real/iris"]["rejection_ggn_0.9"].mean == 0
    assert "rejection_control_0.0" not in groups["real/diabetes"]
    assert "gradient_auroc" not in groups["real/diabetes"]


@pytest.mark.parametrize("flags", [{"accepted": False}, {"flat": True}])
def test_rows_that_do_not_count_change_nothing(flags):
    good = [row(dataclasses.replace(IRIS, seed=s)) for s in range(2)]
    one, other = (
        EXPERIMENTS["real"].numbers([*good, row(dataclasses.replace(IRIS, seed=2), value=value, **flags)])
        for value in (-3.0, 9.0)
    )
    assert repr(one.summary) == repr(other.summary)


def test_report_has_a_column_for_each_data_set_and_prior(outputs):
    text = outputs.summary
    assert "| estimate | real/iris | real/iris, fan_in σ = 3 | real/diabetes |" in text
    assert "| all points | 0.300 [0.200, 0.400] |" in text
    auroc = text.split("## Finding errors: AUROC")[1].split("\n## ")[0]
    assert "| ‖g‖² | 0.30 [0.20, 0.40] | 0.30 [0.20, 0.40] | – |" in auroc
    calibration = text.split("## Calibration")[1]
    assert "| real/diabetes | 3/3 | 0.300 [0.200, 0.400] |" in calibration
    assert calibration.count("| – | – | – |") == 1
    assert "nan" not in text


def test_figure_has_a_panel_for_each_data_set_and_prior(outputs):
    figure = outputs.figures["real"]
    figure.canvas.draw()
    assert [axis.get_title() for axis in figure.axes] == [
        "iris, unit σ = 1 (3/3 accepted)", "iris, fan_in σ = 3 (3/3 accepted)", "diabetes, unit σ = 1 (3/3 accepted)",
    ]  # fmt: skip
    assert [len(axis.lines) for axis in figure.axes] == [6, 6, 5]
    assert all(axis.get_ylabel() for axis in figure.axes)
    assert [bool(axis.get_xlabel()) for axis in figure.axes] == [False, True, True]


def test_nothing_accepted_is_said():
    outputs = summarise([row(IRIS, accepted=False, value=0.123)])
    assert "0/1" in outputs.summary
    assert "0.12" not in outputs.summary
    outputs.figures["real"].canvas.draw()


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_jobs(preset):
    cells = presets.jobs(preset)
    assert len(cells) == {"smoke": 4, "quick": 10, "paper": 50}[preset]
    assert {(cell.prior, cell.sigma) for cell in cells} == {("unit", 1.0), ("fan_in", 3.0)}
    assert {cell.problem for cell in cells} == ({"real/iris"} if preset == "smoke" else set(REAL))
    assert len({cell.key() for cell in cells}) == len(cells)


def test_results_of_other_rows_are_not_taken(outputs):
    """The curves are those of the group's own rows."""
    mixed = [row(IRIS, value=0.1), row(DIABETES, value=0.9)]
    groups = EXPERIMENTS["real"].numbers([Result(one.numbers, one.arrays) for one in mixed]).groups
    assert groups["real/iris"]["rejection_gradient_0.0"].mean == pytest.approx(0.1)
    assert groups["real/diabetes"]["rejection_gradient_0.0"].mean == pytest.approx(0.9)
