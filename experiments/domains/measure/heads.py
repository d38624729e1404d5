"""An ensemble of heads on the vectors of one fine-tuned encoder."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.domains.configuration import HEAD_EPOCHS, Configuration
from experiments.domains.measure.tuned import HEAD, HEAD_PATIENCE, HEAD_RATE, Tuned
from experiments.domains.training import fit, logits

HEADS = 5


def head_logits(configuration: Configuration, tuned: Tuned, rows: np.ndarray) -> Float[np.ndarray, "heads texts"]:
    """Return the logits that `HEADS` heads give these texts.

    Each head is fitted from its own initialisation to its own bootstrap sample of the training texts.
    """
    ys, split, seed = tuned.corpus.labels, tuned.split, configuration.seed
    validation = (tuned.features[split.validation], ys[split.validation])
    outputs = []
    for number in range(HEADS):
        key = jax.random.fold_in(jax.random.key(seed), number)
        sample = np.random.default_rng([seed, number]).choice(split.train, len(split.train))
        kernel = 0.02 * jax.random.normal(key, tuned.head["kernel"].shape)
        start = {"kernel": kernel, "bias": jnp.zeros(1)}
        fitted = fit(HEAD, start, (tuned.features[sample], ys[sample]), validation, number, rate=HEAD_RATE,
                     epochs=HEAD_EPOCHS, patience=HEAD_PATIENCE)  # fmt: skip
        outputs.append(logits(HEAD, fitted.params, tuned.features[rows]).astype(np.float64))
    return np.array(outputs)
