"""Logistic regression with an L2 penalty, by Newton's method."""

import numpy as np
from jaxtyping import Float

L2 = 1.0  # penalty of the slopes, on standardised features


def fit_logistic(x: Float[np.ndarray, "n D"], y: np.ndarray, l2: float = L2) -> Float[np.ndarray, " D_1"]:
    """Return the weights [intercept, D slopes] of P(y = 1 | x) = σ(w₀ + x·w), for x as given.

    Minimises Σᵢ log-loss + ½ l2 ‖w‖², the slopes taken on features standardised by x, the intercept free; Newton's
    method with halved steps. A constant feature has the slope 0. Raises ValueError for one class only, for NaN or
    infinity, and for l2 ≤ 0 (the classes may be separable: no minimum).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    _check(x, y, l2)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    constant = scale <= 1e-12 * np.abs(mean)
    scale = np.where(constant, 1, scale)
    z = np.column_stack([np.ones(len(x)), np.where(constant, 0, (x - mean) / scale)])
    penalty = np.r_[0.0, np.full(x.shape[1], l2)]
    w = np.zeros(z.shape[1])
    w[0] = np.log(y.mean() / (1 - y.mean()))
    loss = _loss(z, y, penalty, w)
    for _ in range(50):
        p = _sigmoid(z @ w)
        gradient = z.T @ (p - y) + penalty * w
        step = np.linalg.solve((z * (p * (1 - p))[:, None]).T @ z + np.diag(penalty), gradient)
        size = 1.0
        while (lower := _loss(z, y, penalty, w - size * step)) > loss and size > 1e-6:
            size /= 2
        w, done, loss = w - size * step, abs(loss - lower) <= 1e-12 * max(1.0, loss), lower
        if done:
            break
    slopes = w[1:] / scale
    return np.r_[w[0] - slopes @ mean, slopes]


def log_odds(weights: Float[np.ndarray, " D_1"], x: Float[np.ndarray, "n D"]) -> Float[np.ndarray, " n"]:
    """Return log P(y = 1 | x) / P(y = 0 | x) under the weights that `fit_logistic` gives."""
    return weights[0] + x @ weights[1:]


def _check(x: np.ndarray, y: np.ndarray, l2: float) -> None:
    if not np.isfinite(x).all():
        raise ValueError("the features hold NaN or infinity; replace or remove those rows first")
    if l2 <= 0:
        raise ValueError(f"l2 is {l2}; expected a positive number, for the classes may be separable")
    if y.min() == y.max():
        raise ValueError(f"a logistic regression needs both classes; all {len(y)} labels are {y[0]:g}")


def _loss(z: np.ndarray, y: np.ndarray, penalty: np.ndarray, w: np.ndarray) -> float:
    margin = z @ w
    return float(np.sum(np.logaddexp(0, margin) - y * margin) + penalty @ w**2 / 2)


def _sigmoid(margin: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -margin))
