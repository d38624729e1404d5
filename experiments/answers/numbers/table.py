"""What the scores of `qa` are called and need, what the paper reports, and the questions of a model as arrays."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Row = dict[str, Any]


class Pass(NamedTuple):
    """A kind of pass over a question: how many forward and backward passes over an answer, and sampled answers."""

    label: str
    forward: int
    backward: int
    sampled: bool = False


# Named as the rows of costs are.
PASSES = {
    "answer": Pass("the greedy answer, which every score shares", 0, 0),
    "samples": Pass("the sampled answers", 0, 0, sampled=True),
    "forward": Pass("log p and entropy of every token", 1, 0),
    "gradient": Pass("gradient of the whole answer", 1, 1),
    "gradient_first": Pass("gradient of the first token", 1, 1),
    "gradient_head": Pass("gradient of the output layer alone", 1, 1),
    "p_true": Pass("P(True), the samples as ideas", 1, 0),
}


class Score(NamedTuple):
    """label: as tables and figures name it. role: "ours", "variant" (of ours), "baseline" or "control".

    passes: names of `PASSES` that it needs beside the greedy answer. also: what else it needs, in words.
    """

    label: str
    role: str
    passes: tuple[str, ...] = ()
    also: str = ""


_EMBEDDED = "an embedding a sample"
SCORES = {
    "combined_mean": Score("epistemic & aleatoric, learned", "ours", ("gradient",), "labelled answers"),
    "epistemic_mean": Score("epistemic ‖∇p‖²", "ours", ("gradient",)),
    "aleatoric_mean": Score("aleatoric p(1 − p)", "ours", ("forward",)),
    "combined_answer": Score("learned, p of the whole answer", "variant", ("gradient",), "labelled answers"),
    "epistemic_answer": Score("epistemic, p of the whole answer", "variant", ("gradient",)),
    "aleatoric_answer": Score("aleatoric, p of the whole answer", "variant", ("forward",)),
    "combined_first": Score("learned, p of the first token", "variant", ("gradient_first",), "labelled answers"),
    "epistemic_first": Score("epistemic, p of the first token", "variant", ("gradient_first",)),
    "aleatoric_first": Score("aleatoric, p of the first token", "variant", ("forward",)),
    "grad_log_mean": Score("‖∇ log p‖²", "variant", ("gradient",)),
    "grad_log_answer": Score("‖∇ log p‖², whole answer", "variant", ("gradient",)),
    "grad_log_first": Score("‖∇ log p‖², first token", "variant", ("gradient_first",)),
    "beyond_mean": Score("‖∇p‖² / (p(1 − p))²", "variant", ("gradient",)),
    "exgrad_mean": Score("‖∇p‖² of the output layer", "baseline", ("gradient_head",)),
    "exgrad_log_mean": Score("‖∇ log p‖² of the output layer", "baseline", ("gradient_head",)),
    "p_true": Score("1 − P(True)", "baseline", ("samples", "p_true")),
    "semantic_entropy": Score("semantic entropy, embeddings", "baseline", ("samples",), _EMBEDDED),
    "semantic_entropy_discrete": Score("semantic entropy, by counts", "baseline", ("samples",), _EMBEDDED),
    "semantic_entropy_entailment": Score(
        "semantic entropy, entailment", "baseline", ("samples",), "the entailment of every two samples, both ways"
    ),
    "naive_entropy": Score("naive entropy", "baseline", ("samples",)),
    "naive_entropy_normalised": Score("naive entropy, by length", "baseline", ("samples",)),
    "nll_mean": Score("−log p by length", "baseline", ("forward",)),
    "nll_answer": Score("−log p", "baseline", ("forward",)),
    "max_token_entropy": Score("largest token entropy", "baseline", ("forward",)),
    "mean_token_entropy": Score("mean token entropy", "baseline", ("forward",)),
    "num_tokens": Score("number of tokens", "control"),
}
BASELINES = tuple(name for name, score in SCORES.items() if score.role == "baseline")
# Shown where there is no room for all; tests and the table of all scores have every one.
MAIN = (
    "combined_mean", "epistemic_mean", "aleatoric_mean", "p_true", "semantic_entropy", "naive_entropy", "nll_mean",
    "max_token_entropy", "num_tokens",
)  # fmt: skip
CURVES = ("combined_mean", "epistemic_mean", "aleatoric_mean", "p_true", "semantic_entropy", "nll_mean")
FEATURES = {f"combined_{r}": (f"aleatoric_{r}", f"epistemic_{r}") for r in ("mean", "answer", "first")}

# Table 2 of arXiv 2603.29466: AUROC, mean and standard deviation over 300 bootstrap runs of four other models.
PAPER = {
    "triviaqa": {
        "p_true": (0.69, 0.06), "semantic_entropy": (0.55, 0.03), "naive_entropy": (0.52, 0.04),
        "aleatoric_mean": (0.60, 0.04), "epistemic_mean": (0.52, 0.07), "combined_mean": (0.61, 0.05),
    },
    "truthfulqa": {
        "p_true": (0.55, 0.06), "semantic_entropy": (0.54, 0.08), "naive_entropy": (0.51, 0.08),
        "aleatoric_mean": (0.60, 0.09), "epistemic_mean": (0.55, 0.07), "combined_mean": (0.63, 0.08),
    },
}  # fmt: skip

# Other views of what is right: a column of the rows, and what the report calls it.
VIEWS = {
    "right_contained": "an alias stands in the answer",
    "right_similarity": "nearer to a true reference, by sentence embeddings",
    "mc1": "multiple choice: the best true reference is likelier than every false one",
}


class Group(NamedTuple):
    """The questions of one model and benchmark; arrays over the n that were answered and judged.

    name: the model's, without folder or organisation where that tells it from the others. wrong: the label. scores: by
    name, finite, or NaN where a question has none. views: by name, 1 right, 0 wrong, NaN none. asked: all rows, of
    every state. unjudged: answered, but without a label.
    """

    model: str
    name: str
    benchmark: str
    asked: list[Row]
    wrong: Bool[np.ndarray, " n"]
    scores: dict[str, Float[np.ndarray, " n"]]
    views: dict[str, Float[np.ndarray, " n"]]
    unjudged: int

    @property
    def both(self) -> bool:
        """Whether some answers are right and some wrong: an AUROC needs both."""
        return 0 < int(self.wrong.sum()) < len(self.wrong)

    def state(self, name: str) -> int:
        """How many questions are "answered", "refused" or "empty"."""
        return sum(row["state"] == name for row in self.asked)


def groups(rows: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The rows of each model and benchmark, in the order of their first rows.

    A refused or empty answer is neither right nor wrong: it is counted and left out of every number. Of a question
    that stands there several times (several seeds of the samples) the first row is taken, for its greedy answer is one.
    """
    found: dict[tuple[str, str], dict[Any, Row]] = {}
    for row in rows:
        found.setdefault((row["model"], row["benchmark"]), {}).setdefault(row["index"], dict(row))
    names = short_names(model for model, _ in found)
    return [_group(model, names[model], benchmark, [*rows.values()]) for (model, benchmark), rows in found.items()]


def _group(model: str, name: str, benchmark: str, asked: list[Row]) -> Group:
    answered = [row for row in asked if row["state"] == "answered"]
    judged = [row for row in answered if row.get("right") is not None]
    scores = {}
    for score in SCORES:
        values = finite([beyond(row) if score == "beyond_mean" else row.get(score) for row in judged])
        if np.isfinite(values).any():
            scores[score] = values
    views = {view: _numbers([row.get(view) for row in judged]) for view in VIEWS}
    views = {view: values for view, values in views.items() if np.isfinite(values).any()}
    wrong = np.array([not row["right"] for row in judged], bool)
    return Group(model, name, benchmark, asked, wrong, scores, views, len(answered) - len(judged))


def beyond(row: Row) -> float | None:
    """What log ‖∇p‖² holds beyond p: with two classes ∇p = p(1 − p) ∇z of the logit z, so this is log ‖∇z‖²."""
    epistemic, aleatoric = row.get("epistemic_mean"), row.get("aleatoric_mean")
    if epistemic is None or aleatoric is None or not np.isfinite([epistemic, aleatoric]).all():
        return None
    return float(epistemic - 2 * aleatoric)


def finite(values: Sequence[float | None]) -> Float[np.ndarray, " n"]:
    """As floats: −∞ (the logarithm of 0) becomes the smallest finite value, +∞ the largest; NaN where there is none."""
    found = _numbers(values)
    known = found[np.isfinite(found)]
    if known.size == 0:
        return np.full(len(found), np.nan)
    return np.where(np.isnan(found), np.nan, np.clip(found, known.min(), known.max()))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else float(value) for value in values], np.float64)


def paper(benchmark: str) -> dict[str, tuple[float, float]]:
    """The paper's numbers of a benchmark by whatever its file is called; none for other questions."""
    name = "".join(letter for letter in benchmark.lower() if letter.isalnum())
    return next((numbers for known, numbers in PAPER.items() if known in name), {})


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Of each model the name without folder or organisation; the full one of all where two would be called the same."""
    names = {model: model.rstrip("/").rpartition("/")[2] or model for model in models}
    return names if len(set(names.values())) == len(names) else {model: model for model in names}
