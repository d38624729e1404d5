"""How well the estimates at θ* agree with the reference: ‖g‖², Laplace and p(1 − p), in three regions."""

from typing import Any

import numpy as np

from experiments.synthetic.cell import Result
from experiments.synthetic.subject import Clock, Subject, correlations
from isouq import stats
from isouq._uncertainty import uncertainty
from isouq.covariance import Dense, laplace
from isouq.posterior import Margins, linear_regression, probabilities, sample_numpyro

DENSE_LIMIT = 4000  # parameters: beyond it the eigenvalues of the Hessian take minutes, and Laplace is left out
PAIRS = {"epistemic": "reference", "laplace": "reference", "aleatoric": "aleatoric_reference"}


def measure(subject: Subject) -> Result:
    """Correlations r and ρ of every estimate with its reference; the maps over the grid of the comparison.

    Laplace is gᵀΣg with Σ from the Hessian at θ* (`isouq.covariance.laplace`), up to DENSE_LIMIT parameters.
    `seconds` is the time of the whole row, the reference's included.
    """
    clock = Clock()
    made, kind, here, estimate = subject.setting, subject.kind, subject.here, subject.estimate
    numbers = subject.facts()
    maps = {"epistemic": np.asarray(estimate.epistemic, np.float64), "reference": subject.variance}
    if numbers["num_params"] <= DENSE_LIMIT:
        covariance = laplace(made.log_density, subject.theta, "hessian")
        assert isinstance(covariance, Dense)
        numbers["laplace_clipped"] = float(covariance.clipped)
        other = uncertainty(made.predict, subject.theta, subject.xs, kind, covariance=covariance)
        maps["laplace"] = np.asarray(other.epistemic, np.float64)
        clock.lap("seconds_laplace")
    if kind != "regression":
        maps["aleatoric"] = np.asarray(estimate.aleatoric, np.float64)
        maps["aleatoric_reference"] = subject.reference.arrays["aleatoric"]
    regions = {"": here, "_data": _inside(subject.xs[here], made.data.xs), "_wide": subject.there}
    numbers |= _agreement(maps, regions)
    if subject.cell.problem == "regression/linear" and subject.cell.width is None:
        exact = linear_regression(made.data.xs, made.data.ys, noise=made.problem.noise, sigma=subject.cell.sigma)
        maps["exact"] = exact.predictive_variance(subject.xs)
        for name in ("reference", "laplace"):
            numbers |= _against(f"exact_{name}", maps["exact"][here], maps[name][here])
    arrays = {name: values[here].astype(np.float32) for name, values in maps.items()}
    arrays |= {"grid": np.asarray(subject.xs[here]), "xs": np.asarray(made.data.xs), "ys": np.asarray(made.data.ys)}
    arrays["mean"] = subject.reference.arrays["mean"][here].astype(np.float32)
    arrays["probability"] = np.asarray(estimate.probability[here])
    return Result({**numbers, **_seconds(subject, clock)}, arrays)


def second_opinion(subject: Subject) -> Result:
    """NumPyro NUTS on the same model and from the same starts: its epistemic map against the reference's.

    numpyro_scale: the ratio of the means, reference to NUTS.
    """
    clock = Clock()
    made, kind, here, cell = subject.setting, subject.kind, subject.here, subject.cell
    other = sample_numpyro(
        made.log_density, subject.starts, made.second_key,
        record=Margins(made.predict, subject.xs[here], subject.target, kind),
        num_draws=cell.num_draws, num_warmup=cell.num_warmup,
        map_scale=lambda margins: probabilities(margins, kind),
    )  # fmt: skip
    variance = probabilities(other.predictions, kind).var(axis=(0, 1))
    clock.lap("seconds_numpyro")
    numbers = {
        **subject.facts(),
        **_against("numpyro", variance, subject.variance[here]),
        "numpyro_accepted": other.verdict is not None and other.verdict.accepted,
    }
    arrays = {"grid": np.asarray(subject.xs[here]), "numpyro": variance, "reference": subject.variance[here]}
    return Result({**numbers, **_seconds(subject, clock)}, arrays)


def _seconds(subject: Subject, clock: Clock) -> dict[str, float]:
    """Timing columns: the reference's, the estimate's and the study's own; `seconds` is all of it."""
    reference, laps = subject.reference.numbers, clock.laps()
    return {
        "seconds_map": reference["seconds_map"],
        "seconds_reference": reference["seconds_reference"],
        "seconds_estimate": subject.seconds_estimate,
        **{name: seconds for name, seconds in laps.items() if name not in ("seconds", "seconds_rest")},
        "seconds": reference["seconds"] + subject.seconds_estimate + laps["seconds"],
    }


def _inside(grid: Any, xs: Any) -> np.ndarray:
    """Rows of the grid inside the data's range."""
    grid, xs = np.asarray(grid), np.asarray(xs)
    return np.flatnonzero(np.all((grid >= xs.min(axis=0)) & (grid <= xs.max(axis=0)), axis=1))


def _agreement(maps: dict[str, np.ndarray], regions: dict[str, Any]) -> dict[str, float]:
    """Correlations r and ρ of each estimate with its reference, in each region of two points or more."""
    return {
        f"{name}_{statistic.__name__}{region}": statistic(maps[name][rows], maps[reference][rows])
        for name, reference in PAIRS.items()
        if name in maps
        for region, rows in regions.items()
        if len(maps[name][rows]) > 1
        for statistic in (stats.pearson, stats.spearman)
    }


def _against(name: str, truth: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """r, ρ, and the scale: the ratio of the means, other to truth."""
    return {
        **correlations(name, truth, other),
        f"{name}_scale": float(np.mean(other) / np.mean(truth)),
    }
