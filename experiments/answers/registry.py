"""The experiments with a language model's answers, by name."""

from experiments.answers.figures.qa import figures as qa_figures
from experiments.answers.figures.trace import figures as trace_figures
from experiments.answers.numbers.qa import numbers as qa_numbers
from experiments.answers.numbers.trace import numbers as trace_numbers
from experiments.answers.presets import qa, trace
from experiments.answers.report.qa import report as qa_report
from experiments.answers.report.trace import report as trace_report
from experiments.experiment import Experiment

_OPTIONS = ("questions", "limit", "model", "prompt", "encoder")
EXPERIMENTS = {
    "qa": Experiment(qa.jobs, qa_numbers, qa_report, qa_figures, (*_OPTIONS, "entailment")),
    "trace": Experiment(trace.jobs, trace_numbers, trace_report, trace_figures, _OPTIONS),
}
