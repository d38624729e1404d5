"""A cell that was killed goes on from its checkpoint and ends with the same numbers, and does not begin anew."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.answers.inputs import load_questions
from experiments.answers.measure import answers, scores, traces
from experiments.answers.study import QaCell
from experiments.answers.tiny_model import tiny_model
from experiments.domains import training as _training
from experiments.domains.training import fit
from experiments.run.partial import Partial


class Killed(BaseException):
    """In place of kill -9."""


def dying(at):
    """A progress function that ends the process, so to speak, at the call number `at`."""
    calls = []

    def progress(share):
        calls.append(share)
        if len(calls) == at:
            raise Killed

    return progress, calls


# steps by name


def test_steps_are_kept_and_not_done_again(tmp_path):
    path = tmp_path / "a.part.npz"
    values = {"rows": [1.5, float("-inf"), None], "text": "é"}
    assert Partial(path, "mark", 1e-9).step("a", lambda: values) == values
    assert Partial(path, "mark").step("a", lambda: pytest.fail("done again")) == values
    assert Partial(path, "mark").get("b", 3) == 3
    with pytest.warns(UserWarning, match=r"a\.part\.npz belongs to another run"):
        assert Partial(path, "other").get("a", None) is None
    path.write_bytes((tmp_path / "a.part.npz.unused").read_bytes()[:-30])
    with pytest.warns(UserWarning, match=r"a\.part\.npz is damaged"):
        assert Partial(path, "mark").get("a", None) is None


def test_what_is_kept_is_what_a_fresh_step_gives():
    assert Partial().step("a", lambda: {1: (1, np.float64(0.1))}) == {"1": [1, 0.1]}


# fine-tuning


def predict(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


PREDICT = jax.tree_util.Partial(predict)
SETTINGS = {"seed": 3, "rate": 0.05, "epochs": 6, "patience": 6}


def task():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(80, 3)).astype(np.float32)
    ys = (xs[:, 0] * xs[:, 1] > 0).astype(np.int32)
    keys = jax.random.split(jax.random.key(0))
    params = {"w": jax.random.normal(keys[0], (3, 8)), "v": jax.random.normal(keys[1], (8, 1))}
    return params, (xs[:64], ys[:64]), (xs[64:], ys[64:])


def tuned(checkpoint=None, progress=None, **changed):
    return fit(PREDICT, *task(), **{**SETTINGS, **changed}, progress=progress, checkpoint=checkpoint,
               checkpoint_seconds=1e-9)  # fmt: skip


def same(one, other):
    assert one[1:] == other[1:]
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize("at", [1, 2, 5, 8])  # steps; two an epoch
def test_fine_tuning_goes_on_step_by_step(tmp_path, at):
    whole, path = tuned(), tmp_path / "a.part.npz"
    progress, _ = dying(at)
    with pytest.raises(Killed):
        tuned(path, progress)
    left = []
    resumed = tuned(path, left.append)
    same(resumed, whole)
    assert len(left) == 2 * len(whole.train) - at
    same(tuned(path, pytest.fail), whole)  # killed after the last step


def test_fine_tuning_does_not_take_another_run_s_checkpoint(tmp_path):
    path = tmp_path / "a.part.npz"
    progress, _ = dying(3)
    with pytest.raises(Killed):
        tuned(path, progress)
    with pytest.warns(UserWarning, match="belongs to another run"):
        same(tuned(path, seed=4), tuned(seed=4))


def test_early_stopping_is_the_same(tmp_path):
    whole = tuned(rate=2.0, patience=1, epochs=12)
    assert len(whole.train) < 12
    path = tmp_path / "a.part.npz"
    progress, _ = dying(2 * len(whole.train))
    with pytest.raises(Killed):
        tuned(path, progress, rate=2.0, patience=1, epochs=12)
    same(tuned(path, pytest.fail, rate=2.0, patience=1, epochs=12), whole)


def test_losses_are_those_of_the_steps():
    """Against the plain loop without any checkpoint."""
    params, (xs, ys), validation = task()
    state, losses = _training._optimiser(SETTINGS["rate"], 1).init(params), []
    averages = [_training._loss(PREDICT, params, *validation)]
    for rows in np.random.default_rng(SETTINGS["seed"]).permutation(64).reshape(2, 32):
        params, state, loss = _training._step(PREDICT, params, state, xs[rows], ys[rows], SETTINGS["rate"], 1)
        losses.append(loss)
    averages.append(_training._loss(PREDICT, params, *validation))
    found = tuned(epochs=1)
    assert found.train == [pytest.approx(np.mean(losses))]
    assert found.validation == averages
    assert found.best == int(np.argmin(averages))


# questions


@pytest.mark.slow
def test_questions_go_on_batch_by_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "GREEDY_BATCH", 2)
    monkeypatch.setattr(answers, "SAMPLES_BATCH", 2)
    questions = load_questions("sample_trivia")
    cell = QaCell("tiny", "sample_trivia", "alias", None, questions.digest, 0, 3, samples=2, max_new_tokens=4)
    model, items, path = tiny_model(), questions.items[:3], tmp_path / "a.part.npz"
    whole = answers.answer(cell, model, items, lambda share: None)
    progress, _ = dying(4)  # two greedy batches, and two of three of the samples
    with pytest.raises(Killed):
        answers.answer(cell, model, items, progress, Partial(path, "m", 1e-9))
    left = []
    assert answers.answer(cell, model, items, left.append, Partial(path, "m", 1e-9)) == whole
    assert len(left) == 1
    answered = whole.numbers["questions"]
    for module, name, study in ((scores, "score", scores.score_answers), (traces, "trace", traces.trace_answers)):
        done, plain = [], getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, plain=plain, done=done, **b: (done.append(1), plain(*a, **b))[1])
        mine, path = replace(cell, study=f"{name}s".replace("traces", "trace"), start=1), tmp_path / f"{name}.part.npz"
        fresh = study(mine, model, items, answered, lambda share: None)
        calls = len(done)
        with pytest.raises(Killed):
            study(mine, model, items, answered, dying(2)[0], Partial(path, "m", 1e-9))
        before = len(done)
        resumed = study(mine, model, items, answered, lambda share: None, Partial(path, "m", 1e-9))
        assert len(done) - before == calls - (before - calls) > 0
        assert json.dumps(resumed.numbers) == json.dumps(fresh.numbers)
        for key, values in fresh.arrays.items():
            np.testing.assert_array_equal(resumed.arrays[key], values)
