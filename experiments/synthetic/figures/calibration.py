"""The figure of the calibration: the change of each loss against the plain network, with intervals."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.calibration import LOSSES
from experiments.report.outputs import Numbers
from experiments.run.job import Result
from experiments.synthetic.figures.parts import add_legend
from experiments.synthetic.measure.calibration import PREDICTORS
from experiments.synthetic.numbers.calibration import CLASSIFICATIONS, Details
from experiments.synthetic.numbers.models import ALPHA
from isouq.plots import BLUE, ORANGE

_COLOURS = {"map": BLUE, "mle": ORANGE}


def figures(results: Sequence[Result], numbers: Numbers) -> dict[str, Figure]:
    """Draw a panel for each loss on the classifications: the mean change and its interval for each predictor."""
    details: Details = numbers.details
    changes = {(name, loss): one for (family, name, loss), one in details.changes.items() if family == CLASSIFICATIONS}
    names = list(dict.fromkeys(name for name, _ in changes))
    figure, axes = plt.subplots(1, len(LOSSES), figsize=(10.5, 1.2 + 0.26 * max(len(names), 1)), sharey=True)
    figure.set_layout_engine("constrained", w_pad=0.1)
    for axis, (loss, title) in zip(axes, LOSSES.items(), strict=True):
        axis.axvline(0, color="black", lw=0.8)
        for y, name in enumerate(names):
            change, colour = changes[name, loss], _COLOURS[PREDICTORS[name][0]]
            filled = colour if change.p < ALPHA else "white"
            axis.plot([change.interval.low, change.interval.high], [y, y], color=colour, lw=1.2)
            axis.plot(change.interval.mean, y, "o", ms=5, color=colour, mfc=filled)
        axis.set_xlabel(f"change of {title}")
        axis.tick_params(labelsize=7)
        axis.grid(True, axis="x")
    axes[0].set_yticks(range(len(names)), [PREDICTORS[name][1] for name in names], fontsize=7)
    axes[0].set_ylim(max(len(names), 1) - 0.5, -0.5)
    lines = [
        {"marker": "o", "ls": "none", "color": BLUE, "label": "against θ*"},
        {"marker": "o", "ls": "none", "color": ORANGE, "label": "against the MLE network"},
        {"marker": "o", "ls": "none", "color": "grey", "mfc": "white", "label": f"hollow: adjusted p ≥ {ALPHA:g}"},
    ]
    add_legend(figure, lines, 3)
    return {"calibration": figure}
