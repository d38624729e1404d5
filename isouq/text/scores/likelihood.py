"""Scores from one forward pass over an answer: its tokens' log p, entropies, alternatives and attention.

All are higher where the model is less certain. `log_p` and `entropy` are those of `isouq.text.Reading`, array-like
`[T]` for an answer of T tokens, in nats.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isouq.text.scores._inputs import floats, log_probabilities

RELATIONS = ("entailment", "neutral", "contradiction")


def nll(log_p: Any) -> float:
    """Return −log p(y) = −Σ_t log p(y_t), from 0 up.

    Source: G-NLL, Aichberger et al. 2024, arXiv 2412.15176, for a greedy answer. Cost: one forward pass, or none where
    generation kept log p.
    """
    return float(-np.sum(log_probabilities(log_p)))


def nll_mean(log_p: Any) -> float:
    """Return −(1/T) Σ_t log p(y_t), from 0 up; what lm-polygraph calls perplexity. Source and cost: as `perplexity`."""
    return float(-np.mean(log_probabilities(log_p)))


def perplexity(log_p: Any) -> float:
    """Return exp(−(1/T) Σ_t log p(y_t)), from 1 up; it ranks answers as `nll_mean` does.

    Source: Jelinek et al. 1977, J. Acoust. Soc. Am. 62, S63. Cost: as `nll`.
    """
    with np.errstate(over="ignore"):
        return float(np.exp(nll_mean(log_p)))


def aleatoric(log_p: Any) -> float:
    """Return log p_r (1 − p_r), the aleatoric uncertainty of `isouq.text.score`; −∞ where p_r is 1.

    p_r is the geometric mean of the tokens' probabilities. Source: arXiv 2603.29466. Cost: as `nll`.
    """
    log_mean = min(0.0, -nll_mean(log_p))
    with np.errstate(divide="ignore"):
        return float(log_mean + np.log(-np.expm1(log_mean)))


def mean_token_entropy(entropy: Any) -> float:
    """Return the mean entropy (1/T) Σ_t H_t of the next-token distributions, from 0 to log V.

    Source: Fomicheva et al. 2020, TACL 8, 539. Cost: one forward pass.
    """
    return float(np.mean(_entropies(entropy)))


def max_token_entropy(entropy: Any) -> float:
    """Return the largest entropy max_t H_t of the next-token distributions, from 0 to log V.

    Source: as `mean_token_entropy`; the largest token is also what Manakul et al. 2023, arXiv 2303.08896, report as
    Max(H). Cost: one forward pass.
    """
    return float(np.max(_entropies(entropy)))


def token_sar(log_p: Any, similarity: Any) -> float:
    """Return −Σ_t r_t log p(y_t), the tokens weighted by how much each of them matters to the meaning.

    r_t = R_t / Σ_s R_s with the relevance R_t = 1 − similarity_t. Where no token matters all weigh the same.

    Args:
        log_p: log p of the tokens, `[T]`.
        similarity: of the whole text to the text without token t, usually from 0 to 1, array-like `[T]`.

    Raises:
        ValueError: a log p that is none, or similarities of another number or not finite.

    Source: Duan et al. 2024, arXiv 2307.01379. Cost: one forward pass of the model, and one of the encoder of
    similarity for each token.
    """
    log_p = log_probabilities(log_p)
    similarity = floats("similarity", similarity)
    if similarity.shape != log_p.shape or not np.isfinite(similarity).all():
        raise ValueError(
            f"similarity has shape {similarity.shape}, log_p {log_p.shape}; expected one finite number a token"
        )
    relevance = 1 - similarity
    total = relevance.sum()
    weights = relevance / total if total > 0 else np.full(log_p.size, 1 / log_p.size)
    return float(-np.sum(weights * log_p))


def ccp(alternatives: Sequence[tuple[Any, Sequence[str]]]) -> float:
    """Return the claim-conditioned probability −Π_t P(words that mean y_t) / P(words that mean it or its contrary).

    A word that could stand in place of token t counts above the line where it is y_t itself or entailment joins the
    two, and below it also where contradiction does; neutral words are left out. The value lies between −1 and 0.

    Args:
        alternatives: for each token (log_p, relation): log p of y_t and then of the other likeliest tokens, `[K]`; and
            "entailment", "neutral" or "contradiction" of each to y_t (`joint_relation`); the first is not looked at.

    Raises:
        ValueError: no tokens, a log p that is none, an unknown relation, or numbers that differ.

    Source: Fadeeva et al. 2024, arXiv 2403.04696, with the 10 likeliest tokens as alternatives, as in lm-polygraph.
    Cost: one forward pass, and two of the classifier of entailment for each of the 9 alternatives of each token.
    """
    if not len(alternatives):
        raise ValueError("alternatives is empty; expected at least one token")
    total = 0.0
    for t, (log_p, relation) in enumerate(alternatives):
        log_p = log_probabilities(log_p)
        unknown = [one for one in relation[1:] if one not in RELATIONS]
        if len(relation) != log_p.size or unknown:
            what = repr(unknown[0]) if unknown else f"{len(relation)} values for {log_p.size} words"
            raise ValueError(f"the relation of token {t} is {what}; expected one of {', '.join(RELATIONS)} for each")
        above = np.array([i == 0 or one == "entailment" for i, one in enumerate(relation)])
        below = above | np.array([one == "contradiction" for one in relation])
        total += np.logaddexp.reduce(log_p[above]) - np.logaddexp.reduce(log_p[below])
    return float(-np.exp(total))


def joint_relation(forward: str, backward: str) -> str:
    """Return the relation of two words from those of (one, other) and (other, one), as `ccp` takes it.

    Two that agree stand. Entailment and contradiction together are neutral, and either wins over neutral.
    """
    both = {forward, backward}
    if len(both) == 1:
        return forward
    return (both - {"neutral"}).pop() if "neutral" in both else "neutral"


def rauq(log_p: Any, attention: Any, alpha: float = 0.2) -> float:
    """Return the largest over layers of −(1/T) Σ_t log c_t, confidences that attention carries from token to token.

    c_1 = p(y_1) and c_t = α p(y_t) + (1 − α) a_t c_{t−1}. In each layer a_t is the attention to token t − 1 of the
    head with the largest mean of it.

    Args:
        log_p: log p of the tokens, `[T]`.
        attention: to token t − 1 where token t is predicted, t = 2 … T, array-like `[layers, heads, T − 1]`; only the
            layers to be used: by default in the paper the middle third, `middle_layers`.
        alpha: the share of the token's own probability: in lm-polygraph 0.2, and 0.5 for instruction-tuned models.

    Raises:
        ValueError: a log p that is none, another shape of attention, or an alpha outside 0 to 1.

    Source: Vazhentsev et al. 2025, arXiv 2505.20045. lm-polygraph's value is larger by 1. Cost: one forward pass.
    """
    log_p = log_probabilities(log_p)
    attention = floats("attention", attention)
    if attention.ndim != 3 or attention.shape[2] != log_p.size - 1 or 0 in attention.shape[:2]:
        raise ValueError(f"attention has shape {attention.shape}; expected [layers, heads, {log_p.size - 1}]")
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected a number above 0 and up to 1")
    p = np.exp(log_p)
    scores = []
    for heads in attention:
        carried = heads[heads.sum(axis=1).argmax()]
        confidence = [p[0]]
        for own, weight in zip(p[1:], carried, strict=True):
            confidence.append(alpha * own + (1 - alpha) * weight * confidence[-1])
        with np.errstate(divide="ignore"):
            scores.append(-np.mean(np.log(confidence)))
    return float(max(scores))


def middle_layers(num_layers: int) -> range:
    """Return the layers that `rauq` looks at, counted from 0: those from L / 3 to 2 L / 3, as in its published code."""
    return range(num_layers // 3, min(-(-2 * num_layers // 3) + 1, num_layers))


def _entropies(entropy: Any) -> np.ndarray:
    entropy = floats("entropy", entropy)
    if entropy.ndim != 1 or not entropy.size or not np.isfinite(entropy).all():
        raise ValueError(f"entropy has shape {entropy.shape} or is not finite; expected one number a token")
    return entropy
