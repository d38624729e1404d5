"""How well the estimates agree with one reference under every variant of the comparison that needs no new chains."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure.agreement import seconds
from experiments.synthetic.subject import Setting, Subject, correlations, epistemic_map, is_flat
from isouq import problems
from isouq._uncertainty import uncertainty
from isouq.covariance import laplace
from isouq.posterior import MapFit, Margins, fit_map, judge, probabilities

THETAS = {"map": "MAP", "mle": "MLE"}
# The grids, and the column with the verdict on the reference there.
GRIDS = {"near": "± 0.5", "far": "± 1.5", "wide": "× 1.5"}
ACCEPTED = {"near": "accepted", "far": "accepted_far", "wide": "accepted_wide"}
VARIANCES = {"class": "predicted class", "sum": "sum over classes"}
MLE_STEPS = 2000


class Moments(NamedTuple):
    """What the reference says at each input, by class: `[classes, points]`, float64; regression has one row.

    variance: Var_θ[p_c]. aleatoric: E_θ[p_c(1 − p_c)].
    """

    variance: np.ndarray
    aleatoric: np.ndarray


class Estimates(NamedTuple):
    """What a point θ* says at each input.

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
    so that its correlations are undefined; `flat` says that it is at every θ* on every grid. rhat_far, ess_bulk_far,
    accepted_far: the verdict on the grid ± 1.5. mle_NAME: how training without a prior ended; see `fit_mle`.
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
    covariance = None if kind == "multiclass" else laplace(setting.log_density, subject.theta, "hessian")
    laplace_map = None if covariance is None else epistemic_map(setting, subject.theta, xs, covariance)
    clock.lap("seconds_laplace")
    for grid, part in rows.items():
        moments = moments_by_class(subject, xs[part])
        for theta, estimate in estimates.items():
            if not numbers[f"flat_{theta}_{grid}"]:
                numbers |= agreement(f"{theta}_{grid}", _rows(estimate, part), moments)
        if laplace_map is not None and not numbers[f"flat_map_{grid}"]:
            numbers |= correlations(f"laplace_map_{grid}", laplace_map[part], moments.variance[0])
    numbers |= judge_far(subject, xs[rows["far"]])
    clock.lap("seconds_moments")
    return Result({**numbers, **seconds(subject, clock)}, {})


def fit_mle(setting: Setting) -> MapFit:
    """Maximise the likelihood alone from the initial parameters of every chain.

    Separable data have no maximum: θ* is then where training stops, at a gradient below the tolerance or after
    MLE_STEPS steps.
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


def estimate_by_class(setting: Setting, theta: Any, xs: Any) -> Estimates:
    """Return ‖∇p_c‖² of every class at every input, and the predicted class with its p(1 − p).

    ‖∇p_c‖² comes from its logarithm, because under a large θ* it underflows in float32. Both classes of a binary
    problem have the same, so there is one row for it.
    """
    kind = setting.log_density.kind
    predicted = uncertainty(setting.predict, theta, xs, kind)
    labels = range(setting.problem.num_outputs) if kind == "multiclass" else [None]
    by_class = [uncertainty(setting.predict, theta, xs, kind, target=label).log_epistemic for label in labels]
    epistemic = np.exp(np.asarray(by_class, np.float64))
    if kind == "regression":
        return Estimates(epistemic, None, None)
    return Estimates(epistemic, np.asarray(predicted.target), np.asarray(predicted.aleatoric, np.float64))


def flat_facts(estimates: dict[str, Estimates], rows: dict[str, slice]) -> dict[str, bool]:
    """Return whether ‖g‖² is flat at every θ* on every grid, and whether it is everywhere."""
    flat = {
        f"flat_{theta}_{grid}": is_flat(of_class(estimate.epistemic, estimate.predicted)[part])
        for theta, estimate in estimates.items()
        for grid, part in rows.items()
    }
    return {"flat": all(flat.values()), **flat}


def of_class(by_class: np.ndarray, predicted: np.ndarray | None) -> np.ndarray:
    """Return the value of the predicted class at each input; the only row where there is one."""
    if len(by_class) == 1 or predicted is None:
        return by_class[0]
    return np.take_along_axis(by_class, predicted[None], axis=0)[0]


def _rows(estimate: Estimates, part: slice) -> Estimates:
    predicted, aleatoric = (None if each is None else each[part] for each in (estimate.predicted, estimate.aleatoric))
    return Estimates(estimate.epistemic[:, part], predicted, aleatoric)


def agreement(name: str, estimate: Estimates, moments: Moments) -> dict[str, float]:
    """Return r and ρ of a point's two uncertainties with the reference's, of both variances where they differ."""
    epistemic, predicted, aleatoric = estimate
    variance = of_class(moments.variance, predicted)
    numbers = correlations(f"epistemic_{name}_class", of_class(epistemic, predicted), variance)
    if len(epistemic) > 1:
        numbers |= correlations(f"epistemic_{name}_sum", epistemic.sum(axis=0), moments.variance.sum(axis=0))
    if aleatoric is not None:
        numbers |= correlations(f"aleatoric_{name}", aleatoric, of_class(moments.aleatoric, predicted))
    return numbers


def moments_by_class(subject: Subject, xs: Any) -> Moments:
    """Return the reference's moments at these inputs from all draws, one class after the other.

    Memory: twelve bytes for each draw and input.
    """
    classes = subject.setting.problem.num_outputs if subject.kind == "multiclass" else 1
    moments = []
    for label in range(classes):
        target = None if subject.kind == "regression" else jnp.full(len(xs), label)
        p = probabilities(margins_of_draws(subject, xs, target), subject.kind)
        moments.append((p.var(axis=(0, 1)), (p * (1 - p)).mean(axis=(0, 1))))
    return Moments(*map(np.stack, zip(*moments, strict=True)))


def judge_far(subject: Subject, xs: Any) -> dict[str, Any]:
    """Return the verdict on the reference at these inputs, on the class that is predicted at the MAP."""
    target = uncertainty(subject.setting.predict, subject.theta, xs, subject.kind).target
    margins = margins_of_draws(subject, xs, target)
    verdict = judge(margins, subject.reference.numbers["divergent"], probabilities(margins, subject.kind))
    return {"accepted_far": verdict.accepted, "rhat_far": verdict.rhat, "ess_bulk_far": verdict.ess_bulk}


def margins_of_draws(subject: Subject, xs: Any, target: Any) -> Float[np.ndarray, "chains draws points"]:
    """Return the margin of `target` (for regression the mean) at every input under every draw.

    The draws of a round are one call of a compiled program, which has one size whatever the number of rounds.
    """
    chains, draws, _ = subject.draws.shape
    rounds = np.array_split(subject.draws, -(-draws // subject.cell.num_draws), axis=1)
    margins = Margins(subject.setting.predict, xs, target, subject.kind)
    parts = [_margins(margins, subject.theta, part.reshape(-1, part.shape[2])) for part in rounds]
    return np.concatenate([np.asarray(part).reshape(chains, -1, len(xs)) for part in parts], axis=1)


@jax.jit
def _margins(margins: Margins, theta: Any, draws: Array) -> Array:
    unravel = ravel_pytree(theta)[1]
    return jax.lax.map(lambda draw: margins(unravel(draw)), draws)
