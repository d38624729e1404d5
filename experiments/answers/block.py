"""The configuration of question answering: a block of questions, and the models that answer and judge them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from experiments.answers.prompts import STYLES
from isouq import _checks


@dataclass(frozen=True)
class Block:
    """A block of questions with everything that its answers and their scores depend on.

    model: the canonical name of the language model. benchmark: the name of the set of questions; kind: "alias" or
    "references"; data: where they are read from, as `load_questions` takes it; digest: a hash of the questions and of
    the files of a local model. start, count: the block holds rows start to start + count of the readable questions.
    prompt: one of `prompts.STYLES`. samples, temperature, seed: how many answers are sampled beside the greedy one, how
    warm, and from which key. max_new_tokens: the length of an answer at most. encoder, entailment: the names of the
    sentence encoder and of the NLI encoder that judge the answers ("" for none); judges: a hash of their local files.
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

    def __post_init__(self) -> None:
        _checks.one_of("prompt", self.prompt, STYLES)
        _checks.positive("temperature", self.temperature)
        for name in ("start", "seed"):
            _checks.positive_int(name, getattr(self, name), 0)
        for name in ("count", "samples", "max_new_tokens"):
            _checks.positive_int(name, getattr(self, name))

    def row(self) -> dict[str, Any]:
        """Return the configuration as a result holds it: questions and models by name, not by path."""
        fields = {name: value for name, value in asdict(self).items() if name != "data"}
        return fields | {name: display_name(fields[name]) for name in ("model", "encoder", "entailment")}


def display_name(model: str) -> str:
    """Return what a model is called in results: its name, without the folder where it is local."""
    return Path(model).name if Path(model).is_absolute() else model
