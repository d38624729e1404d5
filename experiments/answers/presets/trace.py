"""Uncertainty along an answer: does the shape of U_E(t), p(1 − p) and entropy tell a wrong answer?

The greedy answers of `qa` are traced token by token; where the folder holds its jobs, their results are used. A
logistic regression on the features of each trace, cross-validated over the questions, predicts that the answer is
wrong.

Source: arXiv 2605.07776, which does so on the reasoning of other models.

Command: python -m experiments trace --preset paper --questions triviaqa.jsonl --questions truthfulqa.csv
"""

from collections.abc import Sequence
from dataclasses import replace

from experiments.answers.presets import qa
from experiments.answers.study import QaCell


def jobs(
    preset: str,
    seeds: int | None = None,
    questions: Sequence[str] | None = None,
    model: Sequence[str] | None = None,
    prompt: str | None = None,
    limit: int | None = None,
    encoder: str | None = None,
) -> list[QaCell]:
    """Return the jobs of a preset.

    smoke: a tiny model on the built-in questions, seconds, no network. quick: SmolLM2 on the built-in questions.
    paper: 1000 questions of each file, 3 seconds a question on 2 CPU cores. In a folder where `qa` has run, its
    answers, scores and judgements are used and not computed again.
    """
    judges = qa.choose_judges(preset, encoder)
    return [
        judges.use(block, study) if study == "judged" else replace(block, study=study)
        for block in qa.blocks(preset, seeds, questions, model, prompt, limit)
        for study in ("scores", "trace", "judged")
    ]
