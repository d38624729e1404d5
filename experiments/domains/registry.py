"""The experiment on science and sports texts, by name: its stages, in their order."""

from experiments.domains.figures import figures
from experiments.domains.numbers import numbers
from experiments.domains.presets import jobs
from experiments.domains.report import report
from experiments.experiment import Experiment

EXPERIMENTS = {"domains": Experiment(jobs, numbers, report, figures, ("data", "encoder"))}
