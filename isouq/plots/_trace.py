"""Draw the uncertainty along an answer: its text coloured by U_E, and three curves below it."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from isouq.plots._palette import BLUE, GREEN, ORANGE

_CURVES = (
    ("epistemic", "U_E = ‖∇p‖²", ORANGE, "o"),
    ("committal", "p(1 − p)", BLUE, "s"),
    ("entropy", "entropy, nats", GREEN, "^"),
)
WIDTH = 9.0  # inches
LINE = 88  # characters of a line of text
_MAP = "cividis"


def trace_tokens(examples: Any) -> Figure:
    """Return a figure with two panels for each answer: its tokens coloured by U_E, and three curves over the tokens.

    The colours of all answers have one logarithmic scale.

    examples: what `isouq.text.trace` returns, for one answer without a title; or a mapping from a title to such a trace
    or to a mapping with "pieces", the text of each token; the arrays "epistemic", "committal" and "entropy" `[T]`; and,
    where U_E was estimated, "error", its standard error `[T]`.
    """
    examples = examples if isinstance(examples, Mapping) else {"": examples}
    examples = {title: _series(answer) for title, answer in examples.items()}
    lines = {title: _place_tokens(answer["pieces"]) for title, answer in examples.items()}
    heights = [h for title in examples for h in (0.35 + 0.26 * lines[title][-1][0], 2.2)]
    figure, axes = plt.subplots(
        2 * len(examples), 1, figsize=(WIDTH, 0.6 + sum(heights)), height_ratios=heights, layout="constrained"
    )
    norm = _norm(np.concatenate([np.asarray(answer["epistemic"], np.float64) for answer in examples.values()]))
    for i, (title, answer) in enumerate(examples.items()):
        _draw_text(axes[2 * i], lines[title], answer, norm)
        axes[2 * i].set_title(title, fontsize=9, loc="left")
        _draw_curves(axes[2 * i + 1], answer)
    bar = figure.colorbar(ScalarMappable(norm, _MAP), ax=list(axes), location="right", shrink=0.5, aspect=30)
    bar.set_label("U_E = ‖∇p‖² of a token, probability² per parameter²", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _series(answer: Any) -> Mapping[str, Any]:
    """Return the mapping of an answer, which may be a `Trace`."""
    if isinstance(answer, Mapping):
        return answer
    if not hasattr(answer, "pieces"):
        raise ValueError(f"an answer is {answer!r:.60}; expected what isouq.text.trace returns, alone or by its title")
    error = {"error": answer.standard_error} if answer.relative_error else {}
    return {name: getattr(answer, name) for name in ("pieces", "epistemic", "committal", "entropy")} | error


def _norm(values: np.ndarray) -> Normalize:
    """Return a logarithmic scale of at most six decades below the largest value."""
    top = float(values.max())
    if top <= 0:
        return Normalize(0, 1)
    low = max(float(values.min()), 1e-6 * top)
    return LogNorm(low if low < top else top / 10, top)


def _place_tokens(pieces: Sequence[str]) -> list[tuple[int, int, str]]:
    """Return (line from 1, column, printable text) of every token."""
    tokens, line, column = [], 1, 0
    for piece in pieces:
        text = piece.replace("\n", "⏎").replace("\t", "⇥") or "·"
        text = "".join(c if c.isprintable() else "□" for c in text)
        if column and column + len(text) > LINE:
            line, column = line + 1, 0
        tokens.append((line, column, text))
        column += len(text)
    return tokens


def _draw_text(axis: Any, tokens: list[tuple[int, int, str]], answer: Mapping[str, Any], norm: Normalize) -> None:
    colours = plt.get_cmap(_MAP)
    for (line, column, text), value in zip(tokens, answer["epistemic"], strict=True):
        red, green, blue, _ = colour = colours(norm(value))
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        axis.add_patch(
            plt.Rectangle((column, line - 0.45), len(text), 0.9, facecolor=colour, edgecolor="white", lw=0.8)
        )
        for i, letter in enumerate(text):
            axis.text(column + i + 0.5, line, letter.replace("$", r"\$"), color=ink, ha="center", va="center",
                      family="monospace", fontsize=8)  # fmt: skip
    axis.set_xlim(0, LINE)
    axis.set_ylim(tokens[-1][0] + 0.6, 0.4)
    axis.axis("off")


def _draw_curves(axis: Any, answer: Mapping[str, Any]) -> None:
    """Draw each curve as a share of its largest value, which the legend gives, because the three differ in units."""
    places = np.arange(1, len(answer["pieces"]) + 1)
    for name, title, colour, marker in _CURVES:
        values = np.asarray(answer[name], np.float64)
        largest = float(values.max())
        scale = largest if largest > 0 else 1.0
        error = answer.get("error") if name == "epistemic" else None
        label = f"{title} ÷ {largest:.3g}"
        axis.errorbar(
            places, values / scale, None if error is None else np.asarray(error) / scale, color=colour, marker=marker,
            ms=3.5, lw=1.1, label=label,
        )  # fmt: skip
    axis.set_xlabel("token", fontsize=8)
    axis.set_ylabel("share of the largest", fontsize=8)
    axis.set_xlim(0.4, len(places) + 0.6)
    axis.set_ylim(-0.04, max(1.08, axis.get_ylim()[1]))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
