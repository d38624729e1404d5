"""What a score costs: seconds and memory a question, on programs that are compiled already."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.answers.cell import QaCell
from experiments.answers.measure import scores as _qa_scores
from experiments.answers.prompts import STOP, answer_prompt
from experiments.answers.questions import Question
from experiments.run.job import Result
from experiments.synthetic.subject import Clock
from isouq._memory import temporary_bytes
from isouq.text import LanguageModel, generate, score
from isouq.text.baselines import p_true
from isouq.text.continuations import read
from isouq.text.prompts import encode_pair
from isouq.text.scoring import lower

QUESTIONS = 4  # as many as are scored at a time


def cost(
    cell: QaCell,
    model: LanguageModel,
    items: Sequence[Question],
    answered: list[dict[str, Any]],
    done: Callable[[float], None],
) -> Result:
    """Seconds a question of each kind of pass, the second time, over a batch of questions; `costs`, a row each.

    mib: what the program of the gradient takes beside the parameters, by its own account.
    """
    kept = [i for i, one in enumerate(answered) if _qa_scores.answers_something(one)][:QUESTIONS]
    if not kept:
        return Result({"costs": []}, {})
    prompts = [answer_prompt(items[i].question, cell.kind, cell.prompt) for i in kept]
    pairs = [(prompt, answered[i]["greedy"]["ids"]) for prompt, i in zip(prompts, kept, strict=True)]
    texts = [answered[i]["greedy"]["text"] for i in kept]
    samples = [[sample["text"] for sample in answered[i]["samples"]] for i in kept]
    asked = [items[i].question for i in kept]
    repeated = [prompt for prompt in prompts for _ in range(cell.samples)]
    tokens = cell.max_new_tokens
    passes: dict[str, Callable[[], Any]] = {
        "answer": lambda: generate(model, prompts, tokens, stop=STOP, batch_size=len(kept)),
        "samples": lambda: generate(
            model, repeated, tokens, cell.temperature, key=jax.random.key(0), stop=STOP, batch_size=2 * cell.samples
        ),
        "forward": lambda: read(model, pairs),
        "gradient": lambda: score(model, pairs, batch_size=len(kept)),
        "gradient_first": lambda: score(model, pairs, reduction="first", batch_size=len(kept)),
        "gradient_head": lambda: score(model, pairs, parameters=_qa_scores.HEAD, batch_size=len(kept)),
        "p_true": lambda: p_true(model, asked, texts, samples, chat=cell.prompt == "chat"),
    }
    rows = [encode_pair(model, *pair) for pair in pairs]
    programs = {
        "gradient": lower(model.config, model.params, rows, "mean", True),
        "gradient_first": lower(model.config, model.params, rows, "first", True),
        "gradient_head": lower(model.config, model.params, rows, "mean", True, _qa_scores.HEAD),
    }
    found = []
    for i, (name, run) in enumerate(passes.items()):
        run()
        clock = Clock()
        run()
        row: dict[str, Any] = {"pass": name, "seconds": clock.laps()["seconds"] / len(kept)}
        if name in programs:
            row["mib"] = temporary_bytes(programs[name].compile()) / 2**20
        found.append({"model": cell.model, "benchmark": cell.benchmark, "questions": len(kept), **row})
        done((i + 1) / len(passes))
    return Result({"costs": found}, {})
