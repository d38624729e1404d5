"""Agreement against depth and activation: 3-class rings, tanh networks of 1 to 3 hidden layers, and ReLU ones of 1.

Command: python -m experiments depth --preset quick
"""

from dataclasses import replace

from experiments.synthetic.presets import scaling
from experiments.synthetic.presets.leapfrog import mean_steps
from experiments.synthetic.study import Cell

BASELINE = (1, "tanh")
NETWORKS = (BASELINE, (1, "relu"), (2, "tanh"), (3, "tanh"))  # depth and activation, by cost
PRIORS = (("unit", 1.0), ("fan_in", 3.0))
_WIDTHS = {"smoke": (2, 4), "quick": (8, 32), "paper": (8, 32, 128, 512)}


def jobs(preset: str, seeds: int | None = None, widths: tuple[int, ...] | None = None) -> list[Cell]:
    """Return the jobs of a preset, the costliest last; those of tanh networks of depth 1 are jobs of `scaling`.

    smoke: two widths, tiny chains, about a minute, most of it compiling. quick: widths 8 and 32, one seed, about 3
    minutes on 2 CPU cores. paper: widths 8 to 512, five seeds; beside the jobs of `scaling` about 40 minutes, and 4
    hours more for two and three layers of 512 units, or several times that where two rounds of draws do not suffice (an
    estimate from the time of one gradient; `--widths 8,32,128` leaves the width out).
    """
    cells = [
        cell for cell in scaling.jobs(preset, seeds, widths or _WIDTHS[preset]) if (cell.prior, cell.sigma) in PRIORS
    ]
    return [
        _with_network(cell, preset, depth, activation)
        for width in dict.fromkeys(cell.width for cell in cells)
        for depth, activation in NETWORKS
        for cell in cells
        if cell.width == width
    ]


def _with_network(cell: Cell, preset: str, depth: int, activation: str) -> Cell:
    """Return the cell with another network, and with as many leapfrog steps as that needs; few for `smoke`."""
    steps = cell.num_leapfrog
    if preset != "smoke":
        steps = mean_steps(cell.problem, cell.width, cell.prior, cell.sigma, depth, activation)
    return replace(cell, depth=depth, activation=activation, num_leapfrog=steps)
