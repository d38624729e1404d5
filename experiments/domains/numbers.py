"""The numbers of the experiment `domains`: log ratios by domain, risk against coverage, intervals over texts."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from experiments.domains.texts import DOMAINS
from isouq import stats

RESAMPLES = 1000
COVERAGES = (0.8, 0.9, 0.95)


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a share. Source: Wilson (1927)."""
    share, spread = right / count, z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return float(centre - half), float(centre + half)


def compare(
    identity: Float[np.ndarray, " n"], a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], labels: np.ndarray
) -> dict[str, Any]:
    """How Σ = I, H_A⁻¹ (science) and H_B⁻¹ (sports) differ between the domains; inputs are log U of the test texts.

    Columns, each with _low and _high (bootstrap 95 % over texts, domains apart): `identity_difference`, the median of
    sports less that of science; `identity_auroc`, of log U for telling sports (½: the domains overlap);
    `log_ratio_DOMAIN`, median of log(U_A/U_B); `auroc` of the log ratio (label 1 = sports; over ½ where each proxy
    lowers its own domain more); `lowered_SIDE`, how much further H_A⁻¹ (a) or H_B⁻¹ (b) lowers the other domain's
    log U/‖g‖² than its own, in medians: above 0 where it lowers its own more.
    Without: `identity_DOMAIN` medians; `sign_change`, medians of the log ratio below 0 on science and above on sports;
    `right_sign`, share of texts with that sign, mean of the domains.
    """
    ratio = a - b
    values = np.column_stack([identity, ratio, a - identity, b - identity])
    science, sports = values[labels == 0], values[labels == 1]

    def statistics(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
        low, high = np.median(one, axis=0), np.median(other, axis=0)
        return {
            "identity_difference": high[0] - low[0],
            "identity_auroc": _auroc(one[:, 0], other[:, 0]),
            "log_ratio_science": low[1],
            "log_ratio_sports": high[1],
            "auroc": _auroc(one[:, 1], other[:, 1]),
            "lowered_a": high[2] - low[2],
            "lowered_b": low[3] - high[3],
        }

    numbers: dict[str, Any] = with_intervals(statistics, science, sports)
    numbers |= {f"identity_{name}": float(np.median(identity[labels == i])) for i, name in enumerate(DOMAINS)}
    numbers["sign_change"] = bool(numbers["log_ratio_science"] < 0 < numbers["log_ratio_sports"])
    numbers["right_sign"] = float((np.mean(science[:, 1] < 0) + np.mean(sports[:, 1] > 0)) / 2)
    return numbers


def with_intervals(statistics: Callable[..., dict[str, float]], *groups: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Every statistic of the groups, with _low and _high: percentiles as the rows of each group are drawn anew."""
    rng = np.random.default_rng(seed)
    numbers = {name: float(value) for name, value in statistics(*groups).items()}
    drawn = [
        list(statistics(*(group[rng.integers(len(group), size=len(group))] for group in groups)).values())
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
    for i, name in enumerate(list(numbers)):
        numbers |= {f"{name}_low": float(low[i]), f"{name}_high": float(high[i])}
    return numbers


def _auroc(science: np.ndarray, sports: np.ndarray) -> float:
    return stats.auroc(np.repeat([0, 1], [len(science), len(sports)]), np.concatenate([science, sports]))


def risks(score: Float[np.ndarray, " n"], wrong: np.ndarray) -> Float[np.ndarray, " n"]:
    """The share of errors among the k texts of the smallest score, k = 1 … n; texts that tie share their errors."""
    order = np.argsort(score, kind="stable")
    ranks = rankdata(score, method="dense")[order] - 1
    mean = np.bincount(ranks, weights=wrong[order]) / np.bincount(ranks)
    return np.cumsum(mean[ranks]) / np.arange(1, len(score) + 1)


def coverage_accuracy(risk: Float[np.ndarray, " n"], coverage: float) -> float:
    """Accuracy when this share of the texts is answered."""
    return float(1 - risk[max(1, round(coverage * len(risk))) - 1])


def rejection_statistics(score: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """`aurc`, the mean risk over all coverages (Geifman et al. 2018), and `accuracy_COVERAGE` in per cent."""
    risk = risks(score, wrong)
    return {"aurc": float(risk.mean())} | {f"accuracy_{round(100 * c)}": coverage_accuracy(risk, c) for c in COVERAGES}


def rejection_numbers(name: str, score: np.ndarray, wrong: np.ndarray) -> dict[str, float]:
    """`NAME_STATISTIC` with _low and _high over texts, and `NAME_auroc` for telling the errors (none without both)."""
    both = np.column_stack([score, wrong])
    found = with_intervals(lambda rows: rejection_statistics(rows[:, 0], rows[:, 1]), both)
    numbers = {f"{name}_{column}": value for column, value in found.items()}
    if 0 < wrong.sum() < len(wrong):
        numbers[f"{name}_auroc"] = stats.auroc(wrong, score)
    return numbers
