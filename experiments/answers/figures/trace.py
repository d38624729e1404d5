"""The figures of the experiment `trace`: the longest answers, the course of a trace, and AUROC."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.answers.figures.auroc import draw_auroc
from experiments.answers.numbers.trace import COURSE, TITLES, TraceAnalysis, TraceNumbers
from experiments.report.outputs import Numbers
from experiments.run.job import Result
from isouq.plots import BLUE, ORANGE, TWO_COLUMNS, trace_tokens
from isouq.stats import Interval

_THIRDS = ("early", "middle", "late")


def figures(_results: Sequence[Result], numbers: Numbers) -> dict[str, Any]:
    """Return the figures that can be drawn: "auroc", and "trace_NAME" and "course_NAME" of each model and benchmark."""
    details: TraceNumbers = numbers.details
    several = len({one.group.model for one in details.analyses}) > 1
    drawn: dict[str, Any] = {}
    measured: dict[str, dict[str, dict[str, Interval]]] = {}
    for one in details.analyses:
        name = _file_name(one, several)
        if one.examples:
            titles = {f"question {row['index']}, {label}": row for label, row in one.examples.items()}
            drawn[f"trace_{name}"] = trace_tokens(titles)
        if one.auroc:
            drawn[f"course_{name}"] = draw_course(one.course, COURSE)
            measured.setdefault(one.group.benchmark, {})[one.group.name] = one.auroc
    if measured:
        drawn["auroc"] = draw_auroc(measured, {}, TITLES)
    return drawn


def _file_name(one: TraceAnalysis, with_model: bool) -> str:
    model = f"{one.group.name}_" if with_model else ""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{model}{one.group.benchmark}")


def draw_course(course: Mapping[str, Mapping[str, Sequence[Interval]]], labels: Mapping[str, str]) -> Figure:
    """Draw a panel a series: the means of the early, middle and late third of right and of wrong answers.

    course: series -> "right", "wrong" -> an interval a third. labels: series -> its name.
    """
    figure, axes = plt.subplots(1, len(course), figsize=(TWO_COLUMNS, 2.7), squeeze=False, layout="constrained")
    styles = {"right": (BLUE, "o", -0.06), "wrong": (ORANGE, "s", 0.06)}
    for axis, (series, by_label) in zip(axes[0], course.items(), strict=True):
        for label, thirds in by_label.items():
            if not thirds[0].count:
                continue
            colour, marker, offset = styles[label]
            places = np.arange(3) + offset
            means = [i.mean for i in thirds]
            axis.plot(places, means, color=colour, marker=marker, ms=5, label=f"{label} ({thirds[0].count} answers)")
            axis.vlines(places, [i.low for i in thirds], [i.high for i in thirds], color=colour, lw=1.2)
        axis.set_xticks(range(3), _THIRDS)
        axis.set_xlim(-0.4, 2.4)
        axis.set_title(labels[series])
        axis.grid(True)
    axes[0, 0].set_ylabel("mean over the answers, 95 % interval")
    axes[0, 0].set_xlabel("third of the answer")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2)
    return figure
