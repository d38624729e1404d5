"""The experiment on science and sports texts, by name."""

from experiments.domains import domains
from experiments.experiment import Experiment

EXPERIMENTS = {"domains": Experiment(domains.cells, domains.summarise, ("data", "encoder"))}
