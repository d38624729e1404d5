"""Which position of a prompt SemGrad looks at: the one whose hidden states say best what is asked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isouq import _checks
from isouq.text.language_model import LanguageModel
from isouq.text.prompts import encode_prompt
from isouq.text.scores._inside import prompt_states
from isouq.text.scores.gradients import preservation_scores


def semantic_position(
    model: LanguageModel,
    paraphrases: Sequence[Sequence[Any]],
    num_positions: int = 5,
    batch_size: int = 8,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> int:
    """Return the position with the largest preservation score, counted from the prompt's end: −1, …, −num_positions.

    Args:
        model: from `load`.
        paraphrases: for each of at least two questions, prompts that ask it; one of them in at least two.
        num_positions: how many of the last positions are compared; fewer where a prompt is shorter.
        batch_size: prompts at a time.
        chat_template_kwargs: as in `isouq.text.score`.

    Raises:
        ValueError: an empty or too long prompt (the message has its numbers), too few questions or paraphrases, or a
            model of fewer than 3 layers.

    Cost: one forward pass over each prompt, once for a model and a template. Source: `preservation_scores`.
    """
    _checks.positive_int("num_positions", num_positions)
    _checks.positive_int("batch_size", batch_size)
    ids, question = [], []
    for i, prompts in enumerate(paraphrases):
        for j, prompt in enumerate(prompts):
            try:
                ids.append(encode_prompt(model, prompt, chat_template_kwargs))
            except ValueError as error:
                raise ValueError(f"question {i}, paraphrase {j}: {error}") from None
            question.append(i)
    if len(set(question)) < 2 or len(set(question)) == len(question):
        raise ValueError("paraphrases holds no two questions or no two paraphrases of one; expected two of both")
    positions = min(num_positions, *map(len, ids))
    scores = preservation_scores(prompt_states(model, ids, positions, batch_size), question)
    return int(np.argmax(scores)) - positions
