"""Which covariance? Fig. 1 (why proxies distort), and every covariance against the reference on all eight problems.

Command: python -m experiments covariance --preset quick
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.report import tables as report
from experiments.report.outputs import Outputs
from experiments.synthetic import validation
from experiments.synthetic.cell import Cell, Result
from experiments.synthetic.measure.proxies import DATA, HALVES, measure_proxies, proxy_table
from experiments.synthetic.subject import Clock, Subject, correlations
from isouq import plots
from isouq._uncertainty import uncertainty
from isouq.covariance import from_draws, laplace

# method -> (curvature, structure) of `isouq.covariance.laplace`
LAPLACE = {
    "hessian_dense": ("hessian", "dense"),
    "hessian_low_rank": ("hessian", "low_rank"),
    "hessian_diagonal": ("hessian", "diagonal"),
    "ggn_dense": ("ggn", "dense"),
    "ggn_low_rank": ("ggn", "low_rank"),
    "ggn_kronecker": ("ggn", "kronecker"),
    "ggn_diagonal": ("ggn", "diagonal"),
    "fisher_dense": ("fisher", "dense"),
    "fisher_kronecker": ("fisher", "kronecker"),
    "fisher_diagonal": ("fisher", "diagonal"),
}
METHODS = {
    "identity": "identity",
    **{name: f"{'empirical Fisher' if c == 'fisher' else {'ggn': 'GGN'}.get(c, 'Hessian')}, {s.replace('_', ' ')}"
       for name, (c, s) in LAPLACE.items()},
    "draws_within": "reference's draws, dense",
}  # fmt: skip
RANK = 20
STATISTICS = {"pearson": "r", "spearman": "ρ"}


def cells(preset: str, seeds: int | None = None) -> list[Cell]:
    """The validation experiment's references. smoke: two problems, a minute; quick: eight problems, two seeds;
    paper: five seeds, 4 minutes on 2 CPU cores beside the references.
    """
    agreement = [cell for cell in validation.cells(preset, seeds) if cell.study == "agreement"]
    if preset == "smoke":
        agreement = [cell for cell in agreement if cell.problem != "multiclass/clusters"]
    return [dataclasses.replace(cell, study="covariance") for cell in agreement]


def measure(subject: Subject) -> Result:
    """r, ρ, scale and cost of every covariance; symmetry and asymmetry of the proxies' maps (two inputs only).

    For each method: pearson, spearman (of gᵀΣg with the reference over the grid), scale (ratio of the means), clipped,
    seconds_*_build, seconds_*_apply (of the whole grid, compiled), bytes (what is kept) and gradients (of the log
    likelihood over all training data, to build it).
    """
    clock = Clock()
    truth = subject.variance[subject.here]
    numbers: dict[str, Any] = {}
    for method in METHODS:
        points = Clock()
        covariance, gradients = _build(subject, method)
        points.lap("build", covariance)
        epistemic = _epistemic(subject, subject.xs[subject.here], covariance)
        points.lap("compile")
        _epistemic(subject, subject.xs[subject.here], covariance)
        points.lap("apply")
        laps = points.laps()
        numbers |= {
            **correlations(method, truth, epistemic),
            f"{method}_scale": float(epistemic.mean() / truth.mean()),
            f"{method}_clipped": float(getattr(covariance, "clipped", 0.0)),
            f"{method}_gradients": gradients,
            f"{method}_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(covariance) if hasattr(leaf, "nbytes")),
            f"seconds_{method}_build": laps["build"],
            f"seconds_{method}_apply": laps["apply"],
        }
    arrays: dict[str, np.ndarray] = {}
    if subject.cell.problem in HALVES:
        proxies, arrays = measure_proxies(subject)
        numbers |= proxies
    arrays |= {"grid": np.asarray(subject.xs[subject.here])}
    return Result({**subject.facts(), **numbers, "seconds": clock.laps()["seconds"]}, arrays)


def _build(subject: Subject, method: str) -> tuple[Any, int]:
    """The covariance, and its cost in gradients of the log likelihood (see `isouq.covariance.laplace`)."""
    log_density, theta = subject.setting.log_density, subject.theta
    if method == "identity":
        return None, 0
    if method == "draws_within":
        within = subject.draws - subject.draws.mean(axis=1, keepdims=True)
        flat = jnp.asarray(within.reshape(-1, within.shape[-1]))
        cost = subject.reference.numbers["gradient_evaluations"]
        return from_draws(jax.vmap(ravel_pytree(theta)[1])(flat)), cost
    curvature, structure = LAPLACE[method]
    num_params = subject.reference.numbers["num_params"]
    if structure == "low_rank" and num_params > 3 * RANK + 10:
        gradients = 4 * (3 * RANK + 10)
    elif curvature == "hessian":
        gradients = 2 * num_params
    else:
        gradients = 1 if curvature == "fisher" else subject.setting.problem.num_outputs
    return laplace(log_density, theta, curvature, structure, rank=RANK), gradients


def _epistemic(subject: Subject, xs: Any, covariance: Any) -> np.ndarray:
    return np.asarray(
        uncertainty(subject.setting.predict, subject.theta, xs, subject.kind, covariance=covariance).epistemic,
        np.float64,
    )


def summarise(results: list[Result], preset: str) -> Outputs:
    """The tables of proxies, of agreement and of costs; Fig. 1, the heat map and the Pareto figure."""
    rows = [result.numbers for result in results]
    names = list(dict.fromkeys(row["problem"] for row in rows))
    by_problem = {name: [row for row in rows if row["problem"] == name] for name in names}
    planar = [name for name in names if "identity_symmetry" in by_problem[name][0]]
    summary = "\n".join(
        [
            f"# Covariances, preset `{preset}`\n",
            report.reading(),
            proxy_table({name: by_problem[name] for name in planar}),
            *(_agreement_table(by_problem, statistic) for statistic in STATISTICS),
            _cost_table(by_problem),
            report.training(rows),
            report.unconverged(rows),
        ]
    )
    figures = {}
    first: dict[str, Result] = {}
    for result in results:
        if result.numbers["problem"] in planar:
            first.setdefault(result.numbers["problem"], result)
    if "binary/xor" in first:
        figures["covariance"] = plots.proxy_maps([_maps(first["binary/xor"], data) for data in DATA])
    if first:
        figures["covariance_maps"] = plots.proxy_maps([_maps(result, "") for result in first.values()])
    agreement = _over_problems(by_problem, lambda rows, method, s: report.over_seeds(rows, f"{method}_{s}"))
    figures["covariance_agreement"] = plots.covariance_agreement(agreement, METHODS)
    costs = {
        name: {method: float(np.mean([row[f"{method}_gradients"] for row in mine])) for method in METHODS}
        | {"reference": float(np.mean([row["gradient_evaluations"] for row in mine]))}
        for name, mine in by_problem.items()
    }
    figures["pareto"] = plots.pareto(agreement, costs, METHODS)
    return Outputs(rows, summary, figures)


def _maps(result: Result, data: str) -> tuple[str, int, dict[str, np.ndarray]]:
    """What `plots.proxy_maps` wants of a cell, for θ* of the sample or of symmetric data."""
    name = result.numbers["problem"]
    names = ("identity", "proxy_a", "proxy_b", "log_ratio", "xs_a", "xs_b")
    maps = {part: result.arrays[f"{data}{part}"] for part in names}
    title = f"{name}, {DATA[data]} data"
    return title, HALVES[name].axis, {**maps, "grid": result.arrays["grid"]}


def _over_problems(by_problem: dict[str, list[Any]], interval: Callable) -> dict[str, dict[str, dict[str, Any]]]:
    return {
        name: {method: {s: interval(mine, method, s) for s in STATISTICS} for method in METHODS}
        for name, mine in by_problem.items()
    }


def _agreement_table(by_problem: dict[str, list[dict[str, Any]]], statistic: str) -> str:
    body = []
    proxies = {f"proxy_{side}_hessian": f"proxy {side.upper()}, Hessian, dense" for side in "ab"}
    for method, label in (METHODS | proxies).items():
        line = [label]
        for mine in by_problem.values():
            column = f"{method}_{statistic}"
            line.append(report.mean_sd(report.over_seeds(mine, column)) if column in mine[0] else "–")
        body.append(line)
    accepted = [report.accepted_share(mine) for mine in by_problem.values()]
    body.append(["accepted references", *accepted])
    title = f"## Agreement of gᵀΣg with the reference, {statistic.capitalize()}'s {STATISTICS[statistic]}\n\n"
    return title + report.table(["Σ", *by_problem], body)


def _cost_table(by_problem: dict[str, list[dict[str, Any]]]) -> str:
    """Means over all cells of the largest model; the cost of a reference beside them."""
    name = max(by_problem, key=lambda name: by_problem[name][0]["num_params"])
    mine = by_problem[name]

    def mean(column: str) -> float:
        return float(np.mean([row[column] for row in mine]))

    body = [
        [
            label,
            f"{mean(f'{method}_gradients'):.3g}",
            f"{mean(f'seconds_{method}_build'):.2f}",
            f"{1e3 * mean(f'seconds_{method}_apply'):.1f}",
            f"{mean(f'{method}_bytes') / 1024:.1f}",
            "–" if "low_rank" in method or "kronecker" in method else report.number(mean(f"{method}_clipped"), 3),
            report.mean_sd(report.over_seeds(mine, f"{method}_spearman")),
            f"{report.over_seeds(mine, f'{method}_scale').mean:.3g}",
        ]
        for method, label in METHODS.items()
    ]
    gradients = mean("gradient_evaluations")
    body.append(["HMC itself", f"{gradients:.3g}", "–", "–", "–", "–", "1", "1"])
    header = ["Σ", "gradients", "build, s", "apply, ms", "kept, KiB", "clipped", "ρ", "scale"]
    return (
        f"## What it costs: {name}, {mine[0]['num_params']} parameters\n\n"
        "gradients: of the log likelihood over all training data, to build Σ. build: seconds, compilation included. "
        "apply: milliseconds for the whole grid, compiled. kept: memory of Σ. clipped: share of curvatures below "
        "zero that were lifted (low rank keeps positive ones alone). scale: mean of gᵀΣg over mean of the "
        "reference. The times were taken with two cells at work on two cores: read them as orders of magnitude.\n\n"
        + report.table(header, body)
    )
