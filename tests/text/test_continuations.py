"""Given answers read against a shared prompt: equal to one plain forward pass a pair, whatever they share."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins_text import LONGROPE, write_model

from isouq.text import continuations, generation, load, score
from isouq.text.continuations import read
from isouq.text.prompts import encode_pair

CHAT = [{"role": "user", "content": "abcd"}]
PAIRS = [
    ("the quick ab cab", "mm"),
    ("xa", "bx"),  # "ab" is one token, which spans the seam
    ("xa", "cdefghijklmn"),
    ("the quick ab cab", [30, 7, 9]),
    ("z", "z"),  # nothing stands before the token that the answer follows
    (CHAT, "dc"),
    ("xa", "q"),
    (CHAT, [9]),
    ("the quick ab ca", "bmm"),
    ("the quick ab cab", " c c c"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Mistral that looks five tokens back."""
    folder = tmp_path_factory.mktemp("mistral")
    return load(str(write_model(folder, 3, 0.3, name="MistralForCausalLM", sliding_window=5)))


def plain(model, pair, padding=32):
    """(log p, entropy) of every answer token, from the logits of the whole sequence; padded for one program."""
    row = encode_pair(model, *pair)
    count = len(row.ids)
    logits = model.logits(np.pad(row.ids, (0, max(0, padding - count))))[row.first - 1 : count - 1]
    log_p = np.asarray(jax.nn.log_softmax(logits), np.float64)
    return log_p[np.arange(len(log_p)), row.ids[row.first :]], -np.sum(np.exp(log_p) * log_p, axis=1)


@pytest.mark.parametrize("batch_size", [3, 8])
def test_a_reading_is_what_a_plain_forward_pass_gives(model, batch_size):
    for pair, reading in zip(PAIRS, read(model, PAIRS, batch_size), strict=True):
        log_p, entropy = plain(model, pair)
        np.testing.assert_allclose(reading.log_p, log_p, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(reading.entropy, entropy, rtol=1e-6, atol=1e-5)
        assert reading.num_tokens == len(log_p) == len(reading.entropy)
        assert reading.log_p.dtype == reading.entropy.dtype == np.float64


def test_log_p_is_that_of_scoring(model):
    for reading, log_p in zip(read(model, PAIRS[:4]), score(model, PAIRS[:4]).token_log_p, strict=True):
        np.testing.assert_allclose(reading.log_p, log_p, atol=1e-5)


@pytest.mark.parametrize("rope", [LONGROPE | {"original": 16}, {"rope_type": "dynamic", "factor": 4.0}])
def test_rotations_that_depend_on_the_length(tmp_path, rope):
    """Answers of one prompt on both sides of the length at which every token is turned otherwise."""
    original = dict(original_max_position_embeddings=16, max_position_embeddings=64 if "original" in rope else 16)
    model = load(str(write_model(tmp_path, rope_parameters=rope, **original)))
    pairs = [("z" * 12, "m" * length) for length in (2, 4, 5, 9, 9)]
    for pair, reading in zip(pairs, read(model, pairs), strict=True):
        np.testing.assert_allclose(reading.log_p, plain(model, pair, padding=0)[0], atol=1e-5)


def test_a_prompt_is_read_once(model, monkeypatch):
    seen = []
    prefill = generation._prefill

    def spy(config, places, params, ids, *rest):
        seen.append(ids.shape)
        return prefill(config, places, params, ids, *rest)

    monkeypatch.setattr(generation, "_prefill", spy)
    read(model, [("the quick ab cab", letter * 3) for letter in "mnopqrstuv"], batch_size=4)
    assert seen == [(1, 16)]


def test_programs_are_few(model):
    def read_all(count):
        read(model, [("the quick ab cab"[i:], "mnop"[: 1 + i % 4]) for i in range(count)])

    read_all(8)
    before = continuations._extend._cache_size(), generation._prefill._cache_size()
    read_all(12)
    after = continuations._extend._cache_size(), generation._prefill._cache_size()
    assert np.all(np.subtract(after, before) <= 1)


def test_a_uniform_model_has_the_entropy_of_its_vocabulary(model):
    head = jax.tree.map(jnp.zeros_like, model.params["head"])
    uniform = replace(model, params=model.params | {"head": head})
    for reading in read(uniform, PAIRS):
        np.testing.assert_allclose(reading.entropy, np.log(48), rtol=1e-6)
        np.testing.assert_allclose(reading.log_p, -np.log(48), rtol=1e-6)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], "pairs is empty; expected at least one"),
        (["ab"], "pair 0: 'ab' is not one; expected a prompt and an answer"),
        ([("m", "n"), ("m", "")], "pair 1: the answer is empty"),
        ([("", "b")], "pair 0: the prompt is empty"),
        ([("z" * 60, "m" * 5)], "pair 0: prompt and answer have 65 tokens; the model's context is 64"),
    ],
)
def test_bad_pairs(model, pairs, message):
    with pytest.raises(ValueError, match=message) as error:
        read(model, pairs)
    assert "\n" not in str(error.value)


def test_a_full_context_is_read(model):
    pair = ("z" * 60, "m" * 4)
    np.testing.assert_allclose(read(model, [pair])[0].log_p, plain(model, pair)[0], atol=1e-5)


def test_bad_batch_size(model):
    with pytest.raises(ValueError, match="batch_size is 0; expected"):
        read(model, PAIRS, batch_size=0)
