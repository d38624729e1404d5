"""A decoder of two layers that knows some answers: a language model for tests and smoke runs, no network.

It is trained for seconds on every second built-in question, in the few-shot form that `qa` asks in. Of the others it
knows the words alone, so that it answers some questions right and others wrong.
"""

import json
import string
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.answers.prompts import STYLES, answer_prompt
from experiments.answers.questions import KINDS, SAMPLES, Questions, load_questions
from isouq.text import LanguageModel
from isouq.text.language_model import abstract, module
from isouq.text.loading.tokenizer import Tokenizer
from isouq.text.models import decoder_config, parameters
from isouq.text.models.decoder import empty_cache
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.prompts import encode_pair

TINY = "tiny"  # the name of the model
WORD = r" ?\w+| ?[^\w\s]|\s"  # a token: a word or a sign with the space before it, or a single space or line break
END, UNKNOWN = "<end>", "<unknown>"
CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}{% if add_generation_prompt %}A:{% endif %}"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
BATCH, EPOCHS, RATE = 20, 24, 0.01


@lru_cache(maxsize=1)
def tiny_model() -> LanguageModel:
    """Return the trained model, made once a process; on one machine its parameters are always the same."""
    samples = [load_questions(name) for name in SAMPLES]
    tokenizer = _tokenizer(samples)
    config = decoder_config.from_config(CONFIG | {"vocab_size": tokenizer.vocab_size})
    model = LanguageModel(TINY, config, _random(config), tokenizer)
    return LanguageModel(TINY, config, _train(config, model.params, _lessons(model, samples)), tokenizer)


class _Lesson(NamedTuple):
    """A batch of questions of one kind and their right answers, filled up with 0 to equal shapes.

    shared: the tokens that all prompts begin with, `start` of them. ids: the rest of each prompt and its answer.
    answer: which of ids are to be learnt.
    """

    shared: Int[Array, " P"]
    start: Int[Array, ""]
    ids: Int[Array, "n T"]
    answer: Bool[Array, "n T"]


def _lessons(model: LanguageModel, samples: list[Questions]) -> _Lesson:
    """Return every second question in batches, the lessons along a leading axis."""
    batches = []
    for sample in samples:
        rows = [
            encode_pair(model, answer_prompt(item.question, sample.kind, "few_shot"), f" {item.answers[0]}\n")
            for item in sample.items[::2]
        ]
        start = next(i for i, column in enumerate(zip(*(row.ids for row in rows), strict=False)) if len({*column}) > 1)
        batches += [(start, rows[i : i + BATCH]) for i in range(0, len(rows), BATCH)]
    longest = max(len(row.ids) - start for start, rows in batches for row in rows)
    places = max(start for start, _ in batches)
    lessons = []
    for start, rows in batches:
        shared, ids = np.zeros(places, np.int32), np.zeros((BATCH, longest), np.int32)
        answer = np.zeros(ids.shape, bool)
        shared[:start] = rows[0].ids[:start]
        for i, row in enumerate(rows):
            ids[i, : len(row.ids) - start] = row.ids[start:]
            answer[i, row.first - start : len(row.ids) - start] = True
        lessons.append((shared, np.asarray(start, np.int32), ids, answer))
    return _Lesson(*(jnp.asarray(np.stack(parts)) for parts in zip(*lessons, strict=True)))


def _tokenizer(samples: list[Questions]) -> Tokenizer:
    """Return a tokenizer with a token for every word of the built-in questions, their answers and the prompts."""
    import tokenizers

    texts = [
        text for sample in samples for one in sample.items for text in (one.question, *one.answers, *one.incorrect)
    ]
    texts += [str(answer_prompt("", kind, style)) for kind in KINDS for style in STYLES]
    texts += list(string.ascii_letters + string.digits + string.punctuation)
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(WORD), "isolated")
    words = {word.strip() for text in texts for word, _ in split.pre_tokenize_str(text)} - {""}
    pieces = [UNKNOWN, END, "\n", " ", *(piece for word in sorted(words) for piece in (word, f" {word}"))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = split
    backend.decoder = tokenizers.decoders.Fuse()
    with tempfile.TemporaryDirectory() as folder:
        backend.save(str(Path(folder) / "tokenizer.json"))
        settings = {"unk_token": UNKNOWN, "eos_token": END, "chat_template": CHAT}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(settings))
        return Tokenizer.from_folder(folder)


def _random(config: DecoderConfig) -> Any:
    """Return normal parameters with the variance 1 / inputs; the scales of norms are 1."""
    rng, leaves = np.random.default_rng(0), {}
    for path, leaf in parameters.flatten(abstract(config)):
        inputs = leaf.shape[-1 if path == "embed.embedding" else -2] if leaf.ndim > 1 else 1
        normal = rng.normal(size=leaf.shape) / np.sqrt(inputs)
        leaves[path] = jnp.asarray(np.ones(leaf.shape) if path.endswith("scale") else normal, jnp.float32)
    return parameters.unflatten(leaves)


def _train(config: DecoderConfig, params: Any, lessons: _Lesson) -> Any:
    """Return the parameters after Adam on the mean −log p of the answers' tokens, one lesson a step."""
    steps = EPOCHS * len(lessons.start)
    optimiser = optax.adam(optax.linear_schedule(RATE, 0.0, steps))

    def step(state: tuple[Any, Any], lesson: _Lesson) -> tuple[tuple[Any, Any], None]:
        params, optimised = state
        updates, optimised = optimiser.update(jax.grad(_loss, argnums=1)(config, params, lesson), optimised)
        return (optax.apply_updates(params, updates), optimised), None

    @jax.jit
    def train(params: Any, lessons: _Lesson) -> Any:
        return jax.lax.scan(step, (params, optimiser.init(params)), lessons)[0][0]

    return train(params, jax.tree.map(lambda part: jnp.concatenate([part] * EPOCHS), lessons))


def _loss(config: DecoderConfig, params: Any, lesson: _Lesson) -> Float[Array, ""]:
    """Return the mean −log p. The shared start of the prompts is read once, into a cache that every row continues."""
    decoder = module(config, params)
    length = lesson.shared.size + lesson.ids.shape[1]
    cache = decoder.extend(lesson.shared, empty_cache(config, length, jnp.float32), 0, length)[1]
    hidden = jax.vmap(lambda row: decoder.extend(row, cache, lesson.start, length)[0])(lesson.ids)
    losses = optax.softmax_cross_entropy_with_integer_labels(decoder.logits(hidden[:, :-1]), lesson.ids[:, 1:])
    return jnp.mean(losses, where=lesson.answer[:, 1:])
