"""What a language model thinks of given answers: log p and entropy at every token, by forward passes alone.

Answers to one prompt share its reading: the prompt goes once into a cache of keys and values, and every answer is
read against it.
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
from isouq.text.generation import gather, read_prompts
from isouq.text.language_model import LanguageModel
from isouq.text.models import decoder
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.prompts import Row, encode_pairs, encode_prompt
from isouq.text.scoring import round_up

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
    """A Reading of every (prompt, answer) pair, in order.

    Args:
        model: from `load`.
        pairs: as for `isouq.text.score`: a prompt is text or a list of messages, an answer is text or token ids.
            Pairs with equal prompts share one reading of it, wherever they stand.
        batch_size: prompts, and then answers, at a time; changes no number beyond rounding.
        chat_template_kwargs: as in `isouq.text.score`.

    Raises:
        ValueError: an empty prompt or answer, or a sequence longer than the context; the message has the pair's number.

    Cost: one forward pass over every distinct prompt and one over every answer. Memory: 2 · batch_size caches of
    2 · L · (prompt + answer) · G · K numbers, and a few times batch_size × T × V logits. Where the answer changes how
    the prompt's last token is cut, answers share what is common.
    """
    pairs = list(pairs)
    _checks.positive_int("batch_size", batch_size)
    rows = encode_pairs(model, pairs, chat_template_kwargs)
    prompts = [encode_prompt(model, prompt, chat_template_kwargs) for prompt, _ in pairs]
    groups = _grouped(model, prompts, rows)
    readings: dict[int, Reading] = {}
    size = min(batch_size, len(groups))
    for start in range(0, len(groups), size):
        batch = groups[start : start + size]
        prefixes = (batch + batch[-1:] * size)[:size]
        width = round_up(max(len(group.prefix) for group in batch), 4, 16)
        cache = read_prompts(model, [g.prefix for g in prefixes], width, [g.total for g in prefixes]).cache
        readings |= _read_answers(model, rows, batch, cache, min(batch_size, len(rows)))
    return [readings[i] for i in range(len(rows))]


def _grouped(model: LanguageModel, prompts: Sequence[list[int]], rows: Sequence[Row]) -> list[_Group]:
    """The rows by their prompts' tokens, short prompts first.

    A prefix ends before the token whose logits predict the first answer token: it may be empty.
    """
    members: dict[Any, list[int]] = {}
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        total = max(len(row.ids), model.config.rope.original) if model.config.rope.kind in BY_LENGTH else 0
        members.setdefault((tuple(prompt), total), []).append(i)
    groups = []
    for (prompt, total), numbers in members.items():
        shared = min(rows[i].first for i in numbers) - 1
        groups.append(_Group(list(prompt[:shared]), total, numbers))
    return sorted(groups, key=lambda group: len(group.prefix))


def _read_answers(
    model: LanguageModel, rows: Sequence[Row], groups: Sequence[_Group], cache: decoder.Cache, batch_size: int
) -> dict[int, Reading]:
    """The readings of these groups' members, by number. cache: of the groups' prefixes, in their order."""
    members = [(i, g) for g, group in enumerate(groups) for i in group.members]
    members.sort(key=lambda member: len(rows[member[0]].ids) - len(groups[member[1]].prefix))
    readings = {}
    for start in range(0, len(members), batch_size):
        part = members[start : start + batch_size]
        filled = (part + part[-1:] * batch_size)[:batch_size]
        own = gather(cache, [g for _, g in filled])
        starts = np.array([len(groups[g].prefix) for _, g in filled], np.int32)
        ids, targets = _pad([rows[i].ids[s:] for (i, _), s in zip(filled, starts, strict=True)])
        totals = np.array([groups[g].total for _, g in filled], np.int32)
        log_p, entropy = map(np.asarray, _extend(model.config, model.params, own, starts, ids, targets, totals))
        for j, (i, _) in enumerate(part):
            answer = slice(rows[i].first - 1 - starts[j], len(rows[i].ids) - 1 - starts[j])
            each = log_p[j, answer].astype(np.float64), entropy[j, answer].astype(np.float64)
            readings[i] = Reading(*each, len(each[0]))
    return readings


def _pad(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(ids, targets), each `[B, A]`: every token but the last, and the one that follows each."""
    size = round_up(max(len(sequence) for sequence in sequences) - 1, 2, 8)
    ids = np.zeros((len(sequences), size), np.int32)
    targets = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence) - 1] = sequence[:-1]
        targets[row, : len(sequence) - 1] = sequence[1:]
    return ids, targets


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
    """Log p of every target after the tokens before it, and the entropy of the distribution it is drawn from.

    cache: of the prefixes, each leaf `[B, L, S, G, K]`; starts: how many of its places are filled.
    """
    model = language_model.module(config, params)

    def one(cache: decoder.Cache, start: Array, ids: Array, targets: Array, total: Array) -> tuple[Array, Array]:
        room = ((0, 0), (0, ids.shape[0]), (0, 0), (0, 0))
        hidden, _ = model.extend(ids, decoder.Cache(*(jnp.pad(leaf, room) for leaf in cache)), start, total)
        log_p = jax.nn.log_softmax(model.logits(hidden))
        return log_p[jnp.arange(ids.shape[0]), targets], -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)

    return jax.vmap(one)(cache, starts, ids, targets, totals)
