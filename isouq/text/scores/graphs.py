"""Scores from how alike the samples of one question are to each other and to the answer.

All are higher where the model is less certain. `similarity[i, j]` is how alike sample i is to sample j, from 0 to 1:
the probability that a classifier gives to i entailing j, the value of an encoder of similarity, or the share of words
that both have (the names that end in `_jaccard`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isouq.text.scores._inputs import floats
from isouq.text.scores.likelihood import mean_token_entropy, nll, nll_mean, token_sar

EIGENVALUE_BOUND = 0.9  # eccentricity keeps the eigenvectors of the Laplacian below it


def degmat(similarity: Any) -> float:
    """Return Σ_i (n − D_i) / n², the mean distance between samples, where D_i = Σ_j W_ij is the degree of sample i.

    W is the mean of the similarities and their transpose. The value lies between 0 and 1 − 1/n where W_ii is 1.

    similarity: array-like `[n, n]`. Raises ValueError for another shape, or numbers outside 0 to 1.
    Source: Lin et al. 2024, arXiv 2305.19187. Cost: n samples, and one pass of the encoder for each ordered pair.
    """
    affinity = _affinity(similarity)
    return float(1 - affinity.sum() / affinity.size)


def eigv(similarity: Any) -> float:
    """Return Σ_k max(0, 1 − λ_k) over the eigenvalues of the graph Laplacian I − D^−½ W D^−½.

    It counts the meanings continuously: 1 where all samples are alike, n where no two are. W and D are those of
    `degmat`. Source, arguments and cost: as `degmat`.
    """
    return float(np.maximum(0, 1 - np.linalg.eigvalsh(_laplacian(similarity))).sum())


def eccentricity(similarity: Any) -> float:
    """Return how far the samples lie from their centre in the space of the Laplacian's first eigenvectors.

    The eigenvectors u_k with an eigenvalue below 0.9 give sample i the coordinates (u_1i, u_2i, …); the value is the
    square root of the summed squared distances to their mean. The Laplacian is that of `eigv`. Source, arguments and
    cost: as `degmat`.
    """
    values, vectors = np.linalg.eigh(_laplacian(similarity))
    coordinates = vectors[:, values < EIGENVALUE_BOUND]
    return float(np.linalg.norm(coordinates - coordinates.mean(axis=0)))


def sar(log_p: Sequence[Any], token_similarity: Sequence[Any], similarity: Any, temperature: float = 0.001) -> float:
    """Return the mean over samples i of −log(p_i + (1/t) Σ_{j ≠ i} g(i, j) p_j), where p_i = exp(−TokenSAR of i).

    Args:
        log_p: log p of the tokens of each of n samples, n times array-like `[T_i]`.
        token_similarity: what `isouq.text.scores.likelihood.token_sar` takes, for each sample.
        similarity: g, array-like `[n, n]`, from 0 to 1.
        temperature: t; 0.001 in the paper.

    Raises:
        ValueError: numbers of another shape, or a temperature that is not above 0.

    Source: Duan et al. 2024, arXiv 2307.01379. Cost: n samples, and a pass of the encoder for each token of them and
    each ordered pair.
    """
    similarity = _similarities(similarity, len(log_p))
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    tokens = -np.array([token_sar(*pair) for pair in zip(log_p, token_similarity, strict=True)])
    with np.errstate(divide="ignore"):
        log_weight = np.log(similarity / temperature)
    np.fill_diagonal(log_weight, 0)
    return float(-np.mean(np.logaddexp.reduce(log_weight + tokens[None, :], axis=1)))


def cocoa_sum(log_p: Any, similarity: Any) -> float:
    """Return −log p(y) times the mean dissimilarity (1/n) Σ_i (1 − g(y, i)) of the answer y to n samples.

    Args:
        log_p: log p of the tokens of the answer, `[T]`.
        similarity: g, the similarity of the answer to each sample, array-like `[n]`, from 0 to 1.

    Source: CoCoA, Vashurin et al. 2025, arXiv 2502.04964. Cost: one forward pass, n samples, and two passes of the
    encoder for each.
    """
    return nll(log_p) * _dissimilarity(similarity)


def cocoa_mean(log_p: Any, similarity: Any) -> float:
    """Return `nll_mean` times the mean dissimilarity of `cocoa_sum`; arguments, source and cost are the same."""
    return nll_mean(log_p) * _dissimilarity(similarity)


def cocoa_entropy(entropy: Any, similarity: Any) -> float:
    """Return `mean_token_entropy` times the mean dissimilarity of `cocoa_sum`; source and cost are the same."""
    return mean_token_entropy(entropy) * _dissimilarity(similarity)


def eigenscore(states: Sequence[Any], ridge: float = 1e-3) -> float:
    """Return (1/n) log det(Z J Zᵀ + ridge · I), the spread of the states of n samples in the model itself.

    J = I − (1/D) 1 1ᵀ takes the mean over the D entries of a state away.

    states: Z, the hidden state of each sample's last token after the middle layer, array-like `[n, D]`, finite.
    Source: Chen et al. 2024 (INSIDE), arXiv 2402.03744. Cost: n samples, and one forward pass over each.
    """
    values = floats("states", states)
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"states has shape {values.shape} or is not finite; expected [samples, D]")
    if not ridge > 0:
        raise ValueError(f"ridge is {ridge}; expected a number above 0")
    centred = values - values.mean(axis=1, keepdims=True)
    gram = centred @ centred.T + ridge * np.eye(len(values))
    return float(np.linalg.slogdet(gram)[1] / len(values))


def _similarities(similarity: Any, size: int | None = None) -> np.ndarray:
    """Return the similarities as float64 `[n, n]`; raise unless they are from 0 to 1, rounding aside."""
    similarity = floats("similarity", similarity)
    if similarity.ndim != 2 or not similarity.size or similarity.shape != (size or len(similarity),) * 2:
        expected = f"[{size}, {size}]" if size else "[samples, samples], at least one sample"
        raise ValueError(f"similarity has shape {similarity.shape}; expected {expected}")
    return _within(similarity)


def _within(similarity: np.ndarray) -> np.ndarray:
    if not np.all((similarity >= -1e-3) & (similarity <= 1 + 1e-3)):
        raise ValueError("similarity holds a number outside 0 to 1; expected probabilities, or values clipped to that")
    return np.clip(similarity, 0, 1)


def _dissimilarity(similarity: Any) -> float:
    similarity = floats("similarity", similarity)
    if similarity.ndim != 1 or not similarity.size:
        raise ValueError(f"similarity has shape {similarity.shape}; expected one number a sample, at least one")
    return float(np.mean(1 - _within(similarity)))


def _affinity(similarity: Any) -> np.ndarray:
    similarity = _similarities(similarity)
    return (similarity + similarity.T) / 2


def _laplacian(similarity: Any) -> np.ndarray:
    affinity = _affinity(similarity)
    degree = affinity.sum(axis=1)
    if not degree.all():
        raise ValueError("similarity has a row and column of zeros; expected 1 for a sample and itself")
    scale = degree**-0.5
    return np.eye(len(affinity)) - affinity * scale[:, None] * scale[None, :]
