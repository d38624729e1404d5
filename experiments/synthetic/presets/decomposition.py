"""What ‖g‖² loses against the reference: to the Taylor expansion, or to isotropy?

V = Var_θ[p_c] (reference), L = gᵀΣg with Σ the covariance of the reference's draws, I = ‖g‖², g = ∇_θ p_c at θ*.
corr(V, L) is what linearising costs, corr(L, I) what isotropy costs, corr(V, I) the whole.

Command: python -m experiments decomposition --preset quick
"""

from experiments.synthetic.presets import scaling
from experiments.synthetic.study import Cell


def jobs(preset: str, seeds: int | None = None, widths: tuple[int, ...] | None = None) -> list[Cell]:
    """Return the jobs of a preset.

    The jobs read the reference posteriors of `validation` and of `scaling` at the same preset. Beside the references,
    on 2 CPU cores: smoke seconds; quick about half a minute; paper about an hour, most of it in matching
    the units of wide networks.
    """
    return scaling.references(preset, seeds, widths, "decomposition")
