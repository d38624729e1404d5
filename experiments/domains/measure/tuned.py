"""A fine-tuned encoder with its texts, as every study but the fine-tuning itself reads it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from experiments.domains import texts
from experiments.domains.configuration import Configuration
from experiments.domains.inputs import Corpus
from experiments.run.job import Result
from isouq.text.encoder import Predict

HEAD_RATE, HEAD_PATIENCE = 1e-2, 5
SCORED = 1000  # texts of the rejection curves, none of them trained on
KIND = "binary"
FACTS = ("accepted", "accuracy", "num_params", "train", "validation", "tests", "epochs", "best_epoch")


def head(params: Any, vector: Float[Array, " D"]) -> Float[Array, " classes"]:
    """Return the logits of the encoder's linear head for a pooled vector."""
    return vector @ params["kernel"] + params["bias"]


HEAD = jax.tree_util.Partial(head)


class Tuned(NamedTuple):
    """A fine-tuned encoder, its texts, and the pooled vectors of those that any part of the split holds.

    predict, params: of the whole encoder. features: `[texts, D]`, NaN for a text in no part. scored: the rows of
    `scored_rows`. reference: the result of the fine-tuning.
    """

    corpus: Corpus
    split: texts.Split
    predict: Predict
    params: Any
    features: np.ndarray
    scored: np.ndarray
    reference: Result

    @classmethod
    def of(cls, configuration: Configuration, corpus: Corpus, reference: Result) -> "Tuned":
        """Return the encoder whose parameters and vectors are those of the fine-tuning's result."""
        encoder = corpus.encoder.with_head(1, jax.random.key(0))
        flat = jnp.asarray(reference.arrays["params"])
        params = encoder.params
        if configuration.variant == "whole":
            params = ravel_pytree(params)[1](flat)
        else:
            params = params | {"head": {"out": ravel_pytree(params["head"]["out"])[1](flat)}}
        split = texts.split(corpus.labels, configuration.seed)
        features = np.full((len(corpus.labels), reference.arrays["features"].shape[1]), np.nan, np.float32)
        features[np.concatenate(split)] = reference.arrays["features"]
        return cls(corpus, split, encoder.predict, params, features, scored_rows(split), reference)

    @property
    def head(self) -> Any:
        """Return the head's parameters."""
        return self.params["head"]["out"]

    def facts(self) -> dict[str, Any]:
        """Return the columns of the fine-tuning that the row of every study repeats."""
        return {name: self.reference.numbers[name] for name in FACTS}


def scored_rows(split: texts.Split) -> np.ndarray:
    """Return the rows of the rejection curves: those of the test, then proxies of both domains, up to `SCORED`."""
    more = max(0, min(len(split.science), (SCORED - len(split.test)) // 2))
    return np.concatenate([split.test, split.science[::-1][:more], split.sports[::-1][:more]])


def log_epistemic(uncertainty: Any) -> Float[np.ndarray, " n"]:
    """Return the logarithms of epistemic uncertainties in float64: a log ratio may be 10⁻⁵ of the logarithms."""
    return np.log(np.asarray(uncertainty.epistemic, np.float64))
