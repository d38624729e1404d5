"""What scores read from inside a model: gradients of its output layer and hidden states, the states, and attention."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isouq.text import language_model
from isouq.text._batches import batches_by_length, pad, round_up
from isouq.text.language_model import LanguageModel
from isouq.text.models.decoder import Block
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.prompts import Row
from isouq.text.scores.gradients import upper_layers
from isouq.text.scoring import pad_rows


def head_gradients(model: LanguageModel, rows: Sequence[Row], batch_size: int) -> list[np.ndarray]:
    """Return for every row the mean |∇ Σ_t ω_t log p_t| by the output layer: with ω 1, and with entropies, `[2]`.

    Where the output layer is the transposed embedding, that is its use as the output layer alone.
    Memory: one gradient of the output layer, `[D, V]`, beside the forward pass of a batch.
    """
    return _of_rows(model, rows, batch_size, _head_gradients)


def state_gradients(model: LanguageModel, rows: Sequence[Row], position: int, batch_size: int) -> list[float]:
    """Return for every row the mean |∇ Σ_t ω_t log p_t| by the hidden states at one position of the prompt.

    ω are entropies; position: −1 for the last token of the prompt, −2 for the one before it; the states are those
    after `upper_layers`. Raises ValueError with the row's number where a prompt is too short.
    """
    check_prompts(rows, position)
    upper_layers(model.config.num_layers)
    gradients = functools.partial(_state_gradients, position=position)
    return [float(value) for value in _of_rows(model, rows, batch_size, gradients)]


def check_position(position: Any) -> None:
    """Raise unless the position is a whole number below 0."""
    if isinstance(position, bool) or not isinstance(position, (int, np.integer)) or position >= 0:
        raise ValueError(f"position is {position!r}; expected -1 for the prompt's last token, -2 for the one before, …")


def check_prompts(rows: Sequence[Row], position: int) -> None:
    """Raise, with the row's number, unless every prompt has a token at the position."""
    check_position(position)
    short = next((i for i, row in enumerate(rows) if row.first + position < 0), None)
    if short is not None:
        raise ValueError(f"pair {short}: the prompt has {rows[short].first} tokens; position is {position}")


def alternatives(
    model: LanguageModel, rows: Sequence[Row], count: int, batch_size: int
) -> list[list[tuple[list[int], np.ndarray]]]:
    """Return for every token of every row (ids, log p) of that token and of the likeliest others, `count` together."""
    likeliest = functools.partial(_likeliest, count=min(count, model.config.vocab_size))
    words = []
    for row, each in zip(rows, _of_rows(model, rows, batch_size, likeliest), strict=True):
        own, ids, log_p = (values[: len(row.ids) - row.first] for values in each)
        tokens = row.ids[row.first :].tolist()
        words.append([_own_first(*one) for one in zip(tokens, own, ids, log_p.astype(float), strict=True)])
    return words


def _own_first(token: int, own: Any, ids: np.ndarray, log_p: np.ndarray) -> tuple[list[int], np.ndarray]:
    others = np.flatnonzero(ids != token)[: len(ids) - 1]
    return [token, *ids[others].tolist()], np.array([float(own), *log_p[others]])


def attention_to_previous(
    model: LanguageModel, rows: Sequence[Row], layers: range, batch_size: int
) -> list[Float[np.ndarray, "layers heads _"]]:
    """Return for every row the attention to answer token t − 1 where answer token t is predicted, t = 2 … T.

    That is the weight which the position of token t − 1, whose logits predict token t, gives to itself.
    """
    attention = _of_rows(model, rows, batch_size, _attention)
    first, stop = layers.start, layers.stop
    return [weights[first:stop, :, 1 : len(row.ids) - row.first] for row, weights in zip(rows, attention, strict=True)]


def last_states(model: LanguageModel, ids: Sequence[Any], layer: int, batch_size: int) -> Float[np.ndarray, "n D"]:
    """Return the hidden state after so many layers at the last token of each sequence."""
    states = _states(model, ids, 1, range(layer, layer + 1), batch_size)
    return states[:, 0, 0]


def prompt_states(
    model: LanguageModel, ids: Sequence[Any], positions: int, batch_size: int
) -> Float[np.ndarray, "n positions layers D"]:
    """Return the hidden states after `upper_layers` at the last positions of each sequence, the last one last."""
    return _states(model, ids, positions, upper_layers(model.config.num_layers), batch_size)


def _of_rows(model: LanguageModel, rows: Sequence[Row], batch_size: int, function: Callable[..., Any]) -> list[Any]:
    """Return the value of a function of config, parameters and padded rows for every row."""
    lengths = [(len(row.ids), len(row.ids) - row.first) for row in rows]

    def of_batch(numbers: Sequence[int]) -> Any:
        return function(model.config, model.params, *pad_rows([rows[i] for i in numbers]))

    return _by_batches(lengths, batch_size, of_batch)


def _by_batches(lengths: Sequence[Any], batch_size: int, function: Callable[[Sequence[int]], Any]) -> list[Any]:
    """Return the value of every sequence, by a function from the numbers of a batch to the values of the batch."""
    values: dict[int, Any] = {}
    for numbers, filled in batches_by_length(lengths, min(batch_size, len(lengths))):
        batch = jax.tree.map(np.asarray, function(filled))
        values |= {i: jax.tree.map(lambda leaf, j=j: leaf[j], batch) for j, i in enumerate(numbers)}
    return [values[i] for i in range(len(lengths))]


def _states(model: LanguageModel, ids: Sequence[Any], positions: int, layers: range, batch_size: int) -> np.ndarray:
    """Return the hidden states after some layers at the last positions of each sequence, float64."""

    def of_batch(numbers: Sequence[int]) -> Array:
        lengths = np.array([len(ids[i]) for i in numbers], np.int32)
        width = round_up(int(lengths.max()), 4, 16)
        at = lengths[:, None] - np.arange(positions, 0, -1)[None, :]
        return _states_at(model.config, layers, model.params, pad([ids[i] for i in numbers], width), lengths, at)

    return np.stack(_by_batches([len(one) for one in ids], batch_size, of_batch)).astype(np.float64)


def _slice(layers: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[start:stop], layers)


def _token_log_p(logits: Array, targets: Array, at: Array) -> tuple[Array, Array]:
    """Return log p and entropy of the targets, both 0 beyond the answer."""
    log_p = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0]
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
    return jnp.where(at >= 0, own, 0), jnp.where(at >= 0, entropy, 0)


@functools.partial(jax.jit, static_argnums=0)
def _head_gradients(
    config: DecoderConfig,
    params: Any,
    ids: Int[Array, "B T"],
    length: Int[Array, " B"],
    at: Int[Array, "B A"],
    targets: Int[Array, "B A"],
) -> Float[Array, "B 2"]:
    decoder = language_model.module(config, params)
    weights = params["embed"]["embedding"] if config.tied else params["head"]["kernel"]

    def hidden(ids: Array, length: Array, at: Array) -> Array:
        return decoder.hidden(ids, length)[jnp.maximum(at, 0)]

    def sizes(row: tuple[Array, Array, Array]) -> Array:
        states, at, targets = row
        # By the matrix as it is stored: the gradient of its transpose would be copied, which takes longest.
        logits, pull = jax.vjp(lambda weights: decoder.logits(states, weights.T if config.tied else weights), weights)

        def total(logits: Array, weigh: bool) -> Array:
            log_p, entropy = _token_log_p(logits, targets, at)
            return jnp.sum(log_p * jax.lax.stop_gradient(entropy)) if weigh else jnp.sum(log_p)

        gradients = (pull(jax.grad(total)(logits, weigh))[0] for weigh in (False, True))
        return jnp.stack([jnp.mean(jnp.abs(one), dtype=jnp.float32) for one in gradients])

    return jax.lax.map(sizes, (jax.vmap(hidden)(ids, length, at), at, targets))


@functools.partial(jax.jit, static_argnums=0, static_argnames="position")
def _state_gradients(
    config: DecoderConfig,
    params: Any,
    ids: Int[Array, "B T"],
    length: Int[Array, " B"],
    at: Int[Array, "B A"],
    targets: Int[Array, "B A"],
    position: int,
) -> Float[Array, " B"]:
    """Return the mean absolute derivatives by a shift of each state, at a shift of 0."""
    decoder, layers = language_model.module(config, params), params["layers"]
    numbers = upper_layers(config.num_layers)

    def size(ids: Array, length: Array, at: Array, targets: Array) -> Array:
        where = at[0] + 1 + position  # the first answer token is predicted at at[0], the prompt's last token

        def total(shifts: Array) -> Array:
            x, before = decoder.embed_tokens(ids), 0
            for shift, number in zip(shifts, numbers, strict=True):
                x = decoder.run(x, slice(before, number), _slice(layers, before, number), length)
                x, before = x.at[where].add(shift.astype(x.dtype)), number
            x = decoder.run(x, slice(before, config.num_layers), _slice(layers, before, config.num_layers), length)
            logits = decoder.logits(decoder.norm(x[jnp.maximum(at, 0)]))
            log_p, entropy = _token_log_p(logits, targets, at)
            return jnp.sum(log_p * jax.lax.stop_gradient(entropy))

        return jnp.mean(jnp.abs(jax.grad(total)(jnp.zeros((len(numbers), config.hidden_size), jnp.float32))))

    return jax.vmap(size)(ids, length, at, targets)


@functools.partial(jax.jit, static_argnums=0, static_argnames="count")
def _likeliest(
    config: DecoderConfig,
    params: Any,
    ids: Int[Array, "B T"],
    length: Int[Array, " B"],
    at: Int[Array, "B A"],
    targets: Int[Array, "B A"],
    count: int,
) -> tuple[Float[Array, "B A"], Int[Array, "B A count"], Float[Array, "B A count"]]:
    """Return log p of the targets, and the likeliest tokens with their log p."""
    decoder = language_model.module(config, params)

    def one(ids: Array, length: Array, at: Array, targets: Array) -> tuple[Array, Array, Array]:
        log_p = jax.nn.log_softmax(decoder.logits(decoder.hidden(ids, length)[jnp.maximum(at, 0)]))
        top, tokens = jax.lax.top_k(log_p, count)
        return jnp.take_along_axis(log_p, targets[:, None], axis=-1)[:, 0], tokens, top

    return jax.vmap(one)(ids, length, at, targets)


@functools.partial(jax.jit, static_argnums=0)
def _attention(
    config: DecoderConfig,
    params: Any,
    ids: Int[Array, "B T"],
    length: Int[Array, " B"],
    at: Int[Array, "B A"],
    targets: Int[Array, "B A"],
) -> Float[Array, "B L H A"]:
    """Return the attention of the positions `at` to themselves in every layer and head."""
    decoder, layers = language_model.module(config, params), params["layers"]

    def one(ids: Array, length: Array, at: Array) -> Array:
        where = jnp.maximum(at, 0)

        def to_itself(block: Block, _: Array) -> Array:
            return block.attention.weights[...][:, :, where, where].reshape(config.num_heads, -1)

        x = decoder.embed_tokens(ids)
        return decoder.run(x, slice(0, config.num_layers), layers, length, collect=to_itself)[1]

    return jax.vmap(one)(ids, length, at)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _states_at(
    config: DecoderConfig,
    layers: range,
    params: Any,
    ids: Int[Array, "B T"],
    length: Int[Array, " B"],
    at: Int[Array, "B P"],
) -> Float[Array, "B P layers D"]:
    """Return the hidden states after some of the layers, which are counted from 1, at some positions."""
    decoder, layer_params = language_model.module(config, params), params["layers"]
    last = layers.stop - 1

    def one(ids: Array, length: Array, at: Array) -> Array:
        run = decoder.run(
            decoder.embed_tokens(ids), slice(0, last), _slice(layer_params, 0, last), length, collect=lambda _, x: x[at]
        )
        return jnp.swapaxes(run[1][layers.start - 1 :], 0, 1)

    return jax.vmap(one)(ids, length, at)
