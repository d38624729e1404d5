"""What a covariance does to the probabilities of one network: losses of held-out labels, beside those of its rivals."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import isouq
from experiments import calibration
from experiments.calibration import class_probabilities, fit_temperature
from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure import members
from experiments.synthetic.measure.estimators import posterior_moments
from experiments.synthetic.measure.laboratory import Laboratory, Moments
from experiments.synthetic.subject import Subject, ravel_rows
from isouq import stats
from isouq._predictive import linear_moments
from isouq.covariance import Identity, laplace

# The predictors: the network that each is built on ("" for none), and its title.
PREDICTORS = {
    "map": ("", "θ*"),
    "map_temperature": ("map", "θ*, temperature"),
    "map_scale": ("map", "θ*, scaled ‖g‖²"),
    "map_last_layer": ("map", "θ*, last-layer Laplace, scaled"),
    "map_kronecker": ("map", "θ*, Kronecker Laplace"),
    "map_evidence": ("map", "the same, prior by the evidence"),
    "map_kronecker_scale": ("map", "θ*, Kronecker Laplace, scaled"),
    "map_ensemble": ("map", "10 MAP networks"),
    "posterior": ("map", "HMC"),
    "mle": ("", "an MLE network"),
    "mle_temperature": ("mle", "an MLE network, temperature"),
    "mle_scale": ("mle", "an MLE network, scaled ‖g‖²"),
    "mle_ensemble": ("mle", "10 MLE networks"),
}


class _Split(NamedTuple):
    """The held-out points: every second one is for fitting one number, the others are for its losses."""

    xs: Any
    ys: np.ndarray

    @property
    def fitting(self) -> tuple[Any, np.ndarray]:
        return self.xs[::2], self.ys[::2]

    @property
    def test(self) -> tuple[Any, np.ndarray]:
        return self.xs[1::2], self.ys[1::2]


class Predictions(NamedTuple):
    """Predictions at the test points: probabilities `[n, classes]`, or for regression means `[n]` and variances."""

    mean: np.ndarray
    variance: np.ndarray | None = None


def measure(subject: Subject) -> Result:
    """Return the losses of every predictor of `PREDICTORS` on the test half of the held-out points.

    Columns NAME_loss, the mean −log p of the label; for classification NAME_brier and NAME_ece; NAME_number, the
    temperature or the scale that was fitted on the other half; and map_evidence_factor, by which the evidence
    multiplied the prior's standard deviations. A regression has no temperature.
    """
    clock = Clock()
    assert subject.setting.held_out is not None
    lab = Laboratory(subject)
    split = _Split(lab.xs, np.asarray(subject.setting.held_out.ys))
    numbers: dict[str, Any] = {}
    predictions = _predict_with_network(lab, split, "map", lab.theta, numbers)
    predictions |= _predict_with_laplace(lab, split, numbers)
    predictions |= _predict_with_network(lab, split, "mle", lab.member("mle", 0), numbers)
    for kind in ("map", "mle"):
        moments = lab.moments(ravel_rows(lab.train(kind).params))
        predictions[f"{kind}_ensemble"] = _predict_with_several(lab, moments)
    predictions["posterior"] = _predict_with_several(lab, posterior_moments(lab))
    for name in PREDICTORS:
        if name in predictions:
            numbers |= {f"{name}_{loss}": value for loss, value in losses(predictions[name], split.test[1]).items()}
    return Result({**subject.facts(), **numbers, "seconds": clock.laps()["seconds"]}, {})


def losses(predictions: Predictions, ys: np.ndarray) -> dict[str, float]:
    """Return the losses of some predictions."""
    mean, variance = predictions
    if variance is not None:
        return {"loss": stats.gaussian_log_loss(mean, variance, ys)}
    return calibration.losses(mean, ys)


def _predict_with_network(
    lab: Laboratory, split: _Split, name: str, params: Any, numbers: dict[str, Any]
) -> dict[str, Predictions]:
    """Return the predictions of one network: as it is, with a temperature, and with a scaled ‖g‖²."""
    fit = isouq.fit_scale(lab.predict, params, *split.fitting, lab.kind, noise=lab.setting.problem.noise)
    predictions = {
        name: _predict(lab, lab.predict, params, split.test[0], Identity(0.0)),
        f"{name}_scale": _predict(lab, lab.predict, params, split.test[0], fit.covariance),
    }
    numbers[f"{name}_scale_number"] = fit.scale
    if lab.kind != "regression":
        temperature = fit_temperature(_outputs(lab, params, split.fitting[0]), split.fitting[1], lab.kind)
        numbers[f"{name}_temperature_number"] = temperature
        outputs = _outputs(lab, params, split.test[0]) / temperature
        predictions[f"{name}_temperature"] = Predictions(class_probabilities(outputs, lab.kind))
    return predictions


def _predict_with_laplace(lab: Laboratory, split: _Split, numbers: dict[str, Any]) -> dict[str, Predictions]:
    """Return the predictions at θ* under covariances from the training data."""
    density, noise, (xs, ys), test = lab.setting.log_density, lab.setting.problem.noise, split.fitting, split.test[0]
    choice = isouq.choose_prior(density, lab.theta, "ggn", "kronecker")
    first = jax.tree.leaves(density.scales)[0]
    numbers["map_evidence_factor"] = float(jax.tree.leaves(choice.log_density.scales)[0] / first)
    kronecker = laplace(density, lab.theta, "ggn", "kronecker")
    fit = isouq.fit_scale(lab.predict, lab.theta, xs, ys, lab.kind, kronecker, noise=noise)
    numbers["map_kronecker_scale_number"] = fit.scale
    last_density, last, features = members.last_layer(lab.setting, lab.theta, lab.activation)
    covariance = laplace(last_density, last, "ggn")
    last_fit = isouq.fit_scale(members.affine, last, features(xs), ys, lab.kind, covariance, noise=noise)
    numbers["map_last_layer_number"] = last_fit.scale
    return {
        "map_kronecker": _predict(lab, lab.predict, lab.theta, test, kronecker),
        "map_evidence": _predict(lab, lab.predict, lab.theta, test, choice.covariance),
        "map_kronecker_scale": _predict(lab, lab.predict, lab.theta, test, fit.covariance),
        "map_last_layer": _predict(lab, members.affine, last, features(test), last_fit.covariance),
    }


def _predict(lab: Laboratory, predict: Callable, params: Any, xs: Any, covariance: Any) -> Predictions:
    """Return the predictions by "probit", in float64 so that a probability of nearly 0 keeps its digits."""
    noise = lab.setting.problem.noise
    moments = linear_moments(predict, params, xs, lab.kind, covariance, noise=noise)
    if noise is not None:
        return Predictions(moments.outputs[:, 0], moments.variances[:, 0] + noise**2)
    return Predictions(class_probabilities(moments.moderate(), lab.kind))


def _predict_with_several(lab: Laboratory, moments: Moments) -> Predictions:
    """Return the predictions of several networks, from the moments at all held-out points."""
    mean, variance = moments.mean[1::2], moments.variance[1::2]
    if lab.kind == "regression":
        return Predictions(mean[:, 0], variance[:, 0] + float(lab.setting.problem.noise or 0) ** 2)
    return Predictions(mean)


def _outputs(lab: Laboratory, params: Any, xs: Any) -> np.ndarray:
    outputs = jax.vmap(lab.predict, (None, 0))(params, jnp.asarray(xs)).reshape(len(xs), -1)
    return np.asarray(outputs, np.float64)
