"""Whether one text entails another, by a pretrained classifier of natural language inference.

entailment = load_entailment("hf:org/name")
clusters = clusters_by_entailment(entailment.matrix(texts))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float

from isouq.text.encoder import Predict, TextEncoder, load_encoder

LABEL = "entailment"


@dataclass(frozen=True, eq=False)
class Entailment:
    """A classifier of pairs (premise, hypothesis): an encoder with a head. label: number of its class "entailment"."""

    encoder: TextEncoder
    label: int

    def logits(self, pairs: Sequence[tuple[str, str]], batch_size: int = 32) -> Float[np.ndarray, "n classes"]:
        """Return the classifier's logits of every (premise, hypothesis), float32.

        Pairs beyond the context are cut, the longer side first.
        """
        return self.encoder.map_batches(_logits, pairs, batch_size)

    def matrix(self, texts: Sequence[str], batch_size: int = 32) -> Bool[np.ndarray, "n n"]:
        """Return whether text i entails text j, which is so where that is the likeliest class or the texts are equal.

        Cost: one forward pass for each ordered pair of distinct texts.
        """
        distinct = list(dict.fromkeys(texts))
        pairs = [(a, b) for a in distinct for b in distinct if a != b]
        likeliest = self.logits(pairs, batch_size).argmax(axis=1) if pairs else ()
        entailed = {pair for pair, label in zip(pairs, likeliest, strict=True) if label == self.label}
        return np.array([[a == b or (a, b) in entailed for b in texts] for a in texts], bool).reshape(len(texts), -1)


def load_entailment(name: str, revision: str | None = None) -> Entailment:
    """Load a classifier of entailment by name: any encoder that `load_encoder` reads, with its head.

    The class is the one that the checkpoint's `id2label` calls "entailment", in capitals or not.

    Raises:
        ValueError: a model without a classification head, or whose labels name no entailment; and as `load_encoder`.
    """
    encoder = load_encoder(name, revision=revision)
    if not encoder.config.head:
        raise ValueError(f"{name} has no classification head; expected a classifier of natural language inference")
    numbers = [i for i, label in enumerate(encoder.config.labels) if label.strip().casefold() == LABEL]
    if len(numbers) != 1:
        raise ValueError(
            f"{name} has the labels {', '.join(encoder.config.labels)}; expected one of them to be {LABEL!r}: "
            "take a classifier of natural language inference"
        )
    return Entailment(encoder, numbers[0])


@jax.jit
def _logits(predict: Predict, params: Any, xs: dict[str, Array]) -> Float[Array, "n classes"]:
    return jax.vmap(predict, (None, 0))(params, xs)
