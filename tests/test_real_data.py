"""The real data sets: no held-out point is trained on, the training part sets the scale, and a cell runs on them."""

import dataclasses
import sys

import jax
import numpy as np
import pytest
import sklearn.datasets
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from experiments.run.errors import RunError
from experiments.synthetic import study
from experiments.synthetic.presets import estimators, real
from experiments.synthetic.real_data import REAL
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import set_up
from isouq import problems

TINY = {"num_points": 60, "num_warmup": 10, "num_draws": 10, "max_rounds": 1, "num_leapfrog": 3}
LARGEST_TRAINING_PART = 1000


def table(name):
    return getattr(sklearn.datasets, f"load_{name.removeprefix('real/')}")(return_X_y=True)


def scaled(values, rows):
    deviation = values[rows].std(axis=0)
    return (values - values[rows].mean(axis=0)) / np.where(deviation == 0, 1, deviation)


def parts(name, seed=0, n=LARGEST_TRAINING_PART):
    key = jax.random.key(seed)
    return REAL[name].sample(key, n), REAL[name].sample_held_out(key)


def rows_of(xs, *points):
    """The row of the table that each point is, none twice: found by distance, because the points are scaled."""
    nearby = scaled(xs, slice(None))
    rows = linear_sum_assignment(cdist(np.concatenate(points), nearby))[1]
    return np.split(rows, np.cumsum([len(p) for p in points])[:-1])


def test_all_five_are_there():
    assert set(REAL) == {f"real/{name}" for name in ("iris", "wine", "breast_cancer", "digits", "diabetes")}


@pytest.mark.parametrize("name", REAL)
def test_no_held_out_point_is_trained_on_and_the_training_part_sets_the_scale(name):
    xs, ys = table(name)
    training, held_out = parts(name)
    assert len(held_out.xs) == len(xs) - round(0.7 * len(xs))
    assert len(training.xs) == min(LARGEST_TRAINING_PART, round(0.7 * len(xs)))
    rows, others = rows_of(xs, training.xs, held_out.xs)
    if REAL[name].kind == "regression":
        ys = scaled(ys, rows)
    for points, places in ((training, rows), (held_out, others)):  # wrong for some row if the two had one in common
        np.testing.assert_allclose(points.xs, scaled(xs, rows)[places], atol=1e-4)
        np.testing.assert_allclose(points.ys, ys[places], atol=1e-5)


@pytest.mark.parametrize("name", REAL)
def test_fewer_points_are_the_first_ones_on_the_same_scale(name):
    training, held_out = parts(name)
    few, same = parts(name, n=60)
    np.testing.assert_array_equal(few.xs, training.xs[:60])
    np.testing.assert_array_equal(few.ys, training.ys[:60])
    np.testing.assert_array_equal(same.xs, held_out.xs)
    assert not np.array_equal(parts(name, seed=1)[1].xs, held_out.xs)


def own(xs, ys):
    def draw(key, n):
        return jax.random.normal(key, (n, 2)), np.arange(n) % 2

    return problems.Problem("own/held out", "binary", draw, hidden=(2,), held_out=lambda key: (xs, ys))


@pytest.mark.parametrize(
    ("xs", "ys", "message"),
    [
        (np.ones(4), [0, 1, 0, 1], r"xs has shape \(4,\); expected \[n, features\]"),
        (np.ones((4, 2)), [0, 1, 0], r"ys has shape \(3,\); expected \(4,\)"),
        (np.ones((4, 2)), [0, 1, 2, 0], "labels from 0 to 2"),
        (np.ones((4, 3)), [0, 1, 0, 1], "3 features; expected 2, as its training points have"),
    ],
)
def test_wrong_held_out_points_raise_one_line_that_names_them(xs, ys, message):
    with pytest.raises(ValueError, match=f"held-out points of 'own/held out'.*{message}") as error:
        set_up(Cell("binary/xor"), own(xs, np.array(ys)))
    assert "\n" not in str(error.value)


def test_what_gives_no_points_raises_one_line_that_names_it():
    problem = dataclasses.replace(own(np.ones((4, 2)), np.zeros(4)), held_out=lambda key: None)
    with pytest.raises(ValueError, match=r"^held-out points of 'own/held out': cannot unpack"):
        problem.sample_held_out(jax.random.key(0))


def test_an_unknown_problem_is_answered_with_all_names():
    with pytest.raises(ValueError, match=r"^problem is 'real/irises'; expected one of 'binary/linear', .*'real/iris'"):
        study.run_cell(Cell("real/irises", **TINY))


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_without_scikit_learn_no_job_is_made(preset, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for experiment in (estimators, real):
        with pytest.raises(RunError, match=r"^isouq.experiments needs sklearn; pip install 'isouq\[experiments\]'$"):
            experiment.jobs(preset)


@pytest.mark.slow
def test_a_cell_runs_on_held_out_points():
    cell = Cell("real/iris", **TINY)
    numbers, arrays = study.run_cell(cell)
    held_out = set_up(cell, REAL["real/iris"]).held_out
    np.testing.assert_array_equal(arrays["grid"], held_out.xs)
    assert arrays["epistemic"].shape == arrays["reference"].shape == (45,)
    assert (arrays["epistemic"] > 0).all()
    assert numbers["num_params"] == 16 * (4 + 1) + 3 * (16 + 1)
    assert -1 <= numbers["epistemic_spearman"] <= 1
    assert "epistemic_spearman_wide" not in numbers  # there is no wider region
    assert not numbers["accepted_wide"]
