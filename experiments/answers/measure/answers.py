"""Stage one of `qa`: the greedy answer and the sampled answers of a block of questions."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from experiments.answers.cell import QaCell
from experiments.answers.prompts import STOP, answer_prompt, answer_text
from experiments.answers.questions import Question
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq.text import Answer, LanguageModel, generate
from isouq.text.prompts import encode_prompt

GREEDY_BATCH, SAMPLES_BATCH = 10, 20


def answers(
    cell: QaCell,
    model: LanguageModel,
    items: list[Question],
    progress: Callable[[float], None] | None,
    partial: Partial | None = None,
) -> Result:
    """Every question with its answers: token ids, text, and log p of every token.

    A question that does not fit in the model's context has an empty answer, no samples, and `why`.
    partial: keeps the answers batch by batch.
    """
    found: list[dict[str, Any]] = [{"index": item.index, "question": item.question} for item in items]
    unasked = {"greedy": _kept(Answer("", [], np.zeros(0), False)), "samples": []}
    asked, prompts = [], []
    for one in found:
        prompt = answer_prompt(one["question"], cell.kind, cell.prompt)
        try:
            encode_prompt(model, prompt)
        except ValueError as error:
            one |= unasked | {"why": str(error)}
        else:
            asked.append(one)
            prompts.append(prompt)
    if not prompts:
        return Result({"questions": found}, {})
    total = len(prompts) * (cell.samples + 1)

    def done(count: int) -> None:
        if progress:
            progress(count / total)

    resumed = _Resumed(partial or Partial())
    greedy = resumed.generate("greedy", done, model, prompts, cell.max_new_tokens, stop=STOP, batch_size=GREEDY_BATCH)
    key = jax.random.fold_in(jax.random.key(cell.seed), cell.start)
    sampled = resumed.generate(
        "samples",
        lambda count: done(len(prompts) + count),
        model,
        [prompt for prompt in prompts for _ in range(cell.samples)],
        cell.max_new_tokens,
        cell.temperature,
        key=key,
        stop=STOP,
        batch_size=SAMPLES_BATCH,
    )
    for i, one in enumerate(asked):
        one["greedy"] = _kept(greedy[i])
        one["samples"] = [_kept(sample) for sample in sampled[i * cell.samples : (i + 1) * cell.samples]]
    return Result({"questions": found}, {})


class _Resumed:
    """`generate`, from where an earlier process was."""

    def __init__(self, partial: Partial) -> None:
        self.partial = partial

    def generate(self, name: str, done: Callable[[int], None], *arguments: Any, **options: Any) -> list[Answer]:
        before = self.partial.get(name, {}).items()
        answers = {int(i): Answer(text, ids, np.array(log_p), ended) for i, (text, ids, log_p, ended) in before}

        def on_batch(count: int) -> None:
            self.partial.put(
                name, {i: [one.text, one.ids, one.log_p.tolist(), one.ended] for i, one in answers.items()}
            )
            done(count)

        return generate(*arguments, **{**options, "on_batch": on_batch, "answers": answers})


def _kept(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer_text(answer.text),
        "ids": answer.ids,
        "log_p": [float(value) for value in np.asarray(answer.log_p)],
        "ended": answer.ended,
    }
