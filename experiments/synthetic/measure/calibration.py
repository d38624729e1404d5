"""What a covariance does to the probabilities of one network: losses of held-out labels, beside those of its rivals."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

import isouq
from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure import members
from experiments.synthetic.measure.estimators import posterior_moments
from experiments.synthetic.measure.laboratory import Laboratory, class_probabilities
from experiments.synthetic.subject import Subject, ravel_rows
from isouq import stats
from isouq.covariance import Identity, laplace

# The predictors: the network that each is built on ("" for none), and its title.
PREDICTORS = {
    "map": ("", "θ*"),
    "map_temperature": ("map", "θ*, temperature"),
    "map_scale": ("map", "θ*, scaled ‖g‖²"),
    "map_last_layer": ("map", "θ*, last-layer Laplace, scaled"),
    "map_kronecker": ("map", "θ*, Kronecker Laplace, prior by the evidence"),
    "map_kronecker_scale": ("map", "θ*, Kronecker Laplace, scaled"),
    "map_ensemble": ("map", "10 MAP networks"),
    "posterior": ("map", "HMC"),
    "mle": ("", "an MLE network"),
    "mle_temperature": ("mle", "an MLE network, temperature"),
    "mle_scale": ("mle", "an MLE network, scaled ‖g‖²"),
    "mle_ensemble": ("mle", "10 MLE networks"),
}
LOSSES = {"loss": "mean −log p", "brier": "Brier score", "ece": "calibration error"}
BINS = 10


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


class Predicted(NamedTuple):
    """Predictions at the test points: probabilities `[n, classes]`, or for regression means `[n]` and variances."""

    mean: np.ndarray
    variance: np.ndarray | None = None


def measure(subject: Subject) -> Result:
    """Return the losses of every predictor of `PREDICTORS` on the test half of the held-out points.

    Columns NAME_loss, the mean −log p of the label; for classification NAME_brier and NAME_ece; NAME_number, the
    temperature or the scale that was fitted on the other half; and map_kronecker_factor, by which the evidence
    multiplied the prior's standard deviations. A regression has no temperature.
    """
    clock = Clock()
    assert subject.setting.held_out is not None
    lab = Laboratory(subject)
    split = _Split(lab.xs, np.asarray(subject.setting.held_out.ys))
    numbers: dict[str, Any] = {}
    predicted = _of_network(lab, split, "map", lab.theta, numbers) | _of_laplace(lab, split, numbers)
    predicted |= _of_network(lab, split, "mle", lab.member("mle", 0), numbers)
    for kind in ("map", "mle"):
        moments = lab.moments(ravel_rows(lab.train(kind).params))
        predicted[f"{kind}_ensemble"] = _of_moments(lab, moments)
    predicted["posterior"] = _of_moments(lab, posterior_moments(lab))
    for name in PREDICTORS:
        if name in predicted:
            numbers |= {f"{name}_{loss}": value for loss, value in losses(predicted[name], split.test[1]).items()}
    return Result({**subject.facts(), **numbers, "seconds": clock.laps()["seconds"]}, {})


def losses(predicted: Predicted, ys: np.ndarray) -> dict[str, float]:
    """Return the losses of some predictions."""
    if predicted.variance is not None:
        return {"loss": stats.gaussian_log_loss(predicted.mean, predicted.variance, ys)}
    return {
        "loss": stats.log_loss(predicted.mean, ys),
        "brier": stats.brier_score(predicted.mean, ys),
        "ece": stats.calibration_error(predicted.mean, ys, BINS),
    }


def _of_network(
    lab: Laboratory, split: _Split, name: str, params: Any, numbers: dict[str, Any]
) -> dict[str, Predicted]:
    """Return the predictions of one network: as it is, with a temperature, and with a scaled ‖g‖²."""
    fit = isouq.fit_scale(lab.predict, params, *split.fitting, lab.kind, noise=lab.setting.problem.noise)
    predicted = {
        name: _predict(lab, params, split, Identity(0.0)),
        f"{name}_scale": _predict(lab, params, split, fit.covariance),
    }
    numbers[f"{name}_scale_number"] = fit.scale
    if lab.kind != "regression":
        temperature = fit_temperature(_outputs(lab, params, split.fitting[0]), split.fitting[1], lab.kind)
        numbers[f"{name}_temperature_number"] = temperature
        outputs = _outputs(lab, params, split.test[0]) / temperature
        predicted[f"{name}_temperature"] = Predicted(class_probabilities(outputs, lab.kind))
    return predicted


def _of_laplace(lab: Laboratory, split: _Split, numbers: dict[str, Any]) -> dict[str, Predicted]:
    """Return the predictions at θ* under covariances from the training data."""
    density, noise = lab.setting.log_density, lab.setting.problem.noise
    choice = isouq.choose_prior(density, lab.theta, "ggn", "kronecker")
    first = jax.tree.leaves(density.scales)[0]
    numbers["map_kronecker_factor"] = float(jax.tree.leaves(choice.log_density.scales)[0] / first)
    kronecker = laplace(density, lab.theta, "ggn", "kronecker")
    fit = isouq.fit_scale(lab.predict, lab.theta, *split.fitting, lab.kind, kronecker, noise=noise)
    numbers["map_kronecker_scale_number"] = fit.scale
    of_last, last, features = members.last_layer(lab.setting, lab.theta, lab.activation)
    xs, ys = split.fitting
    last_fit = isouq.fit_scale(
        members.affine, last, features(xs), ys, lab.kind, laplace(of_last, last, "ggn"), noise=noise
    )
    numbers["map_last_layer_number"] = last_fit.scale
    got = isouq.predictive(members.affine, last, features(split.test[0]), lab.kind, last_fit.covariance, noise=noise)
    return {
        "map_kronecker": _predict(lab, lab.theta, split, choice.covariance),
        "map_kronecker_scale": _predict(lab, lab.theta, split, fit.covariance),
        "map_last_layer": _as_predicted(got, lab.kind),
    }


def _predict(lab: Laboratory, params: Any, split: _Split, covariance: Any) -> Predicted:
    noise = lab.setting.problem.noise
    return _as_predicted(
        isouq.predictive(lab.predict, params, split.test[0], lab.kind, covariance, noise=noise), lab.kind
    )


def _as_predicted(got: isouq.Predictive, kind: str) -> Predicted:
    if kind == "regression":
        return Predicted(np.asarray(got.mean, np.float64), np.asarray(got.variance, np.float64))
    p = np.asarray(got.mean, np.float64)
    return Predicted(np.stack([1 - p, p], axis=1) if kind == "binary" else p)


def _of_moments(lab: Laboratory, moments: Any) -> Predicted:
    """Return the predictions of several networks, from the moments at all held-out points."""
    mean, variance = moments.mean[1::2], moments.variance[1::2]
    if lab.kind == "regression":
        return Predicted(mean[:, 0], variance[:, 0] + float(lab.setting.problem.noise or 0) ** 2)
    return Predicted(mean)


def _outputs(lab: Laboratory, params: Any, xs: Any) -> np.ndarray:
    outputs = jax.vmap(lab.predict, (None, 0))(params, jnp.asarray(xs)).reshape(len(xs), -1)
    return np.asarray(outputs, np.float64)


def fit_temperature(outputs: np.ndarray, labels: np.ndarray, kind: str) -> float:
    """Return the temperature, between 0.01 and 100, by which logits are divided for the smallest loss of the labels.

    Source: Guo et al. (2017), arXiv 1706.04599.
    """

    def loss(logarithm: float) -> float:
        return stats.log_loss(class_probabilities(outputs / np.exp(logarithm), kind), labels)

    bound = np.log(100)
    return float(np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-bound, bound), method="bounded").x))
