"""`map_batches`: the scores of batches are those of all rows in one call, also after an interruption."""

import functools
import warnings

import jax
import numpy as np
import pytest

import isouq
from isouq import _batches, models

PREDICT, INIT = models.mlp(3, (8,), 3)
PARAMS = INIT(jax.random.key(0))
MEMBERS = jax.vmap(INIT)(jax.random.split(jax.random.key(1), 3))
XS = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
SIZES = (16, 16, 11, 7)
single = functools.partial(isouq.uncertainty, PREDICT, PARAMS, kind="multiclass")
several = functools.partial(isouq.uncertainty, PREDICT, MEMBERS, kind="multiclass", ensemble=True)
noisy = functools.partial(isouq.perturbation, PREDICT, PARAMS, kind="multiclass", key=jax.random.key(2), num_samples=8)


def read(until=None):
    for number, rows in enumerate(np.split(XS, np.cumsum(SIZES)[:-1])):
        if number == until:
            raise KeyboardInterrupt
        yield rows


def check(got, want):
    assert type(got) is type(want)
    for name in want._fields:
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=2e-5, atol=1e-7, err_msg=name)


def test_batches_of_other_sizes_than_those_of_the_file_are_refused(tmp_path):
    file = tmp_path / "scores.npz"
    isouq.map_batches(single, read(), checkpoint=file)
    with pytest.raises(ValueError, match=r"has 4 batches of 50 rows, and batches gave 4 of 37; remove the file"):
        isouq.map_batches(single, [XS[:16], XS[:7], XS[:7], XS[:7]], checkpoint=file)


@pytest.mark.parametrize("score", [single, several, noisy])
def test_it_is_the_result_of_one_call(score):
    seen = []
    check(isouq.map_batches(score, read(), progress=seen.append), score(XS))
    assert seen == [16, 32, 43, 50]


def test_regression_and_pytrees_of_inputs():
    def predict(params, x):
        return PREDICT(params, x["a"])[0]

    score = functools.partial(isouq.uncertainty, predict, PARAMS, kind="regression")
    got = isouq.map_batches(score, [{"a": XS[:20]}, {"a": XS[20:]}])
    assert got.aleatoric is None
    np.testing.assert_allclose(got.epistemic, score({"a": XS}).epistemic, rtol=2e-5)


def counted(calls):
    def score(xs):
        calls.append(len(xs))
        return single(xs)

    return score


def test_an_interrupted_call_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(_batches, "_SECONDS", 0.0)
    file, calls = tmp_path / "scores.npz", []
    with pytest.raises(KeyboardInterrupt):
        isouq.map_batches(counted(calls), read(until=3), checkpoint=file)
    assert calls == [16, 16, 11]
    calls.clear()
    check(isouq.map_batches(counted(calls), read(), checkpoint=file), single(XS))
    assert calls == [16, 7]  # the first, which is compared, and the one that was missing
    calls.clear()
    check(isouq.map_batches(counted(calls), read(), checkpoint=file), single(XS))
    assert calls == [16]


def test_a_file_of_other_scores_is_put_aside(tmp_path):
    file = tmp_path / "scores.npz"
    isouq.map_batches(single, read(), checkpoint=file)
    other = functools.partial(isouq.uncertainty, PREDICT, INIT(jax.random.key(9)), kind="multiclass")
    with pytest.warns(UserWarning, match="belongs to another run; it is now scores.npz.unused"):
        check(isouq.map_batches(other, read(), checkpoint=file), other(XS))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(isouq.map_batches(other, read(), checkpoint=file), other(XS))
    with pytest.raises(ValueError, match=r"has 4 batches of 50 rows, and batches gave 1 of 16; remove the file"):
        isouq.map_batches(other, [XS[:16]], checkpoint=file)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (1.0, r"batch 0: score\(batch\) is a scalar; expected a leading batch axis"),
        (None, r"batch 0: score\(batch\) is empty; expected an array"),
        (np.full(50, "a"), r"batch 0: score\(batch\) holds an array of <U1; expected JAX or NumPy arrays of numbers"),
        (np.zeros(3), "batch 0: score returned 3 rows for 50 inputs; let it return one for each input"),
    ],
)
def test_a_wrong_score_is_said_in_one_line(result, message):
    with pytest.raises(ValueError, match=message):
        isouq.map_batches(lambda xs: result, [XS])


def test_scores_that_are_nan_or_infinite_go_on_too(tmp_path):
    def score(xs):
        return np.where(xs[:, :2] > 0, np.inf, -np.inf), np.full(len(xs), np.nan)

    for _ in range(2):
        infinite, missing = isouq.map_batches(score, read(), checkpoint=tmp_path / "scores.npz")
        np.testing.assert_array_equal(infinite, score(XS)[0])
        assert np.isnan(missing).all()


def test_lists_of_numbers_are_batches():
    check(isouq.map_batches(single, [XS[:20].tolist(), XS[20:].tolist()]), single(XS))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "batches is empty; expected at least one batch"),
        (XS, r"batches is shape \(50, 3\); expected an iterable of batches"),
        (3, "batches is a int; expected an iterable of batches"),
        ([XS, XS * np.nan], r"batch 1: xs holds 150 NaN or infinite values"),
        ([XS, XS[:, :2]], r"batch 1: predict\(params, x\) failed"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(batches, message):
    with pytest.raises(ValueError, match=message):
        isouq.map_batches(single, batches)
