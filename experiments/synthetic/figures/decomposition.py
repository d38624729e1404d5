"""The figures of the decomposition: where the correlation with the reference is lost, and perturbations of θ*."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend, draw_band, set_width_axis
from experiments.synthetic.measure.decomposition import SIGMAS, VERSIONS
from experiments.synthetic.numbers.models import TITLES, sweep_by_prior
from isouq.plots import BLUE, GREEN, GREY, ORANGE
from isouq.stats import Interval

TERMS = {
    "taylor": ("Taylor: corr(V, L)", BLUE, "o"),
    "isotropy": ("isotropy: corr(L, I)", ORANGE, "s"),
    "whole": ("whole: corr(V, I)", GREEN, "^"),
}


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw the correlations against width by prior, and of every problem; the perturbations of every problem."""
    drawn = {}
    curves = {
        prior: {model.width: numbers.groups[model.name] for model in models if model.width is not None}
        for prior, models in sweep_by_prior(numbers.details).items()
    }
    if curves:
        drawn["decomposition"] = against_width(curves, "pearson")
        drawn["decomposition_spearman"] = against_width(curves, "spearman")
    problems = {model.name: numbers.groups[model.name] for model in numbers.details if model.width is None}
    if problems:
        drawn["decomposition_problems"] = by_problem(problems)
        drawn["perturbation"] = perturbation(problems)
    return drawn


def against_width(curves: Mapping[tuple[str, float], Mapping[int, Mapping[str, Interval]]], statistic: str) -> Figure:
    """Draw the three correlations against width with their 95 % bands: a column a prior, a row a covariance Σ.

    curves: (prior, σ) -> width -> intervals by name: "whole_STATISTIC", and for each of VERSIONS
    "taylor_VERSION_STATISTIC" and "isotropy_VERSION_STATISTIC". statistic: a key of `TITLES`. A width without an
    accepted seed breaks the line.
    """
    figure, axes = plt.subplots(
        len(VERSIONS), len(curves), figsize=(1.4 + 3 * len(curves), 1 + 2.3 * len(VERSIONS)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    widths = sorted({width for by_width in curves.values() for width in by_width})
    shown = [by_width[w][_name(t, v, statistic)] for by_width in curves.values() for w in by_width
             for t in TERMS for v in VERSIONS]  # fmt: skip
    for row, (version, title) in zip(axes, VERSIONS.items(), strict=True):
        row[0].set_ylabel(f"Σ {title}\n{TITLES[statistic]}")
        for axis, by_width in zip(row, curves.values(), strict=True):
            for term, (_, colour, marker) in TERMS.items():
                points = [values[_name(term, version, statistic)] for values in by_width.values()]
                draw_band(axis, list(by_width), points, colour, marker, lw=1.2)
            axis.axhline(0, color=GREY, lw=0.6)
            axis.grid(True)
    axes[0, 0].set_ylim(_floor(shown), 1.04)
    for axis, (prior, sigma) in zip(axes[0], curves, strict=True):
        axis.set_title(f"prior {prior}, σ = {sigma:g}")
    for axis in axes[-1]:
        set_width_axis(axis, widths)
        axis.set_xlabel("hidden width")
    _add_terms(figure, "mean and 95 % band over accepted seeds")
    return figure


def by_problem(problems: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Draw the three correlations of every problem with their intervals: a column a covariance Σ, a row a statistic.

    problems: problem -> intervals by name, as in `against_width`.
    """
    figure, axes = plt.subplots(
        len(TITLES), len(VERSIONS), figsize=(1.6 + 3.2 * len(VERSIONS), 1.8 + 0.45 * len(problems) * len(TITLES)),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    shown = [p[_name(t, v, s)] for p in problems.values() for t in TERMS for v in VERSIONS for s in TITLES]
    for row, (statistic, label) in zip(axes, TITLES.items(), strict=True):
        for axis, (version, title) in zip(row, VERSIONS.items(), strict=True):
            for place, (term, (_, colour, marker)) in enumerate(TERMS.items()):
                for y, intervals in enumerate(problems.values()):
                    interval, height = intervals[_name(term, version, statistic)], y + 0.22 * (place - 1)
                    axis.plot(interval.mean, height, marker, color=colour, ms=5)
                    axis.plot([interval.low, interval.high], [height, height], color=colour, lw=1.6)
            axis.set_yticks(range(len(problems)), list(problems))
            axis.axvline(0, color=GREY, lw=0.6)
            axis.grid(True, axis="x")
            axis.set_xlabel(label)
            axis.set_title(f"Σ {title}")
            axis.tick_params(labelbottom=True)
    axes[0, 0].set_xlim(_floor(shown), 1.04)
    axes[0, 0].set_ylim(len(problems) - 0.5, -0.5)
    _add_terms(figure, "mean and 95 % interval over accepted seeds")
    return figure


def perturbation(problems: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Draw the correlation of V with the perturbation W against its σ, and with ‖g‖² (dashed): a panel a problem.

    problems: problem -> intervals by name: "perturbation_SIGMA_STATISTIC" and "whole_STATISTIC".
    """
    columns = min(4, len(problems))
    rows = -(-len(problems) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1 + 2.9 * columns, 1 + 2.4 * rows),
        sharex=True, sharey=True, squeeze=False, layout="constrained",
    )  # fmt: skip
    series = {"pearson": (BLUE, "o"), "spearman": (ORANGE, "s")}
    shown = []
    for axis, (name, intervals) in zip(axes.flat, problems.items(), strict=False):
        for statistic, (colour, marker) in series.items():
            points = [intervals[f"perturbation_{sigma:g}_{statistic}"] for sigma in SIGMAS]
            whole = intervals[f"whole_{statistic}"]
            draw_band(axis, SIGMAS, points, colour, marker, lw=1.2)
            axis.axhline(whole.mean, color=colour, ls="--", lw=1)
            shown += [*points, whole]
        axis.axhline(0, color=GREY, lw=0.6)
        axis.grid(True)
        axis.set_title(name)
    for axis in list(axes.flat)[len(problems) :]:
        axis.set_visible(False)
    for i, axis in enumerate(axes.flat):
        if i % columns == 0:
            axis.set_ylabel("correlation with V")
        if i + columns >= len(problems):
            axis.set_xlabel("σ of the perturbation")
            axis.tick_params(labelbottom=True)
    axes[0, 0].set(ylim=(_floor(shown), 1.04), xscale="log", xlim=(min(SIGMAS) / 1.5, max(SIGMAS) * 1.5))
    lines: list[dict[str, Any]] = [
        {"color": colour, "marker": marker, "ms": 4, "label": f"W, {TITLES[s]}: mean and 95 % band"}
        for s, (colour, marker) in series.items()
    ]
    lines += [{"color": c, "ls": "--", "lw": 1, "label": f"‖g‖², {TITLES[s]}"} for s, (c, _) in series.items()]
    add_legend(figure, lines, 4)
    return figure


def _name(term: str, version: str, statistic: str) -> str:
    return f"whole_{statistic}" if term == "whole" else f"{term}_{version}_{statistic}"


def _floor(intervals: Iterable[Interval]) -> float:
    """Return the lower limit of the axis: below 0 and below everything that is drawn."""
    values = np.array([[i.mean, i.low] for i in intervals])
    return min(0.0, float(np.min(values, where=np.isfinite(values), initial=0.0))) - 0.05


def _add_terms(figure: Figure, note: str) -> None:
    lines = [{"color": colour, "marker": marker, "ms": 5, "label": label} for label, colour, marker in TERMS.values()]
    add_legend(figure, lines, 3, title=note)
