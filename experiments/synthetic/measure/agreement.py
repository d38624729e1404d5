"""How well the estimates at θ* agree with the reference: ‖g‖², Laplace and p(1 − p)."""

from typing import Any

import numpy as np

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.subject import Subject, correlations, epistemic_map
from isouq.covariance import Dense, laplace
from isouq.posterior import linear_regression

DENSE_LIMIT = 4000  # parameters: beyond it the eigenvalues of the Hessian take minutes, and Laplace is left out
# The estimates, and the map of the reference that each is compared with.
ESTIMATES = {"epistemic": "reference", "laplace": "reference", "aleatoric": "aleatoric_reference"}


def measure(subject: Subject) -> Result:
    """Return r and ρ of every estimate with its reference, and the maps over the grid of the comparison.

    Columns: ESTIMATE_STATISTIC over the grid; for `epistemic` also ESTIMATE_STATISTIC_data over the grid's part inside
    the data's range, and ESTIMATE_STATISTIC_wide over a wider grid. Laplace is gᵀΣg with Σ from the Hessian at θ*
    (`isouq.covariance.laplace`), up to DENSE_LIMIT parameters; `laplace_clipped` is its share of curvatures below zero.
    exact_NAME: the reference and Laplace against the closed form, of linear regression alone.
    `seconds` is the time of the whole row, the reference's included.
    """
    clock = Clock()
    setting, grid, estimate = subject.setting, subject.grid, subject.estimate
    numbers = subject.facts()
    maps = {"epistemic": np.asarray(estimate.epistemic, np.float64), "reference": subject.variance}
    if numbers["num_params"] <= DENSE_LIMIT:
        covariance = laplace(setting.log_density, subject.theta, "hessian")
        assert isinstance(covariance, Dense)
        numbers["laplace_clipped"] = float(covariance.clipped)
        maps["laplace"] = epistemic_map(setting, subject.theta, subject.xs, covariance)
        clock.lap("seconds_laplace")
    if subject.kind != "regression":
        maps["aleatoric"] = np.asarray(estimate.aleatoric, np.float64)
        maps["aleatoric_reference"] = subject.reference.arrays["aleatoric"]
    numbers |= _agreement(subject, maps)
    if subject.cell.problem == "regression/linear" and subject.cell.width is None:
        maps["exact"] = _exact(subject)
        for name in ("reference", "laplace"):
            numbers |= compare_maps(f"exact_{name}", maps["exact"][grid], maps[name][grid])
    arrays = {name: values[grid].astype(np.float32) for name, values in maps.items()}
    arrays |= {
        "grid": np.asarray(subject.xs[grid]),
        "xs": np.asarray(setting.data.xs),
        "ys": np.asarray(setting.data.ys),
    }
    arrays["mean"] = subject.reference.arrays["mean"][grid].astype(np.float32)
    arrays["probability"] = np.asarray(estimate.probability[grid])
    return Result({**numbers, **seconds(subject, clock)}, arrays)


def _agreement(subject: Subject, maps: dict[str, np.ndarray]) -> dict[str, float]:
    """Return r and ρ of each estimate with its reference over the grid, and of ‖g‖² in the other regions too."""
    grid = subject.grid
    numbers: dict[str, float] = {}
    for name, truth in ESTIMATES.items():
        if name in maps:
            numbers |= correlations(name, maps[name][grid], maps[truth][grid])
    for region, rows in (("data", _inside(subject.xs[grid], subject.setting.data.xs)), ("wide", subject.wide)):
        estimate, reference = maps["epistemic"][rows], maps["reference"][rows]
        if len(estimate) > 1:
            by_name = correlations("epistemic", estimate, reference)
            numbers |= {f"{name}_{region}": value for name, value in by_name.items()}
    return numbers


def _inside(grid: Any, xs: Any) -> np.ndarray:
    """Return the rows of the grid that lie inside the data's range."""
    grid, xs = np.asarray(grid), np.asarray(xs)
    return np.flatnonzero(np.all((grid >= xs.min(axis=0)) & (grid <= xs.max(axis=0)), axis=1))


def _exact(subject: Subject) -> np.ndarray:
    """Return the predictive variance of linear regression in closed form."""
    setting = subject.setting
    posterior = linear_regression(
        setting.data.xs, setting.data.ys, noise=setting.problem.noise, sigma=subject.cell.sigma
    )
    return posterior.predictive_variance(subject.xs)


def compare_maps(name: str, truth: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Return r, ρ, and the scale, which is the ratio of the means, other to truth."""
    return {**correlations(name, truth, other), f"{name}_scale": float(np.mean(other) / np.mean(truth))}


def seconds(subject: Subject, clock: Clock) -> dict[str, float]:
    """Return the timing columns: of the reference, of the estimate and of the study; `seconds` is all of it."""
    reference, laps = subject.reference.numbers, clock.laps()
    return {
        "seconds_map": reference["seconds_map"],
        "seconds_reference": reference["seconds_reference"],
        "seconds_estimate": subject.seconds_estimate,
        **{name: lap for name, lap in laps.items() if name not in ("seconds", "seconds_rest")},
        "seconds": reference["seconds"] + subject.seconds_estimate + laps["seconds"],
    }
