"""The covariance study: the proxies' asymmetry, every method against its dense twin, and the tables."""

import dataclasses

import jax
import numpy as np
import pytest
from stages import summarise

from experiments.synthetic.measure import covariance
from experiments.synthetic.measure import proxies as _proxies
from experiments.synthetic.numbers.covariance import is_asymmetric
from experiments.synthetic.presets import covariance as presets
from experiments.synthetic.registry import EXPERIMENTS
from experiments.synthetic.study import Cell, run_cell
from experiments.synthetic.subject import set_up
from isouq import problems
from isouq.posterior import fit_map

TINY = {"num_points": 80, "num_warmup": 20, "num_draws": 20, "num_leapfrog": 5, "resolution": 10, "study": "covariance"}


@pytest.fixture(scope="module")
def xor():
    return run_cell(Cell("binary/xor", 0, **TINY))


@pytest.mark.parametrize("name", _proxies.HALVES)
def test_a_symmetry_leaves_the_problem_as_it_is(name):
    """Labels at the images are those of the points: judged by the nearest neighbours among many points."""
    halves = _proxies.HALVES[name]
    xs, ys = (np.asarray(a) for a in problems.get(name).sample(jax.random.key(0), 4000))
    moved, labels = np.asarray(_proxies.images(xs[:400], halves)), np.asarray(halves.labels)[ys[:400]]
    nearest = np.argsort(((moved[:, None] - xs[None]) ** 2).sum(-1), axis=1)[:, :15]
    votes = np.stack([(ys[nearest] == c).mean(axis=1) for c in range(len(halves.labels))], axis=1)
    own = np.argsort(((xs[:400, None] - xs[None]) ** 2).sum(-1), axis=1)[:, :15]
    before = np.stack([(ys[own] == c).mean(axis=1) for c in range(len(halves.labels))], axis=1)
    assert votes[np.arange(400), labels].mean() > before[np.arange(400), ys[:400]].mean() - 0.05


@pytest.mark.parametrize("name", _proxies.HALVES)
def test_symmetric_data_hold_every_image(name):
    halves = _proxies.HALVES[name]
    problem = _proxies.symmetrise(problems.get(name), halves)
    data = problem.sample(jax.random.key(1), 12 * halves.order)
    rows = np.round(np.column_stack([np.asarray(data.xs), np.asarray(data.ys)]), 3)
    moved = np.column_stack([_proxies.images(data.xs, halves), np.asarray(halves.labels)[np.asarray(data.ys)]])
    assert len(rows) == 12 * halves.order
    order = np.lexsort(np.round(moved, 3).T), np.lexsort(rows.T)
    np.testing.assert_allclose(np.round(moved, 3)[order[0]], rows[order[1]], atol=2e-3)


def test_proxy_data_lie_in_their_halves_and_are_as_many_as_the_training_data():
    made = set_up(Cell("multiclass/clusters", 3, num_points=50), problems.get("multiclass/clusters"))
    data = _proxies._data(made, axis=1)
    assert {side: xs.shape for side, (xs, _) in data.items()} == {"a": (50, 2), "b": (50, 2)}
    assert np.all(data["a"][0][:, 1] < 0)
    assert np.all(data["b"][0][:, 1] >= 0)
    assert all(len(np.unique(ys)) >= 2 for _, ys in data.values())
    assert not np.isin(np.asarray(data["a"][0]), np.asarray(made.data.xs)).any()


@pytest.mark.parametrize("seed", range(2))
def test_the_identity_is_symmetric_on_symmetric_data_and_both_proxies_are_not(seed):
    """The paper's Fig. 1, in numbers, without a reference."""
    problem, halves = problems.get("binary/xor"), _proxies.HALVES["binary/xor"]
    made = set_up(Cell("binary/xor", seed), _proxies.symmetrise(problem, halves))
    grid = problems.evaluation_inputs(made.data.xs, 25)
    numbers, maps = _proxies._maps(made, fit_map(made.log_density, made.inits).best(), grid, halves)
    assert numbers["identity_symmetry"] >= 0.9
    for curvature in _proxies.CURVATURES:
        assert is_asymmetric(numbers, "", curvature)
        assert numbers[f"proxy_a_{curvature}_symmetry"] < 0.5
        assert numbers[f"proxy_b_{curvature}_symmetry"] < 0.5
    np.testing.assert_allclose(maps["log_ratio"], np.log(maps["proxy_a"] / maps["proxy_b"]), rtol=1e-3, atol=1e-3)


def test_every_method_and_both_data_sets_are_measured(xor):
    for method in covariance.METHODS:
        assert np.isfinite(xor.numbers[f"{method}_spearman"])
        assert xor.numbers[f"{method}_scale"] > 0
    assert xor.numbers["identity_gradients"] == 0
    assert xor.numbers["hessian_dense_gradients"] == 2 * xor.numbers["num_params"]
    assert xor.numbers["draws_within_gradients"] == xor.numbers["gradient_evaluations"]
    assert xor.numbers["ggn_dense_bytes"] > xor.numbers["ggn_diagonal_bytes"] >= 4 * xor.numbers["num_params"]
    assert xor.numbers["orbit_identity_symmetry"] > xor.numbers["identity_symmetry"]
    assert xor.arrays["orbit_proxy_a"].shape == xor.arrays["identity"].shape == (100,)
    # XOR's model is small: few eigenpairs left out, and KFAC and the diagonal are other matrices
    assert xor.numbers["ggn_low_rank_pearson"] == pytest.approx(xor.numbers["ggn_dense_pearson"], abs=1e-3)
    assert xor.numbers["ggn_kronecker_pearson"] != xor.numbers["ggn_diagonal_pearson"]


def test_summary_leaves_unconverged_seeds_out_of_the_agreement_but_not_of_the_proxies(xor):
    good = xor._replace(numbers=xor.numbers | {"accepted": True, "identity_pearson": 0.25})
    bad = xor._replace(numbers=xor.numbers | {"accepted": False, "identity_pearson": 0.75, "seed": 1})
    outputs = summarise(EXPERIMENTS["covariance"], [good, bad], "smoke")
    table = outputs.summary.split("## Agreement of gᵀΣg with the reference, Pearson's r")[1]
    assert "| identity | 0.25 |" in table
    assert "| accepted references | 1/2 |" in table
    assert "/2 |" in outputs.summary.split("## Proxies")[1].split("## ")[0]
    assert set(outputs.figures) == {"covariance", "covariance_maps", "covariance_agreement", "pareto"}
    for figure in outputs.figures.values():
        figure.canvas.draw()


def test_cells_are_those_of_validation_on_the_same_references():
    paper = presets.jobs("paper")
    assert len(paper) == 45
    agreement = {dataclasses.replace(cell, study="agreement").key() for cell in paper}
    assert len(agreement) == 45
    assert {cell.study for cell in paper} == {"covariance"}
