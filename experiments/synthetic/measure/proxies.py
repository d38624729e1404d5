"""Why proxies distort: maps under Hessians of new data from one half of the inputs, and how symmetric they are."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import tables as report
from experiments.synthetic.subject import Setting, Subject, correlations, setting
from isouq import problems, stats
from isouq._uncertainty import uncertainty
from isouq.covariance import Dense, laplace
from isouq.posterior import fit_map

CURVATURES = {"hessian": "Hessian", "ggn": "GGN"}
# θ* of the protocol's data, and θ* of a data set that is made symmetric: a smaller sample with its images
DATA = {"": "sample", "orbit_": "symmetric"}


class Halves(NamedTuple):
    """How the inputs of a problem are cut in two, and a map of the inputs under which the problem looks the same.

    axis: proxy A has data with x[axis] < 0, proxy B the rest. symmetry: x ↦ x Mᵀ; all but the spirals' swaps the
    halves. labels: what becomes of each class under it. order: how many images a point has, itself included.
    """

    axis: int
    symmetry: tuple[tuple[float, float], tuple[float, float]]
    labels: tuple[int, ...]
    order: int = 2


_COS, _SIN = -0.5, 3**0.5 / 2  # of 120°
HALVES = {
    "binary/linear": Halves(0, ((-1, 0), (0, -1)), (1, 0)),
    "binary/xor": Halves(0, ((-1, 0), (0, 1)), (1, 0)),
    "binary/rings": Halves(0, ((-1, 0), (0, 1)), (0, 1)),
    "multiclass/clusters": Halves(1, ((1, 0), (0, -1)), (0, 2, 1)),
    "multiclass/spirals": Halves(0, ((_COS, -_SIN), (_SIN, _COS)), (1, 2, 0), 3),
    "multiclass/rings": Halves(0, ((-1, 0), (0, 1)), (0, 1, 2)),
}


def images(xs: Any, halves: Halves) -> Any:
    """The inputs' images under the symmetry."""
    return xs @ np.asarray(halves.symmetry, np.float32).T


def symmetric(problem: problems.Problem, halves: Halves) -> problems.Problem:
    """The problem whose data sets hold a sample together with its images: exactly symmetric."""

    def draw(key: Any, n: int) -> tuple[Any, Any]:
        xs, ys = problem.draw(key, max(1, n // halves.order))
        rows = [(xs, ys)]
        for _ in range(halves.order - 1):
            rows.append((images(rows[-1][0], halves), jnp.asarray(halves.labels)[rows[-1][1]]))
        return jnp.concatenate([xs for xs, _ in rows]), jnp.concatenate([ys for _, ys in rows])

    return dataclasses.replace(problem, draw=draw)


def measure_proxies(subject: Subject) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The columns and maps of `_maps` for θ* of the sample and for θ* of symmetric data (columns orbit_...).

    For the former also pearson and spearman of the proxies' maps with the reference.
    """
    halves = HALVES[subject.cell.problem]
    grid = subject.xs[subject.here]
    numbers, maps = _maps(subject.setting, subject.theta, grid, halves)
    truth = subject.variance[subject.here]
    for name in ("proxy_a", "proxy_b"):
        numbers |= correlations(f"{name}_hessian", truth, maps[name])
    made = setting(subject.cell, symmetric(subject.setting.problem, halves))
    fit = fit_map(made.log_density, made.inits)
    of_orbit, maps_of_orbit = _maps(made, fit.best(), grid, halves)
    numbers |= {f"orbit_{name}": value for name, value in of_orbit.items()}
    numbers["orbit_map_converged"] = bool(fit.converged[fit.best_index()])
    return numbers, maps | {f"orbit_{name}": values for name, values in maps_of_orbit.items()}


def _maps(made: Setting, theta: Any, grid: Any, halves: Halves) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The maps under the identity and under H⁻¹ of data from either half, at the grid and at its image.

    symmetry: Pearson's r of a map with its image. inside: mean in the half of the proxy's data over mean in the
    other. log_ratio_a, log_ratio_b: mean of log(U_A / U_B) in the halves of A and of B.
    """
    points = jnp.concatenate([grid, images(grid, halves)])
    size = len(grid)
    in_a = np.asarray(points)[:, halves.axis] < 0

    def epistemic(covariance: Any) -> np.ndarray:
        kind = made.log_density.kind
        return np.asarray(uncertainty(made.predict, theta, points, kind, covariance=covariance).epistemic, np.float64)

    identity = epistemic(None)
    numbers: dict[str, Any] = {
        "identity_symmetry": stats.pearson(identity[:size], identity[size:]),
        "identity_inside_a": float(identity[in_a].mean() / identity[~in_a].mean()),
    }
    arrays = {"identity": identity[:size].astype(np.float32)}
    data = _data(made, halves.axis)
    for curvature in CURVATURES:
        maps = {}
        for side, (xs, ys) in data.items():
            covariance = laplace(dataclasses.replace(made.log_density, xs=xs, ys=ys), theta, curvature)
            assert isinstance(covariance, Dense)
            maps[side] = epistemic(covariance)
            own = in_a if side == "a" else ~in_a
            name = f"proxy_{side}_{curvature}"
            numbers |= {
                f"{name}_symmetry": stats.pearson(maps[side][:size], maps[side][size:]),
                f"{name}_inside": float(maps[side][own].mean() / maps[side][~own].mean()),
                f"{name}_clipped": float(covariance.clipped),
            }
        log_ratio = np.log(maps["a"]) - np.log(maps["b"])
        numbers[f"log_ratio_a_{curvature}"] = float(log_ratio[in_a].mean())
        numbers[f"log_ratio_b_{curvature}"] = float(log_ratio[~in_a].mean())
        if curvature == "hessian":
            arrays |= {f"proxy_{side}": values[:size].astype(np.float32) for side, values in maps.items()}
            arrays |= {f"xs_{side}": np.asarray(xs) for side, (xs, _) in data.items()}
            arrays["log_ratio"] = log_ratio[:size].astype(np.float32)
    return numbers, arrays


def _data(made: Setting, axis: int) -> dict[str, tuple[Any, Any]]:
    """New data of the problem, as many as there are for training, from each half of the inputs."""
    size = len(made.data.xs)
    key = jax.random.fold_in(made.second_key, 1)
    xs, ys = made.problem.sample(key, 12 * size)
    order = jax.random.permutation(jax.random.fold_in(key, 1), len(xs))  # some problems list class after class
    xs, ys = xs[order], ys[order].astype(made.log_density.ys.dtype)
    in_a = np.asarray(xs)[:, axis] < 0
    return {side: (xs[rows][:size], ys[rows][:size]) for side, rows in (("a", in_a), ("b", ~in_a))}


def as_stated(row: dict[str, Any], data: str, curvature: str) -> bool:
    """Both proxies are surer where their data lie, and the log ratio changes its sign between the halves."""
    surer = all(row[f"{data}proxy_{side}_{curvature}_inside"] < 1 for side in "ab")
    return surer and row[f"{data}log_ratio_a_{curvature}"] < 0 < row[f"{data}log_ratio_b_{curvature}"]


def proxy_table(by_problem: dict[str, list[dict[str, Any]]]) -> str:
    """Every seed counts here, for nothing is compared with the reference."""
    body = []
    for name, mine in by_problem.items():
        for data, label in DATA.items():
            for curvature, title in CURVATURES.items():
                columns = [
                    "identity_symmetry",
                    *(f"proxy_{side}_{curvature}_{what}" for what in ("symmetry", "inside") for side in "ab"),
                    *(f"log_ratio_{side}_{curvature}" for side in "ab"),
                ]
                line = [_spread([row[f"{data}{column}"] for row in mine]) for column in columns]
                stated = sum(as_stated(row, data, curvature) for row in mine)
                body.append([name, label, title, *line, f"{stated}/{len(mine)}"])
    header = [
        "problem", "θ* of", "curvature", "symmetry, identity", "symmetry, A", "symmetry, B", "inside/outside, A",
        "inside/outside, B", "log(U_A/U_B) in A's half", "in B's half", "as stated",
    ]  # fmt: skip
    return (
        "## Proxies: Σ = H⁻¹ from new data of one half of the inputs\n\n"
        "A has as many new points as the training data, all from one half of the inputs (x₁ < 0; x₂ < 0 for "
        "clusters), B from the other. θ* of: the protocol's sample, or a symmetric data set (half a sample, for "
        "spirals a third, with its images), where an asymmetric map has only Σ to blame. symmetry: Pearson's r of "
        "the map with its image under the problem's own symmetry (mirrored; x ↦ −x for linear; turned by 120° for "
        "spirals, which does not swap the halves). inside/outside: mean uncertainty in the half of the proxy's "
        "data over that in the other. as stated: seeds in which both proxies are surer where their data lie and "
        "the log ratio changes its sign between the halves. All seeds count: nothing is compared with a reference "
        "here. Mean and 95 % interval.\n\n" + report.table(header, body)
    )


def _spread(values: list[float]) -> str:
    interval = stats.bootstrap_mean([value for value in values if np.isfinite(value)])
    text = report.number(interval.mean)
    return text if interval.count < 2 else f"{text} {report.bounds(interval)}"
