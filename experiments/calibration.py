"""Probabilities of logits, their losses, and the temperature that lowers them."""

from typing import Any

import numpy as np
import scipy.optimize
from scipy.special import expit, softmax

from isouq import stats

LOSSES = {"loss": "mean −log p", "brier": "Brier score", "ece": "calibration error"}


def class_probabilities(outputs: Any, kind: str) -> np.ndarray:
    """Return the probabilities of all classes, `[..., classes]` float64, of outputs `[..., outputs]`."""
    outputs = np.asarray(outputs, np.float64)
    if kind == "binary":
        return np.concatenate([expit(-outputs), expit(outputs)], axis=-1)
    return softmax(outputs, axis=-1)


def losses(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return `LOSSES` of the probabilities of all classes `[n, classes]`."""
    return {
        "loss": stats.log_loss(probabilities, labels),
        "brier": stats.brier_score(probabilities, labels),
        "ece": stats.calibration_error(probabilities, labels),
    }


def fit_temperature(outputs: np.ndarray, labels: np.ndarray, kind: str) -> float:
    """Return the temperature, between 0.01 and 100, by which logits are divided for the smallest loss of the labels.

    outputs: `[n, outputs]`. Source: Guo et al. (2017), arXiv 1706.04599.
    """

    def loss(logarithm: float) -> float:
        return stats.log_loss(class_probabilities(outputs / np.exp(logarithm), kind), labels)

    bound = np.log(100)
    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
