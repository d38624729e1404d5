"""Covariances in files: what is read is what was written, and a wrong file is one clear line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_covariance_builders import case
from test_predictive import Own, many_kinds
from twins import dense

import isouq
from isouq.covariance import Dense, Diagonal, Identity, Kronecker, LowRank, laplace, load, save

STRUCTURES = ("dense", "diagonal", "kronecker", "low_rank")


def check_same(covariance, path, params):
    save(path, covariance)
    again = load(path, params)
    assert type(again) is type(covariance)
    for one, other in zip(jax.tree.leaves(covariance), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(dense(again, params), dense(covariance, params))


@pytest.mark.parametrize("name", many_kinds(case("binary")[1]))
def test_every_kind_comes_back(name, tmp_path):
    params = case("binary")[1]
    check_same(many_kinds(params)[name], tmp_path / "covariance.npz", params)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_laplace_approximation_comes_back(structure, tmp_path):
    log_density, params = case("multiclass")
    check_same(laplace(log_density, params, structure=structure, rank=4), tmp_path / "covariance.npz", params)


@pytest.mark.parametrize("params", [jnp.ones(3), {"w": jnp.ones((2, 3))}])
def test_a_model_of_one_leaf(params, tmp_path):
    path, tree = tmp_path / "covariance.npz", jax.tree.map(lambda leaf: 2 * leaf, params)
    directions = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf, 2 * leaf]), params)
    for covariance in (
        Identity(3.0),
        Diagonal(tree),
        LowRank(directions, 1.0, jnp.asarray([1.0, 2.0, 3.0])),
        LowRank(directions, jax.tree.map(lambda _: 0.5, params)),
        Dense(jnp.eye(sum(leaf.size for leaf in jax.tree.leaves(params)))),
    ):
        check_same(covariance, path, params)


def test_bfloat16_comes_back_in_float32(tmp_path):
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    save(tmp_path / "covariance.npz", Diagonal({"w": jnp.full(3, 0.5, jnp.bfloat16)}))
    again = load(tmp_path / "covariance.npz", params)
    np.testing.assert_array_equal(again.variances["w"], np.full(3, 0.5, np.float32))


def test_a_newer_format_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("isouq.covariance._saving._FORMAT", 2)
    save(tmp_path / "covariance.npz", Identity(1.0))
    monkeypatch.undo()
    with pytest.raises(
        ValueError, match=r"holds Identity in format 2; this isouq reads Identity, .* in format 1: save it again"
    ):
        load(tmp_path / "covariance.npz", {"w": jnp.ones(3)})


@pytest.mark.filterwarnings("ignore:the scale is")  # of random labels
def test_a_scale_comes_back(tmp_path):
    log_density, params = case("binary")
    fit = isouq.fit_scale(log_density.predict, params, log_density.xs, log_density.ys, "binary")
    save(tmp_path / "scale.npz", fit.covariance)
    assert float(load(tmp_path / "scale.npz", params).scale) == pytest.approx(fit.scale)


def test_wrong_files_are_one_clear_line(tmp_path):
    log_density, params = case("multiclass")
    path = tmp_path / "covariance.npz"
    with pytest.raises(ValueError, match="covariance is a Own; expected one of Identity, Diagonal"):
        save(path, Own())
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        load(path, params)
    path.write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match="is damaged, or no file of"):
        load(path, params)
    np.savez(path, header=np.array({"a": 1}, dtype=object))  # a pickle inside is not read
    with pytest.raises(ValueError, match="is damaged"):
        load(path, params)
    other = {"w": jnp.ones((2, 3)), "v": jnp.ones(5)}
    for structure in STRUCTURES:
        save(path, laplace(log_density, params, structure=structure, rank=4))
        with pytest.raises(ValueError, match=r"does not fit params|is for 21 parameters|is for 18 parameters") as error:
            load(path, other)
        assert "\n" not in str(error.value)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged"):
        load(path, params)
    save(
        path,
        Kronecker(
            jax.tree.map(
                lambda leaf: (jnp.ones((leaf.size // leaf.shape[-1], 1)), jnp.ones((leaf.shape[-1], 1))), params
            )
        ),
    )
    wider = jax.tree.map(lambda leaf: jnp.ones((*leaf.shape[:-1], leaf.shape[-1] + 1)), params)
    with pytest.raises(ValueError, match="does not fit params"):
        load(path, wider)


def test_a_dense_covariance_of_a_large_model_is_refused_with_its_bytes():
    params = {"w": jnp.zeros((10_001,))}
    xs, ys = np.ones((4, 10_001), np.float32), np.array([0, 1, 0, 1])
    log_density = isouq.LogDensity.of(lambda params, x: x @ params["w"], params, xs, ys, "binary")
    with pytest.raises(
        ValueError, match=r"'dense' of 10,001 parameters needs 4,000,800,040 bytes .* is refused above"
    ) as error:
        laplace(log_density, params)
    assert "structure='diagonal' needs" in str(error.value)
