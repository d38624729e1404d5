"""Trace greedy answers token by token, exactly, and check one answer by forward-mode probes."""

import functools
import time
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
from isouq.text import LanguageModel, features, trace

ARRAYS = ("log_p", "entropy", "log_grad_sq_norm")
CHECK_PROBES = 32  # for the one answer that is traced both ways


def trace_answers(
    block: Block,
    model: LanguageModel,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    progress: Progress,
    partial: Partial | None = None,
) -> Result:
    """Return the traces of a block of greedy answers; of the first block also a check of its first answer.

    questions: index, pieces (the text of each token) and the `features` of the trace; of an empty answer the index
    alone. Arrays over all tokens of the block, one answer after the other: log_p, entropy, log_grad_sq_norm. partial: a
    checkpoint, written after every answer.
    """
    partial = partial or Partial()
    rows: list[dict[str, Any]] = []
    traces: list[dict[str, list[float]]] = []
    check: dict[str, Any] = {}
    for i, (item, one) in enumerate(zip(questions, answered, strict=True)):
        row: dict[str, Any] = {"index": one["index"]}
        if has_answer(one):
            pair = answer_prompt(item.question, block.kind, block.prompt), one["greedy"]["ids"]
            columns, values = partial.found(str(i), functools.partial(_trace, model, *pair))
            traces.append(values)
            row |= columns
            if block.start == 0 and not check:
                check = partial.found("check", functools.partial(compare, model, *pair))
        rows.append(row)
        progress((i + 1) / len(questions))
    arrays = {name: np.array([value for values in traces for value in values[name]], np.float64) for name in ARRAYS}
    return Result({"questions": rows, "checks": [check] if check else []}, arrays)


def _trace(model: LanguageModel, prompt: Any, answer: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return what the trace of an answer adds to its row, and the arrays over its tokens."""
    one = trace(model, prompt, answer)
    row = {"pieces": list(one.pieces), "features": features(one)}
    return row, {name: np.asarray(getattr(one, name), np.float64).tolist() for name in ARRAYS}


def compare(model: LanguageModel, prompt: Any, answer: Any) -> dict[str, float]:
    """Trace one answer both ways; return how far the traces differ and the seconds of each, compiled.

    rms, worst: the root mean square and the largest of the differences, in standard errors of the probes.
    seconds_token: of a backward pass; seconds_probe: of a probe, which serves all tokens.
    """
    key = jax.random.key(0, impl="rbg")
    exact, estimate = trace(model, prompt, answer), trace(model, prompt, answer, CHECK_PROBES, key)
    difference = (estimate.epistemic - exact.epistemic) / (estimate.relative_error * exact.epistemic)
    count = len(exact.ids)
    return {
        "tokens": count,
        "probes": CHECK_PROBES,
        "rms": float(np.sqrt(np.mean(difference**2))),
        "worst": float(np.abs(difference).max()),
        "seconds_token": _seconds(lambda: trace(model, prompt, answer)) / count,
        "seconds_probe": _seconds(lambda: trace(model, prompt, answer, CHECK_PROBES, key)) / CHECK_PROBES,
    }


def _seconds(run: Callable[[], Any]) -> float:
    """Return how long `run()` takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
