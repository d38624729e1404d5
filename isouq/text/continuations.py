"""Read answers with a language model: log p and entropy at every token, by forward passes alone.

A prompt with several answers is read once, into a cache of keys and values from which all its answers go on.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isouq import _checks
from isouq.text import language_model
from isouq.text._batches import batches_by_length, pad, round_up
from isouq.text.generation import gather, read_prompts
from isouq.text.language_model import LanguageModel
from isouq.text.models import decoder
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.prompts import Row, encode_pairs, encode_prompt

BY_LENGTH = ("dynamic", "longrope")  # rotary variants that turn every token by the length of the whole sequence


class Reading(NamedTuple):
    """An answer of T tokens, read and not generated.

    log_p: log p of each token given the prompt and those before it, `[T]`. entropy: of the distribution that the token
    comes from, `[T]`, nats, between 0 and log V. num_tokens: T. Both arrays are float64, from float32 logits.
    """

    log_p: np.ndarray
    entropy: np.ndarray
    num_tokens: int


class _Group(NamedTuple):
    """Answers to one prompt. prefix: tokens that all share and no answer is scored on. members: numbers of rows.

    total: tokens of the sequence, as far as the rotary variant asks for it.
    """

    prefix: list[int]
    total: int
    members: list[int]


def read(
    model: LanguageModel,
    pairs: Sequence[Any],
    batch_size: int = 8,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[Reading]:
    """Return a Reading of every (prompt, answer) pair, in order.

    Args:
        model: from `load`.
        pairs: as for `isouq.text.score`: a prompt is text or a list of messages, an answer is text or token ids.
            A prompt of several pairs is read once.
        batch_size: prompts, and then answers, at a time; changes no number beyond rounding.
        chat_template_kwargs: as in `isouq.text.score`.

    Raises:
        ValueError: an empty prompt or answer, or a sequence longer than the context; the message has the pair's number.

    Cost: one forward pass over every distinct prompt and one over every answer. Memory: 2 · batch_size caches of
    2 · L · (prompt + answer) · G · K numbers, and a few times batch_size × T × V logits. Where answers change how
    the end of the prompt is split into tokens, only the tokens that all of them have in common are read once.
    """
    pairs = list(pairs)
    _checks.positive_int("batch_size", batch_size)
    rows = encode_pairs(model, pairs, chat_template_kwargs)
    prompts = [encode_prompt(model, prompt, chat_template_kwargs) for prompt, _ in pairs]
    return read_rows(model, prompts, rows, batch_size)


def read_rows(
    model: LanguageModel, prompts: Sequence[Sequence[int]], rows: Sequence[Row], batch_size: int
) -> list[Reading]:
    """Return the Reading of every row, by the tokens of its prompt; rows of equal prompts share what comes before."""
    groups = _group_by_prompt(model, prompts, rows)
    readings: dict[int, Reading] = {}
    lengths = [len(group.prefix) for group in groups]
    size = min(batch_size, round_up(len(groups), 1, 1))  # a power of two, so that few programs are compiled
    for indices, filled in batches_by_length(lengths, size):
        prefixes, totals = [groups[i].prefix for i in filled], [groups[i].total for i in filled]
        cache = read_prompts(model, prefixes, round_up(max(map(len, prefixes)), 4, 16), totals).cache
        readings |= _read_answers(model, rows, [groups[i] for i in indices], cache, min(batch_size, len(rows)))
    return [readings[i] for i in range(len(rows))]


def _group_by_prompt(model: LanguageModel, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[_Group]:
    """Return the rows grouped by the tokens of their prompts.

    A prefix ends before the token whose logits predict the first answer token, so it may be empty.
    """
    members: dict[Any, list[int]] = {}
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        total = max(len(row.ids), model.config.rope.original) if model.config.rope.kind in BY_LENGTH else 0
        members.setdefault((tuple(prompt), total), []).append(i)
    groups = []
    for (prompt, total), numbers in members.items():
        shared = min(rows[i].first for i in numbers) - 1
        groups.append(_Group(list(prompt[:shared]), total, numbers))
    return groups


def _read_answers(
    model: LanguageModel, rows: Sequence[Row], groups: Sequence[_Group], cache: decoder.Cache, batch_size: int
) -> dict[int, Reading]:
    """Return the readings of the members of the groups, by number. cache: a row for the prefix of each group."""
    members = [i for group in groups for i in group.members]
    group_of = [g for g, group in enumerate(groups) for _ in group.members]
    starts = np.array([len(group.prefix) for group in groups], np.int32)[group_of]
    totals = np.array([group.total for group in groups], np.int32)[group_of]
    tails = [rows[i].ids[start:] for i, start in zip(members, starts, strict=True)]
    readings = {}
    for indices, filled in batches_by_length([len(tail) for tail in tails], batch_size):
        width = round_up(len(tails[indices[-1]]) - 1, 2, 8)
        ids, targets = pad([tails[i][:-1] for i in filled], width), pad([tails[i][1:] for i in filled], width)
        prefixes = gather(cache, [group_of[i] for i in filled])
        results = _extend(model.config, model.params, prefixes, starts[filled], ids, targets, totals[filled])
        for i, log_p, entropy in zip(indices, *(np.asarray(array, np.float64) for array in results), strict=False):
            row, stop = rows[members[i]], len(tails[i]) - 1
            answer = slice(stop - (len(row.ids) - row.first), stop)
            readings[members[i]] = Reading(log_p[answer], entropy[answer], len(row.ids) - row.first)
    return readings


@functools.partial(jax.jit, static_argnums=0)
def _extend(
    config: DecoderConfig,
    params: Any,
    cache: decoder.Cache,
    starts: Int[Array, " B"],
    ids: Int[Array, "B A"],
    targets: Int[Array, "B A"],
    totals: Int[Array, " B"],
) -> tuple[Float[Array, "B A"], Float[Array, "B A"]]:
    """Return log p of every target after the tokens before it, and the entropy of the distribution that it comes from.

    cache: keys and values of the prefixes, each leaf `[B, L, G, S, K]`. starts: the number of tokens in each prefix.
    """
    model = language_model.module(config, params)

    def one(cache: decoder.Cache, start: Array, ids: Array, targets: Array, total: Array) -> tuple[Array, Array]:
        room = ((0, 0), (0, 0), (0, ids.shape[0]), (0, 0))
        hidden, _ = model.extend(ids, decoder.Cache(*(jnp.pad(leaf, room) for leaf in cache)), start, total)
        log_p = jax.nn.log_softmax(model.logits(hidden))
        return log_p[jnp.arange(ids.shape[0]), targets], -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    return jax.vmap(one)(cache, starts, ids, targets, totals)
