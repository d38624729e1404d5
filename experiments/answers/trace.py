"""Uncertainty along an answer: does the shape of U_E(t), p(1 − p) and entropy tell a wrong answer?

The greedy answers of `qa` (read from its cells where the folder has them), traced token by token. A logistic regression
on the features of each trace, cross-validated over questions, predicts that the answer is wrong.

Source: arXiv 2605.07776, which does so on the reasoning of other models.

Command: python -m experiments trace --preset paper --questions triviaqa.jsonl --questions truthfulqa.csv
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from experiments.answers import qa
from experiments.answers.cell import QaCell
from experiments.answers.measure.scores import answers_something
from experiments.answers.prompts import answer_prompt
from experiments.answers.questions import Question
from experiments.answers.report import trace as _trace_report
from experiments.report.outputs import Outputs
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq.text import LanguageModel
from isouq.text.trace import features, trace

ARRAYS = ("log_p", "entropy", "log_grad_sq_norm")
CHECK_PROBES = 32  # for the one answer that is traced both ways


def cells(
    preset: str,
    seeds: int | None = None,
    questions: Sequence[str] | None = None,
    model: Sequence[str] | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    encoder: str | None = None,
) -> list[QaCell]:
    """smoke: a tiny model on the built-in questions, seconds, no network. quick: SmolLM2 on the built-in questions.

    paper: 1000 questions of each file, 3 seconds a question on 2 CPU cores; answers, scores and judgements are those of
    `qa`, made once in one folder.
    """
    found: list[QaCell] = []
    for cell in qa.cells(preset, seeds, questions, model, prompt, limit, encoder):
        if cell.study == "scores":
            found += [cell, replace(cell, study="trace")]
        elif cell.study == "judged":
            found.append(cell)
    return found


def measure(
    cell: QaCell,
    model: LanguageModel,
    items: Sequence[Question],
    answered: list[dict[str, Any]],
    done: Callable[[float], None],
    partial: Partial | None = None,
) -> Result:
    """The exact traces of a block of greedy answers, and of the first block's first answer a check by probes.

    questions: index, pieces (the text of each token) and the `features` of the trace; without an answer, index alone.
    Arrays over all tokens of the block, one answer after the other: log_p, entropy, log_grad_sq_norm. partial: keeps
    every answer's trace.
    """
    partial = partial or Partial()
    rows: list[dict[str, Any]] = []
    traces: list[dict[str, list[float]]] = []
    check: dict[str, Any] = {}
    for i, (item, one) in enumerate(zip(items, answered, strict=True)):
        row: dict[str, Any] = {"index": one["index"]}
        if answers_something(one):
            pair = answer_prompt(item.question, cell.kind, cell.prompt), one["greedy"]["ids"]
            kept, values = partial.found(str(i), functools.partial(_traced, model, *pair))
            traces.append(values)
            row |= kept
            if cell.start == 0 and not check:
                check = partial.found("check", functools.partial(compare, model, *pair))
        rows.append(row)
        done((i + 1) / len(items))
    arrays = {name: np.array([value for values in traces for value in values[name]], np.float64) for name in ARRAYS}
    return Result({"questions": rows, "checks": [check] if check else []}, arrays)


def _traced(model: LanguageModel, prompt: Any, answer: Any) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """What an answer's trace gives its row, and the arrays."""
    one = trace(model, prompt, answer)
    row = {"pieces": list(one.pieces), "features": features(one)}
    return row, {name: np.asarray(getattr(one, name), np.float64).tolist() for name in ARRAYS}


def compare(model: LanguageModel, prompt: Any, answer: Any) -> dict[str, float]:
    """One answer both ways: how far they are apart, and the seconds of each, compiled.

    rms, worst: of the differences, in standard errors of the probes. seconds_token: of a backward pass;
    seconds_probe: of a probe, which serves all tokens.
    """
    key = jax.random.key(0, impl="rbg")
    exact, probed = trace(model, prompt, answer), trace(model, prompt, answer, CHECK_PROBES, key)
    apart = (probed.epistemic - exact.epistemic) / (probed.relative_error * exact.epistemic)
    count = len(exact.ids)
    return {
        "tokens": count,
        "probes": CHECK_PROBES,
        "rms": float(np.sqrt(np.mean(apart**2))),
        "worst": float(np.abs(apart).max()),
        "seconds_token": _seconds(lambda: trace(model, prompt, answer)) / count,
        "seconds_probe": _seconds(lambda: trace(model, prompt, answer, CHECK_PROBES, key)) / CHECK_PROBES,
    }


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def summarise(results: Sequence[Result], preset: str) -> Outputs:
    """See `experiments.answers.report.trace`."""
    return _trace_report.summarise(results, qa.joined(results), preset)
