"""The experiments with a language model's answers, by name."""

from experiments.answers import qa, trace
from experiments.experiment import Experiment

_ASKED = ("questions", "limit", "model", "prompt")
EXPERIMENTS = {
    "qa": Experiment(qa.cells, qa.summarise, (*_ASKED, "encoder", "entailment")),
    "trace": Experiment(trace.cells, trace.summarise, (*_ASKED, "encoder")),
}
