"""All scores of a list of answers from one set of passes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isouq import _checks
from isouq.text.encoder import TextEncoder
from isouq.text.entailment import Entailment
from isouq.text.generation import Answer
from isouq.text.language_model import LanguageModel
from isouq.text.prompts import encode_pairs
from isouq.text.scores._inside import check_position
from isouq.text.scores.passes import PASSES, Cost, Inputs, Values
from isouq.text.scores.registry import SCORES
from isouq.text.scores.similarity import Similarity, similarity_by_encoder

HINTS = {
    "samples": "samples=, n lists of answers from generate or how many to draw",
    "entailment": "entailment=, from load_entailment",
    "contradiction": 'entailment= with a label "contradiction"',
    "similarity": "similarity=, from load_encoder or a function of pairs of texts",
    "upper_layers": "a model of at least 3 layers",
}


@dataclass(frozen=True)
class Baselines:
    """Scores of n answers, and what they cost.

    scores: from a name in `SCORES` to an array `[n]`, higher where the model is less certain; NaN where an answer has
    no such score (it has no sample with a token, or the prompt of P(True) does not fit the context). costs: from the
    name of each pass that ran to its `Cost`.
    """

    scores: dict[str, np.ndarray]
    costs: dict[str, Cost]

    def cost(self, name: str) -> Cost:
        """Return what the score would have cost alone: the sum over the passes that it needs."""
        _checks.one_of("name", name, self.scores)
        forward, backward, tokens, encoder, seconds = zip(
            *(self.costs[each] for each in passes_of([name])), strict=True
        )
        return Cost(sum(forward), sum(backward), sum(tokens), sum(encoder), sum(seconds))


def baselines(
    model: LanguageModel,
    prompts: Sequence[Any],
    answers: Sequence[Any],
    samples: Sequence[Any] | int | None = None,
    scores: Iterable[str] | None = None,
    *,
    questions: Sequence[str] | None = None,
    entailment: Entailment | None = None,
    similarity: TextEncoder | Similarity | None = None,
    position: int = -1,
    key: Any = None,
    max_new_tokens: int = 40,
    stop: Sequence[str] = (),
    batch_size: int = 4,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Baselines:
    """Return the published scores of every answer, and our own, with what each pass cost.

    A score declares the quantities that it needs (`SCORES[name].needs`), and each pass that measures them runs once.
    Formula, source and cost of a score stand in the docstring of `SCORES[name].function`.

    Args:
        model: from `load`.
        prompts: n prompts, as in `score`.
        answers: the answer to each: an `Answer`, text that goes on from the prompt, or token ids.
        samples: for each prompt, sampled answers from `generate` at temperature 1; or how many of them to draw here,
            with `key`, `max_new_tokens` and `stop`. Empty samples are left out.
        scores: names from `SCORES`; by default all whose inputs are given.
        questions: what each prompt asks, for P(True), for entailment between samples (each is read after its question)
            and for the relevance of tokens. By default the prompt, or its last message: give it where prompts hold
            examples or instructions.
        entailment: from `load_entailment`, for semantic entropies, DegMat, eccentricity, EigV and CCP.
        similarity: for TokenSAR, SAR and CoCoA: an encoder (see `similarity_by_encoder`), or a function from pairs of
            texts to numbers from 0 to 1.
        position: which token of the prompt SemGrad looks at, −1 for the last; `semantic_position` chooses it.
        key: of `jax.random`, where samples are drawn.
        max_new_tokens: of drawn samples, as in `generate`.
        stop: of drawn samples, as in `generate`.
        batch_size: sequences at a time; changes no number beyond rounding.
        chat_template_kwargs: as in `score`.

    Raises:
        ValueError: lists of different lengths, an unknown score, one whose input is missing, and as `score`.

    Cost: `Baselines.costs`. Source: the papers that the scores name.
    """
    _checks.positive_int("batch_size", batch_size)
    check_position(position)
    _check_lists({"prompts": prompts, "answers": answers, "questions": questions, "samples": samples})
    if isinstance(samples, int) and key is None:
        raise ValueError("samples are to be drawn and key is missing; give key=jax.random.key(seed)")
    ids = [answer.ids if isinstance(answer, Answer) else answer for answer in answers]
    rows = encode_pairs(model, list(zip(prompts, ids, strict=True)), chat_template_kwargs)
    inputs = Inputs(
        model,
        prompts,
        rows,
        [model.tokenizer.decode(row.ids[row.first :].tolist()).strip() for row in rows],
        [_question(prompt) for prompt in prompts] if questions is None else questions,
        samples,
        entailment,
        similarity_by_encoder(similarity) if isinstance(similarity, TextEncoder) else similarity,
        position,
        batch_size,
        dict(chat_template_kwargs or {}),
        {"key": key, "max_new_tokens": max_new_tokens, "stop": stop, "temperature": 1.0},
    )
    names = [name for name in SCORES if not _missing(inputs, name)] if scores is None else _check_names(inputs, scores)
    values: Values = {}
    costs = {}
    for name in passes_of(names):
        start = time.perf_counter()
        measured, cost = PASSES[name].function(inputs, values)
        values |= measured
        costs[name] = cost._replace(seconds=time.perf_counter() - start)
    return Baselines({name: _column(name, values, len(inputs.rows)) for name in names}, costs)


def _check_lists(lists: Mapping[str, Any]) -> None:
    """Raise unless the lists have one entry for each prompt; samples may also be a number of them."""
    count = len(lists["prompts"])
    for name, given in lists.items():
        if name == "samples" and isinstance(given, int):
            _checks.positive_int("samples", given)
        elif isinstance(given, str):
            raise ValueError(f"{name} is a single text; expected a list")
        elif given is not None and len(given) != count:
            raise ValueError(f"{name} has {len(given)} entries; expected one for each of {count} prompts")
    for i, group in enumerate(lists["samples"] if isinstance(lists["samples"], Sequence) else []):
        if not all(isinstance(one, Answer) for one in group):
            raise ValueError(f"the samples of prompt {i} are not all answers from generate")


def _question(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _check_names(inputs: Inputs, scores: Iterable[str]) -> list[str]:
    """Return the names without repetition; raise for one that is unknown or lacks an input."""
    names = list(dict.fromkeys([scores] if isinstance(scores, str) else scores))
    for name in names:
        _checks.one_of("scores", name, SCORES)
        missing = _missing(inputs, name)
        if missing:
            raise ValueError(f"the score {name} needs {HINTS[missing[0]]}")
    return names


def _missing(inputs: Inputs, name: str) -> list[str]:
    """Return the inputs that the score needs and that are not given."""
    needs = [each for each in PASSES.values() if set(each.gives) & set(SCORES[name].needs)]
    return [required for each in needs for required in each.requires if getattr(inputs, required) is None]


def passes_of(names: Iterable[str]) -> list[str]:
    """Return the names of the passes that the scores need, in the order in which they run."""
    quantities = {quantity for name in names for quantity in SCORES[name].needs}
    direct = {name for name, each in PASSES.items() if quantities & set(each.gives)}
    return [name for name in PASSES if name in direct or any(name in PASSES[other].after for other in direct)]


def _column(name: str, values: Values, count: int) -> np.ndarray:
    """Return the score of every answer; NaN where a quantity that it needs is None."""
    function, needs = SCORES[name]
    rows = [[values[quantity][i] for quantity in needs] for i in range(count)]
    return np.array([np.nan if any(one is None for one in row) else function(*row) for row in rows], np.float64)
