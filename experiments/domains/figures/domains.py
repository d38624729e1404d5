"""The figures of the experiment `domains`: Fig. 4, the number of proxies, and rejection."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from experiments.domains.numbers.domains import COVARIANCES, COVERAGES, SCORES, Comparison, DomainNumbers
from experiments.domains.report.domains import VARIANTS
from experiments.domains.statistics import Estimate
from experiments.report.outputs import Numbers
from experiments.run.job import Result
from isouq.plots import BLUE, GREEN, GREY, ORANGE, PURPLE
from isouq.stats import Interval

DOMAINS = (("science", BLUE, "o"), ("sports", ORANGE, "s"))
FORMS = {"identity": "Σ = I", "a": "H_A⁻¹\n(science)", "b": "H_B⁻¹\n(sports)"}
_PANELS = 6  # a row
_STYLES = ((BLUE, "-"), (ORANGE, "-"), (GREEN, "--"), (GREY, ":"), (PURPLE, "-"), ("black", "-."))


def figures(_results: Sequence[Result], numbers: Numbers) -> dict[str, Any]:
    """Return the figures that can be drawn: "domains_VARIANT", "proxies", "rejection"."""
    details: DomainNumbers = numbers.details
    drawn: dict[str, Any] = {}
    for variant in VARIANTS:
        main = [one for one in details.main if one.variant == variant]
        if main:
            drawn[f"domains_{variant}"] = draw_distributions(_distributions(main))
    if details.comparisons:
        drawn["proxies"] = draw_proxies(_by_proxies(details.comparisons))
    if details.rejections:
        curves = {VARIANTS[one.variant]: one.curves for one in details.rejections}
        drawn["rejection"] = draw_rejection(curves, COVERAGES, SCORES)
    return drawn


def _distributions(main: Sequence[Comparison]) -> dict[str, Mapping[str, np.ndarray]]:
    """Return the arrays of the first seed of every GGN (of every covariance where there is none) by a title."""
    shown = [one for one in main if one.covariance.startswith("ggn")] or main
    return {
        f"{COVARIANCES[one.covariance]}, {one.scope},\n{one.proxies} texts a domain, seed {one.rows[0]['seed']}": (
            one.results[0].arrays
        )
        for one in shown
    }


def _by_proxies(comparisons: Sequence[Comparison]) -> dict[str, dict[int, dict[str, Interval]]]:
    """Return title -> number of proxies, ascending -> the means over seeds, for λ = 1."""
    curves: dict[str, dict[int, dict[str, Interval]]] = {}
    for one in comparisons:
        if one.precision == 1:
            title = f"{VARIANTS[one.variant]}\n{COVARIANCES[one.covariance]},\n{one.scope}"
            curves.setdefault(title, {})[one.proxies] = one.means
    return {title: dict(sorted(by_count.items())) for title, by_count in curves.items()}


def draw_distributions(cases: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw a row a covariance: log U by domain under I, H_A⁻¹ and H_B⁻¹; then what each changes; then the log ratio.

    cases: title -> arrays `[texts]`: "identity", "a", "b" (log U), and "labels", 0 science, 1 sports.
    """
    figure, axes = plt.subplots(
        len(cases), 3, figsize=(11.5, 0.9 + 2.7 * len(cases)), squeeze=False, layout="constrained",
        width_ratios=(1.5, 1, 1.3),
    )  # fmt: skip
    shown = np.concatenate([case[form] for case in cases.values() for form in FORMS])
    span = float(np.ptp(shown)) or 1.0
    for row, (title, case) in zip(axes, cases.items(), strict=True):
        masks = [case["labels"] == i for i in range(2)]
        for place, form in enumerate(FORMS):
            for side, mask in enumerate(masks):
                _violin(row[0], place + 0.2 * (2 * side - 1), case[form][mask], DOMAINS[side][1])
        row[0].set_xticks(range(3), list(FORMS.values()))
        row[0].set_ylim(shown.min() - 0.04 * span, shown.max() + 0.04 * span)
        row[0].set_ylabel(f"{title}\nlog U")
        for place, form in enumerate(("a", "b")):
            change = case[form] - case["identity"]
            for side, mask in enumerate(masks):
                _violin(row[1], place + 0.2 * (2 * side - 1), change[mask], DOMAINS[side][1])
        row[1].set_xticks(range(2), [FORMS["a"], FORMS["b"]])
        row[1].set_ylabel("log U − log ‖g‖²")
        ratio = case["a"] - case["b"]
        edges = np.linspace(*_limits(ratio), 32)
        for side, mask in enumerate(masks):
            _, colour, _ = DOMAINS[side]
            row[2].hist(np.clip(ratio[mask], edges[0], edges[-1]), edges, color=colour, alpha=0.5)
            row[2].axvline(np.median(ratio[mask]), color=colour, lw=1.6, ls="--")
        row[2].axvline(0, color="black", lw=0.8)
        row[2].set_ylabel("texts")
        row[2].xaxis.set_major_locator(MaxNLocator(5))
        for axis in row:
            axis.grid(True, axis="y")
        _powers(row[1], "y")
        _powers(row[2], "x")
    axes[0, 0].set_title("uncertainty by domain (bar: median)")
    axes[0, 1].set_title("what a proxy changes")
    axes[0, 2].set_title("log(U_A / U_B), dashed: medians")
    axes[-1, 2].set_xlabel("log ratio (beyond the ends: in the last bins)")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour, alpha=0.6, label=f"{name} texts") for name, colour, _ in DOMAINS
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def draw_proxies(curves: Mapping[str, Mapping[int, Mapping[str, Interval]]]) -> Figure:
    """Draw medians of the log ratio by domain and, below, its AUROC against the number of proxies; six panels a row.

    curves: title -> number of texts -> intervals over seeds "log_ratio_science", "log_ratio_sports", "auroc".
    """
    columns, rows = min(len(curves), _PANELS), -(-len(curves) // _PANELS)
    figure, axes = plt.subplots(
        2 * rows, columns, figsize=(0.8 + 2.1 * columns, 0.6 + 4.4 * rows), squeeze=False, layout="constrained"
    )
    for unused in axes.reshape(rows, 2, columns).transpose(0, 2, 1).reshape(-1, 2)[len(curves) :].ravel():
        unused.set_axis_off()
    for place, (title, by_count) in enumerate(curves.items()):
        row, column = divmod(place, columns)
        top, bottom = axes[2 * row : 2 * row + 2, column]
        counts = list(by_count)
        for name, colour, marker in DOMAINS:
            _curve(top, counts, [by_count[n][f"log_ratio_{name}"] for n in counts], colour, marker)
        _curve(bottom, counts, [by_count[n]["auroc"] for n in counts], GREEN, "^")
        top.axhline(0, color="black", lw=0.8)
        _powers(top, "y")
        bottom.axhline(0.5, color=GREY, lw=0.8)
        bottom.set_ylim(-0.03, 1.03)
        bottom.set_xlabel("proxy texts a domain")
        top.set_title(title, fontsize=7)
        for axis in (top, bottom):
            axis.grid(True)
            axis.tick_params(labelsize=7)
            axis.margins(x=0.1)
            axis.set_xscale("log")
            axis.set_xticks(counts, [str(n) for n in counts] if axis is bottom else [], fontsize=7)
            axis.minorticks_off()
        if column == 0:
            top.set_ylabel("median of log(U_A / U_B)")
            bottom.set_ylabel("AUROC of the log ratio")
    handles = [plt.Line2D([], [], color=c, marker=m, ms=5, label=f"{name} texts") for name, c, m in DOMAINS]
    figure.legend(
        handles=handles, title="mean and 95 % band over seeds", loc="outside lower center", ncols=2,
    )  # fmt: skip
    return figure


def draw_rejection(
    curves: Mapping[str, Mapping[str, Estimate]], coverage: np.ndarray, labels: Mapping[str, str]
) -> Figure:
    """Draw the accuracy of the answered texts against the share of rejected texts: a panel a model, a line a score.

    curves: title -> score -> accuracy with its ends, each `[coverages]`. labels: score -> what the legend says.
    """
    figure, axes = plt.subplots(
        1, len(curves), figsize=(3 + 4.2 * len(curves), 4.8), squeeze=False, layout="constrained", sharey=True
    )
    rejected = 100 * (1 - coverage)
    for axis, (title, by_score) in zip(axes[0], curves.items(), strict=True):
        for (score, curve), (colour, style) in zip(by_score.items(), _STYLES, strict=False):
            wide = 3 if style == ":" else 1.5
            axis.plot(rejected, curve.value, color=colour, ls=style, lw=wide, label=labels[score])
            axis.fill_between(rejected, curve.low, curve.high, color=colour, alpha=0.08, lw=0)
        axis.set_title(title)
        axis.set_xlabel("rejected, % of the texts")
        axis.grid(True)
    axes[0, 0].set_ylabel("accuracy of the others")
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, title="mean over seeds, 95 % band over texts", loc="outside lower center",
        ncols=3,
    )  # fmt: skip
    return figure


def _violin(axis: Any, place: float, values: np.ndarray, colour: str) -> None:
    """Draw a violin, or a line where all values are equal, with its median as a bar."""
    if np.ptp(values) > 0:
        parts: Any = axis.violinplot(values, [place], widths=0.36, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=colour, alpha=0.5)
    axis.hlines(np.median(values), place - 0.18, place + 0.18, color=colour, lw=2)


def _powers(axis: Any, which: str) -> None:
    """Write small numbers along an axis as multiples of a power of ten."""
    axis.ticklabel_format(axis=which, style="sci", scilimits=(-2, 3), useMathText=True)
    (axis.xaxis if which == "x" else axis.yaxis).get_offset_text().set_fontsize(7)


def _limits(ratio: np.ndarray) -> tuple[float, float]:
    """Return the ends of a range that holds the middle 98 % of the values, and 0."""
    low, high = np.quantile(ratio, [0.01, 0.99])
    low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.05 * (high - low) or 1e-6
    return low - pad, high + pad


def _curve(axis: Any, counts: list[int], points: list[Interval], colour: str, marker: str) -> None:
    axis.plot(counts, [i.mean for i in points], marker=marker, color=colour, ms=4, lw=1.2)
    bounds = [i.low for i in points], [i.high for i in points]
    axis.fill_between(counts, *bounds, color=colour, alpha=0.2, lw=0)
    axis.vlines(counts, *bounds, color=colour, lw=0.8)
