"""Score the predictions of a fine-tuned encoder by each uncertainty and by an ensemble of heads."""

from typing import Any

import numpy as np

from experiments.domains.configuration import Configuration
from experiments.domains.measure.heads import head_logits
from experiments.domains.measure.tuned import Tuned
from experiments.run.job import Result


def score_predictions(configuration: Configuration, tuned: Tuned) -> Result:
    """Return every score of the texts `scored_rows` and which predictions are wrong (arrays).

    All scores order the predictions of the one fine-tuned model. The ensemble: the heads of `head_logits`.
    """
    arrays = tuned.reference.arrays
    logit, ys = arrays["logit"].astype(np.float64), arrays["labels"]
    p = 1 / (1 + np.exp(-logit))
    identity = arrays["identity" if configuration.variant == "whole" else "identity_last"]
    epistemic = np.exp(identity.astype(np.float64))
    aleatoric = np.exp(-np.logaddexp(0, logit) - np.logaddexp(0, -logit))
    members = 1 / (1 + np.exp(-head_logits(configuration, tuned, tuned.scored)))
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
