"""The experiments on small problems, by name: the stages of each, in their order.

`all` runs every one, `reproduce` those of the paper.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

from experiments.experiment import Experiment
from experiments.synthetic.figures import calibration as calibration_figures
from experiments.synthetic.figures import covariance as covariance_figures
from experiments.synthetic.figures import decomposition as decomposition_figures
from experiments.synthetic.figures import depth as depth_figures
from experiments.synthetic.figures import estimators as estimators_figures
from experiments.synthetic.figures import lineage as lineage_figures
from experiments.synthetic.figures import maps as maps_figures
from experiments.synthetic.figures import real as real_figures
from experiments.synthetic.figures import scaling as scaling_figures
from experiments.synthetic.figures import spectrum as spectrum_figures
from experiments.synthetic.figures import validation as validation_figures
from experiments.synthetic.numbers import calibration as calibration_numbers
from experiments.synthetic.numbers import covariance as covariance_numbers
from experiments.synthetic.numbers import decomposition as decomposition_numbers
from experiments.synthetic.numbers import depth as depth_numbers
from experiments.synthetic.numbers import estimators as estimators_numbers
from experiments.synthetic.numbers import lineage as lineage_numbers
from experiments.synthetic.numbers import maps as maps_numbers
from experiments.synthetic.numbers import real as real_numbers
from experiments.synthetic.numbers import scaling as scaling_numbers
from experiments.synthetic.numbers import spectrum as spectrum_numbers
from experiments.synthetic.numbers import validation as validation_numbers
from experiments.synthetic.presets import calibration as calibration_presets
from experiments.synthetic.presets import covariance as covariance_presets
from experiments.synthetic.presets import decomposition as decomposition_presets
from experiments.synthetic.presets import depth as depth_presets
from experiments.synthetic.presets import estimators as estimators_presets
from experiments.synthetic.presets import lineage as lineage_presets
from experiments.synthetic.presets import maps as maps_presets
from experiments.synthetic.presets import real as real_presets
from experiments.synthetic.presets import scaling as scaling_presets
from experiments.synthetic.presets import spectrum as spectrum_presets
from experiments.synthetic.presets import validation as validation_presets
from experiments.synthetic.report import calibration as calibration_report
from experiments.synthetic.report import covariance as covariance_report
from experiments.synthetic.report import decomposition as decomposition_report
from experiments.synthetic.report import depth as depth_report
from experiments.synthetic.report import estimators as estimators_report
from experiments.synthetic.report import lineage as lineage_report
from experiments.synthetic.report import maps as maps_report
from experiments.synthetic.report import real as real_report
from experiments.synthetic.report import scaling as scaling_report
from experiments.synthetic.report import spectrum as spectrum_report
from experiments.synthetic.report import validation as validation_report
from experiments.synthetic.study import Cell
from isouq import models

ACTIVATIONS = tuple(models.ACTIVATIONS)


def _with_activation(jobs: Callable[..., list[Cell]]) -> Callable[..., list[Cell]]:
    """Return the function of a preset's jobs with an option for the activation of all networks."""

    @wraps(jobs)
    def with_activation(preset: str, seeds: int | None = None, activation: str | None = None, **options: Any) -> list:
        return [replace(cell, activation=activation or cell.activation) for cell in jobs(preset, seeds, **options)]

    return with_activation


_EXPERIMENTS = {
    "validation": Experiment(
        validation_presets.jobs, validation_numbers.numbers, validation_report.report, validation_figures.figures
    ),
    "maps": Experiment(maps_presets.jobs, maps_numbers.numbers, maps_report.report, maps_figures.figures),
    "scaling": Experiment(
        scaling_presets.jobs, scaling_numbers.numbers, scaling_report.report, scaling_figures.figures, ("widths",)
    ),
    "covariance": Experiment(
        covariance_presets.jobs, covariance_numbers.numbers, covariance_report.report, covariance_figures.figures
    ),
    "decomposition": Experiment(
        decomposition_presets.jobs,
        decomposition_numbers.numbers,
        decomposition_report.report,
        decomposition_figures.figures,
        ("widths",),
    ),
    "spectrum": Experiment(
        spectrum_presets.jobs, spectrum_numbers.numbers, spectrum_report.report, spectrum_figures.figures, ("widths",)
    ),
    "estimators": Experiment(
        estimators_presets.jobs, estimators_numbers.numbers, estimators_report.report, estimators_figures.figures
    ),
    "real": Experiment(real_presets.jobs, real_numbers.numbers, real_report.report, real_figures.figures),
    "calibration": Experiment(
        calibration_presets.jobs, calibration_numbers.numbers, calibration_report.report, calibration_figures.figures
    ),
}
REPRODUCED = ("validation", "maps", "scaling", "covariance", "decomposition", "spectrum")  # the paper's own studies
EXPERIMENTS = {
    name: experiment._replace(jobs=_with_activation(experiment.jobs), options=(*experiment.options, "activation"))
    for name, experiment in _EXPERIMENTS.items()
} | {  # these set the activation of each network themselves
    "depth": Experiment(
        depth_presets.jobs, depth_numbers.numbers, depth_report.report, depth_figures.figures, ("widths",)
    ),
    "lineage": Experiment(
        lineage_presets.jobs, lineage_numbers.numbers, lineage_report.report, lineage_figures.figures
    ),
}
