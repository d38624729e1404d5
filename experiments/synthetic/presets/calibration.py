"""Does a scale for ‖g‖² make the probabilities of one network better, and better than its rivals do?

Command: python -m experiments calibration --preset quick
"""

from dataclasses import replace

from experiments.synthetic.presets import real
from experiments.synthetic.study import Cell


def jobs(preset: str, seeds: int | None = None) -> list[Cell]:
    """Return the jobs of a preset: the posteriors of `real`, whose references are not sampled again.

    smoke: iris, tiny chains. quick: five data sets, two priors, one seed, beside the references half a minute. paper:
    five seeds, beside the references 2 minutes.
    """
    return [replace(cell, study="calibration") for cell in real.jobs(preset, seeds)]
