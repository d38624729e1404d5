"""The test of whether a sampled posterior is good enough to be called a reference.

It looks at predictions over the evaluation inputs and never at weights. Weights are symmetric under permutation and
sign, so that chains in mirrored modes disagree on weights and agree on everything else.
"""

from typing import Any, NamedTuple

import numpy as np

from isouq import stats
from isouq.posterior._diagnostics import rhat_and_ess_bulk

QUANTILE = 0.95
MAX_RHAT = 1.01
MIN_ESS = 400.0
MAX_DIVERGENT = 0.001
MIN_HALVES = 0.95
MIN_POINTS = 400  # inputs whose R-hat and ESS are taken, if there are so many


class Verdict(NamedTuple):
    """The result of the acceptance test of a reference; it is accepted if all four rules hold.

    R-hat and ESS must each hold for 95 % of the inputs, not necessarily the same ones.
    rhat: rank-normalised split R-hat that 95 % of the inputs do not exceed (rule: ≤ 1.01).
    ess_bulk: bulk effective sample size that 95 % of the inputs reach (rule: ≥ 400, all chains together).
    divergent: share of divergent transitions (rule: < 0.001).
    halves: Spearman correlation between the variance maps of two halves of the chains (≥ 0.95).
    """

    accepted: bool
    rhat: float
    ess_bulk: float
    divergent: float
    halves: float

    def reasons(self) -> list[str]:
        """Return the rules that failed, in words; none when accepted."""
        failed = []
        if not self.rhat <= MAX_RHAT:
            failed.append(f"R-hat {self.rhat:.4f} > {MAX_RHAT}")
        if not self.ess_bulk >= MIN_ESS:
            failed.append(f"bulk ESS {self.ess_bulk:.0f} < {MIN_ESS:.0f}")
        if not self.divergent < MAX_DIVERGENT:
            failed.append(f"divergent {self.divergent:.2%} ≥ {MAX_DIVERGENT:.1%}")
        if not self.halves >= MIN_HALVES:
            failed.append(f"half-chain Spearman {self.halves:.3f} < {MIN_HALVES}")
        return failed

    def __str__(self) -> str:
        return "accepted" if self.accepted else "unconverged: " + ", ".join(self.reasons())


def judge(predictions: Any, divergent: float, maps: Any = None) -> Verdict:
    """Return the verdict on predictions `[chains, draws, points]`.

    R-hat and ESS are those of every k-th input, the largest k that leaves at least 400. Two halves of the chains are
    compared at all inputs.

    Args:
        predictions: margins or means. R-hat and ESS depend only on their ranks, up to the fold about the median.
        divergent: share of divergent transitions.
        maps: the same draws on the scale whose variance is the map (probabilities); by default the predictions.

    Raises:
        ValueError: a wrong shape, or fewer than 2 chains of 4 draws of 2 points.

    Cost: about 0.2 s of CPU time for 4 chains of 1000 draws at 2500 points, and the memory of half of `maps`.
    Source: R-hat and bulk ESS of Vehtari et al. (2021).
    """
    predictions = np.asarray(predictions)
    if predictions.ndim != 3:
        raise ValueError(f"predictions has shape {predictions.shape}; expected [chains, draws, points]")
    chains, draws, points = predictions.shape
    if chains < 2 or draws < 4:
        raise ValueError(f"{chains} chain(s) of {draws} draws cannot be judged; pass at least 2 chains of 4 draws")
    if points < 2:
        raise ValueError(f"predictions has {points} point(s), and a verdict compares maps; pass at least 2 points")
    maps = predictions if maps is None else np.asarray(maps)
    if maps.shape != predictions.shape:
        raise ValueError(f"maps has shape {maps.shape}; expected that of predictions, {predictions.shape}")
    rhat, ess = rhat_and_ess_bulk(predictions[:, :, :: max(1, points // MIN_POINTS)])
    # inverted_cdf gives the value of an input, so that "95 % of the inputs are at or below" is exact
    rhat_bound = float(np.quantile(rhat, QUANTILE, method="inverted_cdf"))
    ess_bound = float(-np.quantile(-ess, QUANTILE, method="inverted_cdf"))
    half = chains // 2
    with np.errstate(invalid="ignore", over="ignore"):  # the variance of values with NaN or infinity is NaN
        variances = [part.var(axis=(0, 1), dtype=np.float64) for part in (maps[:half], maps[half:])]
    halves = stats.spearman(*variances) if np.isfinite(variances).all() else float("nan")
    verdict = Verdict(False, rhat_bound, ess_bound, float(divergent), halves)
    return verdict._replace(accepted=not verdict.reasons())
