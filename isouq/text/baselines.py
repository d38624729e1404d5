"""What others score an answer by: P(True), naive entropy and semantic entropy.

P(True): Kadavath et al. 2022, arXiv 2207.05221. Semantic entropy: Kuhn, Gal, Farquhar 2023, arXiv 2302.09664, with the
estimators of Farquhar et al. 2024, Nature 630, 625. All entropies are in nats and higher where the model is less
certain; P(True) is lower there.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

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
) -> Float[np.ndarray, " n"]:
    """The probability that the model gives to its answer's being true, P(A) / (P(A) + P(B)), of every answer.

    Args:
        model: from `load`.
        questions: n texts.
        answers: the answer to judge of each.
        samples: of each question other answers of the model, shown to it as brainstormed ideas; empty ones are left
            out, and without any the line is. Line breaks within a text become spaces.
        batch_size: see `read`.
        chat: whether the prompt is a user's message in the model's chat template, else plain text.

    Raises:
        ValueError: lists of different lengths, or a prompt that fills the context; the message has its number.

    Cost: one forward pass over each prompt (question, samples and answer), no backward pass.
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
            encode_prompt(model, prompt)
        except ValueError as error:
            raise ValueError(f"question {i}: {error}") from None
        pairs += [(prompt, "A" if chat else " A"), (prompt, "B" if chat else " B")]
    log_p = np.array([reading.log_p.sum() for reading in read(model, pairs, batch_size)]).reshape(-1, 2)
    return np.exp(log_p[:, 0] - np.logaddexp(*log_p.T))


def p_true_prompt(question: str, answer: str, samples: Sequence[str], chat: bool = False) -> Prompt:
    """What the model is asked about one answer; see `p_true`."""
    ideas = [line for line in map(_line, samples) if line]
    shown = IDEAS + "\n".join(ideas) + "\n" if ideas else ""
    text = P_TRUE_PROMPT.format(question=_line(question), ideas=shown, answer=_line(answer))
    return [{"role": "user", "content": text}] if chat else text


def _line(text: str) -> str:
    return " ".join(text.split())


def naive_entropy(log_p: Float[np.ndarray, " n"], lengths: Int[np.ndarray, " n"] | None = None) -> float:
    """The Monte Carlo estimate −(1/n) Σ log p(s_i | x) of the entropy of the answers to one question.

    log_p: log p of n sampled answers, all tokens together. lengths: tokens of each, to divide by (the length-normalised
    variant of Malinin & Gales 2021, arXiv 2002.07650).
    """
    _check_log_p(log_p)
    if lengths is not None and np.any(lengths < 1):
        raise ValueError(f"lengths holds {int(np.min(lengths))}; expected at least 1 token an answer")
    return float(-np.mean(log_p if lengths is None else log_p / lengths))


def semantic_entropy(cluster: Int[np.ndarray, " n"], log_p: Float[np.ndarray, " n"]) -> float:
    """The entropy −Σ_c P(c) log P(c) over meanings, P(c) ∝ Σ_{i in c} p(s_i | x), of the samples of one question.

    Args:
        cluster: the meaning of each of n samples, from `clusters_by_similarity` or `clusters_by_entailment`.
        log_p: their log p; Farquhar et al. divide it by the number of tokens. Equal samples count as often as drawn.

    Returns:
        Nats, from 0 (one meaning) to the logarithm of the number of meanings.

    Raises:
        ValueError: NaN or +∞ in log_p, or no sample of a probability above 0.
    """
    _check_log_p(log_p)
    top = float(np.max(log_p))
    if top == -np.inf:
        raise ValueError("log_p is -inf for every sample; expected one with a probability above 0")
    return _entropy(np.bincount(_numbers(cluster), weights=np.exp(log_p - top)))


def semantic_entropy_discrete(cluster: Int[np.ndarray, " n"]) -> float:
    """As `semantic_entropy` with P(c) the share of the samples: needs no likelihoods. Nats."""
    if not len(cluster):
        raise ValueError("cluster is empty; expected at least one sample")
    return _entropy(np.bincount(_numbers(cluster)).astype(float))


def clusters_by_similarity(vectors: Float[np.ndarray, "n D"], threshold: float) -> Int[np.ndarray, " n"]:
    """Numbers of meanings 0, 1, …, by the cosine between the samples' vectors.

    In the order of the samples, as Kuhn et al. do with entailment: a sample joins the first cluster whose first member
    it matches (cosine at least `threshold`), else it begins one. A vector of zeros matches nothing.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a cosine, from -1 to 1")
    norms = np.linalg.norm(np.asarray(vectors, np.float64), axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    return _greedy((unit @ unit.T >= threshold) & (norms > 0) & (norms.T > 0))


def clusters_by_entailment(entails: Bool[np.ndarray, "n n"]) -> Int[np.ndarray, " n"]:
    """Numbers of meanings 0, 1, …: a sample joins the first cluster whose first member it entails and is entailed by.

    entails: whether sample i entails sample j, from `Entailment.matrix`. Source: Kuhn et al., Algorithm 1.
    """
    return _greedy(entails & entails.T)


def _greedy(same: Any) -> np.ndarray:
    """Clusters of the rows of a symmetric `[n, n]`, each named by its first member."""
    firsts: list[int] = []
    numbers = []
    for i in range(len(same)):
        found = next((number for number, first in enumerate(firsts) if same[i, first]), len(firsts))
        if found == len(firsts):
            firsts.append(i)
        numbers.append(found)
    return np.array(numbers, int)


def _check_log_p(log_p: np.ndarray) -> None:
    if not len(log_p):
        raise ValueError("log_p is empty; expected at least one sample")
    if np.any(np.isnan(log_p) | (log_p == np.inf)):
        raise ValueError("log_p holds NaN or +inf; expected logarithms of probabilities")


def _numbers(cluster: np.ndarray) -> np.ndarray:
    """The clusters numbered 0, 1, …, whatever their names."""
    return np.unique(cluster, return_inverse=True)[1]


def _entropy(weights: np.ndarray) -> float:
    """Of the distribution in proportion to these weights; nats."""
    p = weights[weights > 0] / weights.sum()
    return float(np.maximum(0.0, -np.sum(p * np.log(p))))
