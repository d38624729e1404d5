"""Why proxies distort: maps under the Hessian of new data from one half of the inputs, and how symmetric they are."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.synthetic.subject import Setting, Subject, correlations, epistemic_map, set_up
from isouq import problems, stats
from isouq.covariance import laplace
from isouq.posterior import fit_map

CURVATURES = {"hessian": "Hessian", "ggn": "GGN"}
# The data that θ* is trained on: the protocol's sample, or a symmetric data set, a smaller sample with its images.
DATA = {"": "sample", "orbit_": "symmetric"}


class Halves(NamedTuple):
    """The two halves of a problem's inputs, and a linear map of the inputs under which the problem looks the same.

    axis: proxy A has data with x[axis] < 0, proxy B the rest. symmetry: the matrix M of x ↦ x Mᵀ; it swaps the halves
    for all problems but the spirals. labels: the class that each class becomes under it. order: the number of images
    of a point, itself included.
    """

    axis: int
    symmetry: tuple[tuple[float, float], tuple[float, float]]
    labels: tuple[int, ...]
    order: int = 2


_COS, _SIN = -0.5, 3**0.5 / 2  # a rotation by 120°
HALVES = {
    "binary/linear": Halves(0, ((-1, 0), (0, -1)), (1, 0)),
    "binary/xor": Halves(0, ((-1, 0), (0, 1)), (1, 0)),
    "binary/rings": Halves(0, ((-1, 0), (0, 1)), (0, 1)),
    "multiclass/clusters": Halves(1, ((1, 0), (0, -1)), (0, 2, 1)),
    "multiclass/spirals": Halves(0, ((_COS, -_SIN), (_SIN, _COS)), (1, 2, 0), 3),
    "multiclass/rings": Halves(0, ((-1, 0), (0, 1)), (0, 1, 2)),
}


def images(xs: Any, halves: Halves) -> Any:
    """Return the inputs' images under the symmetry."""
    return np.asarray(xs) @ np.asarray(halves.symmetry, np.float32).T


def symmetrise(problem: problems.Problem, halves: Halves) -> problems.Problem:
    """Return the problem whose data sets hold a sample together with its images: exactly symmetric."""

    def draw(key: Any, n: int) -> tuple[Any, Any]:
        xs, ys = problem.draw(key, max(1, n // halves.order))
        rows = [(xs, ys)]
        for _ in range(halves.order - 1):
            rows.append((images(rows[-1][0], halves), np.asarray(halves.labels)[np.asarray(rows[-1][1])]))
        return np.concatenate([xs for xs, _ in rows]), np.concatenate([ys for _, ys in rows])

    return dataclasses.replace(problem, draw=draw)


def measure_proxies(subject: Subject) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the columns and maps of `_maps`, for θ* of the sample and (columns orbit_...) for θ* of symmetric data.

    For the former also pearson and spearman of the proxies' maps with the reference.
    """
    halves = HALVES[subject.cell.problem]
    grid = subject.xs[subject.grid]
    numbers, maps = _maps(subject.setting, subject.theta, grid, halves)
    truth = subject.variance[subject.grid]
    for name in ("proxy_a", "proxy_b"):
        numbers |= correlations(f"{name}_hessian", truth, maps[name])
    setting = set_up(subject.cell, symmetrise(subject.setting.problem, halves))
    theta = fit_map(setting.log_density, setting.inits).best()
    for other, prefixed in zip(_maps(setting, theta, grid, halves), (numbers, maps), strict=True):
        prefixed |= {f"orbit_{name}": value for name, value in other.items()}
    return numbers, maps


def _maps(setting: Setting, theta: Any, grid: Any, halves: Halves) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the maps under the identity and under H⁻¹ of data from either half, and their comparison.

    symmetry: Pearson's r of a map with its image. inside: mean in the half of the proxy's data over mean in the
    other. log_ratio_a, log_ratio_b: mean of log(U_A / U_B) in the halves of A and of B.
    """
    size = len(grid)
    both = [grid, images(grid, halves)]
    in_a = np.concatenate([np.asarray(points)[:, halves.axis] < 0 for points in both])

    def compute_map(covariance: Any = None) -> np.ndarray:
        """Return the map at the inputs and then at their images."""
        return np.concatenate([epistemic_map(setting, theta, points, covariance) for points in both])

    identity = compute_map()
    numbers: dict[str, Any] = {"identity_symmetry": stats.pearson(identity[:size], identity[size:])}
    arrays = {"identity": identity[:size].astype(np.float32)}
    data = _data(setting, halves.axis)
    for curvature in CURVATURES:
        maps = {}
        for side, (xs, ys) in data.items():
            density = dataclasses.replace(setting.log_density, xs=xs, ys=ys)
            maps[side] = compute_map(laplace(density, theta, curvature))
            own = in_a if side == "a" else ~in_a
            name = f"proxy_{side}_{curvature}"
            numbers |= {
                f"{name}_symmetry": stats.pearson(maps[side][:size], maps[side][size:]),
                f"{name}_inside": float(maps[side][own].mean() / maps[side][~own].mean()),
            }
        log_ratio = np.log(maps["a"]) - np.log(maps["b"])
        numbers[f"log_ratio_a_{curvature}"] = float(log_ratio[in_a].mean())
        numbers[f"log_ratio_b_{curvature}"] = float(log_ratio[~in_a].mean())
        if curvature == "hessian":
            arrays |= {f"proxy_{side}": values[:size].astype(np.float32) for side, values in maps.items()}
            arrays |= {f"xs_{side}": np.asarray(xs) for side, (xs, _) in data.items()}
            arrays["log_ratio"] = log_ratio[:size].astype(np.float32)
    return numbers, arrays


def _data(setting: Setting, axis: int) -> dict[str, tuple[Any, Any]]:
    """Return new data of the problem from each half of the inputs, as many as there are for training."""
    size = len(setting.data.xs)
    key = jax.random.fold_in(setting.second_key, 1)
    xs, ys = setting.problem.sample(key, 12 * size)
    order = jax.random.permutation(jax.random.fold_in(key, 1), len(xs))  # some problems list class after class
    xs, ys = np.asarray(xs)[order], np.asarray(ys, setting.log_density.ys.dtype)[order]
    in_a = xs[:, axis] < 0
    return {
        side: (jnp.asarray(xs[rows][:size]), jnp.asarray(ys[rows][:size])) for side, rows in (("a", in_a), ("b", ~in_a))
    }
