"""AUROC of many scores on several benchmarks, beside the paper's."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, TWO_COLUMNS
from isouq.stats import Interval

_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY)


def draw_auroc(
    measured: Mapping[str, Mapping[str, Mapping[str, Interval]]],
    paper: Mapping[str, Mapping[str, tuple[float, float]]],
    labels: Mapping[str, str],
) -> Figure:
    """Draw a panel a benchmark and a line a score: AUROC with its 95 % interval, a marker a model, a star the paper.

    measured: benchmark -> model -> score -> interval. paper: benchmark -> score -> mean and sd. labels: score -> its
    name; its order is that of the lines.
    """
    models = list(dict.fromkeys(model for by_model in measured.values() for model in by_model))
    shown = [
        s for s in labels if any(s in by_score for by_model in measured.values() for by_score in by_model.values())
    ]
    lines = [*models, *["paper"] * any(paper.get(benchmark) for benchmark in measured)]
    height = 1.3 + len(shown) * (0.11 + 0.06 * len(lines))
    figure, axes = plt.subplots(
        1, len(measured), figsize=(max(TWO_COLUMNS, 3.4 * len(measured)), height), squeeze=False, sharex=True,
        sharey=True, layout="constrained",
    )  # fmt: skip
    offsets = dict(zip(lines, 0.8 * ((np.arange(len(lines)) + 0.5) / len(lines) - 0.5), strict=True))
    for axis, (benchmark, by_model) in zip(axes[0], measured.items(), strict=True):
        for place in range(0, len(shown), 2):
            axis.axhspan(place - 0.5, place + 0.5, color="#f2f2f2", lw=0, zorder=0)
        for model, by_score in by_model.items():
            colour, marker = _series(models.index(model))
            for place, score in enumerate(shown):
                if score in by_score:
                    one = by_score[score]
                    axis.hlines(place + offsets[model], one.low, one.high, color=colour, lw=1.6)
                    axis.plot(one.mean, place + offsets[model], marker=marker, color=colour, ms=4.5)
        for score, (mean, sd) in paper.get(benchmark, {}).items():
            if score in shown:
                y = shown.index(score) + offsets["paper"]
                axis.hlines(y, mean - sd, mean + sd, color="black", lw=0.7)
                axis.plot(mean, y, marker="*", mfc="white", mec="black", ms=8, ls="none")
        axis.axvline(0.5, color=GREY, lw=1)
        axis.set_title(benchmark)
        axis.set_xlabel("AUROC for telling wrong answers")
        axis.grid(True, axis="x")
        axis.set_yticks(range(len(shown)), [labels[score] for score in shown])
        axis.set_ylim(len(shown) - 0.4, -0.6)
    handles = []
    for i, model in enumerate(models):
        colour, marker = _series(i)
        handles.append(plt.Line2D([], [], color=colour, marker=marker, ms=5, label=f"{model}, 95 % interval"))
    if "paper" in lines:
        star = {"marker": "*", "mfc": "white", "mec": "black", "ms": 9, "color": "black", "lw": 0.7}
        handles.append(plt.Line2D([], [], label="paper, mean ± sd, other models", **star))  # type: ignore[arg-type]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, len(handles)))
    return figure


def _series(i: int) -> tuple[str, str]:
    """Return the colour and marker of the i-th model; beyond the palette the colours repeat with other markers."""
    return _COLOURS[i % len(_COLOURS)], "osD^vPX*<>"[i % 10]
