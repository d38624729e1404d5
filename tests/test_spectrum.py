"""The spectrum: closed form and explicit bases, the matrix-free way against the dense one, and the summary."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from stages import summarise

from experiments.run.job import Result
from experiments.synthetic.measure import spectrum
from experiments.synthetic.measure.decomposition import gradients
from experiments.synthetic.measure.lanczos import dense_spectrum, lanczos_spectrum
from experiments.synthetic.numbers.prediction import PREDICTORS, relations
from experiments.synthetic.presets import decomposition as decomposition_presets
from experiments.synthetic.presets import spectrum as presets
from experiments.synthetic.registry import EXPERIMENTS
from experiments.synthetic.report.spectrum import verdict
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import FACTS, evaluation_inputs, set_up, subject
from isouq import problems
from isouq.covariance import negative_hessian

RNG = np.random.default_rng(0)
MADE_UP = dict.fromkeys(FACTS, 1.0) | {"accepted": True, "divergent": 0.0, "ess_bulk": 500.0, "map_converged": True}


def made(problem, width=None, **changes):
    """A subject at its first initialisation with made-up draws: nothing here needs a trained or sampled model."""
    cell = Cell(problem, width=width, study="spectrum", num_points=60, resolution=10, **changes)
    start = set_up(cell, problems.get(problem))
    starts = np.asarray(jax.vmap(lambda params: ravel_pytree(params)[0])(start.inits))
    points = len(evaluation_inputs(cell, start)[0])
    draws = starts[:, None] + RNG.normal(size=(4, 20, starts.shape[1])).astype(np.float32)
    arrays = {"starts": starts, "draws": draws, "variance": RNG.random(points)}
    numbers = {**MADE_UP, "best": 0, "num_params": starts.shape[1]}
    return subject(cell, problems.get(problem), Result(numbers, arrays))


@pytest.fixture(scope="module")
def rings():
    return made("multiclass/rings", width=40, prior="fan_in")  # 243 parameters, two prior scales


@pytest.fixture(scope="module")
def dense(rings):
    return spectrum.measure(rings)


def test_a_linear_regression_in_closed_form():
    it = made("regression/linear", sigma=0.5)
    got = spectrum.measure(it)
    noise = problems.get("regression/linear").noise
    features = np.column_stack([np.ones(60), np.asarray(it.setting.data.xs)[:, 0]])
    expected = np.linalg.eigvalsh(features.T @ features / noise**2)
    np.testing.assert_allclose(got.arrays["hessian_eigenvalues"], expected, rtol=1e-4)
    assert got.numbers["bulk_threshold"] == pytest.approx(4)
    assert got.numbers["bulk_dimension"] == 0  # the data decide both parameters
    assert got.numbers["bulk_mean"] == pytest.approx(0, abs=1e-9)
    assert got.numbers["effective_dimension"] == pytest.approx(np.sum(expected / (expected + 4)), rel=1e-4)
    grid = np.asarray(it.xs[it.grid])[:, 0]
    g = np.column_stack([np.ones(len(grid)), grid])
    exact = np.einsum("np,pq,nq->n", g, np.linalg.inv(features.T @ features / noise**2 + 4 * np.eye(2)), g)
    assert got.numbers["inverse_pearson"] == pytest.approx(np.corrcoef(exact, np.sum(g**2, 1))[0, 1], abs=1e-6)


def test_bulk_shares_against_an_explicit_basis():
    basis = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    hessian = dense_spectrum(basis @ np.diag([-3.0, -0.5, 0.0, 0.9, 1.0, 50.0]) @ basis.T)
    coefficients = np.array([[0, 1, 2, 3, 0, 0], [1, 0, 0, 0, 1, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]])
    got = spectrum.bulk_shares(coefficients @ basis.T, hessian, 1 - 1e-9)
    np.testing.assert_allclose(got, [1, 0, 0.5, np.nan], atol=1e-12)


def test_inverse_quadratic_is_that_of_the_posterior_with_its_negative_curvature_repaired(rings):
    scales = spectrum.flat_scales(rings.theta, rings.setting.log_density.scales)
    assert len(set(scales)) > 1
    factor = RNG.normal(size=(scales.size, scales.size))
    hessian = factor @ factor.T  # positive: nothing to repair
    whitened = dense_spectrum(scales[:, None] * hessian * scales)
    g = RNG.normal(size=(4, scales.size))
    expected = np.einsum("np,pn->n", g, np.linalg.solve(hessian + np.diag(scales**-2.0), g.T))
    np.testing.assert_allclose(spectrum.inverse_quadratic(g, whitened, scales), expected, rtol=1e-6)
    negative = dense_spectrum(-np.eye(scales.size))
    np.testing.assert_allclose(
        spectrum.inverse_quadratic(g, negative, scales), np.sum((g * scales) ** 2, axis=1), rtol=1e-12
    )


def test_the_dense_numbers_follow_from_the_hessian(rings, dense):
    density = rings.setting.log_density
    scales = spectrum.flat_scales(rings.theta, density.scales)
    posterior = np.asarray(negative_hessian(density, rings.theta), np.float64)
    values, vectors = np.linalg.eigh(posterior - np.diag(scales**-2.0))
    np.testing.assert_allclose(dense.arrays["hessian_eigenvalues"], values, atol=2e-6 * np.abs(values).max())
    target = rings.estimate.target[rings.grid]
    g = gradients(rings.setting.predict, rings.theta, rings.xs[rings.grid], target, rings.kind)
    inside = (g @ vectors[:, np.abs(values) < dense.numbers["bulk_threshold"]]) ** 2
    np.testing.assert_allclose(dense.numbers["bulk_total"], inside.sum() / np.sum(g**2), rtol=1e-3)
    np.testing.assert_allclose(dense.arrays["bulk"], inside.sum(1) / np.sum(g**2, 1), rtol=1e-3, atol=1e-5)
    whitened = np.linalg.eigvalsh(scales[:, None] * posterior * scales) - 1
    assert dense.numbers["lowest_curvature"] == pytest.approx(1 + whitened[0], abs=1e-3)
    kept = np.maximum(whitened, 0)
    assert dense.numbers["effective_dimension"] == pytest.approx(np.sum(kept / (1 + kept)), rel=1e-4)
    assert dense.arrays["hessian_density"].sum() == pytest.approx(1)


def test_matrix_free_agrees_with_dense(rings, dense):
    free = spectrum.measure(rings, dense_limit=0)
    a, b = dense.numbers, free.numbers
    assert a["dense"]
    assert not b["dense"]
    assert "hessian_eigenvalues" not in free.arrays
    assert 0 < b["effective_error"] < 0.05 * a["effective_dimension"]
    assert abs(a["effective_dimension"] - b["effective_dimension"]) < 4 * b["effective_error"]
    assert abs(a["bulk_dimension"] - b["bulk_dimension"]) < 4 * b["bulk_dimension_error"] + 1e-3
    np.testing.assert_allclose(free.arrays["bulk"], dense.arrays["bulk"], atol=1e-3)
    assert a["bulk_total"] == pytest.approx(b["bulk_total"], abs=1e-3)
    assert b["leading_residual"] < 0.01
    assert b["lowest_curvature"] == pytest.approx(a["lowest_curvature"], rel=2e-3, abs=2e-3)
    assert b["inverse_pearson"] == pytest.approx(a["inverse_pearson"], abs=1e-3)
    assert np.abs(free.arrays["hessian_density"] - dense.arrays["hessian_density"]).max() < 0.05


def test_lanczos_stops_where_the_krylov_space_ends(rings):
    """The softmax does not see a shift of all logits: dozens of eigenvalues are 0, one Krylov vector holds them."""
    log_density, size = rings.setting.log_density, 243
    got = lanczos_spectrum(log_density, rings.theta, np.ones(size), 0.0, jax.random.key(0))
    assert len(got.values) < size
    np.testing.assert_allclose(got.vectors.T @ got.vectors, np.eye(len(got.values)), atol=1e-4)
    np.testing.assert_allclose(got.weights.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("size", [50, 900])  # fewer and more than the draws
def test_isotropic_draws(size):
    draws = 3 * RNG.normal(size=(4, 150, size))
    shifted = draws + 40 * RNG.normal(size=(4, 1, size))  # every chain in a mode of its own
    for values in (spectrum.covariance_eigenvalues(draws, False), spectrum.covariance_eigenvalues(shifted, True)):
        assert values.shape == (size,)
        assert values.mean() == pytest.approx(9, rel=0.03)
        assert spectrum.participation(values) == pytest.approx(1 / (1 + size / 600), rel=0.03)
    assert spectrum.participation(spectrum.covariance_eigenvalues(shifted, False)) < 0.1


def test_participation_by_hand():
    values = np.array([4.0, 2.0, *np.zeros(9)])
    assert spectrum.participation(values) == pytest.approx(36 / (11 * 20))
    assert spectrum.participation(np.ones(7)) == pytest.approx(1)


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_cells_share_the_references_of_the_decomposition(preset):
    cells = presets.jobs(preset)
    assert {cell.study for cell in cells} == {"spectrum"}
    assert [cell.reference() for cell in cells] == [cell.reference() for cell in decomposition_presets.jobs(preset)]
    assert {cell.width for cell in presets.jobs(preset, 3, (8,))} == {None, 8}


def row(template, share, agreement, accepted=True, **changes):
    columns = dict.fromkeys(PREDICTORS, 0.3) | {"bulk_mean": share}
    outcome = {"whole_pearson": agreement, "whole_spearman": agreement}
    return {**template, **columns, **outcome, "accepted": accepted, "rhat": 1.0 if accepted else 1.5, **changes}


def synthetic(template, sign=1, seeds=6):
    rows = [
        row(template, 0.1 * width, 0.5 + sign * 0.04 * width + 0.01 * RNG.random(), seed=seed, width=width)
        for seed in range(seeds)
        for width in (2, 4, 8)
    ]
    # misleading, and not converged: in no number
    return rows + [row(template, 0.9, 0.5 - sign * 5, False, seed=seed, width=16) for seed in range(seeds)]


def test_relations_see_a_rise_a_fall_and_nothing(dense):
    for sign, answer in ((1, "yes"), (-1, "no, the opposite")):
        by_predictor = relations(synthetic(dense.numbers, sign), lambda row: row["seed"], "whole_pearson")
        assert by_predictor["bulk_mean"].models == 18
        assert by_predictor["bulk_mean"].clusters == 6
        assert sign * by_predictor["bulk_mean"].value > 0.85
        assert verdict(by_predictor["bulk_mean"]) == answer
        assert np.isnan(by_predictor["effective_share"].value)  # constant
        assert verdict(by_predictor["effective_share"]) == "too few data"
    noise = [row(dense.numbers, RNG.random(), RNG.random(), seed=seed) for seed in range(12)]
    assert verdict(relations(noise, lambda row: row["seed"], "whole_pearson")["bulk_mean"]) == "not distinguishable"
    few = relations(synthetic(dense.numbers, seeds=2), lambda row: row["seed"], "whole_pearson")
    assert verdict(few["bulk_mean"]) == "too few data"


def test_the_bootstrap_resamples_clusters_and_not_cells(dense):
    """Copies of a cell in its cluster are no evidence: the interval stays as wide."""
    base = [row(dense.numbers, x, x + 0.8 * RNG.normal(), seed=seed) for seed, x in enumerate(np.linspace(0, 1, 8))]
    one, many = (relations(rows, lambda row: row["seed"], "whole_pearson")["bulk_mean"] for rows in (base, 20 * base))
    assert (many.high - many.low) == pytest.approx(one.high - one.low, rel=0.2)


def test_summary_of_synthetic_rows(dense):
    results = [Result(r, dense.arrays) for r in synthetic({**dense.numbers, "prior": "unit", "lowest_curvature": 0.5})]
    own = row(dense.numbers, 0.2, 0.6, width=None, problem="binary/xor", seed=0, lowest_curvature=-0.2)
    outputs = summarise(EXPERIMENTS["spectrum"], [*results, Result(own, dense.arrays)], "smoke")
    text = outputs.summary
    assert text.startswith("# Spectrum, preset `smoke`")
    assert "Epistemic r: yes." in text
    assert "| unit σ = 1, width 16 | 0/6 |" in text
    assert "At 1 of 25 θ*" in text
    assert "- binary/xor, n = 60, fan_in σ = 1, seed 0: -0.2" in text
    assert text.count("unconverged: R-hat") == 6
    assert "-4.5" not in text
    assert len(outputs.numbers.rows) == 25
    assert set(outputs.figures) == {"spectrum", "spectrum_agreement"}


def test_summary_with_nothing_accepted(dense):
    numbers = dataclasses.asdict(Cell("multiclass/rings", width=4)) | dense.numbers | {"accepted": False}
    outputs = summarise(EXPERIMENTS["spectrum"], [Result(numbers, dense.arrays)], "smoke")
    assert "too few accepted models to say" in outputs.summary
