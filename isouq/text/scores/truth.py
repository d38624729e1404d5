"""P(True): ask the model whether its own answer is true.

Source: Kadavath et al. 2022, arXiv 2207.05221.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from isouq.text.continuations import read
from isouq.text.language_model import LanguageModel
from isouq.text.prompts import Prompt, encode_prompt

IDEAS = "Here are some brainstormed ideas: "
P_TRUE_PROMPT = """\
Question: {question}
{ideas}Possible Answer: {answer}
Is the possible answer:
A) True
B) False
The possible answer is:"""  # goes on with " A" or " B"; {ideas}: IDEAS and the samples, one a line


def p_true(
    model: LanguageModel,
    questions: Sequence[str],
    answers: Sequence[str],
    samples: Sequence[Sequence[str]],
    batch_size: int = 8,
    chat: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Float[np.ndarray, " n"]:
    """Return, for every answer, the probability P(A) / (P(A) + P(B)) that the model gives to its being true.

    Args:
        model: from `load`.
        questions: n texts.
        answers: the answer to judge of each.
        samples: for each question, other answers of the model. The prompt lists them as brainstormed ideas; empty ones
            are not listed, and a question without samples gets a prompt without the list. Line breaks become spaces.
        batch_size: see `read`.
        chat: whether the prompt is a user's message in the model's chat template, else plain text.
        chat_template_kwargs: variables for that template, as in `score`.

    Raises:
        ValueError: lists of different lengths, or a prompt that fills the context; the message has its number.

    Source: Kadavath et al. 2022, arXiv 2207.05221. Cost: one forward pass over each prompt (question, samples and
    answer), no backward pass.
    """
    if isinstance(questions, str) or not len(questions) == len(answers) == len(samples) > 0:
        raise ValueError(
            f"{len(questions)} questions, {len(answers)} answers and samples of {len(samples)}; "
            "expected three lists of one length, at least 1"
        )
    pairs = []
    for i, (question, answer, others) in enumerate(zip(questions, answers, samples, strict=True)):
        prompt = p_true_prompt(question, answer, others, chat)
        try:
            encode_prompt(model, prompt, chat_template_kwargs)
        except ValueError as error:
            raise ValueError(f"question {i}: {error}") from None
        pairs += [(prompt, "A" if chat else " A"), (prompt, "B" if chat else " B")]
    readings = read(model, pairs, batch_size, chat_template_kwargs)
    log_p = np.array([reading.log_p.sum() for reading in readings]).reshape(-1, 2)
    with np.errstate(invalid="ignore"):  # a broken model's are NaN, and so is its P(True)
        return np.exp(log_p[:, 0] - np.logaddexp(*log_p.T))


def p_true_prompt(question: str, answer: str, samples: Sequence[str], chat: bool = False) -> Prompt:
    """Return the prompt that asks the model whether an answer is true; see `p_true`."""
    ideas = [line for line in map(_line, samples) if line]
    shown = IDEAS + "\n".join(ideas) + "\n" if ideas else ""
    text = P_TRUE_PROMPT.format(question=_line(question), ideas=shown, answer=_line(answer))
    return [{"role": "user", "content": text}] if chat else text


def _line(text: str) -> str:
    return " ".join(text.split())


def p_false(p_true: Any) -> float:
    """Return 1 − P(True) of an answer, from 0 to 1, so that it is higher where the model is less certain.

    Source: Kadavath et al. 2022, arXiv 2207.05221. Cost: `p_true`, and the samples that its prompt lists.
    """
    return 1 - float(p_true)
