"""Score the predictions of a fine-tuned encoder by each uncertainty and by an ensemble of heads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.domains.configuration import HEAD_EPOCHS, Configuration
from experiments.domains.measure.tuned import HEAD, HEAD_PATIENCE, HEAD_RATE, Tuned
from experiments.domains.training import fit, logits
from experiments.run.job import Result

MEMBERS = 5  # heads of the ensemble


def score_predictions(configuration: Configuration, tuned: Tuned) -> Result:
    """Return every score of the texts `scored_rows` and which predictions are wrong (arrays).

    All scores order the predictions of the one fine-tuned model. The ensemble: `MEMBERS` heads on its vectors, each
    from its own initialisation and bootstrap sample of the training texts.
    """
    arrays = tuned.reference.arrays
    logit, ys = arrays["logit"].astype(np.float64), arrays["labels"]
    p = 1 / (1 + np.exp(-logit))
    identity = arrays["identity" if configuration.variant == "whole" else "identity_last"]
    epistemic = np.exp(identity.astype(np.float64))
    aleatoric = np.exp(-np.logaddexp(0, logit) - np.logaddexp(0, -logit))
    members = _ensemble(configuration, tuned)
    scores = {
        "epistemic": epistemic,
        "aleatoric": aleatoric,
        "sum": epistemic + aleatoric,
        "softmax": -np.abs(logit),  # the order of 1 − max(p, 1 − p), with its digits
        "ensemble": members.var(axis=0),
        "ensemble_softmax": -np.abs(members.mean(axis=0) - 0.5),
    }
    wrong = (p > 0.5) != (ys == 1)
    numbers: dict[str, Any] = {"judged": len(ys), "errors": int(wrong.sum())}
    by_name = {f"score_{name}": values for name, values in scores.items()}
    return Result({**tuned.facts(), **numbers}, {**by_name, "wrong": wrong})


def _ensemble(configuration: Configuration, tuned: Tuned) -> Float[np.ndarray, "members texts"]:
    """Return the probability of sports that each head of the ensemble gives the scored texts."""
    ys, split, seed = tuned.corpus.labels, tuned.split, configuration.seed
    validation = (tuned.features[split.validation], ys[split.validation])
    members = []
    for member in range(MEMBERS):
        key = jax.random.fold_in(jax.random.key(seed), member)
        rows = np.random.default_rng([seed, member]).choice(split.train, len(split.train))
        kernel = 0.02 * jax.random.normal(key, tuned.head["kernel"].shape)
        start = {"kernel": kernel, "bias": jnp.zeros(1)}
        fitted = fit(HEAD, start, (tuned.features[rows], ys[rows]), validation, member, rate=HEAD_RATE,
                     epochs=HEAD_EPOCHS, patience=HEAD_PATIENCE)  # fmt: skip
        logit = logits(HEAD, fitted.params, tuned.features[tuned.scored]).astype(np.float64)
        members.append(1 / (1 + np.exp(-logit)))
    return np.array(members)
