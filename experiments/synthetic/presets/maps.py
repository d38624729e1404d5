"""The uncertainty maps: epistemic and aleatoric, reference beside estimate, for every problem.

Command: python -m experiments maps --preset quick
"""

from experiments.synthetic.presets import validation
from experiments.synthetic.study import Cell


def jobs(preset: str, seeds: int | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    The jobs are those of `validation` with seed 0, computed once for both experiments: seconds more.
    """
    return [cell for cell in validation.references(preset, seeds, "agreement") if cell.seed == 0]
