"""Table 1: how well ‖g‖², Laplace and p(1 − p) agree with the reference, on all nine problems.

Command: python -m experiments validation --preset quick
"""

from dataclasses import replace
from typing import Any

from experiments.synthetic.presets.leapfrog import mean_steps
from experiments.synthetic.study import Cell
from isouq import problems

# A run of seconds: few points, short chains, a coarse grid.
TINY: dict[str, Any] = {
    "num_points": 40, "num_warmup": 50, "num_draws": 50, "max_rounds": 1, "num_leapfrog": 10, "resolution": 8,
}  # fmt: skip
MAX_ROUNDS = {"quick": 8, "paper": 32}
SECOND_OPINION = ("binary/xor", "multiclass/rings")


def jobs(preset: str, seeds: int | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    smoke: three problems, tiny chains, seconds. quick: nine problems, 2 seeds, about a minute on 2 CPU cores.
    paper: 5 seeds, up to 32 rounds of draws, and NumPyro's second opinion on two problems, about 40 minutes.
    """
    if preset == "smoke":
        names = ("binary/xor", "multiclass/clusters", "regression/linear")
        return [Cell(name, seed, **TINY) for name in names for seed in range(seeds or 2)]
    cells = [
        Cell(name, seed, max_rounds=MAX_ROUNDS[preset], num_leapfrog=mean_steps(name, None, "unit", 1.0))
        for seed in range(seeds or {"quick": 2, "paper": 5}[preset])
        for name in problems.PROBLEMS
    ]
    if preset == "paper":
        cells += [replace(cell, study="second_opinion") for cell in cells if cell.problem in SECOND_OPINION]
    return cells


def references(preset: str, seeds: int | None, study: str) -> list[Cell]:
    """Return another study of the posteriors that `validation` samples at the same preset."""
    return [replace(cell, study=study) for cell in jobs(preset, seeds) if cell.study == "agreement"]
