"""All scores of a list of answers from one set of passes."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq._checkpoint import Checkpoint, Saved, fingerprint
from isouq.text._batches import groups_by_length
from isouq.text.encoder import TextEncoder
from isouq.text.entailment import Entailment
from isouq.text.generation import Answer, check_drawing
from isouq.text.language_model import LanguageModel
from isouq.text.prompts import encode_pairs
from isouq.text.scores._inside import check_position, check_prompts
from isouq.text.scores.passes import PASSES, Cost, Inputs, Values, add, contradiction
from isouq.text.scores.registry import SCORES
from isouq.text.scores.similarity import Similarity, similarity_by_encoder

_SECONDS = 5.0  # between two writes of a checkpoint
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
        return cost_alone(self.costs, name)


def baselines(
    model: LanguageModel,
    prompts: Sequence[Any],
    answers: Sequence[Any],
    samples: Sequence[Any] | int | np.integer | None = None,
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
    on_batch: Callable[[int], None] | None = None,
    checkpoint: Path | str | None = None,
) -> Baselines:
    """Return the published scores of every answer, and our own, with what each pass cost.

    A score declares the quantities that it needs (`SCORES[name].needs`), and each pass that measures them runs once on
    every batch of answers. Formula, source and cost of a score stand in the docstring of `SCORES[name].function`.

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
        batch_size: sequences at a time, and four times as many where samples are drawn; changes no number beyond
            rounding.
        chat_template_kwargs: as in `score`.
        on_batch: called with the number of answers scored so far, after each batch.
        checkpoint: a file of the scores so far, written at the end and at most every 5 seconds. If the call is
            interrupted, the same call goes on from there. A file of another call is put aside with a warning; a
            function given as `similarity` is known by its name alone.

    Raises:
        ValueError: lists of different lengths, an unknown score, one whose input is missing, and as `score`.

    Cost: `Baselines.costs`. Source: the papers that the scores name.
    """
    _checks.positive_int("batch_size", batch_size)
    check_position(position)
    check_drawing(max_new_tokens, stop, key)
    prompts, answers, questions, sampled = _lists(
        {"prompts": prompts, "answers": answers, "questions": questions, "samples": samples}
    )
    if isinstance(sampled, int) and key is None:
        raise ValueError("samples are to be drawn and key is missing; give key=jax.random.key(seed)")
    ids = [answer.ids if isinstance(answer, Answer) else answer for answer in answers]
    rows = encode_pairs(model, list(zip(prompts, ids, strict=True)), chat_template_kwargs)
    inputs = Inputs(
        model,
        prompts,
        rows,
        [question_of(prompt) for prompt in prompts] if questions is None else questions,
        sampled,
        _keys(key, len(rows), sampled) if isinstance(sampled, int) else None,
        entailment,
        similarity_by_encoder(similarity) if isinstance(similarity, TextEncoder) else similarity,
        position,
        min(batch_size, len(rows)),
        dict(chat_template_kwargs or {}),
        max_new_tokens,
        stop,
    )
    names = _names(inputs, scores)
    if not names:
        raise ValueError("scores is empty; expected names of isouq.text.SCORES, or None for all")
    if "state_gradient" in passes_of(names):
        check_prompts(rows, position)
    file = None if checkpoint is None else Checkpoint(Path(checkpoint), _SECONDS, _mark(inputs, names, similarity))
    return _run(inputs, names, file, on_batch)


def _run(
    inputs: Inputs, names: Sequence[str], file: Checkpoint | None, on_batch: Callable[[int], None] | None
) -> Baselines:
    """Return the scores of all answers, computed batch by batch; batches that the checkpoint has are not run again."""
    passes = passes_of(names)
    table = np.full((len(names), len(inputs.rows)), np.nan)
    costs = np.zeros((len(passes), len(Cost._fields)))
    saved = None if file is None else file.load((table, costs), None)
    finished = 0
    if saved is not None:
        finished, (table, costs) = saved.blocks, saved.state
    groups = groups_by_length([(len(row.ids), len(row.ids) - row.first) for row in inputs.rows], inputs.batch_size)
    for number, group in enumerate(groups):
        if number >= finished:
            scores, spent = score_batch(inputs.of(group), names)
            table[:, group] = list(scores.values())
            costs += [spent[name] for name in passes]
            if file is not None and (file.due() or number + 1 == len(groups)):
                file.save(Saved(number + 1, (table, costs), None))
        if on_batch is not None:
            on_batch(sum(map(len, groups[: number + 1])))
    spent = {}
    for name, (*counts, seconds) in zip(passes, costs.tolist(), strict=True):
        forward, backward, tokens, pairs = map(int, counts)
        spent[name] = Cost(forward, backward, tokens, pairs, seconds)
    return Baselines(dict(zip(names, table, strict=True)), spent)


def score_batch(
    inputs: Inputs, names: Sequence[str], known: Values | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Cost]]:
    """Return the scores of a batch of answers, and the cost of every pass that ran.

    known: quantities that were measured before; a pass that gives nothing else does not run.
    """
    values = dict(known or {})
    costs = {}
    for name in passes_of(names):
        if values.keys() >= set(PASSES[name].gives):
            continue
        start = time.perf_counter()
        measured, cost = PASSES[name].function(inputs, values)
        values |= measured
        costs[name] = cost._replace(seconds=time.perf_counter() - start)
    return {name: _column(name, values, len(inputs.rows)) for name in names}, costs


def _keys(key: Any, count: int, samples: int) -> Any:
    """Return the keys that `generate` would draw the samples of every prompt with, `[count, samples]`."""
    typed = key if key.shape == () else jax.random.wrap_key_data(key)  # one of jax.random.PRNGKey
    return jax.vmap(jax.random.fold_in, (None, 0))(typed, jnp.arange(count * samples)).reshape(count, samples)


def _mark(inputs: Inputs, names: Sequence[str], similarity: Any) -> str:
    """Return the fingerprint of all that a call's scores depend on; the sum of each array stands for its weights."""
    drawn = isinstance(inputs.samples, int)
    given = () if inputs.samples is None or isinstance(inputs.samples, int) else inputs.samples
    answers = [[(one.ids, one.text, np.asarray(one.log_p).tolist()) for one in group] for group in given]
    settings = {
        "scores": list(names),
        "model": [inputs.model.name, repr(inputs.model.config)],
        "prompts": repr(list(inputs.prompts)),
        "questions": list(inputs.questions),
        "samples": inputs.samples if drawn else repr(answers),
        "entailment": inputs.entailment and inputs.entailment.encoder.name,
        "similarity": getattr(similarity, "name", getattr(similarity, "__qualname__", type(similarity).__name__)),
        "position": int(inputs.position),
        "batch_size": int(inputs.batch_size),
        "chat_template_kwargs": repr(inputs.chat_template_kwargs),
        "drawing": [int(inputs.max_new_tokens), list(inputs.stop)] if drawn else None,
        "weights": [f"{float(jnp.sum(leaf, dtype=jnp.float32)):.4g}" for leaf in jax.tree.leaves(inputs.model.params)],
    }
    return fingerprint(settings, [inputs.keys, *(row.ids for row in inputs.rows), [row.first for row in inputs.rows]])


def _lists(given: Mapping[str, Any]) -> list[Any]:
    """Return what is given as lists with one entry for each prompt; samples may also be a number of them, or None.

    Lists, because the numbers of rows are their indices: a column of a table may have other ones.
    """
    lists: dict[str, Any] = {}
    for name, values in given.items():
        if name == "samples" and isinstance(values, (int, np.integer)):
            _checks.positive_int("samples", values)
            lists[name] = int(values)
        elif isinstance(values, str):
            raise ValueError(f"{name} is a single text; expected a list")
        else:
            lists[name] = None if values is None else list(values)
    count = len(lists["prompts"])
    for name, values in lists.items():
        if isinstance(values, list) and len(values) != count:
            raise ValueError(f"{name} has {len(values)} entries; expected one for each of {count} prompts")
    if isinstance(lists["samples"], list):
        for i, group in enumerate(lists["samples"]):
            if group is None or not all(isinstance(one, Answer) for one in group):
                raise ValueError(f"the samples of prompt {i} are not all answers from generate")
        lists["samples"] = list(map(list, lists["samples"]))
    return list(lists.values())


def question_of(prompt: Any) -> str:
    """Return the text of a prompt, or of its last message; "" where that only calls tools."""
    content = prompt if isinstance(prompt, str) else prompt[-1].get("content")
    if isinstance(content, str):
        return content
    return " ".join(part["text"] for part in content or () if isinstance(part.get("text"), str))


def _names(inputs: Inputs, scores: Iterable[str] | None) -> list[str]:
    """Return the names without repetition, by default all; raise for one that is unknown or lacks an input."""
    given = inputs_given(inputs.model.config.num_layers, inputs.samples, inputs.entailment, inputs.similarity)
    return choose(scores, given, HINTS)


def inputs_given(num_layers: int, samples: Any, entailment: Entailment | None, similarity: Any) -> dict[str, Any]:
    """Return the inputs that passes require by name, None where one is not given."""
    return {
        "samples": samples,
        "entailment": entailment,
        "contradiction": contradiction(entailment.encoder.config.labels) if entailment else None,
        "similarity": similarity,
        "upper_layers": True if num_layers >= 3 else None,
    }


def choose(scores: Iterable[str] | None, given: Mapping[str, Any], hints: Mapping[str, str]) -> list[str]:
    """Return names of scores without repetition; None means all whose inputs are given.

    given: from an input that passes require to its value, None where there is none. hints: what to give for each.
    Raises ValueError for a name that is unknown or lacks an input.
    """
    if scores is None:
        return [name for name in SCORES if not missing(given, name)]
    names = list(dict.fromkeys([scores] if isinstance(scores, str) else scores))
    for name in names:
        _checks.one_of("scores", name, SCORES)
        if lacking := missing(given, name):
            raise ValueError(f"the score {name} needs {hints[lacking[0]]}")
    return names


def missing(given: Mapping[str, Any], name: str) -> list[str]:
    """Return the inputs that the score needs and that are not given."""
    needs = [each for each in PASSES.values() if set(each.gives) & set(SCORES[name].needs)]
    return [required for each in needs for required in each.requires if given[required] is None]


def cost_alone(costs: Mapping[str, Cost], name: str) -> Cost:
    """Return what a score would cost alone, of the costs of passes by name: the sum over those that it needs."""
    return add([costs[each] for each in passes_of([name])])


def passes_of(names: Iterable[str]) -> list[str]:
    """Return the names of the passes that the scores need, in the order in which they run."""
    quantities = {quantity for name in names for quantity in SCORES[name].needs}
    direct = {name for name, each in PASSES.items() if quantities & set(each.gives)}
    return [name for name in PASSES if name in direct or any(name in PASSES[other].after for other in direct)]


def _column(name: str, values: Values, count: int) -> np.ndarray:
    """Return the score of every answer; NaN where a quantity that it needs is None or holds NaN."""
    function, needs = SCORES[name]
    rows = [[values[quantity][i] for quantity in needs] for i in range(count)]
    return np.array([np.nan if _undefined(row) else function(*row) for row in rows], np.float64)


def _undefined(value: Any) -> bool:
    """Return whether a quantity, or anything in it, is None or NaN."""
    if value is None or isinstance(value, str):
        return value is None
    if isinstance(value, (list, tuple)):
        return any(map(_undefined, value))
    return bool(np.isnan(value).any())
