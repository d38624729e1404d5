"""Stage two of `qa`: every score of a block of answers, and whether they are right.

All scores are higher where the answer is less certain; None where there is none (an empty answer).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.answers import correctness as _correctness
from experiments.answers.cell import QaCell
from experiments.answers.prompts import answer_prompt
from experiments.answers.questions import Question
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq.text import LanguageModel, Scores, TextEncoder, score
from isouq.text.baselines import (
    clusters_by_entailment,
    clusters_by_similarity,
    naive_entropy,
    p_true,
    p_true_prompt,
    semantic_entropy,
    semantic_entropy_discrete,
)
from isouq.text.continuations import read
from isouq.text.entailment import Entailment
from isouq.text.prompts import encode_prompt

SIMILAR = 0.85  # cosine of two sampled answers that count as one meaning; fixed before any result was seen
HEAD = r"head\.kernel"
Answered = dict[str, Any]  # a question with its answers, as stage one keeps them
Step = Callable[[float], None]


def scores(
    cell: QaCell,
    model: LanguageModel,
    items: Sequence[Question],
    answered: list[Answered],
    done: Step,
    partial: Partial | None = None,
) -> Result:
    """Gradient scores, likelihoods, token entropies and P(True) of the greedy answers.

    partial: keeps each kind of score as it is found.
    """
    partial = partial or Partial()
    rows: list[dict[str, Any]] = [{"index": one["index"]} for one in answered]
    kept = [i for i, one in enumerate(answered) if answers_something(one)]
    if kept:
        prompts = [answer_prompt(items[i].question, cell.kind, cell.prompt) for i in kept]
        pairs = [(prompt, answered[i]["greedy"]["ids"]) for prompt, i in zip(prompts, kept, strict=True)]
        found = gradient_scores(model, pairs, done, partial)
        found |= partial.found("likelihoods", lambda: _plain(likelihoods(model, pairs)))
        done(0.9)
        for j, i in enumerate(kept):
            rows[i] |= {name: float(values[j]) for name, values in found.items()}
        true = partial.found("p_true", lambda: _p_true(cell, model, items, answered, kept))
        for i, value in true.items():
            rows[int(i)]["p_true"] = 1 - value
    leaves = jax.tree.leaves(model.params)
    facts = {
        "num_params": sum(leaf.size for leaf in leaves),
        "param_sq_norm": float(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in leaves)),
    }
    return Result({"questions": [row | facts for row in rows]}, {})


def gradient_scores(
    model: LanguageModel, pairs: Sequence[Any], done: Step = lambda share: None, partial: Partial | None = None
) -> dict[str, Any]:
    """The logarithms of both uncertainties, of p and of log p, by name; sequences over the pairs."""
    partial = partial or Partial()
    found = partial.found("mean", lambda: _plain(_of_whole(model, pairs)))
    done(0.4)
    found = found | partial.found("first", lambda: _plain(_named("first", score(model, pairs, reduction="first"))))
    done(0.7)
    found = found | partial.found("head", lambda: _plain(_of_head(model, pairs)))
    done(0.8)
    return found


def _of_whole(model: LanguageModel, pairs: Sequence[Any]) -> dict[str, Any]:
    mean = score(model, pairs)
    return {**_named("mean", mean), **_named("answer", mean.under("answer")), "num_tokens": mean.num_tokens}


def _of_head(model: LanguageModel, pairs: Sequence[Any]) -> dict[str, Any]:
    head = score(model, pairs, parameters=HEAD)
    return {"exgrad_mean": head.log_epistemic, "exgrad_log_mean": head.log_grad_sq_norm}


def _named(name: str, one: Scores) -> dict[str, Any]:
    return {
        f"aleatoric_{name}": one.log_aleatoric,
        f"epistemic_{name}": one.log_epistemic,
        f"grad_log_{name}": one.log_grad_sq_norm,
    }


def _plain(found: dict[str, Any]) -> dict[str, list[float]]:
    return {name: [float(value) for value in values] for name, values in found.items()}


def likelihoods(model: LanguageModel, pairs: Sequence[Any]) -> dict[str, Any]:
    """What one forward pass tells."""
    readings = read(model, pairs)
    return {
        "nll_answer": [-reading.log_p.sum() for reading in readings],
        "nll_mean": [-reading.log_p.mean() for reading in readings],
        "max_token_entropy": [reading.entropy.max() for reading in readings],
        "mean_token_entropy": [reading.entropy.mean() for reading in readings],
    }


def _p_true(
    cell: QaCell, model: LanguageModel, items: Sequence[Question], answered: list[Answered], kept: Sequence[int]
) -> dict[int, float]:
    """P(True) of the answers `kept`, without those that do not fit in the context with all their samples."""
    chat = cell.prompt == "chat"
    asked = {i: (items[i].question, answered[i]["greedy"]["text"], _texts(answered[i]["samples"])) for i in kept}
    fitting = [i for i in kept if _fits(model, p_true_prompt(*asked[i], chat))]
    if not fitting:
        return {}
    questions, answers, samples = zip(*(asked[i] for i in fitting), strict=True)
    values = p_true(model, questions, answers, samples, chat=chat)
    return {i: float(value) for i, value in zip(fitting, values, strict=True)}


def _fits(model: LanguageModel, prompt: Any) -> bool:
    try:
        encode_prompt(model, prompt)
    except ValueError:
        return False
    return True


def judged(
    cell: QaCell,
    encoder: TextEncoder,
    entailment: Entailment | None,
    items: Sequence[Question],
    answered: list[Answered],
    done: Step,
) -> Result:
    """Right or wrong by every view, and the entropies of the samples."""
    rows = []
    for i, (item, one) in enumerate(zip(items, answered, strict=True)):
        text = one["greedy"]["text"]
        state = _correctness.state(text) if one["greedy"]["ids"] else "empty"
        row = {"index": one["index"], "answer": text, "state": state, **_entropies(encoder, entailment, item, one)}
        if state == "answered":
            row |= _views(cell.kind, encoder, text, item)
        rows.append(row)
        done((i + 1) / len(items))
    return Result({"questions": rows}, {})


def _views(kind: str, encoder: TextEncoder, text: str, item: Question) -> dict[str, Any]:
    """`right`, which is the label, and the other views of it."""
    if kind == "alias":
        return {
            "right": _correctness.alias_match(text, item.answers),
            "right_contained": _correctness.alias_contained(text, item.answers),
        }
    rouge = _correctness.rouge_difference(text, item.answers, item.incorrect)
    vectors = encoder.embed([text, *item.answers, *item.incorrect])
    true, false = vectors[1 : 1 + len(item.answers)], vectors[1 + len(item.answers) :]
    similarity = _correctness.similarity_difference(vectors[0], true, false)
    return {
        "right": rouge > 0,
        "right_similarity": similarity > 0,
        "rouge_difference": rouge,
        "similarity_difference": similarity,
    }


def _entropies(encoder: TextEncoder, entailment: Entailment | None, item: Question, one: Answered) -> dict[str, Any]:
    """Of the sampled answers. Empty ones are samples too, all of one meaning, where samples are counted; without a
    token they have no log p, and are left out where it weighs.
    """
    samples = one["samples"]
    if not samples:
        return {}
    lengths = np.array([len(sample["log_p"]) for sample in samples])
    log_p = np.array([np.sum(sample["log_p"]) for sample in samples])
    texts = _texts(samples)
    cluster = clusters_by_similarity(encoder.embed([text or "no answer" for text in texts]), SIMILAR)
    found: dict[str, float] = {"num_clusters": int(cluster.max()) + 1}
    found["semantic_entropy_discrete"] = semantic_entropy_discrete(cluster)
    some = lengths > 0
    if not some.any():
        return found
    log_p, lengths = log_p[some], lengths[some]
    found["naive_entropy"] = naive_entropy(log_p)
    found["naive_entropy_normalised"] = naive_entropy(log_p, lengths)
    found["semantic_entropy"] = semantic_entropy(cluster[some], log_p / lengths)
    if entailment is not None:
        told = [f"{item.question} {text or 'no answer'}" for text, kept in zip(texts, some, strict=True) if kept]
        found["semantic_entropy_entailment"] = semantic_entropy(
            clusters_by_entailment(entailment.matrix(told)), log_p / lengths
        )
    return found


def choices(
    cell: QaCell,
    model: LanguageModel,
    items: Sequence[Question],
    answered: list[Answered],
    done: Step,
    partial: Partial | None = None,
) -> Result:
    """The multiple-choice view: log p of every reference answer.

    mc1: whether the best true answer is likelier than every false one. mc2: the share of the probability that the true
    ones have. Source: Lin, Hilton, Evans 2021, arXiv 2109.07958. partial: keeps every question.
    """
    partial = partial or Partial()
    rows: list[dict[str, Any]] = []
    for i, item in enumerate(items):
        rows.append(partial.found(str(item.index), functools.partial(_chosen, cell, model, item)))
        done((i + 1) / len(items))
    return Result({"questions": rows}, {})


def _chosen(cell: QaCell, model: LanguageModel, item: Question) -> dict[str, Any]:
    prompt = answer_prompt(item.question, cell.kind, cell.prompt)
    space = "" if cell.prompt == "chat" else " "
    pairs = [(prompt, f"{space}{answer}") for answer in (*item.answers, *item.incorrect)]
    try:
        log_p = np.array([reading.log_p.sum() for reading in read(model, pairs)])
    except ValueError:  # one of the answers does not fit in the context
        return {"index": item.index}
    true, false = log_p[: len(item.answers)], log_p[len(item.answers) :]
    share = np.exp(np.logaddexp.reduce(true) - np.logaddexp.reduce(log_p))
    return {"index": item.index, "mc1": bool(true[0] > false.max()), "mc2": float(share)}


def answers_something(one: Answered) -> bool:
    """Whether there is an answer to score."""
    return bool(one["greedy"]["ids"]) and _correctness.state(one["greedy"]["text"]) != "empty"


def _texts(samples: list[dict[str, Any]]) -> list[str]:
    return [sample["text"] for sample in samples]
