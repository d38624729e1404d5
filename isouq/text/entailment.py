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

from isouq import _checks
from isouq.text.encoder import Predict, TextEncoder, load_encoder
from isouq.text.scoring import round_up

LABEL = "entailment"


@dataclass(frozen=True, eq=False)
class Entailment:
    """A classifier of (premise, hypothesis) pairs. encoder: with its head. label: the number of the class wanted."""

    encoder: TextEncoder
    label: int

    def logits(self, pairs: Sequence[tuple[str, str]], batch_size: int = 32) -> Float[np.ndarray, "n classes"]:
        """The classifier's logits of every (premise, hypothesis), float32.

        Pairs beyond the context are cut, the longer side first. They are sorted by length and padded to one of a few
        lengths; what stands beside a pair changes its logits by rounding alone.
        """
        _checks.positive_int("batch_size", batch_size)
        xs = self.encoder.encode_texts(pairs)
        lengths = xs["length"]
        order = np.argsort(lengths, kind="stable")
        size = min(batch_size, len(order))
        found = np.empty((len(order), self.encoder.config.num_classes), np.float32)
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            filled = np.concatenate([rows, np.repeat(rows[-1:], size - len(rows))])
            width = min(round_up(int(lengths[rows].max()), 4, 16), self.encoder.config.context_length)
            batch = {name: _widen(array[filled], width) for name, array in xs.items()}
            found[rows] = np.asarray(_logits(self.encoder.predict, self.encoder.params, batch))[: len(rows)]
        return found

    def matrix(self, texts: Sequence[str], batch_size: int = 32) -> Bool[np.ndarray, "n n"]:
        """Whether text i entails text j: whether that is the likeliest class. Equal texts entail each other.

        Cost: one forward pass for each ordered pair of distinct texts.
        """
        distinct = list(dict.fromkeys(texts))
        pairs = [(a, b) for a in distinct for b in distinct if a != b]
        likeliest = self.logits(pairs, batch_size).argmax(axis=1) if pairs else ()
        entailed = {pair for pair, label in zip(pairs, likeliest, strict=True) if label == self.label}
        return np.array([[a == b or (a, b) in entailed for b in texts] for a in texts], bool).reshape(len(texts), -1)


def load_entailment(name: str, revision: str | None = None) -> Entailment:
    """A classifier of entailment by name: BERT, DistilBERT, RoBERTa or XLM-R, as `load_encoder` reads them.

    The class is found by its name in the checkpoint's `id2label`: "entailment", in capitals or not, wherever it stands.

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


def _widen(array: np.ndarray, width: int) -> Any:
    """`[n, T]` cut or filled with 0 to `[n, width]`; `[n]` as it is."""
    if array.ndim == 1:
        return array
    return np.pad(array[:, :width], ((0, 0), (0, max(0, width - array.shape[1]))))


@jax.jit
def _logits(predict: Predict, params: Any, xs: dict[str, Array]) -> Float[Array, "n classes"]:
    return jax.vmap(predict, (None, 0))(params, xs)
