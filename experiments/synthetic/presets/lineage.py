"""Which single setting of what the paper does not state comes nearest to its Table 1?

The grid of settings: activation × prior × number of points × θ* × evaluation grid × variance × a gap in the inputs of
the nonlinear regression. One job is one posterior, and it measures every variant of θ*, grid and variance. A problem
without a hidden layer has no activation, and is sampled once for all three.

Command: python -m experiments lineage --preset quick
"""

from collections.abc import Sequence
from typing import Any

from experiments.synthetic.presets.leapfrog import mean_steps
from experiments.synthetic.presets.validation import MAX_ROUNDS, TINY
from experiments.synthetic.study import Cell
from isouq.models import ACTIVATIONS
from isouq.problems import PROBLEMS

PRIORS = (("unit", 1.0), ("unit", 3.0), ("unit", 10.0), ("fan_in", 1.0), ("fan_in", 3.0))
NUM_POINTS = (200, 1000)
UNUSED = "tanh"  # the activation that a cell names where the model has no hidden layer


def jobs(preset: str, seeds: int | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    smoke: two problems, two activations, tiny chains, half a minute. quick: three problems, three activations, the
    protocol's prior and one seed, about 3 minutes on 2 CPU cores. paper: nine problems, the whole grid, five seeds,
    about 2.5 hours (an estimate).

    A reference gets at most the eight rounds of draws of `quick` at every preset, a quarter of what `validation` allows
    at `paper`, because there are so many. It is given up after two rounds if eight would hardly suffice, and nothing is
    measured of one that is not accepted.
    """
    if preset == "smoke":
        return _cells(("binary/xor", "multiclass/clusters"), ("tanh", "relu"), seeds or 2, **TINY)
    settings: dict[str, Any] = {"max_rounds": MAX_ROUNDS["quick"], "give_up": True}
    if preset == "quick":
        names = ("binary/xor", "multiclass/rings", "regression/sine")
        return _cells(names, tuple(ACTIVATIONS), seeds or 1, **settings)
    return [
        cell
        for num_points in NUM_POINTS
        for prior, sigma in PRIORS
        for cell in _cells(
            tuple(PROBLEMS), tuple(ACTIVATIONS), seeds or 5,
            prior=prior, sigma=sigma, num_points=num_points, **settings,
        )
    ]  # fmt: skip


def _cells(names: Sequence[str], activations: Sequence[str], seeds: int, **settings: Any) -> list[Cell]:
    """Return the cells of some problems under one prior and number of points."""
    prior, sigma = settings.get("prior", "unit"), settings.get("sigma", 1.0)
    return [
        Cell(
            name, seed, activation=activation, study="lineage",
            **{"num_leapfrog": mean_steps(name, None, prior, sigma), **settings},
        )
        for seed in range(seeds)
        for name in names
        for activation in (activations if PROBLEMS[name].hidden else (UNUSED,))
    ]  # fmt: skip
