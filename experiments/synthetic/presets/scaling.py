"""Agreement with the reference against model size: 3-class rings, one hidden layer, width × prior.

Command: python -m experiments scaling --preset quick
"""

from dataclasses import replace
from typing import Any

from experiments.synthetic.presets import validation
from experiments.synthetic.presets.leapfrog import mean_steps
from experiments.synthetic.study import Cell

PROBLEM = "multiclass/rings"
CURVES = (("unit", 1.0), ("fan_in", 1.0), ("fan_in", 3.0))
SEEDS = {"smoke": 2, "quick": 1, "paper": 5}
MAP_SIGMAS = (0.3, 1.0, 3.0, 10.0)  # scales of the fan_in prior in the heat map


def jobs(preset: str, seeds: int | None = None, widths: tuple[int, ...] | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    smoke: two widths, tiny chains. quick: widths 2 to 128, three priors, one seed, about 2 minutes on 2 CPU cores.
    paper: widths 2 to 1024, five priors, five seeds, about 2 hours.
    """
    settings: dict[str, Any] = validation.TINY if preset == "smoke" else {"max_rounds": validation.MAX_ROUNDS[preset]}
    priors: tuple[tuple[str, float], ...] = CURVES
    if preset == "paper":
        priors += tuple(("fan_in", sigma) for sigma in MAP_SIGMAS if ("fan_in", sigma) not in CURVES)
    default = {"smoke": (2, 4), "quick": (2, 4, 8, 16, 32, 64, 128), "paper": tuple(2**k for k in range(1, 11))}
    return [
        Cell(
            PROBLEM, seed, width, prior, sigma, **{"num_leapfrog": mean_steps(PROBLEM, width, prior, sigma), **settings}
        )
        for width in (widths or default[preset])
        for prior, sigma in priors
        for seed in range(seeds or SEEDS[preset])
    ]


def references(preset: str, seeds: int | None, widths: tuple[int, ...] | None, study: str) -> list[Cell]:
    """Return another study of the posteriors of `validation` and `scaling`; for smoke of XOR and one prior alone."""
    problems = validation.references(preset, seeds, study)
    sweep = [replace(cell, study=study) for cell in jobs(preset, seeds, widths)]
    if preset == "smoke":
        problems = [cell for cell in problems if cell.problem == "binary/xor"]
        sweep = [cell for cell in sweep if cell.prior == "unit"]
    return list(dict.fromkeys([*problems, *sweep]))
