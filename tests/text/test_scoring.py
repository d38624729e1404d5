"""Scores of answers: against gradients formed in full, what batches and parts of the parameters do, and bad input."""

import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins_text import VOCAB, random_ids, write_model, write_tokenizer

import isouq
from experiments.run.compilations import count_compilations
from isouq.text import language_model, load, parameter_names, score, scoring, shard_over
from isouq.text._batches import round_up
from isouq.text.prompts import encode_pair
from isouq.text.scoring import Scores

PAIRS = [("abcd", [5, 6, 7, 30]), ("z", [9, 30, 31]), ("the cab", [12])]
SIZES = [(3, 2), (5, 1), (9, 8), (12, 3), (13, 7), (4, 5), (1, 8)]
ROWS = [(list(random_ids(a, a)), list(random_ids(b, b))) for a, b in SIZES]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(str(write_model(tmp_path_factory.mktemp("untied"), scale=0.15)))


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    return load(str(write_model(tmp_path_factory.mktemp("tied"), seed=1, scale=0.15, tie_word_embeddings=True)))


def louder(model, factor):
    """The model with its logits multiplied."""
    head = {"kernel": model.params["head"]["kernel"] * factor}
    return replace(model, params=model.params | {"head": head})


def text_of(ids):
    """Prompts are text: one letter for each of random ids."""
    return "".join(chr(97 + int(i) % 26) for i in ids)


def score_ids(model, rows, **kwargs):
    return score(model, [(text_of(prompt), answer) for prompt, answer in rows], **kwargs)


# Against gradients formed in full


@partial(jax.jit, static_argnums=0)
def slow(config, params, ids, weights):
    """(p_r, its gradient, its gradient by the output layer alone): p_r itself, no vmap, no remat, no logarithm.

    weights: of log p of each token after the first in log p_r.
    """

    def probability(params, head):
        logits = jnp.dot(language_model.module(config, params).hidden(ids, remat=False), head)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits)[:-1], ids[1:, None], axis=1)[:, 0]
        return jnp.exp(jnp.sum(log_p * weights))

    head = params["embed"]["embedding"].T if config.tied else params["head"]["kernel"]
    return jax.value_and_grad(probability, argnums=(0, 1))(params, head)


def twin(model, pair, reduction="mean"):
    """(p_r, ‖∂p_r/∂·‖² by parameter name)."""
    row = encode_pair(model, *pair)
    ids = np.zeros(16, np.int32)
    ids[: len(row.ids)] = row.ids
    weights = np.zeros(15, np.float32)
    count = len(row.ids) - row.first
    weights[row.first - 1 :][: 1 if reduction == "first" else count] = 1 / count if reduction == "mean" else 1
    p, (grads, head) = slow(model.config, model.params, ids, weights)
    squares = {}
    for path, leaf in language_model.parameters.flatten(grads):
        rest = path.removeprefix("layers.")
        if rest == path:
            squares[path] = np.sum(np.square(leaf))
        else:
            squares |= {f"layers.{i}.{rest}": np.sum(np.square(one)) for i, one in enumerate(leaf)}
    if model.config.tied:
        both = grads["embed"]["embedding"] + head.T
        squares |= {"embed.embedding": np.sum(np.square(both)), "head.kernel": np.sum(np.square(head))}
    else:
        squares["head.kernel"] = np.sum(np.square(head))
    assert set(squares) == set(parameter_names(model.config))
    return float(p), squares


@pytest.mark.parametrize("reduction", ["mean", "answer", "first"])
def test_scores_equal_the_gradient_of_the_probability(model, reduction):
    scores = score(model, PAIRS, reduction)
    for i, pair in enumerate(PAIRS):
        p, squares = twin(model, pair, reduction)
        np.testing.assert_allclose(scores.probability[i], p, rtol=1e-4)
        np.testing.assert_allclose(scores.epistemic[i], sum(squares.values()), rtol=1e-4)
        np.testing.assert_allclose(scores.aleatoric[i], p * (1 - p), rtol=1e-4)
        assert len(scores.token_log_p[i]) == scores.num_tokens[i] == len(pair[1])


def test_double_precision_says_the_same(model, x64):
    double = load(model.name, dtype=jnp.float64)
    assert {leaf.dtype for leaf in jax.tree.leaves(double.params)} == {jnp.dtype(jnp.float64)}
    np.testing.assert_allclose(score(double, PAIRS).epistemic, score(model, PAIRS).epistemic, rtol=1e-4)


@pytest.mark.parametrize("name", ["model", "tied"])
def test_parts_of_the_parameters_equal_the_masked_gradient(request, name):
    model = request.getfixturevalue(name)
    parts = ["head", "embed"]
    if not model.config.tied:
        parts += ["norm", "layers", r"layers\.1\.attention\.q|norm"]
    found = {}
    for pattern in parts:
        scores = score(model, PAIRS, select=pattern)
        found[pattern] = scores.epistemic
        for i, pair in enumerate(PAIRS[:2]):
            _, squares = twin(model, pair)
            wanted = sum(value for part, value in squares.items() if re.match(pattern, part))
            np.testing.assert_allclose(scores.epistemic[i], wanted, rtol=1e-4)
    if not model.config.tied:
        total = sum(found[pattern] for pattern in ("embed", "head", "norm", "layers"))
        np.testing.assert_allclose(total, score(model, PAIRS).epistemic, rtol=1e-5)


def test_a_tied_model_counts_its_embedding_once_in_both_uses(tied):
    _, squares = twin(tied, PAIRS[0])
    wanted = sum(value for name, value in squares.items() if name != "head.kernel")
    np.testing.assert_allclose(score(tied, PAIRS).epistemic[0], wanted, rtol=1e-4)


def test_the_first_token_is_the_next_token_of_uncertainty(model):
    prompt, answer = PAIRS[0]
    ids = jnp.asarray(model.tokenizer.encode(prompt))[None]
    wanted = isouq.uncertainty(model.predict, model.params, ids, "multiclass", target=jnp.array(answer[:1]))
    scores = score(model, PAIRS, "first")
    np.testing.assert_allclose(scores.epistemic[0], wanted.epistemic[0], rtol=1e-4)
    np.testing.assert_allclose(scores.aleatoric[0], wanted.aleatoric[0], rtol=1e-4)


# Numbers at the ends of their range


@pytest.mark.parametrize(
    ("factor", "least", "most"), [(30.0, 1e-14, 1e-8), (90.0, 1e-36, 1e-22), (300.0, 1e-150, 1e-60)]
)
def test_digits_where_the_model_is_certain(model, factor, least, most):
    loud = louder(model, factor)
    prompt = "abcd"
    ids = jnp.asarray(encode_pair(model, prompt, [7]).ids[:-1])
    hidden = np.asarray(language_model.module(loud.config, loud.params).hidden(ids)[-1], np.float64)
    logits = hidden @ np.asarray(loud.params["head"]["kernel"], np.float64)
    target = int(logits.argmax())
    odds = np.exp(logits - logits[target])
    odds[target] = 0
    assert least < odds.sum() < most  # p rounds to 1 in float32; the square of 1 - p leaves it, and at last 1 - p
    p = odds / (1 + odds.sum())
    p[target] = -p.sum()  # the gradient of log p by the logits, but for the sign
    scores = score(loud, [(prompt, [target])], select="head")
    np.testing.assert_allclose(scores.log_probability, -np.log1p(odds.sum()), rtol=1e-3)
    np.testing.assert_allclose(scores.aleatoric, odds.sum(), rtol=1e-3)
    np.testing.assert_allclose(scores.log_epistemic, np.log((p**2).sum() * (hidden**2).sum()), rtol=1e-4)


def test_long_answers_beyond_a_double_and_a_float(model):
    loud = louder(model, 40.0)
    pair = ("ab", list(random_ids(60)))
    scores = score(loud, [pair], "answer")
    assert scores.log_epistemic[0] < -800
    assert np.isfinite(scores.log_epistemic[0])
    assert np.isfinite(scores.log_aleatoric[0])
    assert scores.epistemic[0] == scores.probability[0] == scores.aleatoric[0] == 0.0
    mean = score(loud, [pair])
    np.testing.assert_allclose(mean.log_probability * 60, scores.log_probability)
    assert mean.epistemic[0] > 0


def test_a_probability_of_one_has_no_aleatoric_part():
    scores = Scores("answer", np.zeros(1), np.full(1, -np.inf), np.ones(1, int), (np.zeros(1),))
    assert scores.log_aleatoric[0] == scores.log_epistemic[0] == -np.inf
    assert scores.aleatoric[0] == scores.epistemic[0] == 0.0


def test_one_backward_pass_serves_two_reductions(model):
    mean, answer = (score(model, PAIRS, reduction) for reduction in ("mean", "answer"))
    for one, other in ((mean.under("answer"), answer), (answer.under("mean"), mean), (mean.under("mean"), mean)):
        assert one.reduction == other.reduction
        np.testing.assert_allclose(one.log_epistemic, other.log_epistemic, rtol=1e-6)
        np.testing.assert_allclose(one.log_aleatoric, other.log_aleatoric, rtol=1e-6)
    with pytest.raises(ValueError, match=r"scores of 'mean' do not give 'first': call score with reduction="):
        mean.under("first")
    with pytest.raises(ValueError, match="scores of 'first' do not give 'mean'"):
        replace(mean, reduction="first").under("mean")
    with pytest.raises(ValueError, match="reduction is 'sum'; expected one of 'mean', 'answer', 'first'"):
        mean.under("sum")


# Batches, padding, programs and devices


def test_neighbours_and_padding_change_nothing_and_programs_are_few(model):
    before = scoring._score._cache_size()
    alone = score_ids(model, ROWS, batch_size=1)
    assert scoring._score._cache_size() - before <= 2  # 16 or 20 tokens are read
    seen = []
    together = score_ids(model, ROWS, batch_size=7, on_batch=seen.append)
    threes = score_ids(model, ROWS, batch_size=3, remat=False)
    assert seen == [7]
    for scores in (together, threes):
        np.testing.assert_allclose(scores.log_epistemic, alone.log_epistemic, atol=1e-5)
        np.testing.assert_array_equal(scores.num_tokens, [b for _, b in SIZES])
        for one, other in zip(scores.token_log_p, alone.token_log_p, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)

    before = scoring._score._cache_size()
    score_ids(model, ROWS[::-1] * 3, batch_size=7)
    score_ids(replace(model, name="the same again"), ROWS, batch_size=7)
    assert scoring._score._cache_size() - before <= 1


def test_one_program_serves_all_reductions(model):
    """A batch of six: no other test compiles for its shape. Values against a twin: see the tests of scores."""
    counts = []
    for reduction in scoring.REDUCTIONS:
        with count_compilations() as count:
            score(model, PAIRS * 2, reduction, batch_size=6)
        counts.append(count.programs)
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_sizes_are_few_and_hold_what_they_must():
    for per_octave, least, count in ((4, 16, 29), (2, 8, 17)):
        sizes = {round_up(n, per_octave, least) for n in range(1, 2049)}
        assert all(n <= round_up(n, per_octave, least) <= max(least, n * (1 + 1 / per_octave)) for n in range(1, 2049))
        assert len(sizes) == count


def test_parameters_split_over_devices(tmp_path, model):
    folder = write_model(tmp_path, scale=0.15)
    mesh = jax.make_mesh((2,), ("model",))
    split = load(str(folder), place=shard_over(mesh))
    kernel = split.params["layers"]["attention"]["q"]["kernel"]
    assert len(kernel.sharding.device_set) == 2
    assert {shard.data.shape for shard in kernel.addressable_shards} in ({(3, 16, 32)}, {(3, 32, 16)})
    np.testing.assert_allclose(score(split, PAIRS).log_epistemic, score(model, PAIRS).log_epistemic, atol=1e-5)


# From text to rows


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    return load(str(write_model(tmp_path_factory.mktemp("bos"), bos=True)))


def row(model, prompt, answer):
    found = encode_pair(model, prompt, answer)
    return list(found.ids), found.first


def test_prompt_and_answer_are_read_together(model, with_bos):
    a, c, d, space, ab, space_c = (model.tokenizer.backend.token_to_id(t) for t in ("a", "c", "d", " ", "ab", " c"))
    assert row(model, "d", "ad") == ([d, a, d], 1)
    assert row(model, "d", [ab, a]) == ([d, ab, a], 1)
    assert row(model, "da", "bd") == ([d, ab, d], 1)  # the prompt's last letter is part of the answer's first token
    assert row(model, "d ", "c") == ([d, space_c], 1)
    assert row(model, "d ", [c]) == ([d, space, c], 2)
    assert row(with_bos, "d", "a") == ([1, d, a], 2)
    assert row(with_bos, "a", "b") == ([1, ab], 1)
    assert row(with_bos, "", "a") == ([1, a], 1)
    with pytest.raises(ValueError, match="the first token spans prompt and answer"):
        encode_pair(model, "a", "b")


@pytest.mark.parametrize("name", ["model", "with_bos"])
def test_chat_has_the_special_tokens_of_its_template_alone(request, name):
    model = request.getfixturevalue(name)
    u, a = (model.tokenizer.backend.token_to_id(t) for t in ("<u>", "<a>"))
    d = model.tokenizer.backend.token_to_id("d")
    messages = [{"role": "user", "content": "d"}]
    assert row(model, messages, "dd") == ([u, d, a, d, d], 3)
    assert row(model, tuple(messages), [d]) == ([u, d, a, d], 3)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("", "a"), "pair 1: the prompt is empty; expected at least one token"),
        (("a", ""), "pair 1: the answer is empty; expected text or token ids"),
        (("a", []), "pair 1: the answer is empty"),
        (("d" * 64, "a"), "pair 1: the prompt has 64 tokens; the model's context is 64"),
        (("d" * 60, "dddddd"), "pair 1: prompt and answer have 66 tokens; the model's context is 64"),
        (("d", [3] * 64), "pair 1: prompt and answer have 65 tokens"),
        (("d", [VOCAB]), "pair 1: the answer is neither text nor token ids below 48"),
        (("d", [-1]), "pair 1: the answer is neither text nor token ids"),
        (("d", [1.5]), "pair 1: the answer is neither text nor token ids"),
        (("d", [True]), "pair 1: the answer is neither text nor token ids"),
        (("d", [[1], [2, 3]]), "pair 1: the answer is neither text nor token ids"),
        (("d", np.array([[1, 2]])), "pair 1: the answer is neither text nor token ids"),
        (("d", None), "pair 1: the answer is neither text nor token ids"),
        (("d", 3), "pair 1: the answer is neither text nor token ids"),
        ((3, "a"), "pair 1: the prompt is a int; expected text or a list of"),
        ((None, "a"), "pair 1: the prompt is a NoneType; expected text or a list of"),
        (([], "a"), r"pair 1: messages is \[\]; expected a list of dictionaries"),
        (({"role": "user", "content": "a"}, "a"), "pair 1: the prompt is a dict; expected text or a list of"),
        (("a", "\ud83d"), "pair 1: .*surrogate"),
        ("abc", "pair 1: .* is not one; expected a prompt and an answer"),
        (("a",), "pair 1: .* is not one; expected a prompt and an answer"),
        ("ab", "pair 1: .* is not one; expected a prompt and an answer"),
        (None, "pair 1: .* is not one; expected a prompt and an answer"),
    ],
)
def test_bad_pairs(model, pair, message):
    with pytest.raises(ValueError, match=message) as error:
        score(model, [("d", "a"), pair])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(pairs=[]), "pairs is empty; expected at least one"),
        (dict(reduction="sum"), "reduction is 'sum'; expected one of 'mean', 'answer', 'first'"),
        (dict(batch_size=0), "batch_size is 0; expected a whole number of at least 1"),
        (dict(select="layer9"), "select is 'layer9', which matches none of embed.embedding, "),
        (dict(select="(norm"), r"select is '\(norm', not a regular expression"),
        (dict(select=r"layers\.9\."), "which matches none of"),
    ],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        score(model, **({"pairs": PAIRS} | kwargs))
    assert "\n" not in str(error.value)


def test_chat_without_a_template(model, tmp_path):
    folder = write_model(tmp_path)
    write_tokenizer(folder, template=None)
    with pytest.raises(ValueError, match="pair 0: this model has no chat template") as error:
        score(load(str(folder)), [([{"role": "user", "content": "a"}], "b")])
    assert "\n" not in str(error.value)
