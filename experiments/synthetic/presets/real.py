"""The estimates on the data sets that scikit-learn ships: agreement with HMC, errors found, calibration.

Command: python -m experiments real --preset quick
"""

from typing import Any

from experiments.run.errors import run_errors
from experiments.synthetic.presets import validation
from experiments.synthetic.presets.scaling import SEEDS
from experiments.synthetic.real_data import MAX_POINTS, REAL
from experiments.synthetic.study import Cell
from isouq._extras import require

PRIORS = (("unit", 1.0), ("fan_in", 3.0))
_TINY = {name: value for name, value in validation.TINY.items() if name != "resolution"}


def jobs(preset: str, seeds: int | None = None) -> list[Cell]:
    """Return the jobs of a preset: a network of 16 tanh units for each data set, prior and seed.

    smoke: iris, tiny chains. quick: five data sets, two priors, one seed. paper: five seeds.

    Raises:
        RunError: scikit-learn, which has the data sets, is not installed.
    """
    with run_errors():
        require("sklearn", "experiments")
    settings: dict[str, Any] = {"num_points": MAX_POINTS, "max_rounds": validation.MAX_ROUNDS.get(preset, 1)}
    if preset == "smoke":
        settings |= _TINY
    return [
        Cell(name, seed, prior=prior, sigma=sigma, study="estimators", **settings)
        for name in (["real/iris"] if preset == "smoke" else REAL)
        for prior, sigma in PRIORS
        for seed in range(seeds or SEEDS[preset])
    ]
