"""What an uncertainty is good for on held-out points: finding errors, and probabilities that are right."""

from collections.abc import Mapping

import numpy as np

from experiments.synthetic.measure.laboratory import Laboratory, Moments
from experiments.synthetic.subject import ravel_rows
from isouq import stats

REJECTED = 0.2  # share of the points that is left out for the columns NAME_kept
SHARES = np.linspace(0, 0.9, 10)  # shares of the points that are left out along a rejection curve
PREDICTORS = {"theta": "θ*", "ensemble": "10 MAP networks", "posterior": "HMC"}


def measure_held_out(
    lab: Laboratory, posterior: Moments, maps: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return how well each map finds the errors of θ* on held-out points, and how well predictions are calibrated.

    Columns of each map, the reference's variance among them: NAME_auroc, the probability that a wrong prediction has a
    larger value than a right one (classification; NaN where all are right or all wrong); NAME_kept, the error of θ* on
    the 80 % of the points with the smallest values: the share of wrong predictions, or for regression the root mean
    square error in standard deviations of y. error: the same on all points. Of each predictor of `PREDICTORS`: nll, the
    mean −log p of the label; and for classification ece, the expected calibration error over ten bins of confidence.

    The arrays rejection_NAME are the error against the share of points that is left out, `SHARES`.
    """
    assert lab.setting.held_out is not None
    ys = np.asarray(lab.setting.held_out.ys)
    networks = lab.moments(ravel_rows(lab.train("map").params))
    theta = lab.moments(lab.theta_flat[None])
    errors = _errors(theta, ys)
    numbers = {"error": _summary(errors, lab.kind)}
    curves = {}
    for name, values in maps.items():
        if lab.kind != "regression":
            wrong = errors > 0
            is_defined = 0 < wrong.sum() < len(wrong) and np.isfinite(values).all()
            numbers[f"{name}_auroc"] = round(stats.auroc(wrong, values), 6) if is_defined else float("nan")
        curve = errors_after_rejection(errors, values, lab.kind, SHARES)
        numbers[f"{name}_kept"] = round(float(errors_after_rejection(errors, values, lab.kind, [REJECTED])[0]), 6)
        curves[f"rejection_{name}"] = curve.astype(np.float32)
    noise = lab.setting.problem.noise
    for name, moments in zip(PREDICTORS, (theta, networks, posterior), strict=True):
        numbers[f"nll_{name}"] = log_loss(moments, ys, noise)
        if lab.kind != "regression":
            numbers[f"ece_{name}"] = stats.calibration_error(moments.mean, ys)
    return numbers, curves


def _errors(theta: Moments, ys: np.ndarray) -> np.ndarray:
    """Return 1 for a wrong class and 0 for a right one; for regression the squared error."""
    if theta.target is None:
        return np.square(theta.mean[:, 0] - ys)
    return (theta.target != ys).astype(np.float64)


def _summary(errors: np.ndarray, kind: str) -> float:
    """Return the share of wrong predictions, or the root mean square error."""
    mean = float(errors.mean())
    return float(np.sqrt(mean)) if kind == "regression" else mean


def errors_after_rejection(errors: np.ndarray, values: np.ndarray, kind: str, shares: object) -> np.ndarray:
    """Return, for each share, the error without that share of the points, which are those of the largest values."""
    ascending = errors[np.argsort(values, kind="stable")]
    counts = [max(1, round((1 - share) * len(errors))) for share in np.asarray(shares)]
    return np.array([_summary(ascending[:count], kind) for count in counts])


def log_loss(moments: Moments, ys: np.ndarray, noise: float | None) -> float:
    """Return the mean −log p(y): of the label's mean probability, or of N(mean, noise² + variance of the mean)."""
    if noise is not None:
        return stats.gaussian_log_loss(moments.mean[:, 0], noise**2 + moments.variance[:, 0], ys)
    return stats.log_loss(moments.mean, ys)
