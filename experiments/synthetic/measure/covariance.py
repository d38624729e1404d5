"""Every covariance Σ against the reference: agreement of gᵀΣg, and what Σ costs."""

from typing import Any

import jax
import numpy as np

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure.proxies import HALVES, measure_proxies
from experiments.synthetic.subject import Subject, correlations, epistemic_map, unravel_rows
from isouq.covariance import from_draws, laplace

_CURVATURES = {"hessian": "Hessian", "ggn": "GGN", "empirical_fisher": "empirical Fisher"}
_STRUCTURES = {
    "hessian": ("dense", "low_rank", "diagonal"),
    "ggn": ("dense", "low_rank", "kronecker", "diagonal"),
    "empirical_fisher": ("dense", "kronecker", "diagonal"),
}
# The curvature and the structure that `isouq.covariance.laplace` takes, by method.
LAPLACE = {
    f"{curvature.removeprefix('empirical_')}_{structure}": (curvature, structure)
    for curvature, structures in _STRUCTURES.items()
    for structure in structures
}
METHODS = {
    "identity": "identity",
    **{name: f"{_CURVATURES[c]}, {structure.replace('_', ' ')}" for name, (c, structure) in LAPLACE.items()},
    "draws_within": "reference's draws, dense",
}
RANK = 20
# The methods whose curvatures below zero are lifted and counted: low rank drops them, Kronecker has none.
CLIPPED = tuple(name for name in METHODS if not name.endswith(("low_rank", "kronecker")))


def measure(subject: Subject) -> Result:
    """Return r, ρ, scale and cost of every covariance; for two inputs also how symmetric the proxies' maps are.

    Columns of each method: METHOD_pearson, METHOD_spearman (of gᵀΣg with the reference over the grid), METHOD_scale
    (ratio of the means), METHOD_clipped (share of curvatures below zero, of the methods that lift them),
    METHOD_bytes (memory of Σ), METHOD_gradients (gradients of the log likelihood over all training data, to build Σ),
    seconds_METHOD_build and seconds_METHOD_apply (of the whole grid, compiled).
    """
    clock = Clock()
    numbers: dict[str, Any] = {}
    for method in METHODS:
        numbers |= _method(subject, method)
    arrays: dict[str, np.ndarray] = {}
    if subject.cell.problem in HALVES:
        proxies, arrays = measure_proxies(subject)
        numbers |= proxies
    arrays |= {"grid": np.asarray(subject.xs[subject.grid])}
    return Result({**subject.facts(), **numbers, "seconds": clock.laps()["seconds"]}, arrays)


def _method(subject: Subject, method: str) -> dict[str, Any]:
    """Return the columns of one method."""
    truth, xs, clock = subject.variance[subject.grid], subject.xs[subject.grid], Clock()
    covariance, gradients = _build(subject, method)
    clock.lap("build", covariance)
    epistemic = epistemic_map(subject.setting, subject.theta, xs, covariance)
    clock.lap("compile")
    epistemic_map(subject.setting, subject.theta, xs, covariance)
    clock.lap("apply")
    laps = clock.laps()
    clipped = {f"{method}_clipped": float(getattr(covariance, "clipped", 0.0))} if method in CLIPPED else {}
    return {
        **correlations(method, truth, epistemic),
        f"{method}_scale": float(epistemic.mean() / truth.mean()),
        **clipped,
        f"{method}_gradients": gradients,
        f"{method}_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(covariance) if hasattr(leaf, "nbytes")),
        f"seconds_{method}_build": laps["build"],
        f"seconds_{method}_apply": laps["apply"],
    }


def _build(subject: Subject, method: str) -> tuple[Any, int]:
    """Return the covariance, and its cost in gradients of the log likelihood (see `isouq.covariance.laplace`)."""
    log_density, theta = subject.setting.log_density, subject.theta
    if method == "identity":
        return None, 0
    if method == "draws_within":
        within = subject.draws - subject.draws.mean(axis=1, keepdims=True)
        draws = unravel_rows(within.reshape(-1, within.shape[-1]), theta)
        return from_draws(draws), subject.reference.numbers["gradient_evaluations"]
    curvature, structure = LAPLACE[method]
    num_params = subject.reference.numbers["num_params"]
    if structure == "low_rank" and num_params > 3 * RANK + 10:
        gradients = 4 * (3 * RANK + 10)
    elif curvature == "hessian":
        gradients = 2 * num_params
    else:
        gradients = 1 if curvature == "empirical_fisher" else subject.setting.problem.num_outputs
    return laplace(log_density, theta, curvature, structure, rank=RANK), gradients
