"""Answer questions: the greedy answer and the sampled answers of a block."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from experiments.answers.block import Block
from experiments.answers.correctness import state
from experiments.answers.prompts import STOP, answer_prompt, answer_text
from experiments.answers.questions import Question
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq.text import Answer, LanguageModel, generate
from isouq.text.prompts import encode_prompt

GREEDY_BATCH, SAMPLES_BATCH = 10, 20
Answered = dict[str, Any]  # a question with its answers: index, question, greedy, samples
Progress = Callable[[float], None]  # takes the share that is done


def answer(
    block: Block,
    model: LanguageModel,
    questions: Sequence[Question],
    progress: Progress,
    partial: Partial | None = None,
) -> Result:
    """Return every question with its answers: text, token ids and log p of every token.

    A question that does not fit in the model's context has an empty answer, no samples, and the reason as `why`.
    partial: a checkpoint, written after every batch.
    """
    rows: list[Answered] = [{"index": item.index, "question": item.question} for item in questions]
    fitting, prompts = [], []
    for row in rows:
        prompt = answer_prompt(row["question"], block.kind, block.prompt)
        try:
            encode_prompt(model, prompt)
        except ValueError as error:
            row |= {"greedy": _plain(Answer("", [], np.zeros(0), False)), "samples": [], "why": str(error)}
        else:
            fitting.append(row)
            prompts.append(prompt)
    if not prompts:
        return Result({"questions": rows}, {})
    total = len(prompts) * (block.samples + 1)
    checkpoint = _Checkpoint(partial or Partial())
    greedy = checkpoint.generate(
        "greedy", lambda count: progress(count / total),
        model, prompts, block.max_new_tokens, stop=STOP, batch_size=GREEDY_BATCH,
    )  # fmt: skip
    sampled = checkpoint.generate(
        "samples", lambda count: progress((len(prompts) + count) / total),
        model, [prompt for prompt in prompts for _ in range(block.samples)], block.max_new_tokens, block.temperature,
        key=jax.random.fold_in(jax.random.key(block.seed), block.start), stop=STOP, batch_size=SAMPLES_BATCH,
    )  # fmt: skip
    for i, row in enumerate(fitting):
        row["greedy"] = _plain(greedy[i])
        row["samples"] = [_plain(sample) for sample in sampled[i * block.samples : (i + 1) * block.samples]]
    return Result({"questions": rows}, {})


def has_answer(answered: Answered) -> bool:
    """Return whether the greedy answer has something to score: a token, and more than punctuation."""
    return bool(answered["greedy"]["ids"]) and state(answered["greedy"]["text"]) != "empty"


class _Checkpoint:
    """Generate answers, beginning with those that an earlier process left in the checkpoint."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial

    def generate(self, name: str, progress: Callable[[int], None], *arguments: Any, **options: Any) -> list[Answer]:
        """Return `isouq.text.generate(*arguments, **options)`, each batch written to the checkpoint under `name`."""
        before = self.partial.get(name, {}).items()
        answers = {int(i): Answer(text, ids, np.array(log_p), ended) for i, (text, ids, log_p, ended) in before}

        def save_batch(count: int) -> None:
            plain = {i: [one.text, one.ids, one.log_p.tolist(), one.ended] for i, one in answers.items()}
            self.partial.put(name, plain)
            progress(count)

        return generate(*arguments, **{**options, "on_batch": save_batch, "answers": answers})


def _plain(answer: Answer) -> dict[str, Any]:
    """Return an answer as JSON holds it."""
    log_p = [float(value) for value in np.asarray(answer.log_p)]
    return {"text": answer_text(answer.text), "ids": answer.ids, "log_p": log_p, "ended": answer.ended}
