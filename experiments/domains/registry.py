"""The experiments on science and sports texts, by name: their stages, in their order."""

from experiments.domains.figures.calibration import figures as calibration_figures
from experiments.domains.figures.domains import figures
from experiments.domains.numbers.calibration import numbers as calibration_numbers
from experiments.domains.numbers.domains import numbers
from experiments.domains.presets import calibration, domains
from experiments.domains.report.calibration import report as calibration_report
from experiments.domains.report.domains import report
from experiments.experiment import Experiment

_OPTIONS = ("data", "encoder")
EXPERIMENTS = {
    "domains": Experiment(domains.jobs, numbers, report, figures, _OPTIONS),
    "text-calibration": Experiment(
        calibration.jobs, calibration_numbers, calibration_report, calibration_figures, _OPTIONS
    ),
}
