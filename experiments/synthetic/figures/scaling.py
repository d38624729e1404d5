"""The figures of the scaling study: agreement against width by prior, as curves and as a heat map."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import draw_band, draw_numbers, set_width_axis
from experiments.synthetic.numbers.models import TITLES, sweep_by_prior
from experiments.synthetic.presets.scaling import CURVES
from isouq.plots import BLUE, GREEN, GREY, ORANGE
from isouq.stats import Interval

_SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"))  # colour and marker of each prior in CURVES
ByPrior = Mapping[tuple[str, float], Mapping[int, Mapping[str, Interval]]]


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw the curves of the priors that the paper's claim is about, and the map of all priors."""
    by_prior = {
        prior: {model.width: numbers.groups[model.name] for model in models if model.width is not None}
        for prior, models in sweep_by_prior(numbers.details.models).items()
    }
    curves = {prior: by_width for prior, by_width in by_prior.items() if prior in CURVES}
    return {"scaling": against_width(curves), "scaling_map": heat_map(by_prior)}


def against_width(curves: ByPrior) -> Figure:
    """Draw r and ρ against width, a curve with its 95 % band for each prior; the lower strip shows the accepted share.

    curves: (prior, σ) -> width -> intervals by name: "epistemic_STATISTIC", and "accepted", the share of seeds.
    """
    figure, axes = plt.subplots(
        2, 2, figsize=(10, 5.5), sharex=True, layout="constrained", height_ratios=(4, 1), squeeze=False
    )
    widths = _widths(curves)
    for (top, bottom), (statistic, label) in zip(axes.T, TITLES.items(), strict=True):
        for ((prior, sigma), by_width), (colour, marker) in zip(curves.items(), _SERIES, strict=False):
            points = [values[f"epistemic_{statistic}"] for values in by_width.values()]
            draw_band(top, list(by_width), points, colour, marker, label=f"{prior}, σ = {sigma:g}")
            shares = [values["accepted"].mean for values in by_width.values()]
            bottom.plot(list(by_width), shares, marker=marker, color=colour, ms=3, lw=0.8)
        top.set(ylabel=f"epistemic, {label}", ylim=(min(-0.25, top.dataLim.y0 - 0.03), 1.02))
        top.axhline(0, color=GREY, lw=0.6)
        top.grid(True)
        bottom.set(xlabel="hidden width (6 × width + 3 parameters)", ylabel="accepted", ylim=(-0.08, 1.08))
        set_width_axis(bottom, widths)
    axes[0, 0].legend(title="prior", loc="lower left", bbox_to_anchor=(0, 1), ncols=len(curves))
    return figure


def heat_map(cells: ByPrior) -> Figure:
    """Draw the mean r and ρ over width × prior as a heat map with the numbers; grey where no seed counts.

    cells: as the curves of `against_width`. A number is followed by "*" where some seeds were not accepted.
    """
    widths = _widths(cells)
    figure, axes = plt.subplots(
        2, 1, figsize=(1.6 + 0.85 * len(widths), 2.2 + 1.0 * len(cells)), sharex=True, layout="constrained"
    )
    for axis, (statistic, label) in zip(axes, TITLES.items(), strict=True):
        values = np.full((len(cells), len(widths)), np.nan)
        texts = np.full(values.shape, "", object)
        for i, by_width in enumerate(cells.values()):
            for width, numbers in by_width.items():
                place, interval = (i, widths.index(width)), numbers[f"epistemic_{statistic}"]
                if interval.count == 0:
                    reason = "all flat" if numbers["accepted"].mean else "none\naccepted"
                    axis.text(*place[::-1], reason, ha="center", va="center", fontsize=6)
                    continue
                values[place] = interval.mean
                texts[place] = f"{interval.mean:.2f}{'' if numbers['accepted'].mean == 1 else '*'}"
        image = draw_numbers(axis, values, texts)
        axis.set_yticks(range(len(cells)), [f"{prior}, σ = {sigma:g}" for prior, sigma in cells])
        axis.set_ylabel("prior")
        figure.colorbar(image, ax=axis, pad=0.01, extend="min").set_label(f"epistemic, {label}")
    axes[-1].set_xticks(range(len(widths)), [str(w) for w in widths])
    axes[-1].set_xlabel("hidden width   (* some seeds unconverged and left out; empty: not run)")
    return figure


def _widths(by_prior: ByPrior) -> list[int]:
    return sorted({width for by_width in by_prior.values() for width in by_width})
