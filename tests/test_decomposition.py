"""The decomposition against slow twins: dense Σ, automatic derivatives in float64, and the limit of small σ."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stages
from jax.flatten_util import ravel_pytree

from experiments.run.job import Result
from experiments.synthetic.measure import decomposition
from experiments.synthetic.measure.decomposition import SIGMAS, VERSIONS
from experiments.synthetic.numbers.models import STATISTICS
from experiments.synthetic.presets import decomposition as presets
from experiments.synthetic.presets import scaling, validation
from experiments.synthetic.registry import EXPERIMENTS
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import FACTS, set_up, subject
from isouq import models, problems, stats
from isouq.alignment import align_hidden_units
from isouq.posterior import Margins, probabilities

TINY = {"num_points": 40, "resolution": 8, "study": "decomposition"}
summarise = partial(stages.summarise, EXPERIMENTS["decomposition"])
VERDICT = {"accepted": True, "rhat": 1.001, "ess_bulk": 900.0, "divergent": 0.0, "halves": 0.99}


def symmetric_copy(params, rng):
    """Hidden units exchanged and flipped at random; flat."""
    layers = [{name: np.asarray(leaf) for name, leaf in params["layers"][depth].items()} for depth in range(2)]
    order = rng.permutation(layers[0]["bias"].size)
    signs = rng.choice([-1, 1], order.size).astype(np.float32)
    entering = [layers[0]["bias"][order] * signs, layers[0]["kernel"][:, order] * signs]
    leaving = [layers[1]["bias"], layers[1]["kernel"][order] * signs[:, None]]
    return np.concatenate([leaf.ravel() for leaf in entering + leaving])


@jax.jit
def margins_of(record, unravel, flats):
    return jax.lax.map(lambda flat: record(unravel(flat)), flats)


def made_up(cell, count=60):
    """A subject with draws around symmetric copies of θ*, and the variance that these draws have."""
    problem, rng = problems.get(cell.problem), np.random.default_rng(7)
    start = set_up(cell, problem)
    starts = jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(size=leaf.shape).astype(np.float32), start.inits)
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    flat, unravel = ravel_pytree(first)
    copies = [symmetric_copy(first, rng) if len(first["layers"]) > 1 else flat for _ in range(cell.chains * count)]
    draws = np.asarray(copies, np.float32) + 0.1 * rng.normal(size=(len(copies), flat.size)).astype(np.float32)
    numbers = {"best": 0, **dict.fromkeys(FACTS, 1), **VERDICT}
    arrays = {
        "starts": np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(starts)),
        "draws": draws.reshape(cell.chains, count, -1),
        "variance": np.ones(1),
    }
    one = subject(cell, problem, Result(numbers, arrays))
    record = Margins(start.predict, one.xs, one.estimate.target, problem.kind)
    margins = margins_of(record, jax.tree_util.Partial(unravel), jnp.asarray(draws))
    return one._replace(variance=probabilities(margins, problem.kind).var(axis=0))


@pytest.fixture(scope="module")
def rings():
    return made_up(Cell("multiclass/rings", width=3, **TINY))


@pytest.fixture(scope="module")
def measured(rings):
    return decomposition.measure(rings)


def gradients_of(one):
    xs, target = one.xs[one.grid], one.estimate.target
    target = None if target is None else target[one.grid]
    return decomposition.gradients(one.setting.predict, one.theta, xs, target, one.kind)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_gradients_are_those_of_the_probability(kind, x64):
    outputs = 3 if kind == "multiclass" else 1
    predict, init = models.mlp(2, (4,), outputs)
    theta = jax.tree.map(lambda leaf: 2 * leaf.astype(jnp.float64), jax.jit(init)(jax.random.key(0)))
    xs = jax.random.normal(jax.random.key(1), (6, 2), jnp.float64)
    target = None if kind == "regression" else jnp.array([0, 1, 1, 0, 1, 0], jnp.int32)

    def chosen(flat, x, label):
        out = predict(ravel_pytree(theta)[1](flat), x)
        if kind == "regression":
            return out
        p = jax.nn.softmax(out) if kind == "multiclass" else jax.nn.softmax(jnp.stack([jnp.zeros_like(out), out]))
        return p[label]

    expected = jax.jit(jax.vmap(jax.grad(chosen), (None, 0, 0)))(ravel_pytree(theta)[0], xs, target)
    got = decomposition.gradients(predict, theta, xs, target, kind)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-14)


def test_linearised_variance_is_that_of_the_dense_covariance(rings, measured):
    g, draws = gradients_of(rings), rings.draws.astype(np.float64)
    aligned = align_hidden_units(rings.draws, rings.theta).astype(np.float64)
    size = draws.shape[-1]
    dense = {
        "pooled": np.cov(draws.reshape(-1, size).T, ddof=0),
        "within": np.mean([np.cov(chain.T, ddof=0) for chain in draws], axis=0),
        "aligned": np.cov(aligned.reshape(-1, size).T, ddof=0),
    }
    assert set(dense) == set(VERSIONS)
    for version, covariance in dense.items():
        expected = np.einsum("ni,ij,nj->n", g, covariance, g)
        np.testing.assert_allclose(measured.arrays[f"L_{version}"], expected, rtol=1e-5)
        columns = measured.numbers
        assert columns[f"taylor_{version}_pearson"] == pytest.approx(
            stats.pearson(rings.variance[rings.grid], expected)
        )
        assert columns[f"scale_{version}"] == pytest.approx(expected.mean() / rings.variance[rings.grid].mean())
    # the draws are small steps around copies of θ*: aligned, their covariance is 0.1² I and all else is gone
    np.testing.assert_allclose(measured.arrays["L_aligned"], 0.01 * measured.arrays["I"], rtol=0.6)
    assert np.median(measured.arrays["L_pooled"] / measured.arrays["L_aligned"]) > 10
    assert measured.numbers["isotropy_aligned_pearson"] > 0.95
    assert measured.numbers["aligned_draws"] == 240


def test_identity_is_the_estimate(rings, measured):
    np.testing.assert_allclose(measured.arrays["I"], rings.estimate.epistemic[rings.grid], rtol=1e-4)
    np.testing.assert_allclose(measured.arrays["V"], rings.variance[rings.grid], rtol=1e-6)


def test_row_and_maps(rings, measured):
    assert list(measured.numbers)[:3] == ["problem", "seed", "width"]
    assert {name: measured.numbers[name] for name in FACTS} == {name: rings.facts()[name] for name in FACTS}
    for statistic in STATISTICS:
        expected = getattr(stats, statistic)
        v, i, w = (measured.arrays[name] for name in ("V", "I", "W_0.3"))
        assert measured.numbers[f"whole_{statistic}"] == pytest.approx(expected(v, i), abs=1e-4)
        assert measured.numbers[f"perturbation_0.3_{statistic}"] == pytest.approx(expected(v, w), abs=1e-4)
    assert {len(array) for array in measured.arrays.values()} == {64}
    assert all(array.dtype == np.float32 for array in measured.arrays.values())


@pytest.mark.parametrize("draws_of_a_chain", [3, 30])  # fewer draws than parameters, and more
def test_the_linear_variance_is_that_of_the_projections(draws_of_a_chain):
    rng = np.random.default_rng(0)
    g, draws = rng.normal(size=(7, 20)), rng.normal(size=(4, draws_of_a_chain, 20)) + 100.0
    projected = (draws - 100.0) @ g.T
    overall, own = draws.mean(axis=(0, 1), keepdims=True), draws.mean(axis=1, keepdims=True)
    pooled, within = (decomposition.linear_variance(g, draws, centres) for centres in (overall, own))
    np.testing.assert_allclose(pooled, projected.var(axis=(0, 1)), rtol=1e-9)
    np.testing.assert_allclose(within, projected.var(axis=1).mean(axis=0), rtol=1e-9)


def test_a_linear_model_loses_nothing_to_taylor():
    numbers, arrays = decomposition.measure(made_up(Cell("regression/linear", **TINY)))
    for version in ("pooled", "aligned"):
        assert numbers[f"scale_{version}"] == pytest.approx(1, abs=1e-4)
        assert numbers[f"taylor_{version}_pearson"] == pytest.approx(1, abs=1e-6)
        assert numbers[f"taylor_{version}_spearman"] == pytest.approx(1)
    assert numbers["taylor_within_pearson"] == pytest.approx(1, abs=1e-2)
    for sigma in SIGMAS:
        assert stats.pearson(arrays["I"], arrays[f"W_{sigma:g}"]) > 0.98


def test_small_perturbations_are_the_squared_gradient_norm(rings):
    g, sigma = gradients_of(rings), 1e-3
    directions = jax.random.normal(jax.random.key(5), (512, g.shape[1]))
    margins = Margins(rings.setting.predict, rings.xs[rings.grid], rings.estimate.target[rings.grid], rings.kind)
    got = decomposition.perturbation(margins, rings.theta, directions, sigma) / sigma**2
    same_directions = (g @ np.asarray(directions, np.float64).T).var(axis=1)
    np.testing.assert_allclose(got, same_directions, rtol=0.02)
    np.testing.assert_allclose(got, np.sum(g**2, axis=1), rtol=5 * np.sqrt(2 / 512))


def test_wide_models_are_aligned_on_fewer_draws(rings, monkeypatch):
    monkeypatch.setattr(decomposition, "ALIGNMENT_BUDGET", 4 * 7 * 3**2)
    some = decomposition._subset(rings.draws, rings.theta)
    assert some.shape[:2] == (4, 7)
    np.testing.assert_array_equal(some[:, [0, -1]], rings.draws[:, [0, -1]])
    monkeypatch.setattr(decomposition, "ALIGNMENT_BUDGET", 1)
    assert decomposition._subset(rings.draws, rings.theta).shape[1] == 2


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_cells_share_the_references_of_validation_and_scaling(preset):
    cells = presets.jobs(preset)
    assert {cell.study for cell in cells} == {"decomposition"}
    assert len(set(cells)) == len(cells)
    others = [*validation.jobs(preset), *scaling.jobs(preset)]
    mine, theirs = ({cell.reference() for cell in some} for some in (cells, others))
    assert mine < theirs if preset == "smoke" else mine == theirs
    assert {cell.width for cell in presets.jobs(preset, 1, (4,))} == {None, 4}


def row(cell, accepted=True, taylor=0.5, isotropy=0.8, whole=0.4):
    """A result with every column that the summary reads; the best σ is 0.1."""
    verdict = VERDICT | {"accepted": accepted, "rhat": 1.001 if accepted else 1.2}
    facts = {"num_params": 9, "map_grad_norm": 0.01, "map_converged": True, "gradient_evaluations": 1000}
    numbers = {**dataclasses.asdict(cell), **verdict, **facts, "aligned_draws": 4000}
    for statistic in STATISTICS:
        numbers[f"whole_{statistic}"] = whole
        for sigma in SIGMAS:
            numbers[f"perturbation_{sigma:g}_{statistic}"] = whole + (0.05 if sigma == 0.1 else 0)
        for version in VERSIONS:
            numbers |= {f"taylor_{version}_{statistic}": taylor, f"isotropy_{version}_{statistic}": isotropy}
    for version in VERSIONS:
        numbers |= {f"scale_{version}": 2.0, f"anisotropy_{version}": 0.3}
    return Result(numbers, {})


XOR, SWEEP = Cell("binary/xor", study="decomposition"), Cell(scaling.PROBLEM, width=4, study="decomposition")


@pytest.mark.parametrize("cell", [XOR, SWEEP])
def test_a_summary_does_not_depend_on_unconverged_values(cell):
    def summary(other):
        seeds = [(0, True, 0.5), (1, False, other), (2, True, 0.7)]
        results = [row(dataclasses.replace(cell, seed=s), ok, v, v + 0.1, v - 0.1) for s, ok, v in seeds]
        return summarise(results, "smoke").summary

    text = summary(-0.9)
    assert text == summary(0.99)
    assert text.startswith("# Decomposition, preset `smoke`\n")
    assert "| 2/3 | 0.50 ± 0.14 [0.40, 0.60] | 0.60 ± 0.14 [0.50, 0.70] | 0.70 ± 0.14 [0.60, 0.80] |" in text
    assert "| 1 of 1 | 0.40 | 0.30 | 0.10 |" in text
    assert "| 0.1 | 0.55 ± 0.14 [0.45, 0.65] | 0.50 ± 0.14 [0.40, 0.60] |" in text
    assert re.search(r"seed 1: unconverged: R-hat", text)


def test_which_term_costs_more():
    names = list(problems.PROBLEMS)[:5]
    results = [row(Cell(name, study="decomposition"), taylor=0.2 + 0.1 * i) for i, name in enumerate(names)]
    results += [
        row(dataclasses.replace(SWEEP, width=w), taylor=0.9, isotropy=0.9 - 0.01 * w) for w in (2, 4, 8, 12, 20, 30)
    ]
    results += [row(dataclasses.replace(SWEEP, width=16), accepted=False, taylor=0.0)]
    text = summarise(results, "smoke").summary
    assert text.count("| 5 of 5 | 0.60 ± 0.16") == 6
    assert text.count("| Taylor |\n") == 6
    assert text.count("| 0 of 6 | 0.10 ± 0.00") == 6
    assert text.count("| isotropy |\n") == 6
    few = summarise(results[:4], "smoke").summary
    assert few.count("| too few models (4) |\n") == 6


def test_nothing_accepted_is_said_and_has_no_number():
    outputs = summarise([row(XOR, False, 0.1234, 0.1234, 0.1234), row(SWEEP, False)], "smoke")
    assert "No reference was accepted." in outputs.summary
    assert "| 0/1 | unconverged | unconverged |" in outputs.summary
    assert "0.12" not in outputs.summary


def test_constant_maps_are_left_out():
    undefined = row(dataclasses.replace(XOR, seed=1), taylor=float("nan"))
    text = summarise([row(XOR), undefined], "smoke").summary
    assert "| binary/xor | 2/2 | 0.40 ± 0.00 [0.40, 0.40] | 0.50 | 0.80 ± 0.00" in text
    assert "| 1 of 1 | 0.50 | 0.20 | 0.30 |" in text
    assert "nan" not in text


def test_figures_are_those_of_the_cells_at_hand():
    sweep, of_problems = {"decomposition", "decomposition_spearman"}, {"decomposition_problems", "perturbation"}
    assert set(summarise([row(SWEEP)], "smoke").figures) == sweep
    assert set(summarise([row(XOR)], "smoke").figures) == of_problems
    assert set(summarise([row(XOR), row(SWEEP)], "smoke").figures) == sweep | of_problems
