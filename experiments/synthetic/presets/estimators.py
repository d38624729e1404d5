"""The leaderboard: which cheap estimate can stand in for the posterior?

Command: python -m experiments estimators --preset quick
"""

from dataclasses import replace

from experiments.synthetic.presets import real, scaling, validation
from experiments.synthetic.study import Cell

WIDTHS = (8, 32, 128, 512)


def jobs(preset: str, seeds: int | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    Their posteriors are those of `validation`, of `scaling` at four widths under the three priors of its curves, and of
    `real`; references that these experiments sampled are not sampled again.
    smoke: XOR and iris, tiny chains. quick: nine problems, widths 8 and 32, five data sets, one seed. paper:
    all four widths, five seeds.
    """
    widths = WIDTHS[:2] if preset == "quick" else WIDTHS
    count = seeds or scaling.SEEDS[preset]
    synthetic = validation.references(preset, count, "estimators")
    if preset == "smoke":
        synthetic = [cell for cell in synthetic if cell.problem == "binary/xor"]
    else:
        sweep = scaling.jobs(preset, count, widths)
        of_curves = [cell for cell in sweep if (cell.prior, cell.sigma) in scaling.CURVES]
        synthetic += [replace(cell, study="estimators") for cell in of_curves]
    return [*synthetic, *real.jobs(preset, count)]
