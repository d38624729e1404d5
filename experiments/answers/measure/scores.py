"""Score greedy answers: gradient scores, likelihoods, token entropies and P(True).

Every score is higher where the answer is less certain; an empty answer has none.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.answers.block import Block
from experiments.answers.measure.answers import Answered, Progress, has_answer
from experiments.answers.prompts import answer_prompt
from experiments.answers.questions import Question
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq.text import LanguageModel, Scores, score
from isouq.text.continuations import read
from isouq.text.prompts import encode_prompt
from isouq.text.scores.truth import p_true, p_true_prompt

HEAD = r"head\.kernel"


def score_answers(
    block: Block,
    model: LanguageModel,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    progress: Progress,
    partial: Partial | None = None,
) -> Result:
    """Return the scores of every greedy answer, with the number and the squared norm of the model's parameters.

    partial: a checkpoint, written after every kind of score.
    """
    partial = partial or Partial()
    rows: list[dict[str, Any]] = [{"index": one["index"]} for one in answered]
    scored = [i for i, one in enumerate(answered) if has_answer(one)]
    if scored:
        pairs = [
            (answer_prompt(questions[i].question, block.kind, block.prompt), answered[i]["greedy"]["ids"])
            for i in scored
        ]
        steps: tuple[tuple[str, float, Callable[[], dict[str, Any]]], ...] = (
            ("mean", 0.4, lambda: _whole_answer_scores(model, pairs)),
            ("first", 0.7, lambda: _by_name("first", score(model, pairs, reduction="first"))),
            ("head", 0.8, lambda: _head_scores(model, pairs)),
            ("likelihoods", 0.9, lambda: likelihoods(model, pairs)),
        )
        for name, share, compute in steps:
            columns = partial.step(name, functools.partial(_plain, compute))
            for j, i in enumerate(scored):
                rows[i] |= {column: float(values[j]) for column, values in columns.items()}
            progress(share)
        by_row = partial.step("p_true", lambda: _p_true(block, model, questions, answered, scored))
        for i, value in by_row.items():
            rows[int(i)]["p_true"] = 1 - value
    leaves = jax.tree.leaves(model.params)
    facts = {
        "num_params": sum(leaf.size for leaf in leaves),
        "param_sq_norm": float(sum(np.sum(np.square(np.asarray(leaf, np.float64))) for leaf in leaves)),
    }
    return Result({"questions": [row | facts for row in rows]}, {})


def _whole_answer_scores(model: LanguageModel, pairs: Sequence[Any]) -> dict[str, Any]:
    """Return the scores by the mean and by the sum of the tokens' log p: one gradient serves both."""
    mean = score(model, pairs)
    return {**_by_name("mean", mean), **_by_name("answer", mean.under("answer")), "num_tokens": mean.num_tokens}


def _head_scores(model: LanguageModel, pairs: Sequence[Any]) -> dict[str, Any]:
    """Return the scores by the gradient of the output layer alone."""
    head = score(model, pairs, select=HEAD)
    return {"head_epistemic_mean": head.log_epistemic, "head_grad_log_mean": head.log_grad_sq_norm}


def _by_name(reduction: str, scores: Scores) -> dict[str, Any]:
    return {
        f"aleatoric_{reduction}": scores.log_aleatoric,
        f"epistemic_{reduction}": scores.log_epistemic,
        f"grad_log_{reduction}": scores.log_grad_sq_norm,
    }


def _plain(compute: Callable[[], dict[str, Any]]) -> dict[str, list[float]]:
    """Return the arrays by name that `compute()` gives, as JSON holds them."""
    return {name: [float(value) for value in values] for name, values in compute().items()}


def likelihoods(model: LanguageModel, pairs: Sequence[Any]) -> dict[str, Any]:
    """Return the scores that one forward pass gives: −log p and the entropies of the tokens."""
    readings = read(model, pairs)
    return {
        "nll_answer": [-reading.log_p.sum() for reading in readings],
        "nll_mean": [-reading.log_p.mean() for reading in readings],
        "max_token_entropy": [reading.entropy.max() for reading in readings],
        "mean_token_entropy": [reading.entropy.mean() for reading in readings],
    }


def _p_true(
    block: Block,
    model: LanguageModel,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    scored: Sequence[int],
) -> dict[int, float]:
    """Return P(True) by row, without the answers that do not fit in the context with all their samples."""
    chat = block.prompt == "chat"
    texts = {
        i: (questions[i].question, answered[i]["greedy"]["text"], [one["text"] for one in answered[i]["samples"]])
        for i in scored
    }
    fitting = [i for i in scored if _fits(model, p_true_prompt(*texts[i], chat))]
    if not fitting:
        return {}
    question_texts, answers, samples = zip(*(texts[i] for i in fitting), strict=True)
    values = p_true(model, question_texts, answers, samples, chat=chat)
    return {i: float(value) for i, value in zip(fitting, values, strict=True)}


def _fits(model: LanguageModel, prompt: Any) -> bool:
    """Return whether a prompt fits in the model's context."""
    try:
        encode_prompt(model, prompt)
    except ValueError:
        return False
    return True
