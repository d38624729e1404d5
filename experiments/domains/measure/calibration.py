"""What a covariance does to the probabilities of a fine-tuned encoder: logits of texts that it has not seen.

The protocol, which was fixed before any result was seen:

- Texts: those of the split that neither the training nor its early stopping has used. The first `FITTING` proxies of
  each domain (half of them where there are fewer) fit the one number of a predictor. All others are the test.
- Predictors (`PREDICTORS`): the network as it is; a temperature; ‖g‖² over all trained parameters, times a fitted
  scale; a last-layer Laplace approximation (dense GGN of the training texts), whose prior the evidence chooses, as it
  is and times a fitted scale; an ensemble of heads on the vectors of the network; and, where the whole encoder is
  fine-tuned, an ensemble of such networks, which have the split of the first one, so that they have not seen its
  test either. A network counts whatever its accuracy is.
- Losses: mean −log p, Brier score and calibration error, in float64 from logits. A change is the loss of a predictor
  less that of the network as it is, on the same texts.
- Intervals: one over the seeds, each a new split and a new training; one over the texts, which draws the texts of all
  seeds together, because the seeds share them. A change is called clear where neither interval holds 0 and there are
  at least three seeds.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import isouq
from experiments.calibration import class_probabilities, fit_temperature
from experiments.domains.configuration import NETWORKS, Configuration
from experiments.domains.measure.heads import HEADS, head_logits
from experiments.domains.measure.tuned import HEAD, KIND, Tuned
from experiments.domains.texts import Split
from experiments.domains.training import logits
from experiments.run.job import Result
from isouq._predictive import linear_moments
from isouq.posterior import LogDensity

FITTING = 200
PLAIN, ENSEMBLE = "plain", "networks"
PREDICTORS = {
    PLAIN: "the network as it is",
    "temperature": "temperature",
    "scale": "scaled ‖g‖²",
    "last_layer": "last-layer Laplace, prior by the evidence",
    "last_layer_scale": "the same, scaled",
    "heads": f"{HEADS} heads",
    ENSEMBLE: f"{NETWORKS} fine-tuned networks",
}
BATCH = 16  # texts whose gradients by all parameters are taken at a time


class HeldOut(NamedTuple):
    """The row numbers of the texts that fit the one number of a predictor, and of those that give its losses."""

    fitting: np.ndarray
    test: np.ndarray

    @classmethod
    def of(cls, split: Split) -> "HeldOut":
        """Return the parts of the texts that were not trained on."""
        proxies = split.science, split.sports
        count = min(FITTING, len(split.science) // 2)
        return cls(
            np.concatenate([rows[:count] for rows in proxies]),
            np.concatenate([split.test, *(rows[count:] for rows in proxies)]),
        )


class _Model(NamedTuple):
    """A function of trained parameters, and the inputs that it takes of the texts with some row numbers."""

    predict: Callable
    params: Any
    inputs: Callable[[np.ndarray], Any]


def calibrate(configuration: Configuration, tuned: Tuned) -> Result:
    """Return the logits of the test texts by every predictor but the ensemble of networks, and the fitted numbers.

    Columns NAME_number: the temperature or the scale; last_layer_prior: the standard deviation of the prior that the
    evidence chooses. Arrays: the rows and labels of the test texts, and the logits of each predictor.
    """
    rows, ys = HeldOut.of(tuned.split), tuned.corpus.labels
    head = _Model(HEAD, tuned.head, lambda part: tuned.features[part])
    trained = _Model(tuned.predict, tuned.params, tuned.corpus.rows) if configuration.variant == "whole" else head
    scale = _fit_scale(trained, rows.fitting, ys, None)
    moments = _moments(trained, rows.test, scale.covariance)
    temperature = fit_temperature(_logits(tuned, rows.fitting)[:, None], ys[rows.fitting], KIND)
    density = LogDensity.of(HEAD, tuned.head, head.inputs(tuned.split.train), ys[tuned.split.train], KIND)
    choice = isouq.choose_prior(density, tuned.head, "ggn", "dense")
    last_scale = _fit_scale(head, rows.fitting, ys, choice.covariance)
    # The outputs are those of the whole network throughout, so that a scale of 0 changes no digit.
    last = _moments(head, rows.test, choice.covariance)._replace(outputs=moments.outputs)
    arrays = {
        PLAIN: moments.outputs[:, 0],
        "temperature": moments.outputs[:, 0] / temperature,
        "scale": moments.moderate()[:, 0],
        "last_layer": last.moderate()[:, 0],
        "last_layer_scale": last.moderate(last_scale.scale)[:, 0],
        "heads": mean_logits(head_logits(configuration, tuned, rows.test)),
    }
    numbers = {
        "fitting": len(rows.fitting),
        "compared": len(rows.test),
        "errors": int(np.sum((moments.outputs[:, 0] > 0) != (ys[rows.test] == 1))),
        "temperature_number": temperature,
        "scale_number": scale.scale,
        "last_layer_prior": float(jnp.ravel(choice.log_density.scales["kernel"])[0]),
        "last_layer_scale_number": last_scale.scale,
    }
    return Result({**tuned.facts(), **numbers}, {"rows": rows.test, "labels": ys[rows.test], **arrays})


def predict_test(_configuration: Configuration, tuned: Tuned) -> Result:
    """Return the logits of the test texts by a further network of an ensemble."""
    rows = HeldOut.of(tuned.split).test
    return Result(tuned.facts(), {"rows": rows, PLAIN: _logits(tuned, rows)})


def mean_logits(members: Float[np.ndarray, "members texts"]) -> Float[np.ndarray, " texts"]:
    """Return the logits of the mean probability of several networks."""
    p = class_probabilities(members[..., None], KIND).mean(axis=0)
    return np.log(p[:, 1]) - np.log(p[:, 0])


def _logits(tuned: Tuned, rows: np.ndarray) -> Float[np.ndarray, " rows"]:
    return logits(HEAD, tuned.head, tuned.features[rows]).astype(np.float64)


def _fit_scale(model: _Model, rows: np.ndarray, ys: np.ndarray, covariance: Any) -> isouq.ScaleFit:
    return isouq.fit_scale(
        model.predict, model.params, model.inputs(rows), ys[rows], KIND, covariance, batch_size=min(BATCH, len(rows))
    )


def _moments(model: _Model, rows: np.ndarray, covariance: Any) -> Any:
    return linear_moments(
        model.predict, model.params, model.inputs(rows), KIND, covariance, batch_size=min(BATCH, len(rows))
    )
