"""Scores from gradients of an answer's probability, and where to take the gradient with respect to hidden states.

All are higher where the model is less certain. G(z) is the mean absolute value over the entries of z of the gradient
∇_z Σ_t ω_t log p(y_t | y_<t, x); the weights ω_t are 1, or the entropy of the next-token distribution at token t, held
constant. Source of G and the scores named after it: arXiv 2605.04638. Their formula is the sum over the T tokens; the
code that the authors published takes the mean, as the names with `_mean` do here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from isouq.text.scores._inputs import floats, whole_numbers
from isouq.text.scores.likelihood import mean_token_entropy


def epistemic(log_p: Any, log_grad_sq_norm: Any) -> float:
    """Return log ‖∇_θ p_r‖² = 2 log p_r + log ‖∇_θ log p_r‖², the epistemic uncertainty of `isouq.text.score`.

    log p_r is the mean of the tokens' log p, array-like `[T]`, and log_grad_sq_norm the logarithm of the squared norm
    of its gradient. Source: arXiv 2603.29466. Cost: one forward and one backward pass.
    """
    return float(2 * np.mean(log_p) + log_grad_sq_norm)


def grad_log_p(log_grad_sq_norm: Any) -> float:
    """Return log ‖∇_θ log p_r‖², the same without the factor p_r²; source and cost as `epistemic`."""
    return float(log_grad_sq_norm)


def exgrad(head_gradient: Any) -> float:
    """Return G(output layer) with the weights ω_t = 1.

    Source: arXiv 2605.04638. Cost: one forward pass, and a product `[D, T] [T, V]`.
    """
    return float(head_gradient)


def exgrad_mean(head_gradient: Any, log_p: Any) -> float:
    """Return `exgrad` divided by the number of tokens T, that of log_p; source and cost as there."""
    return exgrad(head_gradient) / len(log_p)


def paragrad(weighted_head_gradient: Any) -> float:
    """Return G(output layer) with entropies as weights; source and cost as `exgrad`."""
    return float(weighted_head_gradient)


def paragrad_mean(weighted_head_gradient: Any, entropy: Any) -> float:
    """Return `paragrad` divided by the number of tokens T, that of entropy; source and cost as there."""
    return paragrad(weighted_head_gradient) / len(entropy)


def semgrad(state_gradient: Any) -> float:
    """Return G(hidden states at one position of the prompt) with entropies as weights.

    The states are those after the layers L/2 + 1, …, L − 1 (`upper_layers`), the position is fixed or chosen by
    `isouq.text.semantic_position`. Source: arXiv 2605.04638; its published code begins one layer earlier.
    Cost: one forward pass, and one backward pass through the upper half of the layers.
    """
    return float(state_gradient)


def semgrad_mean(state_gradient: Any, entropy: Any) -> float:
    """Return `semgrad` divided by the number of tokens T, that of entropy; source and cost as there."""
    return semgrad(state_gradient) / len(entropy)


def hybridgrad(state_gradient: Any, weighted_head_gradient: Any, entropy: Any) -> float:
    """Return (1 − e^−ω) `semgrad` + e^−ω `paragrad`, where ω is the mean entropy of the tokens.

    entropy: of the tokens, array-like `[T]`. Source: arXiv 2605.04638. Cost: that of both.
    """
    share = np.exp(-mean_token_entropy(entropy))
    return float((1 - share) * semgrad(state_gradient) + share * paragrad(weighted_head_gradient))


def hybridgrad_mean(state_gradient: Any, weighted_head_gradient: Any, entropy: Any) -> float:
    """Return `hybridgrad` divided by the number of tokens T, that of entropy; source and cost as there."""
    return hybridgrad(state_gradient, weighted_head_gradient, entropy) / len(entropy)


def upper_layers(num_layers: int) -> range:
    """Return the layers after which `semgrad` takes the states, counted from 1: L/2 + 1, …, L − 1.

    Raises:
        ValueError: fewer than 3 layers, of which none is left.
    """
    if num_layers < 3:
        raise ValueError(f"the model has {num_layers} layers; semgrad needs at least 3")
    return range(num_layers // 2 + 1, num_layers)


def preservation_scores(states: Any, question: Sequence[int]) -> Float[np.ndarray, " positions"]:
    """Return for each position how much closer the states of paraphrases are than those of different questions.

    The score of a position is the mean cosine of all pairs of paraphrases of one question less that of all pairs of
    different questions, averaged over the layers.

    Args:
        states: hidden states at the last positions of n prompts, array-like `[n, positions, layers, D]`.
        question: the number of the question that each prompt asks, `[n]`.

    Raises:
        ValueError: states of another shape or not finite, no two paraphrases or no two questions.

    Source: the semantic preservation score of arXiv 2605.04638, as a difference of mean cosines; that form is ours.
    """
    states = floats("states", states)
    if states.ndim != 4 or not states.size or not np.isfinite(states).all():
        raise ValueError(f"states has shape {states.shape} or is not finite; expected [prompts, positions, layers, D]")
    number = whole_numbers("question", question, len(states))
    same = number[:, None] == number[None, :]
    others = ~same
    np.fill_diagonal(same, False)
    if not same.any() or not others.any():
        raise ValueError("question holds no two paraphrases or no two questions; expected two of both")
    unit = states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), np.finfo(float).tiny)
    cosine = np.einsum("iplk,jplk->ijp", unit, unit) / states.shape[2]
    return cosine[same].mean(axis=0) - cosine[others].mean(axis=0)
