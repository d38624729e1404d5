"""The calibration: losses by brute force on made-up networks, numbers, report and figure."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
import scipy.special
import stages
import twins
from made_up import made_up
from synthetic_rows import fake

from experiments.calibration import LOSSES
from experiments.synthetic.measure import calibration, laboratory
from experiments.synthetic.measure.members import Members
from experiments.synthetic.presets import calibration as presets
from experiments.synthetic.presets import real
from experiments.synthetic.real_data import REAL
from experiments.synthetic.registry import EXPERIMENTS
from experiments.synthetic.study import Cell
from isouq import stats

summarise = partial(stages.summarise, EXPERIMENTS["calibration"])


@pytest.fixture(params=["real/iris", "real/breast_cancer", "real/diabetes"])
def subject(request, monkeypatch):
    """A subject over held-out points, whose ensembles are not trained."""

    def train(self, kind):
        keys = jax.random.split(jax.random.key(len(kind) + ord(kind[1])), 10)
        return Members(jax.vmap(self.setting.init)(keys), 100)

    monkeypatch.setattr(laboratory.Laboratory, "train", train)
    return made_up(Cell(request.param, 0, num_points=40, chains=2), REAL[request.param])


@pytest.mark.filterwarnings("ignore:the scale is")  # of a network that is hardly trained
def test_losses_by_brute_force(subject):
    lab = laboratory.Laboratory(subject)
    got = calibration.measure(subject).numbers
    xs, ys = np.asarray(lab.xs), np.asarray(subject.setting.held_out.ys)
    fitting, test = slice(None, None, 2), slice(1, None, 2)
    for name, params in (("map", lab.theta), ("mle", lab.member("mle", 0))):
        outputs = np.asarray(twins.outputs(params, xs), np.float64).reshape(len(xs), -1)
        if lab.kind == "regression":
            assert got[f"{name}_loss"] == pytest.approx(
                stats.gaussian_log_loss(outputs[test, 0], 0.7**2, ys[test]), rel=1e-4
            )
            assert f"{name}_temperature_loss" not in got
            continue
        p = twins.classes(outputs, lab.kind)
        assert got[f"{name}_loss"] == pytest.approx(
            -np.log(p[test][np.arange(len(ys[test])), ys[test]]).mean(), rel=1e-4
        )
        assert got[f"{name}_ece"] == pytest.approx(stats.calibration_error(p[test], ys[test]), abs=1e-3)

        def cooled(temperature, part, outputs=outputs):
            p = twins.classes(outputs[part] / temperature, lab.kind)
            return -np.log(p[np.arange(len(ys[part])), ys[part]]).mean()

        temperature = got[f"{name}_temperature_number"]
        assert all(
            cooled(temperature, fitting) <= cooled(f * temperature, fitting) + 1e-9
            for f in (0.9, 1.1)
            if f * temperature < 100
        )
        assert got[f"{name}_temperature_loss"] == pytest.approx(cooled(temperature, test), rel=1e-3)
    networks = [np.asarray(twins.outputs(lab.member("map", i), xs)).reshape(len(xs), -1) for i in range(10)]
    if lab.kind != "regression":
        mean = np.mean([twins.classes(np.asarray(n, np.float64), lab.kind) for n in networks], axis=0)[test]
        assert got["map_ensemble_loss"] == pytest.approx(stats.log_loss(mean, ys[test]), rel=1e-4)
    # the labels of the fitting half decide the scale: with it their loss is not larger than without
    gradients = jax.vmap(jax.jacrev(lambda p, x: lab.predict(p, x).reshape(-1)), (None, 0))(lab.theta, xs)
    norms = sum(
        np.sum(np.square(np.asarray(leaf, np.float64)), axis=tuple(range(2, leaf.ndim)))
        for leaf in jax.tree.leaves(gradients)
    )
    outputs = np.asarray(twins.outputs(lab.theta, xs), np.float64).reshape(len(xs), -1)
    variances = got["map_scale_number"] * norms
    if lab.kind == "regression":
        loss = stats.gaussian_log_loss(outputs[test, 0], 0.7**2 + variances[test, 0], ys[test])
    else:
        moderated = outputs / np.sqrt(1 + np.pi / 8 * variances)
        p = scipy.special.expit(moderated[:, 0]) if lab.kind == "binary" else scipy.special.softmax(moderated, axis=1)
        loss = stats.log_loss(p[test], ys[test])
    assert got["map_scale_loss"] == pytest.approx(loss, rel=1e-3)
    assert all(np.isfinite(value) for name, value in got.items() if name.endswith(("loss", "brier", "ece", "number")))


# numbers, report, figure


def row(cell, accepted=True, shift=-0.1):
    names = calibration.PREDICTORS
    losses = LOSSES if cell.problem != "real/diabetes" else ("loss",)
    columns = {
        f"{name}_{loss}": 0.5 + 0.01 * cell.seed + (shift if base else 0)
        for name, (base, _) in names.items()
        for loss in losses
        if not (cell.problem == "real/diabetes" and "temperature" in name)
    }
    return fake(cell, accepted, map_scale_number=0.25, map_evidence_factor=2.0, **columns)


IRIS, DIABETES = Cell("real/iris", study="calibration"), Cell("real/diabetes", study="calibration")


@pytest.fixture(scope="module")
def outputs():
    cells = [dataclasses.replace(IRIS, problem=name) for name in REAL if name != "real/diabetes"] + [DIABETES]
    return summarise([row(dataclasses.replace(cell, seed=seed)) for cell in cells for seed in range(5)])


def test_changes_are_paired_with_the_network_that_a_predictor_is_built_on(outputs):
    groups = outputs.numbers.groups
    assert groups["real/iris"]["map_loss"].mean == pytest.approx(0.52)
    assert groups["real/iris"]["map_scale_number"].mean == 0.25
    change = groups["classifications"]["map_scale_loss_gain"]
    assert (change.mean, change.count) == (pytest.approx(-0.1), 20)
    two_priors = summarise(
        [row(dataclasses.replace(IRIS, seed=s, prior=p)) for s in range(5) for p in ("unit", "fan_in")]
    )
    counts = {
        name: two_priors.numbers.groups["classifications"][f"{name}_scale_loss_gain"].count for name in ("map", "mle")
    }
    assert counts == {"map": 10, "mle": 5}
    assert groups["classifications"]["map_scale_loss_gain_p"].mean < 0.001
    assert "map_loss_gain" not in groups["classifications"]
    regression = groups["regression"]
    assert regression["posterior_loss_gain"].mean == pytest.approx(-0.1)
    assert np.isnan(regression["posterior_loss_gain_p"].mean)  # one data set is not tested
    assert "posterior_ece_gain" not in regression
    assert "map_temperature_loss_gain" not in regression


def test_report_and_figure_show_every_predictor(outputs):
    text = outputs.summary
    changes = text.split("## What each predictor changes")[1].split("\n## ")[0]
    assert "| θ*, scaled ‖g‖² | θ* | -0.100 [-0.100, -0.100] (20) | < 0.001 |" in changes
    assert "| HMC | θ* | -0.100 [-0.100, -0.100] (5) | – | – | – | – | – |" in changes
    assert "| 10 MLE networks | an MLE network |" in changes
    assert "nan" not in text
    assert "| real/iris | 0.2500 |" in text.split("## The fitted numbers")[1]
    figure = outputs.figures["calibration"]
    figure.canvas.draw()
    assert len(figure.axes) == 3
    assert all(axis.get_xlabel() for axis in figure.axes)
    assert len(figure.axes[0].get_yticklabels()) == 11


def test_rows_that_were_not_accepted_change_nothing():
    good = [row(dataclasses.replace(IRIS, seed=seed)) for seed in range(5)]
    one, other = (
        EXPERIMENTS["calibration"].numbers([*good, row(dataclasses.replace(IRIS, seed=5), False, shift)]).summary
        for shift in (-3.0, 9.0)
    )
    assert repr(one) == repr(other)
    outputs = summarise([row(IRIS, accepted=False)])
    assert "0/1" in outputs.summary or "0 of 1" in outputs.summary
    outputs.figures["calibration"].canvas.draw()


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_jobs_are_those_of_the_real_data(preset):
    cells = presets.jobs(preset)
    assert {cell.study for cell in cells} == {"calibration"}
    assert {cell.reference() for cell in cells} == {cell.reference() for cell in real.jobs(preset)}
