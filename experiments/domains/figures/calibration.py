"""The figure of the calibration on texts: the change of each loss against the network as it is."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.calibration import LOSSES
from experiments.domains.configuration import MIN_SEEDS
from experiments.domains.measure.calibration import PREDICTORS
from experiments.domains.numbers.calibration import CalibrationNumbers
from experiments.domains.report.domains import VARIANTS
from experiments.report.outputs import Numbers
from experiments.run.job import Result
from isouq.plots import BLUE, ORANGE

LINEAR = 0.01  # changes up to here are drawn on a linear scale, larger ones on a logarithmic one
_COLOURS = {"whole": BLUE, "head": ORANGE}


def figures(_results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw a panel for each loss: the mean change of each predictor, with intervals over seeds and over texts."""
    details: CalibrationNumbers = numbers.details
    names = [name for name in PREDICTORS if any(name == other for _, other, _ in details.changes)]
    figure, axes = plt.subplots(1, len(LOSSES), figsize=(10.5, 1.4 + 0.42 * len(names)), sharey=True)
    figure.set_layout_engine("constrained", w_pad=0.1)
    for axis, (loss, title) in zip(axes, LOSSES.items(), strict=True):
        axis.axvline(0, color="black", lw=0.8)
        for (variant, name, other), change in details.changes.items():
            if other != loss:
                continue
            y, colour = names.index(name) + 0.16 * (1 if variant == "head" else -1), _COLOURS[variant]
            seeds, texts = change.over_seeds, change.over_texts
            axis.plot([seeds.low, seeds.high], [y, y], color=colour, lw=3, alpha=0.4)
            axis.plot([texts.low, texts.high], [y, y], color=colour, lw=1)
            axis.plot(texts.value, y, "o", ms=4, color=colour, mfc=colour if change.is_clear else "white")
        axis.set_xscale("symlog", linthresh=LINEAR)  # an unscaled covariance changes ten times as much as the others
        axis.set_xticks([-0.1, -0.01, 0, 0.01, 0.1], ["−0.1", "−0.01", "0", "0.01", "0.1"])
        axis.set_xlabel(f"change of {title}")
        axis.tick_params(labelsize=7)
        axis.grid(True, axis="x")
    axes[0].set_yticks(range(len(names)), [PREDICTORS[name] for name in names], fontsize=7)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    variants = [variant for variant in VARIANTS if variant in details.rows]
    handles = [plt.Line2D([], [], color=_COLOURS[v], marker="o", ms=4, label=VARIANTS[v]) for v in variants]
    hollow = f"hollow: an interval holds 0, or fewer than {MIN_SEEDS} seeds"
    handles += [
        plt.Line2D([], [], color="grey", lw=3, alpha=0.4, label="95 % over seeds"),
        plt.Line2D([], [], color="grey", lw=1, label="95 % over texts"),
        plt.Line2D([], [], color="grey", marker="o", ms=4, mfc="white", ls="none", label=hollow),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return {"calibration": figure}
