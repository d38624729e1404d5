"""Why should isotropy work? Does the share of ‖g‖² in the Hessian's bulk predict the agreement of ‖g‖²?

The paper's argument: in large networks most eigenvalues of the Hessian are near zero, so that under a prior H⁻¹
is close to a multiple of I on most directions. H = −∇² log p(D|θ) at θ*, without the prior; its bulk: the
eigenvectors with |λ| below the smallest prior precision 1/max(scale)², where the prior decides.

Command: python -m experiments spectrum --preset quick
"""

from experiments.synthetic.presets import scaling
from experiments.synthetic.study import Cell


def jobs(preset: str, seeds: int | None = None, widths: tuple[int, ...] | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    The jobs read the reference posteriors of `validation` and of `scaling` at the same preset. Beside the references,
    on 2 CPU cores: smoke seconds; quick about 10 seconds; paper half an hour.
    """
    return scaling.references(preset, seeds, widths, "spectrum")
