"""A cell of `qa` and `trace`: a block of questions and what is done with it."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.answers.prompts import STYLES
from experiments.run.job import Result
from isouq import _checks

# A version that is part of every key: raise it when a change to the code changes the numbers.
# "reference" answers the questions; every other study reads the answers.
STUDIES = {"reference": 1, "scores": 1, "judged": 2, "choices": 1, "cost": 1, "trace": 1}
SECONDS = {"reference": 1.6, "scores": 1.9, "judged": 0.2, "choices": 0.8, "cost": 2.0, "trace": 4.0}  # a question


@dataclass(frozen=True)
class QaCell:
    """Everything a result depends on.

    model, encoder, entailment: canonical names; encoder and entailment are of the study "judged" alone. data: as
    `load_questions` takes it; benchmark, kind: what the questions are called and are. digest: of
    the questions and of a local model's files; judges: of a local encoder's, for "judged". start, count: the block,
    rows start to start + count of the questions that could be read. prompt: one of `_prompts.STYLES`. samples,
    temperature: sampled answers a question beside the greedy one. seed: of the sampling.
    """

    model: str
    benchmark: str
    kind: str
    data: str | None
    digest: str
    start: int
    count: int
    prompt: str = "few_shot"
    samples: int = 10
    temperature: float = 1.0
    max_new_tokens: int = 32
    seed: int = 0
    encoder: str = ""
    entailment: str = ""
    judges: str = ""
    study: str = "reference"

    def __post_init__(self) -> None:
        _checks.one_of("prompt", self.prompt, STYLES)
        _checks.one_of("study", self.study, STUDIES)
        _checks.positive("temperature", self.temperature)
        for name in ("start", "seed"):
            _checks.positive_int(name, getattr(self, name), 0)
        for name in ("count", "samples", "max_new_tokens"):
            _checks.positive_int(name, getattr(self, name))

    def reference(self) -> "QaCell":
        """The cell that answers the questions of this one."""
        return dataclasses.replace(self, study="reference", encoder="", entailment="", judges="")

    def key(self) -> str:
        """A hash of the configuration and of the versions of the code; the questions by content, not by path."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name not in ("data", "benchmark")}
        versions = [STUDIES["reference"], STUDIES[self.study]]
        text = json.dumps({"experiment": "qa", **fields, "versions": versions}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def label(self) -> str:
        """How progress and errors name the cell."""
        what = "answers" if self.study == "reference" else self.study
        rows = f"questions {self.start} to {self.start + self.count - 1}"
        return f"{self.model.rpartition('/')[2]}, {self.benchmark}, {rows}, {what}"

    def weight(self) -> float:
        """Expected seconds with two cores at work and a model of 135 M parameters."""
        return self.count * SECONDS[self.study]

    def needs(self) -> "QaCell | None":
        """Return the cell that answers the questions of this one; None for itself."""
        return None if self.study == "reference" else self.reference()

    def run(
        self,
        needed: Result | None = None,
        checkpoint: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Result:
        """Compute the result; see `qa.run`."""
        return import_module("experiments.answers.qa").run(self, needed, checkpoint, progress)

    def row(self) -> dict[str, Any]:
        """The configuration for a result; questions and models by name, not by path."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "data"}
        return fields | {name: shown(fields[name]) for name in ("model", "encoder", "entailment")}


def shown(model: str) -> str:
    """What a model is called in results: its name, of a local one without the folder."""
    return Path(model).name if Path(model).is_absolute() else model
