"""Every cheap estimate of the posterior variance against HMC: the leaderboard of one posterior."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure import estimates, held_out
from experiments.synthetic.measure.estimates import (
    FEWEST_DRAWS,
    GRADIENT_DRAWS,
    LAPLACE_MEMBERS,
    SIGMA,
    SMOOTHING,
    Estimate,
)
from experiments.synthetic.measure.laboratory import SAMPLES, SIZES, Laboratory, Moments, pool
from experiments.synthetic.measure.members import ENSEMBLES, SWAG_RANK
from experiments.synthetic.subject import Subject, at_class
from isouq import stats

CONTROL, BASE = "control", "gradient"
STATISTICS = ("spearman", "pearson", "partial", "overlap")
# What an estimate needs: the keys stand in the code, the words in tables and legends.
NEEDS = {
    "nothing": "one trained network",
    "training": "a network trained in another way",
    "ensemble": "several trained networks",
    "data": "training data",
    "chains": "training data and a sampler",
}

Shares = tuple[tuple[str, float], ...]
_ONE: Shares = (("train_map", 1 / max(SIZES)),)  # one of the networks that are trained together


class Estimator(NamedTuple):
    """An estimate: its title, what it needs (a key of `NEEDS`), the function that computes it, and its cost.

    forward, backward: passes of one network for each input. A Jacobian-vector product counts as one of each; training,
    building a covariance and sampling count in the seconds alone. Where the passes depend on the number of classes or
    of draws, they are those of three classes and of the shortest chains. networks: the networks that are trained.
    shares: the parts of the laboratory that other estimates use too, with the share of their seconds that this one
    needs.
    """

    title: str
    needs: str
    compute: Callable[[Laboratory], Estimate | None]
    forward: int
    backward: int
    networks: int = 1
    shares: Shares = _ONE

    def seconds(self, name: str, laps: Mapping[str, float]) -> float:
        """Return the seconds of the map, training included; laps: the seconds of every part of the laboratory."""
        return laps[name] + sum(share * laps[part] for part, share in self.shares)


def _estimators_of_one_network() -> dict[str, Estimator]:
    need, other = "nothing", "training"
    absolute, relative = (partial(estimates.perturbed, relative=relative) for relative in (False, True))
    swag: Shares = (*_ONE, ("train_swag", 1.0))
    dropout: Shares = (("train_dropout", 1.0),)
    logits, smoothed = estimates.isotropic_logits, estimates.smoothed
    return {
        CONTROL: Estimator("p(1 − p), the control", need, estimates.control, 1, 0),
        BASE: Estimator("‖g‖²", need, estimates.gradient, 1, 1),
        "last_layer": Estimator("‖g‖² of the last layer", need, estimates.last_layer, 1, 1),
        "all_classes": Estimator("‖g‖² summed over the classes", need, estimates.all_classes, 1, 3),
        "prior_metric": Estimator("gᵀΣg in the prior's metric", need, estimates.prior_metric, 1, 1),
        "perturbed": Estimator(f"perturbation, σ = {SIGMA}", need, absolute, SAMPLES, 0),
        "perturbed_relative": Estimator(f"perturbation, {SIGMA} × RMS of the weights", need, relative, SAMPLES, 0),
        "smoothed": Estimator(f"‖g‖² smoothed over {SMOOTHING} perturbations", need, smoothed, SMOOTHING, SMOOTHING),
        "isotropic_logits": Estimator(f"isotropic linearised logits, σ = {SIGMA}", need, logits, SAMPLES, SAMPLES),
        "swag": Estimator(f"SWAG, rank {SWAG_RANK}", other, estimates.swag, SAMPLES, 0, 1, swag),
        "dropout": Estimator("MC dropout", other, estimates.dropout, SAMPLES, 0, 1, dropout),
    }


def _estimators_of_ensembles() -> dict[str, Estimator]:
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


def _estimators_from_training_data() -> dict[str, Estimator]:
    members = LAPLACE_MEMBERS
    last_layer = Estimator("last-layer Laplace, GGN", "data", estimates.last_layer_laplace, 1, 1)
    listed = {"last_layer_laplace": last_layer}
    for curvature, title in (("ggn", "GGN Laplace"), ("hessian", "Hessian Laplace")):
        one: Shares = (*_ONE, (f"build_{curvature}", 1.0))
        several: Shares = (("train_map", members / max(SIZES)), (f"ensemble_map_{members}", 1.0))
        for suffix, words, compute, passes, shares in (
            ("", "linearised", estimates.linearised_laplace, (1, 1, 1), one),
            ("_sampled", "sampled", estimates.sampled_laplace, (SAMPLES, 0, 1), one),
            ("_logits", "linearised logits", estimates.laplace_logits, (SAMPLES, SAMPLES, 1), one),
            ("_mixture", f"mixture of {members}", estimates.laplace_mixture, (members, members, members), several),
        ):
            of_curvature = partial(compute, curvature=curvature)
            listed[curvature + suffix] = Estimator(f"{title}, {words}", "data", of_curvature, *passes, shares)
    return listed


def _estimators_from_chains() -> dict[str, Estimator]:
    trained, draws = max(SIZES), GRADIENT_DRAWS
    chains, mean = estimates.short_chains, estimates.gradient_of_draws
    shares: Shares = (("train_map", 2 / trained), ("sample_short", 1.0))
    title = f"short HMC, as many gradients as {trained} trainings"
    return {
        "short_chains": Estimator(title, "chains", chains, 2 * FEWEST_DRAWS, 0, 2, shares),
        "gradient_of_draws": Estimator(
            f"mean ‖g‖² over {draws} draws of the short HMC", "chains", mean, draws, draws, 2, shares
        ),
    }


ESTIMATORS = (
    _estimators_of_one_network()
    | _estimators_of_ensembles()
    | _estimators_from_training_data()
    | _estimators_from_chains()
)


def measure(subject: Subject) -> Result:
    """Return how every estimate agrees with the reference's variance over the inputs of the comparison.

    Columns of each estimate: NAME_spearman, NAME_pearson; NAME_partial, the partial rank correlation given p(1 − p) of
    θ*; NAME_overlap, the share of the tenth with the largest estimates that is in the tenth with the largest variance;
    and seconds_NAME, training included, without tracing and compiling. With held-out points also the columns of
    `held_out`. An estimate that does not exist (no hidden layer to drop, no probability in a regression) has no
    columns.

    The variance is that of the class that the estimate is about. A constant map has no correlation.
    """
    clock = Clock()
    lab = Laboratory(subject)
    posterior = posterior_moments(lab)
    probability = estimates.control(lab)
    lab.train("map")  # before anything else, so that its seconds are known to every estimate that uses a part of them
    numbers: dict[str, Any] = {}
    maps: dict[str, np.ndarray] = {"reference": subject.variance[subject.grid]}
    for name, estimator in ESTIMATORS.items():
        estimate = lab.time_part(name, partial(estimator.compute, lab))
        if estimate is not None:
            truth = _truth(subject, posterior.variance, estimate.target)
            given = None if probability is None else probability.values
            statistics = agreement(estimate.values, truth, given)
            numbers |= {f"{name}_{statistic}": round(value, 6) for statistic, value in statistics.items()}
            numbers[f"seconds_{name}"] = round(estimator.seconds(name, lab.seconds), 4)
            maps[name] = estimate.values
    arrays = {name: values.astype(np.float32) for name, values in maps.items()}
    if subject.setting.held_out is not None:
        columns, curves = held_out.measure_held_out(lab, posterior, maps)
        numbers, arrays = numbers | columns, arrays | curves
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
    """Return the variance of the class that an estimate is about: the stored one where that is the class of θ*."""
    own = subject.variance[subject.grid]
    return own if target is None else np.where(target == np.asarray(subject.target), own, at_class(variances.T, target))
