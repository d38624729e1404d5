"""How well the estimates agree with one reference under every variant of the comparison that needs no new chains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure.agreement import seconds
from experiments.synthetic.measure.members import MLE_STEPS
from experiments.synthetic.subject import Setting, Subject, at_class, correlations, epistemic_map, is_flat
from isouq import problems
from isouq._predict import margin
from isouq._uncertainty import uncertainty
from isouq.covariance import laplace
from isouq.posterior import MapFit, fit_map, judge, probabilities

THETAS = {"map": "MAP", "mle": "MLE"}
# The grids: the range of the data widened by 0.5 or by 1.5 at both ends, or 1.5 times as wide as the range. Then the
# column with the verdict on the reference there.
GRIDS = {"near": "± 0.5", "far": "± 1.5", "wide": "× 1.5"}
ACCEPTED = {"near": "accepted", "far": "accepted_far", "wide": "accepted_wide"}
VARIANCES = {"class": "predicted class", "sum": "sum over classes"}


class ReferenceMaps(NamedTuple):
    """The maps of the reference posterior, by class: `[classes, points]`, float64; regression has one row.

    variance: Var_θ[p_c]. aleatoric: E_θ[p_c(1 − p_c)].
    """

    variance: np.ndarray
    aleatoric: np.ndarray


class PointMaps(NamedTuple):
    """The maps of one parameter vector θ*.

    epistemic: ‖∇p_c‖² by class `[classes, points]`, float64. predicted, aleatoric: the class c that θ* predicts and
    p_c(1 − p_c), `[points]`; None for regression.
    """

    epistemic: np.ndarray
    predicted: np.ndarray | None
    aleatoric: np.ndarray | None


def measure(subject: Subject) -> Result:
    """Return r and ρ of ‖g‖², Laplace and p(1 − p) for every θ* of `THETAS`, grid of `GRIDS` and variance.

    Columns: epistemic_THETA_GRID_VARIANCE_STATISTIC, where "sum" exists for several classes alone (for two both
    variances are proportional) and compares Σ_c ‖∇p_c‖² with Σ_c Var[p_c]; aleatoric_THETA_GRID_STATISTIC; and
    laplace_map_GRID_STATISTIC for the kinds of which the paper reports it. flat_THETA_GRID: whether ‖g‖² is flat there,
    so that its correlations are undefined; `flat` says that it is at every θ* on every grid. accepted_far, rhat_far,
    ess_bulk_far, halves_far: the verdict on the grid ± 1.5. mle_NAME: how training without a prior ended.

    Of a reference that was given up there are the facts alone: no number of the lineage may rest on it.
    """
    clock = Clock()
    setting, kind = subject.setting, subject.kind
    far = problems.evaluation_inputs(setting.data.xs, subject.cell.resolution, widen=1.5)
    xs = jnp.concatenate([subject.xs, far])
    end = len(subject.xs)
    rows = {"near": subject.grid, "far": slice(end, None), "wide": slice(subject.wide.start, end)}
    fit = fit_mle(setting)
    clock.lap("seconds_mle", fit.params)
    estimates = {
        "map": estimate_by_class(setting, subject.theta, xs),
        "mle": estimate_by_class(setting, fit.best(), xs),
    }
    numbers = subject.facts() | mle_facts(setting, fit) | flat_facts(estimates, rows)
    if subject.cell.give_up and not numbers["accepted"]:
        unjudged = {ACCEPTED[grid]: False for grid in ("far", "wide")}
        return Result({**numbers, **unjudged, **seconds(subject, clock)}, {})
    covariance = None if kind == "multiclass" else laplace(setting.log_density, subject.theta, "hessian")
    laplace_map = None if covariance is None else epistemic_map(setting, subject.theta, xs, covariance)
    clock.lap("seconds_laplace")
    for grid, part in rows.items():
        margins = margins_by_class(subject, xs[part])
        moments = moments_by_class(margins, kind)
        for theta, estimate in estimates.items():
            if not numbers[f"flat_{theta}_{grid}"]:
                numbers |= agreement(f"{theta}_{grid}", _rows(estimate, part), moments)
        if laplace_map is not None and not numbers[f"flat_map_{grid}"]:
            numbers |= correlations(f"laplace_map_{grid}", laplace_map[part], moments.variance[0])
        if grid == "far":
            numbers |= judge_far(subject, at_class(margins, _rows(estimates["map"], part).predicted))
    clock.lap("seconds_moments")
    return Result({**numbers, **seconds(subject, clock)}, {})


def fit_mle(setting: Setting) -> MapFit:
    """Maximise the likelihood alone from the initial parameters of every chain.

    Separable data have no maximum: θ* is then where training stops, at a gradient below the tolerance or after
    `MLE_STEPS` steps.
    """
    return fit_map(setting.log_density.log_likelihood, setting.inits, max_steps=MLE_STEPS)


def mle_facts(setting: Setting, fit: MapFit) -> dict[str, Any]:
    """Return how the training without a prior ended, at its best start.

    mle_separates: whether θ* classifies every training point correctly, so that a larger last layer raises the
    likelihood without end.
    """
    best = int(fit.best_index())
    facts = {
        "mle_log_likelihood": float(fit.log_density[best]),
        "mle_grad_norm": float(fit.grad_norm[best]),
        "mle_converged": bool(fit.converged[best]),
        "mle_separates": False,
    }
    kind, data = setting.log_density.kind, setting.data
    if kind != "regression":
        predicted = uncertainty(setting.predict, fit.best(), data.xs, kind).target
        facts["mle_separates"] = bool(jnp.all(predicted == data.ys))
    return facts


def estimate_by_class(setting: Setting, theta: Any, xs: Any) -> PointMaps:
    """Return ‖∇p_c‖² of every class at every input, and the predicted class with its p(1 − p).

    ‖∇p_c‖² comes from its logarithm, because under a large θ* it underflows in float32. Both classes of a binary
    problem have the same, so there is one row for it.
    """
    kind = setting.log_density.kind
    predicted = uncertainty(setting.predict, theta, xs, kind)
    by_class = [predicted]
    if kind == "multiclass":
        labels = range(setting.problem.num_outputs)
        by_class = [uncertainty(setting.predict, theta, xs, kind, target=label) for label in labels]
    epistemic = np.exp(np.asarray([one.log_epistemic for one in by_class], np.float64))
    if kind == "regression":
        return PointMaps(epistemic, None, None)
    return PointMaps(epistemic, np.asarray(predicted.target), np.asarray(predicted.aleatoric, np.float64))


def flat_facts(estimates: dict[str, PointMaps], rows: dict[str, slice]) -> dict[str, bool]:
    """Return whether ‖g‖² is flat at every θ* on every grid, and whether it is everywhere."""
    flat = {
        f"flat_{theta}_{grid}": is_flat(at_class(estimate.epistemic, estimate.predicted)[part])
        for theta, estimate in estimates.items()
        for grid, part in rows.items()
    }
    return {"flat": all(flat.values()), **flat}


def _rows(estimate: PointMaps, part: slice) -> PointMaps:
    predicted, aleatoric = (None if each is None else each[part] for each in (estimate.predicted, estimate.aleatoric))
    return PointMaps(estimate.epistemic[:, part], predicted, aleatoric)


def agreement(name: str, estimate: PointMaps, moments: ReferenceMaps) -> dict[str, float]:
    """Return r and ρ of the two uncertainties at θ* with the reference's, for both variances where they differ."""
    epistemic, predicted, aleatoric = estimate
    variance = at_class(moments.variance, predicted)
    numbers = correlations(f"epistemic_{name}_class", at_class(epistemic, predicted), variance)
    if len(epistemic) > 1:
        numbers |= correlations(f"epistemic_{name}_sum", epistemic.sum(axis=0), moments.variance.sum(axis=0))
    if aleatoric is not None:
        numbers |= correlations(f"aleatoric_{name}", aleatoric, at_class(moments.aleatoric, predicted))
    return numbers


def margins_by_class(subject: Subject, xs: Any) -> Float[np.ndarray, "classes chains draws points"]:
    """Return the margin of every class (for regression the mean) at every input under every draw.

    Both margins of a binary problem differ in their sign alone, so there is one row for it. The draws of a round are
    one call of a compiled program, which has one size whatever the number of rounds. Memory: four bytes for each
    class, draw and input.
    """
    chains, draws, _ = subject.draws.shape
    labels = jnp.arange(subject.setting.problem.num_outputs) if subject.kind == "multiclass" else jnp.ones(1, int)
    rounds = np.array_split(subject.draws, -(-draws // subject.cell.num_draws), axis=1)
    flat = [part.reshape(-1, part.shape[2]) for part in rounds]
    parts = [_margins(subject.setting.predict, subject.theta, xs, labels, part, subject.kind) for part in flat]
    split = [np.asarray(part).reshape(len(labels), chains, -1, len(xs)) for part in parts]
    return np.concatenate(split, axis=2)


@jax.jit(static_argnames=("predict", "kind"))
def _margins(predict: Callable, theta: Any, xs: Any, labels: Array, draws: Array, kind: str) -> Array:
    unravel = ravel_pytree(theta)[1]

    def of_draw(draw: Array) -> Array:
        outputs = jax.vmap(predict, (None, 0))(unravel(draw), xs)
        return jax.vmap(lambda label: jax.vmap(lambda out: margin(out, label, kind))(outputs))(labels)

    return jnp.swapaxes(jax.lax.map(of_draw, draws), 0, 1)


def moments_by_class(margins: np.ndarray, kind: str) -> ReferenceMaps:
    """Return the reference's moments from the margins of all draws, one class after the other."""
    moments = []
    for of_label in margins:
        p = probabilities(of_label, kind)
        moments.append((p.var(axis=(0, 1)), (p * (1 - p)).mean(axis=(0, 1))))
    return ReferenceMaps(*map(np.stack, zip(*moments, strict=True)))


def judge_far(subject: Subject, margins: np.ndarray) -> dict[str, Any]:
    """Return the verdict on the reference on the grid ± 1.5, from the margins of the class predicted at the MAP."""
    verdict = judge(margins, subject.reference.numbers["divergent"], probabilities(margins, subject.kind))
    return {f"{name}_far": value for name, value in verdict._asdict().items() if name != "divergent"}
