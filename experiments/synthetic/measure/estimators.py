"""Every cheap estimate of the posterior variance against HMC: the leaderboard of one posterior."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure import estimates, prediction
from experiments.synthetic.measure.estimates import (
    GRADIENT_DRAWS,
    LAPLACE_MEMBERS,
    SIGMA,
    SMOOTHING,
    Estimate,
    at_class,
)
from experiments.synthetic.measure.laboratory import SAMPLES, SIZES, Laboratory, Moments, pool
from experiments.synthetic.measure.members import ENSEMBLES
from experiments.synthetic.subject import Subject
from isouq import stats

CONTROL, BASE = "control", "gradient"
STATISTICS = ("spearman", "pearson", "partial", "overlap")
NEEDS = {
    "nothing": "one trained network",
    "training": "another training",
    "ensemble": "several trained networks",
    "data": "training data",
    "chains": "training data and a sampler",
}


Shares = tuple[tuple[str, float], ...]


class Estimator(NamedTuple):
    """An estimate: its title, what it needs (`NEEDS`), the function that computes it, and its cost.

    forward, backward: passes of one network for each input. networks: the networks that are trained. shares: the parts
    that other estimates use too, with the share of their seconds that this one needs.
    """

    title: str
    needs: str
    compute: Callable[[Laboratory], Estimate | None]
    forward: int
    backward: int
    networks: int = 1
    shares: Shares = (("train_map", 1 / max(SIZES)),)

    def seconds(self, name: str, laps: Mapping[str, float]) -> float:
        """Return the seconds of the map, training included; laps: those of the laboratory."""
        return laps[name] + sum(share * laps[part] for part, share in self.shares)


_ONE: Shares = Estimator._field_defaults["shares"]


def _of_one_network() -> dict[str, Estimator]:
    e, n, s, t = estimates, "nothing", SAMPLES, SMOOTHING
    return {
        CONTROL: Estimator("p(1 − p), the control", n, e.control, 1, 0),
        BASE: Estimator("‖g‖²", n, e.gradient, 1, 1),
        "last_layer": Estimator("‖g‖² of the last layer", n, e.last_layer, 1, 1),
        "all_classes": Estimator("‖g‖² summed over the classes", n, e.all_classes, 1, 3),
        "prior_metric": Estimator("gᵀΣg in the prior's metric", n, e.prior_metric, 1, 1),
        "perturbed": Estimator(f"perturbation, σ = {SIGMA}", n, partial(e.perturbed, relative=False), s, 0),
        "perturbed_relative": Estimator(
            f"perturbation, {SIGMA} × RMS of the weights", n, partial(e.perturbed, relative=True), s, 0
        ),
        "smoothed": Estimator(f"‖g‖² smoothed over {t} perturbations", n, e.smoothed, t, t),
        "isotropic_logits": Estimator(f"isotropic linearised logits, σ = {SIGMA}", n, e.isotropic_logits, s, s),
        "swag": Estimator("SWAG, rank 20", "training", e.swag, s, 0, 1, (*_ONE, ("train_swag", 1.0))),
        "dropout": Estimator("MC dropout", "training", e.dropout, s, 0, 1, (("train_dropout", 1.0),)),
    }


def _of_ensembles() -> dict[str, Estimator]:
    listed: dict[str, Estimator] = {}
    parts = (("between", "variance between", "between", 0), ("within", "mean ‖g‖² over", "within", 1),
             ("both", "between + ‖g‖²,", "epistemic", 1))  # fmt: skip
    for kind, title in ENSEMBLES.items():
        for k in SIZES:
            networks = f"{k} {title} networks"
            shares: Shares = ((f"train_{kind}", k / max(SIZES)), (f"ensemble_{kind}_{k}", 1.0))
            noise: Shares = tuple((f"perturb_{kind}_{i}_relative", 1.0) for i in range(k))
            for name, words, field, backward in parts:
                part = partial(estimates.ensemble_part, kind=kind, count=k, part=field)
                listed[f"{name}_{kind}_{k}"] = Estimator(
                    f"{words} {networks}", "ensemble", part, k, k * backward, k, shares
                )
            both = partial(estimates.between_and_perturbed, kind=kind, count=k)
            listed[f"both_perturbed_{kind}_{k}"] = Estimator(
                f"between + perturbation, {networks}", "ensemble", both, k * SAMPLES, 0, k, shares + noise
            )
    for suffix, words in (("", f"σ = {SIGMA}"), ("_relative", f"{SIGMA} × RMS")):
        for k in SIZES:
            mixture = partial(estimates.mixture, count=k, relative=bool(suffix))
            shares = (("train_map", k / max(SIZES)), *((f"perturb_map_{i}{suffix}", 1.0) for i in range(k)))
            listed[f"mixture{suffix}_{k}"] = Estimator(
                f"perturbed mixture, {words}, {k} MAP networks", "ensemble", mixture, k * SAMPLES, 0, k, shares
            )
    return listed


def _of_training_data() -> dict[str, Estimator]:
    e, s, m = estimates, SAMPLES, LAPLACE_MEMBERS
    listed = {"last_layer_laplace": Estimator("last-layer Laplace, GGN", "data", e.last_layer_laplace, 1, 1)}
    for c, title in (("ggn", "GGN Laplace"), ("hessian", "Hessian Laplace")):
        one: Shares = (*_ONE, (f"build_{c}", 1.0))
        several: Shares = (("train_map", m / max(SIZES)), (f"ensemble_map_{m}", 1.0))
        for suffix, words, compute, passes, shares in (
            ("", "linearised", e.linearised_laplace, (1, 1, 1), one),
            ("_sampled", "sampled", e.sampled_laplace, (s, 0, 1), one),
            ("_logits", "linearised logits", e.laplace_logits, (s, s, 1), one),
            ("_mixture", f"mixture of {m}", e.laplace_mixture, (m, m, m), several),
        ):
            map_of = partial(compute, curvature=c)
            listed[c + suffix] = Estimator(f"{title}, {words}", "data", map_of, *passes, shares)
    return listed


def _of_chains() -> dict[str, Estimator]:
    k, d = max(SIZES), GRADIENT_DRAWS
    titles = f"short HMC, as many gradients as {k} trainings", f"mean ‖g‖² over {d} draws of the short HMC"
    shares = (("train_map", 2 / k), ("sample_short", 1.0))
    return {
        "short_chains": Estimator(titles[0], "chains", estimates.short_chains, 2 * d, 0, 2, shares),
        "gradient_of_draws": Estimator(titles[1], "chains", estimates.gradient_of_draws, d, d, 2, shares),
    }


ESTIMATORS = _of_one_network() | _of_ensembles() | _of_training_data() | _of_chains()


def measure(subject: Subject) -> Result:
    """Return how every estimate agrees with the reference's variance over the inputs of the comparison.

    Columns of each estimate: NAME_spearman, NAME_pearson; NAME_partial, the partial rank correlation given p(1 − p) of
    θ*; NAME_overlap, the part of the tenth with the largest estimates that is in the tenth with the largest variance;
    and seconds_NAME, training included, without tracing and compiling. With held-out points also the columns of
    `prediction`. An estimate that does not exist (no hidden layer to drop, no probability in a regression) has no
    columns.

    The variance is that of the class that the estimate is about. A constant map has no correlation.
    """
    clock = Clock()
    lab = Laboratory(subject)
    posterior = posterior_moments(lab)
    probability = estimates.control(lab)
    lab.train("map")
    numbers: dict[str, Any] = {}
    maps: dict[str, np.ndarray] = {"reference": subject.variance[subject.grid]}
    for name, estimator in ESTIMATORS.items():
        estimate = lab.timed(name, partial(estimator.compute, lab))
        if estimate is not None:
            truth = _truth(subject, posterior.variance, estimate.target)
            given = None if probability is None else probability.values
            statistics = agreement(estimate.values, truth, given)
            numbers |= {f"{name}_{statistic}": round(value, 6) for statistic, value in statistics.items()}
            numbers[f"seconds_{name}"] = round(estimator.seconds(name, lab.seconds), 4)
            maps[name] = estimate.values
    arrays = {name: values.astype(np.float32) for name, values in maps.items()}
    if subject.setting.held_out is not None:
        more, curves = prediction.measure_prediction(lab, posterior, maps)
        numbers, arrays = numbers | more, arrays | curves
    return Result({**subject.facts(), **numbers, "seconds": clock.laps()["seconds"]}, arrays)


def agreement(estimate: np.ndarray, truth: np.ndarray, given: np.ndarray | None) -> dict[str, float]:
    """Return the statistics of one estimate; all are NaN where the map is not finite."""
    if not np.isfinite(estimate).all():
        return dict.fromkeys(STATISTICS, float("nan"))
    return {
        "spearman": stats.spearman(estimate, truth),
        "pearson": stats.pearson(estimate, truth),
        "partial": float("nan") if given is None else stats.partial_spearman(estimate, truth, given),
        "overlap": stats.top_overlap(estimate, truth),
    }


def posterior_moments(lab: Laboratory, at_once: int = 500) -> Moments:
    """Return mean and variance of every class's probability over all draws of the reference."""
    draws = lab.subject.draws.reshape(-1, lab.subject.draws.shape[-1])
    blocks = [draws[start : start + at_once] for start in range(0, len(draws), at_once)]
    return pool([lab.moments(block) for block in blocks], [len(block) for block in blocks])


def _truth(subject: Subject, variances: np.ndarray, target: np.ndarray | None) -> np.ndarray:
    """Return the variance of the class that is estimated; where that is the class of θ*, the reference's own."""
    own = subject.variance[subject.grid]
    return own if target is None else np.where(target == np.asarray(subject.target), own, at_class(variances, target))
