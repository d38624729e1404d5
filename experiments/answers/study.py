"""The jobs of question answering: a block of questions and one study of it."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from experiments.answers.block import Block
from experiments.answers.inputs import read_judges, read_model, read_models, read_questions
from experiments.answers.measure.answers import answer
from experiments.answers.measure.choices import score_choices
from experiments.answers.measure.cost import measure_cost
from experiments.answers.measure.judgements import judge
from experiments.answers.measure.published import score_published
from experiments.answers.measure.scores import score_answers
from experiments.answers.measure.traces import trace_answers
from experiments.clock import Clock
from experiments.run.job import Result, hash_fields
from experiments.run.partial import Partial
from isouq import _checks


class Study(NamedTuple):
    """What is done with a block.

    version: part of every key; raise it when a change to the code changes the numbers. seconds: expected for a question
    with two cores and a model of 135 M parameters. measure: `measure(block, models, questions, answered, progress,
    partial)`, without `answered` for the study that answers. models: reads the models that `measure` needs.
    """

    version: int
    seconds: float
    measure: Callable[..., Result]
    models: Callable[[Block], Any] = read_model


STUDIES = {
    "reference": Study(1, 1.6, answer),  # every other study reads these answers
    "scores": Study(1, 1.9, score_answers),
    "judged": Study(2, 0.2, judge, read_judges),
    "published": Study(1, 2.5, score_published, read_models),
    "choices": Study(1, 0.8, score_choices),
    "cost": Study(2, 4.0, measure_cost, read_models),
    "trace": Study(1, 4.0, trace_answers),
}


@dataclass(frozen=True)
class QaCell(Block):
    """A block of questions and one of `STUDIES`."""

    study: str = "reference"

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.one_of("study", self.study, STUDIES)

    def reference(self) -> "QaCell":
        """Return the job that answers the questions of this one."""
        return replace(self, study="reference", encoder="", entailment="", judges="")

    def key(self) -> str:
        """Return a hash of the configuration and of the versions of the code; the questions by content, not by path."""
        fields = {name: value for name, value in asdict(self).items() if name not in ("data", "benchmark")}
        versions = [STUDIES["reference"].version, STUDIES[self.study].version]
        return hash_fields({"experiment": "qa", **fields, "versions": versions})

    def label(self) -> str:
        """Return how progress and errors name the job."""
        study = "answers" if self.study == "reference" else self.study
        rows = f"questions {self.start} to {self.start + self.count - 1}"
        return f"{self.model.rpartition('/')[2]}, {self.benchmark}, {rows}, {study}"

    def weight(self) -> float:
        """Return the expected seconds with two cores at work and a model of 135 M parameters."""
        return self.count * STUDIES[self.study].seconds

    def program(self) -> str:
        """Return a name of the compiled programs: the study and its models."""
        return ", ".join((self.study, self.model, self.encoder, self.entailment))

    def needs(self) -> "QaCell | None":
        """Return the job that answers the questions of this one; None for that job itself."""
        return None if self.study == "reference" else self.reference()

    def run(
        self,
        needed: Result | None = None,
        checkpoint: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Result:
        """Run the study, and before it the one that answers the questions where no result of that one is given."""
        clock = Clock()
        study = STUDIES[self.study]
        whole = read_questions(self)
        questions = whole.items[self.start : self.start + self.count]
        answered = []
        if self.study != "reference":
            needed = needed or self.reference().run(progress=progress)
            answered = [needed.numbers["questions"]]
        models, partial = study.models(self), Partial(checkpoint, self.key())
        result = study.measure(self, models, questions, *answered, progress or (lambda share: None), partial)
        numbers: dict[str, Any] = {**self.row(), **result.numbers}
        if self.study == "reference":
            numbers["broken"] = whole.broken if self.start == 0 else []
        return Result({**numbers, "seconds": clock.laps()["seconds"]}, result.arrays)
