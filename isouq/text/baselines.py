"""Published scores of answers, to compare with: P(True), naive entropy and semantic entropy.

P(True): Kadavath et al. 2022, arXiv 2207.05221. Semantic entropy: Kuhn, Gal, Farquhar 2023, arXiv 2302.09664, with the
estimators of Farquhar et al. 2024, Nature 630, 625. All entropies are in nats and higher where the model is less
certain; P(True) is lower there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

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
            encode_prompt(model, prompt, chat_template_kwargs)
        except ValueError as error:
            raise ValueError(f"question {i}: {error}") from None
        pairs += [(prompt, "A" if chat else " A"), (prompt, "B" if chat else " B")]
    readings = read(model, pairs, batch_size, chat_template_kwargs)
    log_p = np.array([reading.log_p.sum() for reading in readings]).reshape(-1, 2)
    return np.exp(log_p[:, 0] - np.logaddexp(*log_p.T))


def p_true_prompt(question: str, answer: str, samples: Sequence[str], chat: bool = False) -> Prompt:
    """Return the prompt that asks the model whether an answer is true; see `p_true`."""
    ideas = [line for line in map(_line, samples) if line]
    shown = IDEAS + "\n".join(ideas) + "\n" if ideas else ""
    text = P_TRUE_PROMPT.format(question=_line(question), ideas=shown, answer=_line(answer))
    return [{"role": "user", "content": text}] if chat else text


def _line(text: str) -> str:
    return " ".join(text.split())


def naive_entropy(log_p: Any, lengths: Any = None) -> float:
    """Return the Monte Carlo estimate −(1/n) Σ log p(s_i | x) of the entropy of the answers to one question.

    log_p: log p of n sampled answers, all tokens together. lengths: tokens of each, to divide by (the length-normalised
    variant of Malinin & Gales 2021, arXiv 2002.07650). Both array-like `[n]`.

    Raises:
        ValueError: no answer, NaN, +∞ or a log p above 0, lengths of another shape or below 1.
    """
    log_p = _log_probabilities(log_p)
    if lengths is None:
        return float(-np.mean(log_p))
    lengths = _whole_numbers("lengths", lengths, log_p.size)
    if np.any(lengths < 1):
        raise ValueError(f"lengths holds {np.min(lengths)}; expected at least 1 token an answer")
    return float(-np.mean(log_p / lengths))


def semantic_entropy(cluster: Any, log_p: Any) -> float:
    """Return the entropy −Σ_c P(c) log P(c) over the meanings of the samples of one question, in nats.

    A meaning c is a cluster of samples s_i, with P(c) ∝ Σ_{i in c} p(s_i | x).

    Args:
        cluster: the meaning of each of n samples, from `clusters_by_similarity` or `clusters_by_entailment`.
        log_p: their log p; Farquhar et al. divide it by the number of tokens. Equal samples count as often as drawn.
            Both array-like `[n]`.

    Returns:
        Nats, from 0 (one meaning) to the logarithm of the number of meanings.

    Raises:
        ValueError: NaN, +∞ or a number above 0 in log_p, no sample of a probability above 0, or clusters that are
            not n whole numbers.
    """
    log_p = _log_probabilities(log_p)
    cluster = _whole_numbers("cluster", cluster, log_p.size)
    top = float(np.max(log_p))
    if top == -np.inf:
        raise ValueError("log_p is -inf for every sample; expected one with a probability above 0")
    return _entropy(np.bincount(_numbers(cluster), weights=np.exp(log_p - top)))


def semantic_entropy_discrete(cluster: Any) -> float:
    """Return the `semantic_entropy` with P(c) the share of the samples, which needs no likelihoods; nats."""
    cluster = _whole_numbers("cluster", cluster)
    return _entropy(np.bincount(_numbers(cluster)).astype(float))


def clusters_by_similarity(vectors: Any, threshold: float) -> Int[np.ndarray, " n"]:
    """Return the number of the meaning of each sample, 0, 1, …, by the cosine between the vectors of the samples.

    As in `clusters_by_entailment`, the samples are taken in order. A sample joins the first cluster whose first member
    it matches, with a cosine of at least `threshold`, or else begins a new one. A vector of zeros matches nothing.

    vectors: array-like `[n, D]`, finite.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a cosine, from -1 to 1")
    vectors = _floats("vectors", vectors)
    if vectors.ndim != 2 or not vectors.size:
        raise ValueError(f"vectors has shape {vectors.shape}; expected [samples, D], at least one sample")
    if not np.isfinite(vectors).all():
        row = int(np.argmin(np.isfinite(vectors).all(axis=1)))
        raise ValueError(f"vectors holds NaN or infinity in row {row}; remove that sample first")
    exponents = np.frexp(np.abs(vectors).max(axis=1, keepdims=True))[1]
    vectors = np.ldexp(vectors, -exponents)  # by powers of two: no digit changes, and no square leaves a double
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(norms > 0, norms, 1)
    return _greedy((unit @ unit.T >= threshold) & (norms > 0) & (norms.T > 0))


def clusters_by_entailment(entails: Any) -> Int[np.ndarray, " n"]:
    """Return the number of the meaning of each sample, 0, 1, ….

    The samples are taken in order. A sample joins the first cluster whose first member it entails and is entailed by,
    or else begins a new one.

    entails: whether sample i entails sample j, array-like `[n, n]` of booleans, from `Entailment.matrix`.
    Source: Kuhn et al., Algorithm 1.
    """
    entails = np.asarray(entails)
    if entails.ndim != 2 or entails.shape[0] != entails.shape[1]:
        raise ValueError(f"entails has shape {entails.shape}; expected [samples, samples]")
    if entails.dtype != bool and entails.size:
        raise ValueError(f"entails holds {entails.dtype}; expected booleans, such as scores > 0.5")
    return _greedy(entails & entails.T if entails.size else entails)


def _greedy(same: Any) -> np.ndarray:
    """Return the number of the cluster of each row of a symmetric `[n, n]`, as the two functions above describe."""
    firsts: list[int] = []
    numbers = []
    for i in range(len(same)):
        cluster = next((number for number, first in enumerate(firsts) if same[i, first]), len(firsts))
        if cluster == len(firsts):
            firsts.append(i)
        numbers.append(cluster)
    return np.array(numbers, int)


def _floats(name: str, values: Any) -> np.ndarray:
    """Return the values as an array of float64; raise a ValueError with their name where they are no numbers."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} does not hold numbers alone; expected an array or a list of them") from None


def _log_probabilities(log_p: Any) -> np.ndarray:
    """Return log_p as float64 `[n]`; raise unless it holds logarithms of probabilities."""
    log_p = _floats("log_p", log_p)
    if log_p.ndim != 1:
        raise ValueError(f"log_p has shape {log_p.shape}; expected one number a sample")
    if not log_p.size:
        raise ValueError("log_p is empty; expected at least one sample")
    if np.any(np.isnan(log_p) | (log_p == np.inf)):
        raise ValueError("log_p holds NaN or +inf; expected logarithms of probabilities")
    if log_p.max() > 1e-3:  # rounding aside
        raise ValueError(f"log_p holds {log_p.max():.3g}; expected logarithms of probabilities, which are at most 0")
    return log_p


def _whole_numbers(name: str, values: Any, size: int | None = None) -> np.ndarray:
    """Return the values as integers `[n]`; raise unless they are whole and as many as `size`."""
    values = np.asarray(values)
    if values.ndim != 1 or not values.size:
        state = "is empty" if not values.size else f"has shape {values.shape}"
        raise ValueError(f"{name} {state}; expected one whole number a sample, at least one sample")
    if size is not None and values.size != size:
        raise ValueError(f"{name} has {values.size} values for {size} samples; expected one each")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} holds {values.dtype}; expected whole numbers")
    return values


def _numbers(cluster: np.ndarray) -> np.ndarray:
    """Return the clusters numbered 0, 1, …, whatever whole numbers name them."""
    return np.unique(cluster, return_inverse=True)[1]


def _entropy(weights: np.ndarray) -> float:
    """Return the entropy of the distribution in proportion to the weights, in nats."""
    p = weights[weights > 0] / weights.sum()
    return float(np.maximum(0.0, -np.sum(p * np.log(p))))
