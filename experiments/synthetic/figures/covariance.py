"""The figures of the covariance study: maps under proxies, agreement of every covariance, and its cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.report.tables import number
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend, draw_numbers
from experiments.synthetic.measure.covariance import METHODS
from experiments.synthetic.measure.proxies import DATA, HALVES
from experiments.synthetic.numbers.covariance import planar_models
from experiments.synthetic.numbers.models import TITLES, is_flat_row
from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, unit_range
from isouq.stats import Interval

_COLOURS = {"identity": BLUE, "hessian": ORANGE, "ggn": GREEN, "fisher": PURPLE, "draws": GREY}
_MARKERS = {"dense": "s", "low_rank": "D", "kronecker": "^", "diagonal": "v", "within": "X"}

Problems = Mapping[str, Mapping[str, Interval]]


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw Fig. 1 and the maps of every problem (the first seed), the agreement, and cost against agreement."""
    drawn = {}
    planar = {model.problem for model in planar_models(numbers.details)}
    first: dict[str, Result] = {}
    for result in results:
        if result.numbers["problem"] in planar and not is_flat_row(result.numbers):
            first.setdefault(result.numbers["problem"], result)
    if "binary/xor" in first:
        drawn["covariance"] = proxy_maps([_maps(first["binary/xor"], data) for data in DATA])
    if first:
        drawn["covariance_maps"] = proxy_maps([_maps(result, "") for result in first.values()])
    drawn["covariance_agreement"] = heat_maps(numbers.groups)
    drawn["pareto"] = pareto(numbers.groups)
    return drawn


def _maps(result: Result, data: str) -> tuple[str, int, dict[str, np.ndarray]]:
    """Return what `proxy_maps` draws of a result, for θ* of the sample or of symmetric data."""
    problem = result.numbers["problem"]
    names = ("identity", "proxy_a", "proxy_b", "log_ratio", "xs_a", "xs_b")
    maps = {name: result.arrays[f"{data}{name}"] for name in names}
    return f"{problem}, {DATA[data]} data", HALVES[problem].axis, {**maps, "grid": result.arrays["grid"]}


def proxy_maps(problems: Sequence[tuple[str, int, Mapping[str, np.ndarray]]]) -> Figure:
    """Draw one row of four panels a problem: identity, H_A⁻¹, H_B⁻¹ and the log ratio of the latter two.

    problems: (title, axis that is cut at 0, arrays) with `grid` `[m², 2]` (first feature fastest), the maps `[m²]`
    `identity`, `proxy_a`, `proxy_b`, `log_ratio`, and the proxies' inputs `xs_a`, `xs_b`. The two proxies of a row
    share one scale; the identity has its own, because its unit differs.
    """
    rows = len(problems)
    figure, axes = plt.subplots(rows, 4, figsize=(12.4, 2.5 * rows + 0.7), squeeze=False, layout="constrained")
    for index, (row, (title, cut, arrays)) in enumerate(zip(axes, problems, strict=True)):
        grid = arrays["grid"]
        side = round(len(grid) ** 0.5)
        (left, bottom), (right, top) = grid.min(axis=0), grid.max(axis=0)
        shared = np.concatenate([arrays["proxy_a"], arrays["proxy_b"]])
        both = np.split(unit_range(shared), 2)
        limit = float(np.abs(arrays["log_ratio"]).max())
        panels = (
            (unit_range(arrays["identity"]), "viridis", (0, 1), None, "Σ = I"),
            (both[0], "viridis", (0, 1), "xs_a", "Σ = H_A⁻¹, proxy data in A"),
            (both[1], "viridis", (0, 1), "xs_b", "Σ = H_B⁻¹, proxy data in B"),
            (arrays["log_ratio"], "PuOr", (-limit, limit), None, "log(U_A / U_B)"),
        )
        for axis, (values, colours, (low, high), data, heading) in zip(row, panels, strict=True):
            image = axis.imshow(
                values.reshape(side, side), origin="lower", extent=(left, right, bottom, top), aspect="auto",
                cmap=colours, vmin=low, vmax=high,
            )  # fmt: skip
            if data is not None:
                points = arrays[data]
                seen = np.all((points >= grid.min(axis=0)) & (points <= grid.max(axis=0)), axis=1)
                axis.scatter(*points[seen].T, s=4, color="white", edgecolors="black", linewidths=0.3)
            (axis.axvline if cut == 0 else axis.axhline)(
                0, color="red" if colours == "PuOr" else "white", lw=0.8, ls="--"
            )
            axis.tick_params(labelsize=7)
            if index == 0:
                axis.set_title(heading)
            if index == rows - 1:
                axis.set_xlabel("x₁")
            if colours == "PuOr":
                figure.colorbar(image, ax=axis, pad=0.02).ax.tick_params(labelsize=7)
            elif data == "xs_b":
                bar = figure.colorbar(image, ax=row[:3], pad=0.01)
                bar.set_label("scaled to [0, 1]\n(A and B together)", fontsize=7)
                bar.ax.tick_params(labelsize=7)
        row[0].set_ylabel(f"{title}\nx₂")
    return figure


def heat_maps(problems: Problems) -> Figure:
    """Draw the mean r and ρ of gᵀΣg with the reference, methods by problems, as two heat maps with the numbers.

    problems: problem -> intervals by name: "METHOD_STATISTIC".
    """
    figure, axes = plt.subplots(
        1, 2, figsize=(4.0 + 1.5 * len(problems), 1.4 + 0.36 * len(METHODS)), sharey=True, layout="constrained",
    )  # fmt: skip
    for axis, (statistic, title) in zip(axes, TITLES.items(), strict=True):
        means = [[values[f"{method}_{statistic}"].mean for values in problems.values()] for method in METHODS]
        texts = [[number(mean) for mean in line] for line in means]
        image = draw_numbers(axis, np.array(means), np.array(texts), fontsize=7)
        axis.set_xticks(range(len(problems)), list(problems), rotation=40, ha="right")
        axis.set_yticks(range(len(METHODS)), list(METHODS.values()))
        axis.set_title(title)
    bar = figure.colorbar(image, ax=axes, pad=0.01, extend="min")
    bar.set_label("mean over accepted seeds (–: none accepted)")
    return figure


def pareto(problems: Problems) -> Figure:
    """Draw cost against agreement, a panel a problem: mean ρ with 95 % bars over gradients to build Σ (log axis).

    problems: problem -> intervals by name: "METHOD_spearman", "METHOD_gradients", and "gradient_evaluations", the
    cost of the reference.
    """
    columns = min(3, len(problems))
    rows = -(-len(problems) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.6 * columns, 2.6 * rows + 1.1), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis in axes.flat[len(problems) :]:
        axis.set_visible(False)
    largest = max(values["gradient_evaluations"].mean for values in problems.values())
    for axis, (name, values) in zip(axes.flat, problems.items(), strict=False):
        for method in METHODS:
            interval = values[f"{method}_spearman"]
            if interval.count == 0:
                continue
            bars = None if interval.count < 2 else [[interval.mean - interval.low], [interval.high - interval.mean]]
            axis.errorbar(
                max(values[f"{method}_gradients"].mean, 0.3), interval.mean, yerr=bars,
                ls="none", ms=5, lw=0.8, alpha=0.85, **_style(method),
            )  # fmt: skip
        axis.plot(values["gradient_evaluations"].mean, 1.0, marker="*", color="black", ms=9, ls="none")
        axis.set_title(name)
        axis.set_xscale("log")
        axis.axhline(0, color=GREY, lw=0.6)
        axis.set_ylim(-0.3, 1.08)
        axis.grid(True)
        axis.set_xlim(0.15, 5 * largest)
        axis.set_xticks([0.3, 1, 100, 10_000], ["0", "1", "10²", "10⁴"])
        axis.minorticks_off()
    for axis in axes[:, 0]:
        axis.set_ylabel("Spearman ρ")
    for axis in axes.flat[max(0, len(problems) - columns) : len(problems)]:  # those with no panel below
        axis.set_xlabel("gradients over the training data")
        axis.tick_params(labelbottom=True)
    lines = [{"ls": "none", "label": label, **_style(method)} for method, label in METHODS.items()]
    lines.append({"ls": "none", "marker": "*", "color": "black", "ms": 9, "label": "the reference itself (HMC)"})
    add_legend(figure, lines, 5, fontsize=7)
    return figure


def _style(method: str) -> dict[str, Any]:
    if method == "identity":
        return {"marker": "o", "color": BLUE}
    curvature, structure = method.split("_", 1)
    return {"marker": _MARKERS[structure], "color": _COLOURS[curvature]}
