"""Statistics over texts: how the domains differ, and risk against coverage."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.domains.texts import DOMAINS
from isouq import stats

RESAMPLES = 1000
WITH_INTERVALS = ("identity_difference", "log_ratio_science", "log_ratio_sports", "auroc")


class Estimate(NamedTuple):
    """A statistic with its bootstrap 95 % interval over texts; numbers or arrays."""

    value: Any
    low: Any
    high: Any


def estimate(statistic: Callable[..., Any], *samples: np.ndarray) -> Estimate:
    """Return `statistic(*samples)`, a number or an array, with its interval as the texts of each sample are redrawn."""
    low, high = stats.bootstrap_interval(statistic, *samples, resamples=RESAMPLES)
    return Estimate(statistic(*samples), low, high)


def compare_domains(
    identity: Float[np.ndarray, " n"], a: Float[np.ndarray, " n"], b: Float[np.ndarray, " n"], labels: np.ndarray
) -> dict[str, Any]:
    """Return how log U under Σ = I, H_A⁻¹ (science) and H_B⁻¹ (sports) differs between the domains.

    identity, a, b: log U of the test texts. Columns: `identity_difference`, the median of sports less that of science;
    `identity_auroc`, of log U for telling sports (½: the domains overlap); `log_ratio_DOMAIN`, median of log(U_A/U_B);
    `auroc` of the log ratio (label 1 = sports; over ½ where each proxy lowers its own domain more); `lowered_SIDE`, how
    much further H_A⁻¹ (a) or H_B⁻¹ (b) lowers log U/‖g‖² of its own domain than of the other, in medians;
    `identity_DOMAIN`, medians; `sign_change`, whether the median of the log ratio is below 0 on science and above on
    sports; `right_sign`, share of texts with that sign, mean of the domains. Those of `WITH_INTERVALS` have _low and
    _high, the bootstrap 95 % interval over texts, each domain drawn apart.
    """
    ratio = a - b
    values = np.column_stack([identity, ratio, a - identity, b - identity])
    science, sports = values[labels == 0], values[labels == 1]
    numbers: dict[str, Any] = {name: float(value) for name, value in _statistics(science, sports).items()}
    interval = estimate(lambda *samples: [_statistics(*samples)[name] for name in WITH_INTERVALS], science, sports)
    for name, low, high in zip(WITH_INTERVALS, interval.low, interval.high, strict=True):
        numbers |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    numbers |= {f"identity_{name}": float(np.median(identity[labels == i])) for i, name in enumerate(DOMAINS)}
    numbers["sign_change"] = bool(numbers["log_ratio_science"] < 0 < numbers["log_ratio_sports"])
    numbers["right_sign"] = float((np.mean(science[:, 1] < 0) + np.mean(sports[:, 1] > 0)) / 2)
    return numbers


def _statistics(science: Float[np.ndarray, "n 4"], sports: Float[np.ndarray, "m 4"]) -> dict[str, float]:
    """Return the statistics of `compare_domains`; columns: identity, log ratio, change under A, change under B."""
    low, high = np.median(science, axis=0), np.median(sports, axis=0)
    return {
        "identity_difference": high[0] - low[0],
        "identity_auroc": _auroc(science[:, 0], sports[:, 0]),
        "log_ratio_science": low[1],
        "log_ratio_sports": high[1],
        "auroc": _auroc(science[:, 1], sports[:, 1]),
        "lowered_a": high[2] - low[2],
        "lowered_b": low[3] - high[3],
    }


def _auroc(science: np.ndarray, sports: np.ndarray) -> float:
    return stats.auroc(np.repeat([0, 1], [len(science), len(sports)]), np.concatenate([science, sports]))


def coverage_accuracy(risk: Float[np.ndarray, " n"], coverage: float) -> float:
    """Return the accuracy when this share of the inputs is answered; risk: from `isouq.stats.rejection_curve`."""
    return float(1 - risk[max(1, round(coverage * len(risk))) - 1])


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share. Source: Wilson (1927)."""
    share, spread = right / count, z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * np.sqrt(share * (1 - share) / count + spread / (4 * count))
    return float(centre - half), float(centre + half)
