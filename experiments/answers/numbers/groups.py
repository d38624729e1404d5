"""The questions of one model and one benchmark, as arrays of labels and scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from experiments.answers.numbers.scores import SCORES, VIEWS
from experiments.run.job import Result

Row = dict[str, Any]


class Group(NamedTuple):
    """The questions of one model and benchmark; arrays are over the n answers that were judged.

    name: the model's, without folder or organisation where that tells it from the others. rows: all questions, whatever
    became of them; judged: those with a label. wrong: the label. scores: by name, finite, or NaN where a question has
    none. views: labels by other definitions, 1 right, 0 wrong, NaN none. unjudged: answers without a label.
    """

    model: str
    name: str
    benchmark: str
    rows: list[Row]
    judged: list[Row]
    wrong: Bool[np.ndarray, " n"]
    scores: dict[str, Float[np.ndarray, " n"]]
    views: dict[str, Float[np.ndarray, " n"]]
    unjudged: int

    @property
    def title(self) -> str:
        """The names of the model and of the benchmark."""
        return f"{self.name}, {self.benchmark}"

    @property
    def counts(self) -> tuple[int, int]:
        """How many answers are right, and how many wrong."""
        wrong = int(self.wrong.sum())
        return len(self.wrong) - wrong, wrong

    @property
    def has_both_classes(self) -> bool:
        """Whether some answers are right and some wrong: an AUROC needs both."""
        return min(self.counts) > 0

    def count_state(self, name: str) -> int:
        """Return how many questions are "answered", "refused" or "empty"."""
        return sum(row["state"] == name for row in self.rows)


def join_studies(results: Sequence[Result]) -> list[Row]:
    """Return one row a question with what all its studies gave, for the questions that were scored and judged."""
    rows: dict[tuple, Row] = {}
    studies: dict[tuple, set[str]] = {}
    for block in (result.numbers for result in results):
        for one in block["questions"] if block["study"] not in ("reference", "cost") else ():
            key = (block["model"], block["benchmark"], block["seed"], one["index"])
            common = {name: block[name] for name in ("model", "benchmark", "kind", "prompt", "seed")}
            rows[key] = rows.get(key, common) | one
            studies.setdefault(key, set()).add(block["study"])
    return [row for key, row in rows.items() if {"scores", "judged"} <= studies[key]]


def group_rows(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Return the rows of each model and benchmark, in the order of their first rows.

    A refused or empty answer is neither right nor wrong: it is counted and left out of every number. A question with
    several rows (several seeds of the samples) counts once, by its first row: its greedy answers are all the same.
    """
    by_group: dict[tuple[str, str], dict[Any, Row]] = {}
    for row in rows:
        by_group.setdefault((row["model"], row["benchmark"]), {}).setdefault(row["index"], dict(row))
    names = short_names(model for model, _ in by_group)
    return [_group(model, names[model], benchmark, [*rows.values()]) for (model, benchmark), rows in by_group.items()]


def _group(model: str, name: str, benchmark: str, rows: list[Row]) -> Group:
    answered = [row for row in rows if row["state"] == "answered"]
    judged = [row for row in answered if row.get("right") is not None]
    scores = {}
    for score in SCORES:
        values = finite([logit_gradient(row) if score == "beyond_mean" else row.get(score) for row in judged])
        if np.isfinite(values).any():
            scores[score] = values
    views = {view: as_floats([row.get(view) for row in judged]) for view in VIEWS}
    views = {view: values for view, values in views.items() if np.isfinite(values).any()}
    wrong = np.array([not row["right"] for row in judged], bool)
    return Group(model, name, benchmark, rows, judged, wrong, scores, views, len(answered) - len(judged))


def logit_gradient(row: Row) -> float | None:
    """Return log ‖∇p‖² − 2 log p(1 − p), what ‖∇p‖² holds beyond p; None where one of them is not finite.

    With two classes ∇p = p(1 − p) ∇z for the logit z, so that this is log ‖∇z‖².
    """
    epistemic, aleatoric = row.get("epistemic_mean"), row.get("aleatoric_mean")
    if epistemic is None or aleatoric is None or not np.isfinite([epistemic, aleatoric]).all():
        return None
    return float(epistemic - 2 * aleatoric)


def finite(values: Sequence[float | None]) -> Float[np.ndarray, " n"]:
    """Return floats, with −∞ (the logarithm of 0) as the smallest finite value, +∞ as the largest, None as NaN."""
    floats = as_floats(values)
    known = floats[np.isfinite(floats)]
    if known.size == 0:
        return np.full(len(floats), np.nan)
    return np.where(np.isnan(floats), np.nan, np.clip(floats, known.min(), known.max()))


def as_floats(values: Sequence[float | None]) -> Float[np.ndarray, " n"]:
    """Return floats, with NaN for None."""
    return np.array([np.nan if value is None else float(value) for value in values], np.float64)


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Return each model's name without folder or organisation; every full name where two short ones would be equal."""
    names = {model: model.rstrip("/").rpartition("/")[2] or model for model in models}
    return names if len(set(names.values())) == len(names) else {model: model for model in names}
