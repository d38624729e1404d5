"""Traces: every token against a score of its own and against probes; the features against slow definitions."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from twins_text import random_ids, write_model

from isouq.text import Trace, features, language_model, load, score, trace
from isouq.text._trace import LEAST_LOG
from isouq.text.prompts import encode_pair

PROMPT, ANSWER = "the cab", list(random_ids(8, 3))  # up to 16 tokens are read: one program for all


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(write_model(tmp_path_factory.mktemp("tied"), seed=1, scale=0.15, tie_word_embeddings=True)))


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return load(str(write_model(tmp_path_factory.mktemp("untied"), scale=0.15)))


def louder(model, factor):
    """The model with its logits multiplied."""
    return replace(model, params=model.params | {"head": {"kernel": model.params["head"]["kernel"] * factor}})


@partial(jax.jit, static_argnums=0)
def slow(config, params, ids, at, target):
    """(p, ‖∇p‖², entropy) of one token: the gradient of p itself, formed in full."""

    def probability(params):
        logits = language_model.module(config, params)(ids)[at]
        return jax.nn.softmax(logits)[target], logits

    (p, logits), gradient = jax.value_and_grad(probability, has_aux=True)(params)
    q = jax.nn.softmax(logits)
    return p, sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)), -jnp.sum(q * jnp.log(q))


# The exact way


@pytest.mark.parametrize("name", ["model", "untied"])
def test_every_token_equals_the_gradient_formed_in_full(request, name):
    model = request.getfixturevalue(name)
    found = trace(model, PROMPT, ANSWER)
    row = encode_pair(model, PROMPT, ANSWER)
    assert found.ids.tolist() == ANSWER
    for t, token in enumerate(ANSWER):
        p, sq_norm, entropy = slow(model.config, model.params, row.ids, row.first + t - 1, token)
        np.testing.assert_allclose(np.exp(found.log_p[t]), p, rtol=1e-5)
        np.testing.assert_allclose(found.epistemic[t], sq_norm, rtol=1e-4)
        np.testing.assert_allclose(found.committal[t], p * (1 - p), rtol=1e-5)
        np.testing.assert_allclose(found.entropy[t], entropy, rtol=1e-5)
    assert found.relative_error == 0
    assert not found.standard_error.any()


def test_every_token_equals_its_score_as_a_first_token(model):
    prompt, answer = "the c", "dogsends"
    found = trace(model, prompt, answer)
    scores = score(model, [(prompt + answer[:t], letter) for t, letter in enumerate(answer)], "first")
    assert found.pieces == tuple(answer)
    np.testing.assert_allclose(found.log_p, scores.log_probability, rtol=1e-5)
    np.testing.assert_allclose(found.log_grad_sq_norm, scores.log_grad_sq_norm, atol=1e-4)
    np.testing.assert_allclose(found.epistemic, scores.epistemic, rtol=1e-4)
    np.testing.assert_allclose(found.committal, scores.aleatoric, rtol=1e-4)


def test_batches_change_nothing(model):
    whole = trace(model, PROMPT, ANSWER)
    for size in (2, 5):
        found = trace(model, PROMPT, ANSWER, batch_size=size)
        np.testing.assert_allclose(found.log_epistemic, whole.log_epistemic, atol=1e-5)
        np.testing.assert_allclose(found.log_p, whole.log_p, atol=1e-5)
        np.testing.assert_allclose(found.entropy, whole.entropy, atol=1e-5)


def test_text_chat_and_pieces(model):
    assert trace(model, "d", "cab cdefg").pieces == ("c", "ab", " c", "d", "e", "f", "g")
    assert trace(model, [{"role": "user", "content": "d"}], "ddabdddd").pieces == ("d", "d", "ab", "d", "d", "d", "d")


@pytest.mark.parametrize("factor", [30.0, 90.0, 300.0])
def test_digits_where_the_model_is_certain(untied, factor):
    loud = louder(untied, factor)
    ids = encode_pair(loud, "abcd", [7]).ids[:-1]
    target = int(np.argmax(loud.logits(ids)[-1]))
    found, wanted = trace(loud, "abcd", [target]), score(loud, [("abcd", [target])], "first")
    probed = trace(loud, "abcd", [target], num_probes=256, key=jax.random.key(0))
    assert found.committal[0] < 1e-8  # p rounds to 1 in float32
    np.testing.assert_allclose(found.log_p, wanted.log_probability, rtol=1e-3)
    assert np.isfinite(found.log_epistemic[0])
    np.testing.assert_allclose(found.log_epistemic, wanted.log_epistemic, atol=1e-3)
    np.testing.assert_allclose(probed.log_epistemic, found.log_epistemic, atol=4 * probed.relative_error)


def test_a_sequence_across_the_length_that_its_rotation_depends_on(tmp_path):
    scaled = dict(rope_type="longrope", short_factor=[1.0, 1.1, 1.3, 1.6], long_factor=[1.0, 2.0, 4.0, 9.0])
    changes = dict(rope_parameters=scaled | {"rope_theta": 10000.0}, original_max_position_embeddings=16)
    model = load(str(write_model(tmp_path, **changes)))
    assert model.config.rope.kind == "longrope"
    answer = list(random_ids(11, 5))
    found = trace(model, "abcdefg", answer, batch_size=11)
    assert len(encode_pair(model, "abcdefg", answer).ids) > 16  # where the factors change
    np.testing.assert_allclose(found.log_p, score(model, [("abcdefg", answer)]).token_log_p[0], atol=1e-5)


# Probes


def test_probes_agree_within_their_standard_errors(model):
    exact = trace(model, PROMPT, ANSWER)
    probed = trace(model, PROMPT, ANSWER, num_probes=200, key=jax.random.key(1, impl="rbg"))
    assert probed.relative_error == 0.1
    np.testing.assert_allclose(probed.standard_error, 0.1 * probed.epistemic)
    apart = (probed.epistemic - exact.epistemic) / (0.1 * exact.epistemic)
    assert np.abs(apart).max() < 4
    assert 0.2 < np.sqrt(np.mean(apart**2)) < 2.5
    np.testing.assert_allclose(probed.log_p, exact.log_p, atol=1e-5)
    np.testing.assert_allclose(probed.entropy, exact.entropy, atol=1e-5)
    assert probed.pieces == exact.pieces


def test_a_key_decides_the_probes(model):
    one, again, other = (trace(model, PROMPT, ANSWER, 2, jax.random.key(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.log_epistemic, again.log_epistemic)
    assert not np.allclose(one.log_epistemic, other.log_epistemic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "a"), "the prompt is empty; expected at least one token"),
        (("a", ""), "the answer is empty; expected text or token ids"),
        (("d" * 60, "dddddd"), "prompt and answer have 66 tokens; the model's context is 64"),
        (("d", "a", 8), r"num_probes is given and key is missing; give key=jax.random.key\(seed\)"),
        (("d", "a", 0, jax.random.key(0)), "num_probes is 0; expected a whole number of at least 1"),
        (("d", "a", None, None, 0), "batch_size is 0; expected a whole number of at least 1"),
    ],
)
def test_bad_arguments(model, arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        trace(model, *arguments)
    assert "\n" not in str(error.value)


# Features


def of_series(log_p, entropy=None, log_grad=None):
    """A trace with these series."""
    log_p = np.asarray(log_p, np.float64)
    other = np.zeros(len(log_p))
    return Trace(("a",) * len(log_p), other.astype(int), log_p, other if entropy is None else entropy,
                 other if log_grad is None else log_grad)  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9, 40])
def test_features_equal_their_definitions(count):
    rng = np.random.default_rng(count)
    one = of_series(-rng.exponential(size=count), rng.random(count), rng.normal(size=count))
    found = features(one)
    assert len(found) == 4 * 7
    for name in ("epistemic", "committal", "entropy", "log_epistemic"):
        values = getattr(one, name)
        fine = np.repeat(values, 3).reshape(3, -1)  # every token cut in three: thirds of whole pieces
        for part, what in zip(fine, ("early", "middle", "late"), strict=True):
            np.testing.assert_allclose(found[f"{name}_{what}"], part.mean(), rtol=1e-12)
        np.testing.assert_allclose(found[f"{name}_mean"], values.mean())
        assert found[f"{name}_max"] == values.max()
        if count > 1:
            line = scipy.stats.linregress(np.linspace(0, 1, count), values)
            np.testing.assert_allclose(found[f"{name}_slope"], line.slope, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found[f"{name}_r_squared"], line.rvalue**2, rtol=1e-9, atol=1e-12)
        else:
            assert found[f"{name}_slope"] == found[f"{name}_r_squared"] == 0


def test_features_of_a_line_and_of_a_constant():
    line = features(of_series(np.full(6, -1.0), np.linspace(2, 5, 6)))
    assert line["entropy_slope"] == pytest.approx(3)
    assert line["entropy_r_squared"] == pytest.approx(1)
    assert line["epistemic_slope"] == line["epistemic_r_squared"] == 0
    assert line["entropy_early"] + line["entropy_late"] == pytest.approx(2 * line["entropy_middle"])


def test_a_probability_of_one_leaves_features_finite():
    found = features(of_series(np.zeros(3), log_grad=np.array([-np.inf, -np.inf, 1.0])))
    assert found["epistemic_early"] == 0
    assert found["log_epistemic_early"] == LEAST_LOG
    assert all(np.isfinite(value) for value in found.values())
