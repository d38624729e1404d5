"""Score greedy answers by the published scores of `isouq.text.baselines`, with the samples that were drawn before."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.answers.block import Block
from experiments.answers.inputs import Models
from experiments.answers.measure.answers import Answered, Progress, has_answer
from experiments.answers.prompts import answer_prompt
from experiments.answers.questions import Question
from experiments.run.job import Result
from experiments.run.partial import Partial
from isouq.text import Answer, Baselines, baselines
from isouq.text.scores.baselines import inputs_given, missing

# Those that the studies "scores" and "judged" do not give.
PUBLISHED = (
    "rauq", "exgrad", "exgrad_mean", "paragrad", "paragrad_mean", "semgrad", "semgrad_mean", "hybridgrad",
    "hybridgrad_mean", "lexical_similarity", "eigenscore", "degmat_jaccard", "eccentricity_jaccard", "eigv_jaccard",
    "degmat", "eccentricity", "eigv", "ccp", "token_sar", "sar", "cocoa_sum", "cocoa_mean", "cocoa_entropy",
)  # fmt: skip


def score_published(
    block: Block,
    models: Models,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    progress: Progress,
    partial: Partial | None = None,
) -> Result:
    """Return the published scores of every greedy answer; one that an answer does not have is not in its row.

    partial: a checkpoint, written when all answers are scored.
    """
    rows: list[dict[str, Any]] = [{"index": one["index"]} for one in answered]
    scored = [i for i, one in enumerate(answered) if has_answer(one)]
    if scored:
        columns = (partial or Partial()).step(
            "published", lambda: _columns(run_baselines(block, models, questions, answered, scored, progress))
        )
        for name, values in columns.items():
            for i, value in zip(scored, values, strict=True):
                if value is not None:
                    rows[i][name] = value
    return Result({"questions": rows}, {})


def run_baselines(
    block: Block,
    models: Models,
    questions: Sequence[Question],
    answered: Sequence[Answered],
    numbers: Sequence[int],
    progress: Progress = lambda share: None,
) -> Baselines:
    """Return the scores `PUBLISHED` of the answers of these numbers, without those whose models are not there."""
    model, (encoder, entailment) = models
    given = inputs_given(model.config.num_layers, block.samples, entailment, encoder)
    return baselines(
        model,
        [answer_prompt(questions[i].question, block.kind, block.prompt) for i in numbers],
        [answered[i]["greedy"]["ids"] for i in numbers],
        [[_answer(sample) for sample in answered[i]["samples"]] for i in numbers],
        [name for name in PUBLISHED if not missing(given, name)],
        questions=[questions[i].question for i in numbers],
        entailment=entailment,
        similarity=encoder,
        on_batch=lambda count: progress(count / len(numbers)),
    )


def _answer(sample: Mapping[str, Any]) -> Answer:
    """Return a stored answer as `isouq.text.generate` gives it."""
    return Answer(sample["text"], sample["ids"], np.array(sample["log_p"]), sample["ended"])


def _columns(result: Baselines) -> dict[str, list[float | None]]:
    """Return the scores by name as JSON holds them, None where an answer has no such score."""
    return {
        name: [None if np.isnan(value) else float(value) for value in values] for name, values in result.scores.items()
    }
