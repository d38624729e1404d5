"""The examples: each has at most 100 lines, and its numbers are those of the library."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import isouq
from isouq.posterior import LogDensity, sample_reference

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name):
    """Return an example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_one_page(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 100
    assert f"Run: python examples/{path.name}" in "\n".join(lines[:25])


def test_the_method_needs_no_isouq():
    assert "import isouq" not in (EXAMPLES / "method.py").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_method_on_one_page_gives_the_numbers_of_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    method = load("method")
    mode, grid, maps = method.main()
    assert (tmp_path / "method.png").stat().st_size > 10_000
    library = isouq.uncertainty(method.logit, mode, grid, kind="binary")
    np.testing.assert_allclose(maps["epistemic"][1], library.epistemic, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(maps["aleatoric"][1], library.aleatoric, rtol=1e-3, atol=1e-7)
    xs, ys = method.draw_rings(jax.random.split(jax.random.key(0), 3)[0])
    log_density = LogDensity.of(method.logit, mode, xs, ys, "binary", prior="unit", sigma=1.0)
    inits = jax.vmap(method.draw_parameters)(jax.random.split(jax.random.key(1), 4))
    reference = sample_reference(
        log_density, inits, jax.random.key(2), record=lambda params: jax.vmap(method.logit, (None, 0))(params, grid)
    )
    p = np.asarray(jax.nn.sigmoid(reference.predictions)).reshape(-1, len(grid))
    for name, drawn in {"epistemic": p.var(axis=0), "aleatoric": (p * (1 - p)).mean(axis=0)}.items():
        assert np.corrcoef(maps[name][0], drawn)[0, 1] > 0.98
        assert maps[name][0].mean() == pytest.approx(drawn.mean(), rel=0.1)


@pytest.mark.slow
def test_table_1_on_a_linear_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = load("table1").main(("binary/linear",))
    accepted, r, rho, aleatoric = rows["binary/linear"]
    assert accepted
    assert min(r, rho, aleatoric) > 0.95
    assert (tmp_path / "table1.png").exists()


@pytest.mark.slow
def test_the_scaling_curve_at_one_width(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = load("scaling").main((16,), {"unit, σ = 1": ("unit", 1.0)})
    (((rho, _),),) = rows.values()
    assert 0.2 < rho < 1
    assert (tmp_path / "scaling.png").exists()


@pytest.mark.slow
def test_your_model_finds_errors_and_a_scale(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    areas, losses = load("your_model").main()
    assert max(areas.values()) < 0.03  # a twentieth of the images are wrong
    assert list(losses.values())[1] < losses["the network alone"]
    assert (tmp_path / "your_model.png").exists()


@pytest.mark.slow
def test_the_language_model_has_all_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = load("language_model")
    scores = module.main()
    assert list(scores) == list(module.SCORES)
    assert all(len(values) == len(module.QUESTIONS) and np.isfinite(values).all() for values in scores.values())
    assert (tmp_path / "language_model.png").exists()
