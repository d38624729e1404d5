"""Which covariance? Fig. 1 (why proxies distort), and every covariance against the reference on all nine problems.

Command: python -m experiments covariance --preset quick
"""

from experiments.synthetic.presets import validation
from experiments.synthetic.study import Cell


def jobs(preset: str, seeds: int | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    The jobs read the reference posteriors that `validation` samples at the same preset. Beside them, on 2 CPU cores:
    smoke, two problems, half a minute; quick, nine problems and two seeds, a minute; paper, five seeds, 4 minutes.
    """
    cells = validation.references(preset, seeds, "covariance")
    return [cell for cell in cells if preset != "smoke" or cell.problem != "multiclass/clusters"]
