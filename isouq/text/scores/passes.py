"""The passes that measure what scores are computed from; each runs once on a batch of answers, for all scores.

A pass is a function of the inputs and of what earlier passes measured. It returns its quantities, each a list with one
value for every answer (None where an answer has no such value), and what it cost.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array

from isouq.text._batches import batches_by_length
from isouq.text.continuations import read_rows
from isouq.text.entailment import Entailment
from isouq.text.generation import Answer, generate_rows
from isouq.text.language_model import LanguageModel
from isouq.text.prompts import Row, encode_pairs, encode_prompt
from isouq.text.scores import _inside
from isouq.text.scores.likelihood import joint_relation, middle_layers
from isouq.text.scores.meanings import clusters_by_entailment
from isouq.text.scores.similarity import Similarity, jaccard, measure
from isouq.text.scores.truth import p_true, p_true_prompt
from isouq.text.scoring import score_rows

NUM_ALTERNATIVES = 10
SAMPLE_BATCHES = 4  # so many times batch_size samples are drawn together at most: they need no backward pass
Values = dict[str, list[Any]]


class Cost(NamedTuple):
    """What a pass cost.

    forward, backward: sequences that the model read that way. tokens: that it generated one by one. encoder: distinct
    pairs of texts that another encoder compared. seconds: with the compilation of programs.
    """

    forward: int = 0
    backward: int = 0
    tokens: int = 0
    encoder: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Inputs:
    """What all passes may read: n answers to n prompts, with the settings of `isouq.text.baselines`.

    rows: tokens of prompt and answer. samples: n lists of answers, or how many to draw. keys: of `jax.random`, one a
    drawn sample, `[n, samples]`.
    """

    model: LanguageModel
    prompts: Sequence[Any]
    rows: Sequence[Row]
    questions: Sequence[str]
    samples: Sequence[Any] | int | None = None
    keys: Array | None = None
    entailment: Entailment | None = None
    similarity: Similarity | None = None
    position: int = -1
    batch_size: int = 4
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int = 40
    stop: Sequence[str] = ()

    @property
    def texts(self) -> list[str]:
        """Return the answers as text."""
        return [self.model.tokenizer.decode(row.ids[row.first :].tolist()).strip() for row in self.rows]

    def of(self, numbers: Sequence[int]) -> "Inputs":
        """Return the inputs of the answers of these numbers."""
        return replace(
            self,
            prompts=[self.prompts[i] for i in numbers],
            rows=[self.rows[i] for i in numbers],
            questions=[self.questions[i] for i in numbers],
            samples=[self.samples[i] for i in numbers] if isinstance(self.samples, Sequence) else self.samples,
            keys=None if self.keys is None else self.keys[np.asarray(numbers)],
        )


def contradiction(labels: Sequence[str]) -> int | None:
    """Return the number of the class "contradiction" among a classifier's labels; None where it has none."""
    numbers = [i for i, label in enumerate(labels) if label.strip().casefold() == "contradiction"]
    return numbers[0] if numbers else None


def add(costs: Sequence[Cost]) -> Cost:
    """Return the sum of costs."""
    forward, backward, tokens, pairs, seconds = zip(*costs, strict=True)
    return Cost(sum(forward), sum(backward), sum(tokens), sum(pairs), sum(seconds))


def reading(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return log p and entropy of the tokens of every answer, by one forward pass."""
    prompts = [row.ids[: row.first].tolist() for row in inputs.rows]
    readings = read_rows(inputs.model, prompts, inputs.rows, inputs.batch_size)
    values: Values = {"log_p": [one.log_p for one in readings], "entropy": [one.entropy for one in readings]}
    return values, Cost(forward=len(readings))


def attention(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return the attention to the token before, in the middle layers."""
    layers = middle_layers(inputs.model.config.num_layers)
    weights = _inside.attention_to_previous(inputs.model, inputs.rows, layers, inputs.batch_size)
    return {"attention": weights}, Cost(forward=len(weights))


def gradient(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return log p of the tokens, and log ‖∇ log p_r‖² over all parameters.

    p_r is the geometric mean of the tokens' probabilities. One backward pass gives both: ‖∇p_r‖² needs no other.
    """
    count, values = len(inputs.rows), dict[int, tuple[np.ndarray, float]]()
    for indices, batch in score_rows(inputs.model, inputs.rows, "mean", min(inputs.batch_size, count)):
        values |= dict(zip(indices, zip(batch.token_log_p, batch.log_grad_sq_norm.tolist(), strict=True), strict=True))
    log_p, norms = zip(*(values[i] for i in range(count)), strict=True)
    quantities: Values = {"gradient_log_p": list(log_p), "log_grad_sq_norm": list(norms)}
    return quantities, Cost(forward=count, backward=count)


def head_gradient(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return the mean absolute gradients by the output layer, which need no backward pass through a layer."""
    plain, weighted = zip(*_inside.head_gradients(inputs.model, inputs.rows, inputs.batch_size), strict=True)
    return {"head_gradient": list(plain), "weighted_head_gradient": list(weighted)}, Cost(forward=len(plain))


def state_gradient(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return the mean absolute gradients by hidden states, with a backward pass through the upper layers."""
    values = _inside.state_gradients(inputs.model, inputs.rows, inputs.position, inputs.batch_size)
    return {"state_gradient": values}, Cost(forward=len(values), backward=len(values))


def samples(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return what the samples of every question say, drawn here unless they are given; empty ones are left out."""
    drawn, cost = inputs.samples, Cost()
    if isinstance(drawn, int):
        drawn = _draw(inputs, drawn)
        cost = Cost(forward=len(inputs.prompts), tokens=sum(len(one.ids) for group in drawn for one in group))
    groups = [[one for one in group if len(one.ids)] or None for group in drawn or [[]] * len(inputs.rows)]

    def of_each(function: Callable[[Answer], Any]) -> list[Any]:
        return [group and [function(one) for one in group] for group in groups]

    values: Values = {
        "samples": groups,
        "sample_texts": of_each(lambda one: one.text.strip()),
        "sample_token_log_p": of_each(lambda one: one.log_p),
        "sample_log_p": of_each(lambda one: float(np.sum(one.log_p))),
        "sample_mean_log_p": of_each(lambda one: float(np.mean(one.log_p))),
        "sample_lengths": of_each(lambda one: len(one.ids)),
    }
    return values, cost


def _draw(inputs: Inputs, count: int) -> list[list[Answer]]:
    """Return `count` sampled answers to each prompt; samples of one prompt share a batch, so that it is read once."""
    assert inputs.keys is not None
    prompts = [encode_prompt(inputs.model, prompt, inputs.chat_template_kwargs) for prompt in inputs.prompts]
    rows = [row for row in prompts for _ in range(count)]
    keys = inputs.keys.reshape(-1)
    parts = -(-count // (SAMPLE_BATCHES * inputs.batch_size))
    size = min(max(inputs.batch_size, -(-count // parts)), len(rows))
    answers: dict[int, Answer] = {}
    for indices, filled in batches_by_length([(len(row), row) for row in rows], size):
        ids, chosen = [rows[i] for i in filled], keys[np.asarray(filled)]
        batch = generate_rows(inputs.model, ids, chosen, inputs.max_new_tokens, (1.0, 1.0), inputs.stop)
        answers.update(zip(indices, batch, strict=False))
    return [[answers[i] for i in range(start, start + count)] for start in range(0, len(rows), count)]


def truth(inputs: Inputs, values: Values) -> tuple[Values, Cost]:
    """Return P(True) of every answer; None where its prompt does not fit the context."""
    chat = [not isinstance(prompt, str) for prompt in inputs.prompts]
    ideas, texts = [one or [] for one in values["sample_texts"]], inputs.texts
    probabilities: list[Any] = [None] * len(inputs.rows)
    for is_chat in set(chat):
        numbers = [
            i for i, kind in enumerate(chat) if kind == is_chat and _fits(inputs, i, texts[i], ideas[i], is_chat)
        ]
        if numbers:
            results = p_true(
                inputs.model,
                [inputs.questions[i] for i in numbers],
                [texts[i] for i in numbers],
                [ideas[i] for i in numbers],
                inputs.batch_size,
                is_chat,
                inputs.chat_template_kwargs,
            )
            for i, value in zip(numbers, results, strict=True):
                probabilities[i] = float(value)
    return {"p_true": probabilities}, Cost(forward=sum(value is not None for value in probabilities))


def _fits(inputs: Inputs, i: int, text: str, ideas: Sequence[str], chat: bool) -> bool:
    prompt = p_true_prompt(inputs.questions[i], text, ideas, chat)
    try:
        encode_pairs(inputs.model, [(prompt, " A"), (prompt, " B")], inputs.chat_template_kwargs)
    except ValueError:
        return False
    return True


def sample_states(inputs: Inputs, values: Values) -> tuple[Values, Cost]:
    """Return the hidden states of the samples' last tokens after the middle layer."""
    groups = [
        [(prompt, one.ids) for one in group or []]
        for prompt, group in zip(inputs.prompts, values["samples"], strict=True)
    ]
    pairs = [pair for group in groups for pair in group]
    if not pairs:
        return {"sample_states": [None] * len(groups)}, Cost()
    ids = [row.ids for row in encode_pairs(inputs.model, pairs, inputs.chat_template_kwargs)]
    layer = max(1, inputs.model.config.num_layers // 2)
    states = iter(_inside.last_states(inputs.model, ids, layer, inputs.batch_size))
    return {"sample_states": [[next(states) for _ in group] or None for group in groups]}, Cost(forward=len(ids))


def shared_words(_: Inputs, values: Values) -> tuple[Values, Cost]:
    """Return the share of words that every two samples of a question have in common."""
    return {"sample_jaccard": [texts and jaccard(texts) for texts in values["sample_texts"]]}, Cost()


def entailment(inputs: Inputs, values: Values) -> tuple[Values, Cost]:
    """Return the probability that sample i of a question entails sample j, and the meanings of the samples.

    A sample is read after its question, and entails an equal one with probability 1.
    """
    assert inputs.entailment is not None
    statements = [
        [f"{question} {text}" for text in texts or []]
        for question, texts in zip(inputs.questions, values["sample_texts"], strict=True)
    ]
    label = inputs.entailment.label
    logits = _classify(inputs.entailment, [(a, b) for group in statements for a in group for b in group if a != b])
    probability = {pair: float(np.exp(row[label] - np.logaddexp.reduce(row))) for pair, row in logits.items()}
    entailed = {pair for pair, row in logits.items() if row.argmax() == label}
    matrices = [[[probability.get((a, b), 1.0) for b in group] for a in group] or None for group in statements]
    clusters = [
        clusters_by_entailment([[a == b or (a, b) in entailed for b in group] for a in group]) if group else None
        for group in statements
    ]
    return {"entailment": matrices, "clusters": clusters}, Cost(encoder=len(logits))


def _classify(entailment: Entailment, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], np.ndarray]:
    """Return the logits of every distinct pair."""
    distinct = list(dict.fromkeys(pairs))
    return dict(zip(distinct, entailment.logits(distinct).astype(np.float64), strict=True)) if distinct else {}


def alternatives(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return the likeliest words at every token, and how each of them is related to the token itself."""
    assert inputs.entailment is not None
    tokens = _inside.alternatives(inputs.model, inputs.rows, NUM_ALTERNATIVES, inputs.batch_size)
    words = [[[_word(inputs.model, i) for i in ids] for ids, _ in answer] for answer in tokens]
    sides = [(group[0], word) for answer in words for group in answer for word in group[1:]]
    logits = _classify(inputs.entailment, [pair for one, other in sides for pair in ((one, other), (other, one))])
    labels = inputs.entailment.encoder.config.labels
    names = {inputs.entailment.label: "entailment", contradiction(labels): "contradiction"}
    relation = {pair: names.get(int(row.argmax()), "neutral") for pair, row in logits.items()}
    values = [
        [
            (log_p, ["", *(joint_relation(relation[group[0], w], relation[w, group[0]]) for w in group[1:])])
            for (_, log_p), group in zip(answer, groups, strict=True)
        ]
        for answer, groups in zip(tokens, words, strict=True)
    ]
    return {"alternatives": values}, Cost(forward=len(tokens), encoder=len(logits))


def _word(model: LanguageModel, token: int) -> str:
    return model.tokenizer.decode([token]).strip(string.punctuation + string.whitespace)


def token_similarity(inputs: Inputs, _: Values) -> tuple[Values, Cost]:
    """Return how alike question and answer stay without each token of the answer."""
    pairs = [
        _without_each(inputs, question, row.ids[row.first :].tolist())
        for question, row in zip(inputs.questions, inputs.rows, strict=True)
    ]
    values, cost = _measure(inputs, pairs)
    return {"token_similarity": values}, cost


def sample_token_similarity(inputs: Inputs, values: Values) -> tuple[Values, Cost]:
    """Return how alike question and sample stay without each token of the sample."""
    groups = list(zip(inputs.questions, values["samples"], strict=True))
    pairs = [_without_each(inputs, question, one.ids) for question, group in groups for one in group or []]
    measured, cost = _measure(inputs, pairs)
    similarities = iter(measured)  # of one sample after the other
    return {"sample_token_similarity": [group and [next(similarities) for _ in group] for _, group in groups]}, cost


def sample_similarity(inputs: Inputs, values: Values) -> tuple[Values, Cost]:
    """Return how alike sample i is to sample j."""
    groups = [texts or [] for texts in values["sample_texts"]]
    flat, cost = _measure(inputs, [[(a, b) for a in group for b in group] for group in groups])
    matrices = [np.reshape(row, (len(group), -1)) if group else None for row, group in zip(flat, groups, strict=True)]
    return {"sample_similarity": matrices}, cost


def answer_similarity(inputs: Inputs, values: Values) -> tuple[Values, Cost]:
    """Return how alike the answer is to each sample, as the mean of both orders."""
    groups = [
        [pair for text in texts or [] for pair in ((answer, text), (text, answer))]
        for answer, texts in zip(inputs.texts, values["sample_texts"], strict=True)
    ]
    measured, cost = _measure(inputs, groups)
    means = [np.reshape(values, (-1, 2)).mean(axis=1) if values else None for values in measured]
    return {"answer_similarity": means}, cost


def _without_each(inputs: Inputs, question: str, ids: Sequence[int]) -> list[tuple[str, str]]:
    decode = inputs.model.tokenizer.decode
    whole = f"{question} {decode(ids)}"
    return [(whole, f"{question} {decode([*ids[:t], *ids[t + 1 :]])}") for t in range(len(ids))]


def _measure(inputs: Inputs, groups: Sequence[Sequence[tuple[str, str]]]) -> tuple[list[list[float]], Cost]:
    """Return the similarity of every pair, group by group."""
    assert inputs.similarity is not None
    pairs = [pair for group in groups for pair in group]
    values = iter(measure(inputs.similarity, pairs))
    return [[next(values) for _ in group] for group in groups], Cost(encoder=len(set(pairs)))


class Pass(NamedTuple):
    """A pass: its function, the quantities that it gives, the passes that run before it, and the inputs it needs."""

    function: Callable[[Inputs, Values], tuple[Values, Cost]]
    gives: tuple[str, ...]
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()


SAMPLED = ("sample_texts", "sample_token_log_p", "sample_log_p", "sample_mean_log_p", "sample_lengths")
PASSES = {
    "reading": Pass(reading, ("log_p", "entropy")),
    "attention": Pass(attention, ("attention",)),
    "gradient": Pass(gradient, ("gradient_log_p", "log_grad_sq_norm")),
    "head_gradient": Pass(head_gradient, ("head_gradient", "weighted_head_gradient")),
    "state_gradient": Pass(state_gradient, ("state_gradient",), (), ("upper_layers",)),
    "samples": Pass(samples, SAMPLED, (), ("samples",)),
    "truth": Pass(truth, ("p_true",), ("samples",)),
    "sample_states": Pass(sample_states, ("sample_states",), ("samples",), ("samples",)),
    "shared_words": Pass(shared_words, ("sample_jaccard",), ("samples",), ("samples",)),
    "entailment": Pass(entailment, ("entailment", "clusters"), ("samples",), ("samples", "entailment")),
    "alternatives": Pass(alternatives, ("alternatives",), (), ("entailment", "contradiction")),
    "token_similarity": Pass(token_similarity, ("token_similarity",), (), ("similarity",)),
    "sample_token_similarity": Pass(
        sample_token_similarity, ("sample_token_similarity",), ("samples",), ("samples", "similarity")
    ),
    "sample_similarity": Pass(sample_similarity, ("sample_similarity",), ("samples",), ("samples", "similarity")),
    "answer_similarity": Pass(answer_similarity, ("answer_similarity",), ("samples",), ("samples", "similarity")),
}
