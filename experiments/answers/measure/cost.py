"""Measure what a score costs: seconds and memory a question, of programs that are compiled already."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.answers.block import Block
from experiments.answers.inputs import Models
from experiments.answers.measure.answers import Answered, Progress, has_answer
from experiments.answers.measure.published import run_baselines
from experiments.answers.measure.scores import HEAD
from experiments.answers.prompts import STOP, answer_prompt
from experiments.answers.questions import Question
from experiments.clock import Clock
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq._memory import temporary_bytes
from isouq.text import LanguageModel, generate, score
from isouq.text.continuations import read
from isouq.text.prompts import encode_pair
from isouq.text.scores.truth import p_true
from isouq.text.scoring import lower

QUESTIONS = 4  # as many as are scored at a time


def measure_cost(
    block: Block,
    models: Models,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    progress: Progress,
    _partial: Partial | None = None,
) -> Result:
    """Return `costs`, a row for each kind of pass: seconds a question of its second run over a batch of questions.

    mib: the memory beside the parameters that the compiled program of a gradient states. A time is measured in one go,
    so that no checkpoint is written.
    """
    chosen = [i for i, one in enumerate(answered) if has_answer(one)][:QUESTIONS]
    if not chosen:
        return Result({"costs": []}, {})
    prompts = [answer_prompt(questions[i].question, block.kind, block.prompt) for i in chosen]
    pairs = [(prompt, answered[i]["greedy"]["ids"]) for prompt, i in zip(prompts, chosen, strict=True)]
    model = models.model
    programs = _gradient_programs(model, pairs)
    passes = _passes(block, model, [questions[i] for i in chosen], [answered[i] for i in chosen], prompts, pairs)
    costs = []
    for i, (name, run) in enumerate(passes.items()):
        run()
        clock = Clock()
        run()
        row: dict[str, Any] = {"pass": name, "seconds": clock.laps()["seconds"] / len(chosen)}
        if name in programs:
            row["mib"] = temporary_bytes(programs[name].compile()) / 2**20
        costs.append({"model": block.model, "benchmark": block.benchmark, "questions": len(chosen), **row})
        progress((i + 1) / (len(passes) + 1))
    for _ in range(2):  # the first time programs are compiled
        published = run_baselines(block, models, questions, answered, chosen)
    for name, cost in published.costs.items():
        if name != "samples":
            row = {"pass": name, "seconds": cost.seconds / len(chosen)}
            costs.append({"model": block.model, "benchmark": block.benchmark, "questions": len(chosen), **row})
    return Result({"costs": costs}, {})


def _passes(
    block: Block,
    model: LanguageModel,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    prompts: Sequence[Any],
    pairs: Sequence[Any],
) -> dict[str, Callable[[], Any]]:
    """Return the passes by the names that `numbers.scores.PASSES` has."""
    texts = [one["greedy"]["text"] for one in answered]
    samples = [[sample["text"] for sample in one["samples"]] for one in answered]
    repeated = [prompt for prompt in prompts for _ in range(block.samples)]
    tokens, batch = block.max_new_tokens, len(pairs)
    return {
        "answer": lambda: generate(model, prompts, tokens, stop=STOP, batch_size=batch),
        "samples": lambda: generate(
            model, repeated, tokens, block.temperature, key=jax.random.key(0), stop=STOP, batch_size=2 * block.samples
        ),
        "forward": lambda: read(model, pairs),
        "gradient": lambda: score(model, pairs, batch_size=batch),
        "gradient_first": lambda: score(model, pairs, reduction="first", batch_size=batch),
        "gradient_head": lambda: score(model, pairs, select=HEAD, batch_size=batch),
        "p_true": lambda: p_true(
            model, [item.question for item in questions], texts, samples, chat=block.prompt == "chat"
        ),
    }


def _gradient_programs(model: LanguageModel, pairs: Sequence[Any]) -> dict[str, Any]:
    """Return the lowered programs of the passes that take a gradient."""
    rows = [encode_pair(model, *pair) for pair in pairs]
    return {
        "gradient": lower(model.config, model.params, rows, "mean", True),
        "gradient_first": lower(model.config, model.params, rows, "first", True),
        "gradient_head": lower(model.config, model.params, rows, "mean", True, HEAD),
    }
