"""Scores from sampled answers: their likelihoods, their words, and their meanings.

All are higher where the model is less certain. A meaning is a cluster of samples, by `clusters_by_entailment` or
`clusters_by_similarity`. Semantic entropy: Kuhn, Gal, Farquhar 2023, arXiv 2302.09664, with the estimators of Farquhar
et al. 2024, Nature 630, 625. Entropies are in nats.
"""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from isouq.text.scores._inputs import floats, log_probabilities, whole_numbers


def naive_entropy(log_p: Any, lengths: Any = None) -> float:
    """Return the Monte Carlo estimate −(1/n) Σ log p(s_i | x) of the entropy of the answers to one question.

    log_p: log p of n sampled answers, all tokens together. lengths: tokens of each, to divide by (the length-normalised
    variant). Both array-like `[n]`.

    Raises:
        ValueError: no answer, NaN, +∞ or a log p above 0, lengths of another shape or below 1.

    Source: Malinin & Gales 2021, arXiv 2002.07650. Cost: n samples, whose log p generation gives.
    """
    log_p = log_probabilities(log_p)
    if lengths is None:
        return float(-np.mean(log_p))
    lengths = whole_numbers("lengths", lengths, log_p.size)
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

    Source: Kuhn et al. and Farquhar et al. (see the module). Cost: n samples, and one pass of the classifier of
    entailment for each ordered pair.
    """
    log_p = log_probabilities(log_p)
    cluster = whole_numbers("cluster", cluster, log_p.size)
    top = float(np.max(log_p))
    if top == -np.inf:
        raise ValueError("log_p is -inf for every sample; expected one with a probability above 0")
    return _entropy(np.bincount(_numbers(cluster), weights=np.exp(log_p - top)))


def semantic_entropy_monte_carlo(cluster: Any, log_p: Any) -> float:
    """Return −(1/n) Σ_i log Σ_{j in c(i)} p(s_j | x), where c(i) is the meaning of sample i.

    The probabilities are not normalised over the meanings, so that it is an estimate of the entropy without an upper
    bound, and may be below 0 where equal samples are counted often. Arguments and errors are those of
    `semantic_entropy`, except that every log p must be finite.

    Source: the Monte Carlo estimate of Kuhn et al., as lm-polygraph computes it; equal samples count as often as drawn.
    Cost: n samples, and one pass of the classifier of entailment for each ordered pair.
    """
    log_p = log_probabilities(log_p)
    cluster = _numbers(whole_numbers("cluster", cluster, log_p.size))
    if not np.isfinite(log_p).all():
        raise ValueError("log_p holds -inf; expected samples with a probability above 0")
    return float(-np.mean([np.logaddexp.reduce(log_p[cluster == own]) for own in cluster]))


def semantic_entropy_discrete(cluster: Any) -> float:
    """Return the `semantic_entropy` with P(c) the share of the samples, which needs no likelihoods; nats.

    Source: Farquhar et al. (see the module). Cost: as `semantic_entropy`.
    """
    cluster = whole_numbers("cluster", cluster)
    return _entropy(np.bincount(_numbers(cluster)).astype(float))


def lexical_similarity(texts: Sequence[str]) -> float:
    """Return minus the mean Rouge-L of all pairs of samples, from −1 (equal words) to 0; NaN for a single sample.

    Rouge-L of two texts is 2 ℓ / (a + b) for a and b words of which ℓ occur in both in the same order (the longest
    common subsequence). Words are runs of letters, digits and underscores, in lower case and not stemmed; two texts
    without words have 0.

    Source: Fomicheva et al. 2020, TACL 8, 539, with Rouge-L as in Kuhn et al. Cost: n samples.
    """
    if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts is {texts!r:.60}; expected a list of at least one text")
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    pairs = list(itertools.combinations(words, 2))
    return float(-np.mean([_rouge_l(*pair) for pair in pairs])) if pairs else float("nan")


def _rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    if not one or not other:
        return 0.0
    common = [0] * (len(other) + 1)
    for word in one:
        before = common.copy()
        for j, candidate in enumerate(other, start=1):
            common[j] = before[j - 1] + 1 if word == candidate else max(before[j], common[j - 1])
    return 2 * common[-1] / (len(one) + len(other))


def clusters_by_similarity(vectors: Any, threshold: float) -> Int[np.ndarray, " n"]:
    """Return the number of the meaning of each sample, 0, 1, …, by the cosine between the vectors of the samples.

    As in `clusters_by_entailment`, the samples are taken in order. A sample joins the first cluster whose first member
    it matches, with a cosine of at least `threshold`, or else begins a new one. A vector of zeros matches nothing.

    vectors: array-like `[n, D]`, finite.

    Source: the greedy order of Kuhn et al., Algorithm 1; cosines in place of entailment are ours.
    """
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a cosine, from -1 to 1")
    vectors = floats("vectors", vectors)
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


def _numbers(cluster: np.ndarray) -> np.ndarray:
    """Return the clusters numbered 0, 1, …, whatever whole numbers name them."""
    return np.unique(cluster, return_inverse=True)[1]


def _entropy(weights: np.ndarray) -> float:
    """Return the entropy of the distribution in proportion to the weights, in nats."""
    p = weights[weights > 0] / weights.sum()
    return float(np.maximum(0.0, -np.sum(p * np.log(p))))
