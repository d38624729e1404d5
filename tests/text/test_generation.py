"""Generated answers: the cache against recomputation, sampling and its keys, and every way in which an answer ends."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from twins_text import write_model

from isouq.text import _by_layer, generate, generation, load, score

PROMPTS = ["abcd", "z", "the quick ab cab", "mmmm", "ab"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Mistral that looks five tokens back and whose answers nothing ends."""
    folder = write_model(
        tmp_path_factory.mktemp("mistral"), 3, 0.3, name="MistralForCausalLM", sliding_window=5, eos_token_id=None
    )
    found = load(str(folder))
    return replace(found, tokenizer=replace(found.tokenizer, eos_ids=()))


@pytest.fixture(scope="module")
def greedy(model):
    return generate(model, PROMPTS, max_new_tokens=11)


def ending(model, *ids):
    return replace(model, tokenizer=replace(model.tokenizer, eos_ids=ids))


def test_the_cache_gives_what_reading_everything_again_gives(model, greedy):
    for prompt, answer in zip(PROMPTS, greedy, strict=True):
        ids = model.tokenizer.encode(prompt) + answer.ids
        padded = np.array(ids + [0] * (64 - len(ids)), np.int32)  # one program; padding on the right is not seen
        logits = model.logits(padded)[len(ids) - 12 : len(ids) - 1]
        assert answer.ids == jnp.argmax(logits, axis=1).tolist()
        assert len(answer.ids) == 11  # CHUNK does not divide it
        assert not answer.ended
        assert answer.text == model.tokenizer.decode(answer.ids)


def test_log_p_is_that_of_scoring_however_the_answer_was_drawn(model, greedy):
    drawn = generate(model, PROMPTS, 11, temperature=1.7, top_p=0.9, key=jax.random.key(1))
    for answers in (greedy, drawn):
        scores = score(model, [(prompt, answer.ids) for prompt, answer in zip(PROMPTS, answers, strict=True)])
        for answer, log_p in zip(answers, scores.token_log_p, strict=True):
            np.testing.assert_allclose(answer.log_p, log_p, atol=1e-5)


def programs():
    """Return how many programs reading, each layer, choosing and the output layer have."""
    compiled = (generation._prefill, _by_layer._run_layer, generation._choose, generation._logits)
    return np.array([program._cache_size() for program in compiled])


def test_batches_change_nothing_and_programs_are_few(model, greedy):
    before = programs()
    seen = []
    alone = generate(model, PROMPTS, max_new_tokens=11, batch_size=1, on_batch=seen.append)
    assert seen == [1, 2, 3, 4, 5]
    assert np.all(programs() - before <= 3)  # for prompts of 16 and of 20, caches of 24 to 40 places
    threes = generate(model, PROMPTS, max_new_tokens=11, batch_size=3)
    for answers in (alone, threes):
        assert [answer.ids for answer in answers] == [answer.ids for answer in greedy]
        for one, other in zip(answers, greedy, strict=True):
            np.testing.assert_allclose(one.log_p, other.log_p, atol=1e-5)

    before = programs()
    generate(replace(model, name="again"), PROMPTS[::-1], max_new_tokens=11, stop=["zzz"], batch_size=3)
    np.testing.assert_array_equal(programs(), before)


SAMPLINGS = [
    dict(),
    dict(temperature=1.0, key=jax.random.key(2)),
    dict(temperature=1.5, top_p=0.8, key=jax.random.key(2)),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_decoding_by_layer_gives_what_one_program_gives(model, monkeypatch, sampling):
    """The slow twin is `_decode`: a scan over the stacked layers, CHUNK tokens at a time, in a cache of full size."""
    monkeypatch.setattr(generation, "LEAST_PLACES", 16)  # so that the cache grows on the way
    model = ending(model, *generate(model, PROMPTS[:1], 5, **sampling)[0].ids[3:])  # rows end at different tokens
    prompts = PROMPTS * 2
    fast = generate(model, prompts, 30, batch_size=10, **sampling)
    assert len({len(answer.ids) for answer in fast}) > 2
    monkeypatch.setattr(_by_layer, "layer_views", lambda *_: None)
    before = generation._decode._cache_size()
    slow = generate(model, prompts, 30, batch_size=10, **sampling)
    assert generation._decode._cache_size() > before
    for one, other in zip(fast, slow, strict=True):
        assert (one.ids, one.ended) == (other.ids, other.ended)
        np.testing.assert_allclose(one.log_p, other.log_p, atol=1e-5)


def test_both_ways_of_decoding_where_jax_counts_in_64_bits(model, greedy, monkeypatch):
    with jax.enable_x64(True):
        assert [one.ids for one in generate(model, PROMPTS, 11)] == [one.ids for one in greedy]
        monkeypatch.setattr(_by_layer, "layer_views", lambda config, params: None)
        assert [one.ids for one in generate(model, PROMPTS, 11)] == [one.ids for one in greedy]


def test_answers_as_long_as_the_context_allows(model):
    longest = generate(model, PROMPTS, 2**40)
    assert [one.ids for one in longest] == [one.ids for one in generate(model, PROMPTS, 64)]


def test_views_of_layers_take_no_memory_and_are_taken_on_one_cpu_alone(model):
    stack = {"kernel": jnp.arange(3 * 16 * 4.0).reshape(3, 16, 4)}
    layers = _by_layer.layer_views(model.config, {"layers": stack})
    for i, layer in enumerate(layers):
        np.testing.assert_array_equal(layer.params["kernel"], stack["kernel"][i])
        offset = layer.params["kernel"].unsafe_buffer_pointer() - stack["kernel"].unsafe_buffer_pointer()
        assert offset == i * 16 * 4 * 4
    assert len(layers) == model.config.num_layers == 3
    assert _by_layer.layer_views(model.config, {"layers": {"kernel": np.zeros((3, 16, 4))}}) is None


def test_rows_that_go_on_alone_are_decoded_in_a_smaller_batch(model, monkeypatch):
    sizes = []
    run_layer = _by_layer._run_layer

    def spy(config, layer, x, *rest):
        sizes.append(len(x))
        return run_layer(config, layer, x, *rest)

    monkeypatch.setattr(_by_layer, "_run_layer", spy)
    prompts = ["z" * 60] * 3 + ["abcd"] + ["z" * 60] * 4  # the context has room for four tokens of all but one
    answer = generate(model, prompts, 11)[3]
    assert sorted(set(sizes)) == [2, 8]
    assert answer.ids == generate(model, ["abcd"], 11)[0].ids


def test_a_sample_depends_on_its_key_number_and_prompt_alone(model):
    def sample(prompts, seed=0, **kwargs):
        answers = generate(model, prompts, 11, temperature=1.0, key=jax.random.key(seed), **kwargs)
        return [answer.ids for answer in answers]

    first = sample(PROMPTS)
    assert sample(PROMPTS) == first
    assert sample(PROMPTS, batch_size=3) == first
    assert sample(["m", "abba", PROMPTS[2], "q", "ab"])[2] == first[2]
    assert sample(PROMPTS, seed=1) != first
    several = sample(["abcd"] * 4 + [PROMPTS[2]])[:4]
    assert several[0] == first[0]
    assert len(set(map(tuple, several))) == 4


def test_equal_prompts_are_read_once_and_answered_as_if_each_were_alone(model, monkeypatch):
    prompts = ["abcd", "mmmm", "abcd", "z", "mmmm", "abcd", "abcd", "mmmm"]
    kwargs = dict(max_new_tokens=11, temperature=1.0, key=jax.random.key(4))
    alone = generate(model, prompts, batch_size=1, **kwargs)
    seen = []
    prefill = generation._prefill

    def spy(config, places, params, ids, *rest):
        seen.append(len(ids))
        return prefill(config, places, params, ids, *rest)

    monkeypatch.setattr(generation, "_prefill", spy)
    together = generate(model, prompts, **kwargs)
    assert seen == [4]  # three prompts, and one again to make a power of two
    generate(model, ["abcd"] * 8, **kwargs)
    assert seen[1:] == [1]
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one.log_p, other.log_p, atol=1e-5)


def test_cold_and_narrow_sampling_is_greedy(model, greedy):
    wanted = [answer.ids for answer in greedy]
    for kwargs in (dict(temperature=1e-4), dict(temperature=1e-45), dict(temperature=1.0, top_p=1e-6)):
        answers = generate(model, PROMPTS, 11, key=jax.random.key(3), **kwargs)
        assert [answer.ids for answer in answers] == wanted


@pytest.mark.parametrize(
    ("temperature", "top_p", "kept"),
    [(1.0, 1.0, 5), (0.7, None, 5), (1.0, 0.75, 2), (1.0, 0.81, 3), (2.0, 0.75, 3), (0.5, 0.3, 1)],
)
def test_draws_have_their_frequencies(temperature, top_p, kept):
    p = np.array([0.04, 0.5, 0.1, 0.3, 0.06])
    draw = jax.jit(jax.vmap(generation._draw, (0, None, None, None)))
    keys = jax.random.split(jax.random.key(0), 20000)
    top_p = None if top_p is None else jnp.float32(top_p)
    tokens = draw(keys, jnp.log(p).astype(jnp.float32), jnp.float32(temperature), top_p)
    wanted = p ** (1 / temperature)
    wanted[np.argsort(-wanted)[kept:]] = 0
    wanted /= wanted.sum()
    found = np.bincount(tokens, minlength=5) / len(keys)
    assert np.all(found[wanted == 0] == 0)
    np.testing.assert_array_less(np.abs(found - wanted), 5 * np.sqrt(wanted * (1 - wanted) / len(keys)) + 1e-9)


def test_an_end_token_ends_and_is_left_out(model, greedy):
    end = greedy[0].ids[9]  # in the second chunk, if it is not there before
    for answer, whole in zip(generate(ending(model, end), PROMPTS, 11), greedy, strict=True):
        wanted = whole.ids[: whole.ids.index(end)] if end in whole.ids else whole.ids
        assert answer.ids == wanted
        assert answer.ended == (end in whole.ids)
        assert len(answer.log_p) == len(wanted)
        np.testing.assert_allclose(answer.log_p, whole.log_p[: len(wanted)], atol=1e-6)
    at_once = generate(ending(model, 0, greedy[0].ids[0]), PROMPTS, 11)[0]
    assert (at_once.ids, at_once.text, at_once.ended, len(at_once.log_p)) == ([], "", True, 0)


def test_a_stop_string_ends_before_it_at_a_whole_token(model, greedy):
    whole = greedy[2]
    for length in (1, 3):
        for start in range(len(whole.text) - length):
            stop = whole.text[start : start + length]
            answer = generate(model, PROMPTS, 11, stop=["never", stop])[2]
            assert answer.ended
            assert stop not in answer.text
            assert answer.text == model.tokenizer.decode(answer.ids)
            assert whole.ids[: len(answer.ids)] == answer.ids
            cut = whole.text.index(stop)
            assert whole.text[:cut].startswith(answer.text)
            assert len(model.tokenizer.decode(whole.ids[: len(answer.ids) + 1])) > cut  # nothing more would fit


def test_the_context_ends_an_answer(model, greedy):
    prompt = "z" * 58
    answer, other = generate(model, [prompt, "abcd"], max_new_tokens=11, batch_size=2)
    assert len(answer.ids) == 6
    assert not answer.ended
    assert other.ids == greedy[0].ids
    assert len(generate(model, ["z" * 63, "abcd"], max_new_tokens=11, batch_size=2)[0].ids) == 1


def test_chat_prompts(model):
    chat = [{"role": "user", "content": "abcd"}]
    answers = generate(model, [chat, "<u>abcd<a>", *PROMPTS[:3]], max_new_tokens=11)
    assert answers[0].ids == answers[1].ids


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(prompts=[]), "prompts is a single text or empty; expected a list with at least one prompt"),
        (dict(prompts="abc"), "prompts is a single text or empty"),
        (dict(prompts=["a", ""]), "prompt 1: the prompt is empty"),
        (dict(prompts=["a", "z" * 64]), "prompt 1: the prompt has 64 tokens; the model's context is 64"),
        (dict(prompts=["a", 3]), "prompt 1: the prompt is a int; expected text or a list of"),
        (dict(max_new_tokens=0), "max_new_tokens is 0; expected a whole number of at least 1"),
        (dict(batch_size=-1), "batch_size is -1; expected"),
        (dict(temperature=-1.0), "temperature is -1.0; expected 0"),
        (dict(temperature=float("nan")), "temperature is nan; expected 0"),
        (dict(temperature=float("inf")), "temperature is inf; expected 0"),
        (dict(temperature=1.0), "temperature is above 0 and key is missing; give key="),
        (dict(top_p=0.0), "top_p is 0.0; expected a number above 0 and up to 1"),
        (dict(top_p=float("nan")), "top_p is nan; expected"),
        (dict(stop="abc"), "stop is 'abc'; expected a list of non-empty strings"),
        (dict(stop=[""]), r"stop is \[''\]; expected a list of non-empty"),
    ],
)
def test_bad_arguments(model, kwargs, message):
    with pytest.raises(ValueError, match=message) as error:
        generate(model, **({"prompts": PROMPTS} | kwargs))
    assert "\n" not in str(error.value)
