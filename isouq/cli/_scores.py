"""The published scores of `isouq score --scores`: which are asked for, what they take, and what they cost."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from isouq import _checks
from isouq.cli import _rows
from isouq.cli.options import Score
from isouq.text import encoder
from isouq.text.encoder import load_encoder
from isouq.text.entailment import Entailment, load_entailment
from isouq.text.language_model import LanguageModel
from isouq.text.loading import checkpoint, sources
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.prompts import Prompt, Row
from isouq.text.scores.baselines import choose, cost_alone, missing, passes_of, question_of, score_batch
from isouq.text.scores.passes import PASSES, Cost, Inputs, Values, add, contradiction
from isouq.text.scores.registry import SCORES
from isouq.text.scores.similarity import Similarity, similarity_by_encoder

NUM_SAMPLES = 10
OPTIONS = {
    "samples": "--samples of at least 1",
    "entailment": "--entailment MODEL",
    "contradiction": 'an --entailment model with a label "contradiction"',
    "similarity": "--similarity ENCODER",
    "upper_layers": "a model of at least 3 layers",
}


def check(options: Score) -> None:
    """Raise where --scores and what it takes are wrong by themselves, before anything is looked for."""
    given = _given(options)
    if not options.scores:
        for name in ("samples", "entailment", "similarity"):
            if getattr(options, name) is not None:
                raise ValueError(f"--{name} is given without --scores; add --scores all, or names of scores")
        return
    if options.samples is not None:
        _checks.positive_int("--samples", options.samples, 0)
    names = _choose(options, given)
    if not names:
        raise ValueError("--scores is empty; expected all, or names of scores")
    for name, used in _uses(names).items():
        if getattr(options, name) and not used:
            raise ValueError(f"--{name} is given and none of --scores uses it; leave it out")


class Plan:
    """Which scores to compute, and what has come of them in this run.

    names: of the scores. settings: what a row of the output records beside them, so that another run can tell whether
    its own would be the same. costs: of every pass, summed over `count` answers.
    """

    def __init__(self, options: Score, config: DecoderConfig, progress: bool) -> None:
        """Find the models that are needed and choose the scores; no weights are read."""
        model_sources = {
            name: sources.resolve(getattr(options, name), progress=progress)
            for name in ("entailment", "similarity")
            if getattr(options, name) is not None
        }
        given = _given(options) | {"upper_layers": True if config.num_layers >= 3 else None}
        if "entailment" in model_sources:
            opened = checkpoint.open_checkpoint(model_sources["entailment"].path)
            labels = encoder.read_config(opened).labels
            given["contradiction"] = contradiction(labels)
        self.options, self.names = options, _choose(options, given)
        self.left_out = {name: missing(given, name)[0] for name in SCORES if missing(given, name)}
        needs_samples = "samples" in passes_of(self.names)
        self.samples = given["samples"] if needs_samples or options.samples else None
        self.sources = {name: source.name for name, source in model_sources.items()}
        self.settings = {
            "samples": self.samples,
            "seed": options.seed if self.samples else None,
            "max_new_tokens": options.max_new_tokens if self.samples else None,
            "stop": list(options.stop) if self.samples else None,
            "entailment": self.sources.get("entailment"),
            "similarity": self.sources.get("similarity"),
        }
        self.costs: dict[str, Cost] = {}
        self.count = 0
        self._entailment: Entailment | None = None
        self._similarity: Similarity | None = None
        # Line 0 does not exist: no answer of a row is drawn by this key.
        self._key = jax.random.fold_in(jax.random.key(options.seed), 0)

    def load(self) -> None:
        """Load the models that compare texts."""
        if "entailment" in self.sources:
            self._entailment = load_entailment(self.sources["entailment"])
        if "similarity" in self.sources:
            self._similarity = similarity_by_encoder(load_encoder(self.sources["similarity"]))

    def shares_gradient(self) -> bool:
        """Return whether the gradient of the other fields is that of the scores: of all parameters and all tokens."""
        return self.options.select is None and self.options.reduction != "first"

    def measure(
        self,
        model: LanguageModel,
        prompts: Sequence[Prompt],
        rows: Sequence[Row],
        lines: Sequence[int],
        gradient: Values | None,
        seconds: float,
        batch_size: int,
        variables: Mapping[str, Any],
    ) -> list[dict[str, float | None]]:
        """Return the scores of every answer of a batch, and add what they cost.

        gradient: what the pass of this name gives, where it was measured already. seconds: that this took.
        """
        inputs = Inputs(
            model,
            prompts,
            rows,
            [question_of(prompt) for prompt in prompts],
            self.samples,
            self._keys(lines) if self.samples else None,
            self._entailment,
            self._similarity,
            batch_size=batch_size,
            chat_template_kwargs=variables,
            max_new_tokens=self.options.max_new_tokens,
            stop=self.options.stop,
        )
        scores, costs = score_batch(inputs, self.names, gradient)
        if gradient:
            costs["gradient"] = Cost(len(rows), len(rows), seconds=seconds)
        for name, cost in costs.items():
            self.costs[name] = add([self.costs.get(name, Cost()), cost])
        self.count += len(rows)
        return [{name: _rows.number(values[i]) for name, values in scores.items()} for i in range(len(rows))]

    def table(self) -> Table:
        """Return what each score would cost alone, as a mean over the answers of this run."""
        answers = f"{self.count} {'answer' if self.count == 1 else 'answers'}"
        table = Table(
            title=f"Cost of each score alone: means over {answers} of this run",
            caption="seconds include compilation; the answers' own generation is not counted",
            box=None,
        )
        table.add_column("score", no_wrap=True, min_width=max(map(len, SCORES)))
        for name in ("forward passes", "backward passes", "generated tokens", "pairs for another encoder", "seconds"):
            table.add_column(name, justify="right", max_width=9)
        for name in self.names:
            *counts, seconds = (value / self.count for value in cost_alone(self.costs, name))
            table.add_row(name, *(f"{count:.1f}".removesuffix(".0") for count in counts), f"{seconds:.3g}")
        return table

    def note(self) -> str | None:
        """Return a line that names the scores which --scores all left out, and what each needs; None without any."""
        if not _is_all(self.options) or not self.left_out:
            return None
        needs = dict.fromkeys(self.left_out.values())
        parts = [
            f"{', '.join(name for name, lacking in self.left_out.items() if lacking == need)} (needs {OPTIONS[need]})"
            for need in needs
        ]
        return f"scores left out: {'; '.join(parts)}"

    def _keys(self, lines: Sequence[int]) -> jax.Array:
        """Return a key for every sample, which depends on the seed and the row's line."""
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        return jax.vmap(fold, (0, None))(fold(self._key, jnp.asarray(lines)), jnp.arange(self.samples or 0))


def _given(options: Score) -> dict[str, Any]:
    """Return the inputs of scores that the options give, as far as they can be known without any file."""
    return {
        "samples": NUM_SAMPLES if options.samples is None else options.samples or None,
        "entailment": options.entailment,
        "contradiction": options.entailment,
        "similarity": options.similarity,
        "upper_layers": True,
    }


def _asked(options: Score) -> list[str]:
    """Return the names that --scores gives, with spaces or commas between them."""
    return [name for text in options.scores for name in text.split(",") if name]


def _is_all(options: Score) -> bool:
    return _asked(options) == ["all"]


def _choose(options: Score, given: Mapping[str, Any]) -> list[str]:
    """Return the names of the scores in the order of `SCORES`; raise for one that is unknown or lacks an input."""
    if _is_all(options):
        return choose(None, given, OPTIONS)
    asked = _asked(options)
    if "all" in asked:
        raise ValueError("--scores has all and other names; expected all alone, or names")
    for name in asked:
        _checks.one_of("--scores", name, SCORES)
    names = choose(asked, given, OPTIONS)
    return [name for name in SCORES if name in names]


def _uses(names: Sequence[str]) -> dict[str, bool]:
    """Return for each option whether a pass of the scores uses it."""
    passes = passes_of(names)
    required = {each for name in passes for each in PASSES[name].requires}
    return {
        "samples": "samples" in passes,
        "entailment": "entailment" in required,
        "similarity": "similarity" in required,
    }
