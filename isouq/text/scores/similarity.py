"""How alike two texts are, from 0 to 1, by an encoder or by a function of the user's."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from isouq.text.encoder import Predict, TextEncoder
from isouq.text.scores._inputs import floats

Similarity = Callable[[Sequence[tuple[str, str]]], Float[np.ndarray, " n"]]


def similarity_by_encoder(encoder: TextEncoder, batch_size: int = 32) -> Similarity:
    """Return a function from pairs of texts to how alike they are, `[n]`, from 0 to 1.

    encoder: from `load_encoder`. One with a classification head of a single output reads both texts of a pair together,
    and the value is the sigmoid of that output: a cross-encoder of similarity, which the papers of SAR and CoCoA use
    (one pass for each pair). One without a head gives each text a vector, and the value is their cosine, 0 where it is
    negative (one pass for each distinct text).

    Raises:
        ValueError: a head of several outputs.
    """
    if not encoder.config.head:
        return lambda pairs: _cosines(encoder, pairs, batch_size)
    if encoder.config.num_classes != 1:
        raise ValueError(
            f"{encoder.name} has a head of {encoder.config.num_classes} outputs; expected a sentence encoder without a "
            "head, or a cross-encoder with one output"
        )
    return lambda pairs: 1 / (1 + np.exp(-encoder.map_batches(_outputs, pairs, batch_size)[:, 0].astype(np.float64)))


def measure(similarity: Similarity, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return the similarity of every pair, with one call for all distinct ones; raise unless it gives one number each.

    Numbers a rounding error outside 0 to 1 are clipped.
    """
    distinct = list(dict.fromkeys(pairs))
    if not distinct:
        return []
    values = floats("the result of similarity", similarity(distinct))
    if values.shape != (len(distinct),) or not np.all((values > -1e-3) & (values < 1 + 1e-3)):
        raise ValueError(
            f"similarity gave shape {values.shape} for {len(distinct)} pairs, from {np.min(values, initial=1):.3g} to "
            f"{np.max(values, initial=0):.3g}; expected one number from 0 to 1 for each"
        )
    value_of = dict(zip(distinct, np.clip(values, 0, 1).tolist(), strict=True))
    return [value_of[pair] for pair in pairs]


def jaccard(texts: Sequence[str]) -> Float[np.ndarray, "n n"]:
    """Return |A ∩ B| / |A ∪ B| for every two texts, where A and B are their sets of words.

    Words are what stands between spaces, in lower case. Two texts without any word have 1. Cost: no model is run.
    Source: one of the three similarities of Lin et al. 2024, arXiv 2305.19187.
    """
    words = [set(text.lower().split()) for text in texts]
    return np.array([[len(a & b) / len(a | b) if a | b else 1.0 for b in words] for a in words])


def _cosines(encoder: TextEncoder, pairs: Sequence[tuple[str, str]], batch_size: int) -> np.ndarray:
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    number = {text: i for i, text in enumerate(texts)}
    vectors = encoder.embed(texts, batch_size).astype(np.float64)
    one, other = (vectors[[number[pair[side]] for pair in pairs]] for side in (0, 1))
    return np.clip(np.sum(one * other, axis=1), 0, 1)


@jax.jit
def _outputs(predict: Predict, params: Any, xs: dict[str, Array]) -> Float[Array, "n 1"]:
    return jax.vmap(predict, (None, 0))(params, xs)
