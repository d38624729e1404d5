"""Answers of a language model: greedy or sampled, in batches, with a cache of keys and values.

Prompts of different lengths share a batch: each row keeps its own position, and places of the cache beyond it are
masked until they are written. A row's tokens depend on its prompt, its number and the key, not on its neighbours.
Equal prompts in a batch are read once: ten samples of a question cost one reading.
"""

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isouq import _checks
from isouq.text import _by_layer, language_model
from isouq.text._batches import batches_by_length, pad, round_up
from isouq.text.language_model import LanguageModel
from isouq.text.models import decoder
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.prompts import encode_prompt

CHUNK = 8  # tokens between two looks at whether every row has ended, where a token costs a fraction of a look
LEAST_PLACES = 128  # of a cache that grows with the answers, which keeps the programs few
FEWER = 4  # once so many times fewer rows are unfinished, they go on in a batch of their own


class Answer(NamedTuple):
    """A generated answer.

    text: without special tokens. ids: its tokens, without the one that ended it. log_p: log p of each of ids under the
    model (temperature 1, all tokens), `[T]`. ended: whether the model or a stop string ended it, not max_new_tokens.
    """

    text: str
    ids: list[int]
    log_p: np.ndarray
    ended: bool


def generate(
    model: LanguageModel,
    prompts: Sequence[Any],
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: Array | None = None,
    stop: Sequence[str] = (),
    batch_size: int = 8,
    on_batch: Callable[[int], None] | None = None,
    answers: dict[int, Answer] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """Return an answer to every prompt.

    Args:
        model: from `load`.
        prompts: texts, or lists of `{"role": ..., "content": ...}` for the model's chat template.
        max_new_tokens: the largest number of tokens of an answer; fewer where the context ends.
        temperature: 0 (or less than float32 holds) takes the likeliest token, the lowest id among equals; above 0
            samples from p^(1/temperature).
        top_p: sample among the likeliest tokens that together have this probability (Holtzman et al. 2020, arXiv
            1904.09751).
        key: of `jax.random`; needed for sampling. Row i draws from fold_in(key, i): several samples of one prompt are
            the prompt several times in `prompts`.
        stop: strings that end an answer; it is cut before the first, at the last whole token.
        batch_size: prompts at a time.
        on_batch: called with the number of prompts answered so far.
        answers: a dictionary from the number of a prompt to its answer, which is filled batch by batch. If it holds
            the batches of an earlier call with the same arguments, these are not run again, and the results are the
            same: so a long call can be resumed.
        chat_template_kwargs: variables for the chat template of prompts that are messages, such as
            `{"enable_thinking": False}`; see `Tokenizer.chat`.

    Raises:
        ValueError: an empty or too long prompt (the message has its number), a temperature below 0, no key to
            sample with.

    Cost: one forward pass over the distinct prompts of every batch and one per token. Memory: a cache of
    batch_size × 2 · L · (prompt + max_new_tokens) · G · K numbers.
    """
    _check(prompts, max_new_tokens, temperature, top_p, key, stop, batch_size)
    rows = []
    for i, prompt in enumerate(prompts):
        try:
            rows.append(encode_prompt(model, prompt, chat_template_kwargs))
        except ValueError as error:
            raise ValueError(f"prompt {i}: {error}") from None
    key = jax.random.key(0) if key is None else key
    answers = {} if answers is None else answers
    lengths = [(len(row), row) for row in rows]  # the tokens break ties, so that equal prompts share a batch
    for indices, filled in batches_by_length(lengths, min(batch_size, len(rows))):
        if all(i in answers for i in indices):
            continue
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(filled))
        batch = generate_rows(model, [rows[i] for i in filled], keys, max_new_tokens, (temperature, top_p), stop)
        answers.update(zip(indices, batch, strict=False))
        if on_batch:
            on_batch(len(answers))
    return [answers[i] for i in range(len(rows))]


def _check(prompts: Any, max_new_tokens: Any, temperature: float, top_p: float, key: Any, stop: Any, size: Any) -> None:
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError("prompts is a single text or empty; expected a list with at least one prompt")
    check_drawing(max_new_tokens, stop, key)
    _checks.positive_int("batch_size", size)
    if not isinstance(temperature, (int, float, np.floating)) or not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature is {temperature!r}; expected 0 (greedy) or a finite number above 0")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; expected a number above 0 and up to 1")
    if temperature > 0 and key is None:
        raise ValueError("temperature is above 0 and key is missing; give key=jax.random.key(seed)")


def check_drawing(max_new_tokens: Any, stop: Any, key: Any) -> None:
    """Raise unless there may be so many new tokens, `stop` is a list of texts, and `key` is one random key or None."""
    _checks.positive_int("max_new_tokens", max_new_tokens)
    if key is not None:
        _checks.key("key", key)
    if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
        raise ValueError(f"stop is {stop!r}; expected a list of non-empty strings")


class State(NamedTuple):
    """What a batch of B sequences carries from token to token. position: tokens in the cache. logits: of the next."""

    cache: decoder.Cache
    position: Int[Array, " B"]
    logits: Float[Array, "B V"]


def generate_rows(
    model: LanguageModel,
    rows: Sequence[list[int]],
    keys: Array,
    max_new_tokens: int,
    sampling: tuple[float, float],
    stop: Sequence[str],
) -> list[Answer]:
    """Return an answer to each row of token ids, all in one batch. keys: one a row. sampling: (temperature, top_p)."""
    lengths = np.array([len(row) for row in rows], np.int32)
    context = model.config.context_length
    max_new_tokens = min(max_new_tokens, context)
    places = min(round_up(int(lengths.max()) + max_new_tokens + CHUNK, 4, 16), context + CHUNK)
    room = np.minimum(max_new_tokens, context - lengths)
    grown, log_p = [list(row) for row in rows], [np.zeros(0) for _ in rows]
    answers: list[Answer | None] = [None] * len(rows)
    batch = np.arange(len(rows))  # the numbers of the rows that are decoded, the last one repeated to fill up
    steps = _steps(model, rows, keys, sampling, places)
    kept = None
    while any(answer is None for answer in answers):
        more, more_log_p = steps.send(kept)
        kept, read_again = None, False
        for i, at in zip(*np.unique(batch, return_index=True), strict=True):
            if answers[i] is None:
                valid = _tokens_until_rotation(model.config, len(grown[i]), more.shape[1])
                grown[i] += more[at, :valid].tolist()
                log_p[i] = np.concatenate([log_p[i], more_log_p[at, :valid]])
                answers[i] = _end_answer(model, np.array(grown[i][lengths[i] :]), log_p[i], int(room[i]), stop)
                read_again |= valid is not None and answers[i] is None
        size = len(batch) // FEWER
        unfinished = [at for at, i in enumerate(batch) if answers[i] is None]
        if 0 < len(unfinished) <= size:
            kept = np.array(unfinished + unfinished[-1:] * (size - len(unfinished)))
            batch = batch[kept]
        if read_again:
            kept, steps = None, _steps(model, [grown[i] for i in batch], keys[batch], sampling, places)
    return [answer for answer in answers if answer is not None]


Steps = Generator[tuple[np.ndarray, np.ndarray], np.ndarray | None, None]


def _steps(
    model: LanguageModel, rows: Sequence[list[int]], keys: Array, sampling: tuple[float, float], places: int
) -> Steps:
    """Yield (tokens, log p), both `[B, n]`, of the next tokens of every row; go on with the rows that are sent, if any.

    On one CPU a token at a time, by `_by_layer`; elsewhere CHUNK tokens at a time, in one program.
    """
    temperature, top_p = sampling
    greedy = temperature < np.finfo(np.float32).tiny  # float32 would make it 0, and divide by it
    how = "greedy" if greedy else "all" if top_p == 1 else "likeliest"
    layers = _by_layer.layer_views(model.config, model.params)
    if layers is not None:
        return _steps_by_layer(model, layers, how, rows, keys, sampling, places)
    return _steps_by_chunk(model, how, rows, keys, sampling, places)


def _steps_by_chunk(
    model: LanguageModel, how: str, rows: Sequence[list[int]], keys: Array, sampling: tuple[float, float], places: int
) -> Steps:
    state = read_prompts(model, rows, places)
    while True:
        state, tokens, log_p = _decode(model.config, how, model.params, state, keys, *map(jnp.float32, sampling))
        kept = yield np.asarray(tokens), np.asarray(log_p, np.float64)
        if kept is not None:
            state, keys = gather((state, keys), kept)


def _steps_by_layer(
    model: LanguageModel,
    layers: Sequence[_by_layer.Layer],
    how: str,
    rows: Sequence[list[int]],
    keys: Array,
    sampling: tuple[float, float],
    places: int,
) -> Steps:
    """Yield one token of every row at a time, and compute the next once it is asked for, so that none is in vain.

    The cache begins with room for the prompts and LEAST_PLACES / 2 tokens, and doubles whenever it is full.
    """
    length = max(map(len, rows))
    room = min(places, round_up(length + LEAST_PLACES // 2, 1, LEAST_PLACES))
    state = read_prompts(model, rows, room)
    caches, position, logits = _by_layer.unstack(state.cache), state.position, state.logits
    while True:
        token, log_p, x = _choose(model.config, how, model.params, keys, position, logits, *map(jnp.float32, sampling))
        kept = yield np.asarray(token)[:, None], np.asarray(log_p, np.float64)[:, None]
        if kept is not None:
            caches, position, x, keys = gather((caches, position, x, keys), kept)
        if length == room < places:
            room = min(places, 2 * room)
            caches = _by_layer.widen(caches, room)
        x = _by_layer.next_hidden(model.config, layers, x, caches, position)
        position, length = position + 1, length + 1
        logits = _logits(model.config, model.params, x)


def read_prompts(
    model: LanguageModel, rows: Sequence[list[int]], places: int, totals: Sequence[int] | None = None
) -> State:
    """Return the state after each row of tokens, with caches for `places` tokens; equal rows are read once.

    totals: length of the sequence that each row begins, which some rotary variants need; by default that of the row.
    """
    keys = list(zip(map(tuple, rows), totals or map(len, rows), strict=True))
    distinct = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    size = min(round_up(len(distinct), 1, 1), len(rows))  # a power of two, so that few programs are compiled
    filled = list(distinct)
    filled += filled[-1:] * (size - len(filled))
    lengths, sequence_lengths = np.array([(len(row), total) for row, total in filled], np.int32).T
    width = min(round_up(int(lengths.max()), 4, 16), model.config.context_length)
    ids = pad([row for row, _ in filled], width)
    state = _prefill(model.config, places, model.params, ids, lengths, sequence_lengths)
    if len(distinct) == len(rows):
        return state
    return gather(state, [distinct[key] for key in keys])


def gather(tree: Any, rows: Sequence[int] | np.ndarray) -> Any:
    """Return the tree with the rows of these numbers in every leaf."""
    at = np.asarray(rows)
    return jax.tree.map(lambda leaf: jnp.take(leaf, at, axis=0), tree)


def _tokens_until_rotation(config: DecoderConfig, length: int, count: int) -> int | None:
    """Return how many of the next `count` tokens are valid if a longrope model changes its factors there, else None.

    One token beyond the original context all positions are rotated by other factors, and the cache must be computed
    again.
    """
    tokens = config.rope.original + 1 - length
    return tokens if config.rope.kind == "longrope" and 1 <= tokens <= count else None


def _end_answer(
    model: LanguageModel, tokens: np.ndarray, log_p: np.ndarray, room: int, stop: Sequence[str]
) -> Answer | None:
    """Return the answer that the tokens so far make if they end it, else None."""
    tokens = tokens[:room]
    ends = np.flatnonzero(np.isin(tokens, model.tokenizer.eos_ids))
    ids = [int(i) for i in tokens[: ends[0] if len(ends) else None]]
    text = model.tokenizer.decode(ids)
    cut = [text.index(s) for s in stop if s in text]
    if cut:
        while len(model.tokenizer.decode(ids)) > min(cut):
            ids.pop()
        text = model.tokenizer.decode(ids)
    elif not len(ends) and len(tokens) < room:
        return None
    return Answer(text, ids, log_p[: len(ids)], bool(cut or len(ends)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _prefill(
    config: DecoderConfig,
    places: int,
    params: Any,
    ids: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    totals: Int[Array, " B"],
) -> State:
    """Read the prompts at once, padded on the right; tokens that follow overwrite the places of the padding."""
    model = language_model.module(config, params)

    def one(ids: Array, length: Array, total: Array) -> tuple[decoder.Cache, Array]:
        cache = decoder.empty_cache(config, places, jax.tree.leaves(params)[0].dtype)
        hidden, cache = model.extend(ids, cache, 0, total)
        return cache, model.logits(hidden[length - 1])

    cache, logits = jax.vmap(one)(ids, lengths, totals)
    return State(cache, lengths, logits)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _decode(
    config: DecoderConfig, how: str, params: Any, state: State, keys: Array, temperature: Array, top_p: Array
) -> tuple[State, Int[Array, "B chunk"], Float[Array, "B chunk"]]:
    """Return the state after CHUNK further tokens, the tokens and their log p.

    how: "greedy", or a draw from "all" tokens or from the "likeliest".
    """
    model = language_model.module(config, params)

    def one(key: Array, cache: decoder.Cache, position: Array, logits: Array) -> tuple[Any, ...]:
        token, log_p = _next_token(how, key, position, logits, temperature, top_p)
        hidden, cache = model.extend(token[None], cache, position, position + 1)
        return cache, position + 1, model.logits(hidden[0]), token, log_p

    def step(state: State, _: None) -> tuple[State, tuple[Array, Array]]:
        cache, position, logits, token, log_p = jax.vmap(one)(keys, *state)
        return State(cache, position, logits), (token, log_p)

    state, (tokens, log_p) = jax.lax.scan(step, state, length=CHUNK)
    return state, tokens.T, log_p.T


@functools.partial(jax.jit, static_argnums=(0, 1))
def _choose(
    config: DecoderConfig,
    how: str,
    params: Any,
    keys: Array,
    position: Int[Array, " B"],
    logits: Float[Array, "B V"],
    temperature: Array,
    top_p: Array,
) -> tuple[Int[Array, " B"], Float[Array, " B"], Float[Array, "B D"]]:
    """Return the next token of every row, its log p and what enters the first layer for it."""
    model = language_model.module(config, params)

    def one(key: Array, position: Array, logits: Array) -> tuple[Array, Array, Array]:
        token, log_p = _next_token(how, key, position, logits, temperature, top_p)
        return token, log_p, model.embed_tokens(token[None], position)[0]

    return jax.vmap(one)(keys, position, logits)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: DecoderConfig, params: Any, x: Float[Array, "B D"]) -> Float[Array, "B V"]:
    """Return the logits of the next token from the output of the last layer."""
    model = language_model.module(config, params)
    return jax.vmap(lambda row: model.logits(model.norm(row[None])[0]))(x)


def _next_token(
    how: str, key: Array, position: Array, logits: Float[Array, " V"], temperature: Array, top_p: Array
) -> tuple[Int[Array, ""], Float[Array, ""]]:
    """Return the token of one row at this position, and its log p. how: as in `_decode`."""
    if how == "greedy":
        token = jnp.argmax(logits)
    else:
        nucleus = top_p if how == "likeliest" else None
        token = _draw(jax.random.fold_in(key, position), logits, temperature, nucleus)
    return token, jax.nn.log_softmax(logits)[token]


def _draw(key: Array, logits: Float[Array, " V"], temperature: Array, top_p: Array | None) -> Int[Array, ""]:
    """Draw a token at a temperature from the fewest likeliest tokens that have probability top_p (None: all tokens)."""
    logits = logits / temperature
    if top_p is None:  # sorting the vocabulary would take longer than the layers
        return jax.random.categorical(key, logits)
    order = jnp.argsort(-logits)
    p = jax.nn.softmax(logits[order])
    is_likely = jnp.cumsum(p) - p < top_p
    choice = jax.random.categorical(key, jnp.where(is_likely, logits[order], -jnp.inf))
    return order[choice]
