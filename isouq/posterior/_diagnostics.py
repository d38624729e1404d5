"""Convergence diagnostics of many quantities at once: rank-normalised split R-hat and bulk effective sample size (ESS).

They equal those of ArviZ, to which the tests compare them; ArviZ loops over the quantities in Python, and took more
than a tenth of the time of a reference.

Every chain is cut into two halves of n draws. The S draws of a quantity in all halves are replaced by normal scores of
their ranks, z = Φ⁻¹((rank − 3/8) / (S + 1/4)). With W the mean variance within a half and V the variance of the means
of the halves, R-hat = √((n − 1)/n + V/W); it is taken of the draws and of their distances from the median, and the
larger one counts. The bulk ESS is S / τ of the scores of the draws. With autocorrelations ρ_t over all halves,
τ = −1 + 2 Σ_k min(P_0, ..., P_k) + ρ_2m, where P_k = ρ_2k + ρ_2k+1, the sum runs over k < m, and P_m is the first that
is not positive, or the last; in the first case a negative ρ_2m counts as zero. τ is at least 1 / log₁₀ S.

Sources: Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and localization: an improved
R-hat" (2021); Geyer, "Practical Markov chain Monte Carlo" (1992), the initial monotone sequence.
"""

import numpy as np
import scipy.fft
from scipy.special import ndtri

_POINTS_AT_A_TIME = 32  # an array of 4 chains of 1000 draws takes 1 MB, which fits into the cache of a core


def rhat_and_ess_bulk(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rank-normalised split R-hat and bulk ESS of each point of `[chains, draws, points]`.

    A point where they are undefined, because a draw is not finite or all draws are equal, has R-hat infinity and ESS 0.
    """
    rhat, ess = np.empty(values.shape[2]), np.empty(values.shape[2])
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, len(rhat), _POINTS_AT_A_TIME):
            block = slice(start, start + _POINTS_AT_A_TIME)
            rhat[block], ess[block] = _rhat_and_ess_of_block(values[:, :, block].astype(np.float64))
    undefined = np.isnan(rhat) | ~np.isfinite(values).all(axis=(0, 1))
    rhat[undefined], ess[undefined] = np.inf, 0.0
    return rhat, ess


def _rhat_and_ess_of_block(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = values.shape[1] // 2  # an odd number of draws loses the middle one
    halves = np.concatenate([values[:, :half], values[:, -half:]]).transpose(2, 0, 1)  # [points, half chains, n]
    draws = halves.reshape(len(halves), -1)
    order, ascending = _sort(draws)
    middle = draws.shape[1] // 2
    median = ascending[:, middle - 1 : middle + 1].mean(axis=1, keepdims=True)
    scores = _normal_scores(order, ascending).reshape(halves.shape)
    folded_scores = _normal_scores(*_sort(np.abs(draws - median))).reshape(halves.shape)
    # fmax: draws of two values have no spread when folded
    return np.fmax(_rhat(scores), _rhat(folded_scores)), _ess(scores)


def _sort(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices into the flat array that sort each row, and the sorted rows."""
    order = np.argsort(rows, axis=1)
    order += rows.shape[1] * np.arange(len(rows))[:, None]
    return order, rows.ravel()[order]


def _normal_scores(order: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Return z of each draw, in the order before the sort; equal draws share their average rank."""
    points, draws = ascending.shape
    is_start = np.ones(ascending.shape, bool)  # whether a run of equal draws begins
    is_start[:, 1:] = ascending[:, 1:] != ascending[:, :-1]
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=ascending.size)
    twice_rank = np.repeat(2 * starts + lengths + 1, lengths).reshape(points, draws)
    twice_rank -= 2 * draws * np.arange(points)[:, None]
    score = ndtri((np.arange(2 * draws + 1) / 2 - 3 / 8) / (draws + 1 / 4))  # by twice the rank
    scores = np.empty(ascending.size)
    scores[order] = score[twice_rank]
    return scores


def _rhat(scores: np.ndarray) -> np.ndarray:
    n = scores.shape[2]
    variance_of_means = scores.mean(axis=2).var(axis=1, ddof=1)
    return np.sqrt((n - 1) / n + variance_of_means / scores.var(axis=2, ddof=1).mean(axis=1))


def _ess(scores: np.ndarray) -> np.ndarray:
    points, halves, n = scores.shape
    pairs = _autocorrelations(scores)[:, : 2 * max(1, (n - 1) // 2)].reshape(points, -1, 2)  # without the last lag
    sums = pairs.sum(axis=2)
    is_end = ~(sums > 0)
    is_end[:, -1] = True
    end = is_end.argmax(axis=1)[:, None]  # m
    monotone = np.where(np.arange(sums.shape[1]) < end, np.minimum.accumulate(sums, axis=1), 0)
    last_sum, last_even = (np.take_along_axis(a, end, axis=1)[:, 0] for a in (sums, pairs[:, :, 0]))
    last = np.where(last_sum < 0, np.maximum(last_even, 0), last_even)
    tau = -1 + 2 * monotone.sum(axis=1) + last
    return halves * n / np.maximum(tau, 1 / np.log10(halves * n))


def _autocorrelations(scores: np.ndarray) -> np.ndarray:
    """Return ρ_t `[points, lags]`, by the Fourier transform of the mean periodogram of the half chains."""
    n = scores.shape[2]
    means = scores.mean(axis=2, keepdims=True)
    size = scipy.fft.next_fast_len(2 * n, real=True)
    spectra = scipy.fft.rfft(scores - means, size, axis=2)
    periodogram = np.mean(spectra.real**2 + spectra.imag**2, axis=1)
    covariance = scipy.fft.irfft(periodogram, size, axis=1)[:, :n] / n
    variance = covariance[:, :1] + means.var(axis=1, ddof=1)
    correlation = 1 - (covariance[:, :1] * n / (n - 1) - covariance) / variance
    correlation[:, 0] = 1
    return correlation
