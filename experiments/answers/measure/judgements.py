"""Judge greedy answers as right or wrong, and compute the entropies of the sampled answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.answers import correctness
from experiments.answers.block import Block
from experiments.answers.inputs import Judges
from experiments.answers.measure.answers import Answered, Progress
from experiments.answers.questions import Question
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq.text import TextEncoder
from isouq.text.scores.meanings import (
    clusters_by_entailment,
    clusters_by_similarity,
    naive_entropy,
    semantic_entropy,
    semantic_entropy_discrete,
)

SIMILAR = 0.85  # cosine of two sampled answers that count as one meaning; fixed before any result was seen


def judge(
    block: Block,
    judges: Judges,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    progress: Progress,
    _partial: Partial | None = None,
) -> Result:
    """Return whether each answer is right, by every definition of right, and the entropies of its samples.

    Takes seconds, so that no checkpoint is written.
    """
    rows = []
    for i, (item, one) in enumerate(zip(questions, answered, strict=True)):
        text = one["greedy"]["text"]
        state = correctness.state(text) if one["greedy"]["ids"] else "empty"
        row = {"index": one["index"], "answer": text, "state": state, **_entropies(judges, item, one["samples"])}
        if state == "answered":
            row |= _labels(block.kind, judges.encoder, text, item)
        rows.append(row)
        progress((i + 1) / len(questions))
    return Result({"questions": rows}, {})


def _labels(kind: str, encoder: TextEncoder, text: str, item: Question) -> dict[str, Any]:
    """Return `right`, the label, and the labels by the other definitions."""
    if kind == "alias":
        return {
            "right": correctness.alias_match(text, item.answers),
            "right_contained": correctness.alias_contained(text, item.answers),
        }
    rouge = correctness.rouge_difference(text, item.answers, item.incorrect)
    vectors = encoder.embed([text, *item.answers, *item.incorrect])
    true, false = vectors[1 : 1 + len(item.answers)], vectors[1 + len(item.answers) :]
    similarity = correctness.similarity_difference(vectors[0], true, false)
    return {
        "right": rouge > 0,
        "right_similarity": similarity > 0,
        "rouge_difference": rouge,
        "similarity_difference": similarity,
    }


def _entropies(judges: Judges, item: Question, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entropies of the sampled answers by name.

    Where samples are counted, the empty ones count too, all as one meaning. Where log p weighs the samples, the empty
    ones are left out: without a token they have no log p.
    """
    if not samples:
        return {}
    texts = [sample["text"] or "no answer" for sample in samples]
    cluster = clusters_by_similarity(judges.encoder.embed(texts), SIMILAR)
    entropies: dict[str, float] = {"num_clusters": int(cluster.max()) + 1}
    entropies["semantic_entropy_discrete"] = semantic_entropy_discrete(cluster)
    some = np.array([len(sample["log_p"]) > 0 for sample in samples])
    if not some.any():
        return entropies
    lengths = np.array([len(sample["log_p"]) for sample in samples])[some]
    log_p = np.array([np.sum(sample["log_p"]) for sample in samples])[some]
    entropies["naive_entropy"] = naive_entropy(log_p)
    entropies["naive_entropy_normalised"] = naive_entropy(log_p, lengths)
    entropies["semantic_entropy"] = semantic_entropy(cluster[some], log_p / lengths)
    if judges.entailment is not None:
        statements = [f"{item.question} {text}" for text, has_tokens in zip(texts, some, strict=True) if has_tokens]
        cluster = clusters_by_entailment(judges.entailment.matrix(statements))
        entropies["semantic_entropy_entailment"] = semantic_entropy(cluster, log_p / lengths)
    return entropies
