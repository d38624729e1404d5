"""What ‖g‖² loses against the reference: to the Taylor expansion, or to isotropy?

V = Var_θ[p_c] (reference), L = gᵀΣg with Σ the covariance of the reference's draws, I = ‖g‖², g = ∇_θ p_c at θ*.
corr(V, L) is what linearising costs, corr(L, I) what isotropy costs, corr(V, I) the whole.

Command: python -m experiments decomposition --preset quick
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from scipy.special import expit

from experiments.report import tables as report
from experiments.report.outputs import Outputs
from experiments.synthetic import scaling
from experiments.synthetic.cell import Cell, Result
from experiments.synthetic.subject import Clock, Subject, correlations
from isouq import plots, stats
from isouq._predict import margin
from isouq.alignment import align_hidden_units
from isouq.posterior import Margins, probabilities
from isouq.stats import Interval

SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the isotropic perturbation
NUM_DIRECTIONS = 512
ALIGNMENT_BUDGET = 2**28  # draws × width²: 4096 draws at width 256, a minute on one core
_STREAM = 1  # of the cell's second key
VERSIONS = {"pooled": "pooled over chains", "within": "within chains", "aligned": "units aligned to θ*"}
STATISTICS = {"pearson": "r", "spearman": "ρ"}
TERMS = ("taylor", "isotropy")
Row = report.Row
Groups = dict[str, list[Row]]
Intervals = dict[str, Interval]


def cells(preset: str, seeds: int | None = None, widths: tuple[int, ...] | None = None) -> list[Cell]:
    """The models of `validation` and of `scaling` at the same preset, on the references that those sampled.

    Beside the references, on 2 CPU cores: smoke half a minute; quick about 2 minutes; paper 13 minutes up to width 256
    (220 of its 290 cells), about an hour more beyond, most of it in matching units (an estimate).
    """
    return scaling.every_model("decomposition", preset, seeds, widths)


def measure(subject: Subject) -> Result:
    """V, L, I and the isotropic perturbations W on the grid, and how they correlate.

    Columns, each with `_pearson` and `_spearman`: `whole` corr(V, I); for every Σ of `VERSIONS` `taylor_Σ`
    corr(V, L) and `isotropy_Σ` corr(L, I); for every σ of `SIGMAS` `perturbation_σ` corr(V, W) and
    `perturbation_σ_identity` corr(I, W). `scale_Σ`: mean(L) / mean(V), 1 where linearising keeps the size.
    `anisotropy_Σ`: sd / mean of L / I over the grid, 0 where Σ acts on the gradients as a multiple of I.
    `aligned_draws`: the number of draws whose units were matched, all unless draws × width² is over
    `ALIGNMENT_BUDGET`, then evenly spaced ones.
    """
    clock = Clock()
    made, kind, xs = subject.setting, subject.kind, subject.xs[subject.here]
    variance = subject.variance[subject.here]
    g = gradients(made.predict, subject.theta, xs, subject.target, kind)
    identity = np.sum(g**2, axis=1)
    clock.lap("seconds_gradients")
    centred = projections(g, subject.draws)
    linearised = {"pooled": centred.var(axis=(0, 1)), "within": centred.var(axis=1).mean(axis=0)}
    clock.lap("seconds_linearised")
    some = _within_budget(subject.draws, subject.theta)
    linearised["aligned"] = projections(g, align_hidden_units(some, subject.theta)).var(axis=(0, 1))
    clock.lap("seconds_aligned")
    key = jax.random.fold_in(made.second_key, _STREAM)
    directions = jax.random.normal(key, (NUM_DIRECTIONS, g.shape[1]))
    margins = Margins(made.predict, xs, subject.target, kind)
    perturbed = {f"{sigma:g}": perturbation(margins, subject.theta, directions, sigma) for sigma in SIGMAS}
    clock.lap("seconds_perturbation")
    numbers = correlations("whole", variance, identity)
    for version, values in linearised.items():
        numbers |= correlations(f"taylor_{version}", variance, values)
        numbers |= correlations(f"isotropy_{version}", values, identity)
        numbers[f"scale_{version}"] = float(values.mean() / variance.mean())
        numbers[f"anisotropy_{version}"] = _anisotropy(values, identity)
    for sigma, values in perturbed.items():
        numbers |= correlations(f"perturbation_{sigma}", variance, values)
        numbers |= correlations(f"perturbation_{sigma}_identity", identity, values)
    numbers["aligned_draws"] = some.shape[0] * some.shape[1]
    maps = {"V": variance, "I": identity}
    maps |= {f"L_{version}": values for version, values in linearised.items()}
    maps |= {f"W_{sigma}": values for sigma, values in perturbed.items()}
    arrays = {name: values.astype(np.float32) for name, values in maps.items()}
    return Result({**subject.facts(), **numbers, **clock.laps()}, {**arrays, "grid": np.asarray(xs)})


def gradients(predict: Callable, theta: Any, xs: Any, target: Any, kind: str) -> Float[np.ndarray, "points P"]:
    """The gradient g = ∇_θ p_c at θ* of every input (of the mean for regression), flat as `ravel_pytree`, float64.

    g = a∇m with the margin m and a = p_c(1 − p_c), as in `isouq.uncertainty`. Memory: points × parameters.
    """
    values, slopes = _margin_gradients(predict, theta, xs, target, kind)
    slopes = np.asarray(slopes, np.float64)
    if kind == "regression":
        return slopes
    m = np.asarray(values, np.float64)
    return (expit(m) * expit(-m))[:, None] * slopes


@jax.jit(static_argnames="kind")
def _margin_gradients(predict: Callable, theta: Any, xs: Any, target: Any, kind: str) -> tuple[Array, Array]:
    def one(x: Any, label: Any) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(lambda params: margin(predict(params, x), label, kind))(theta)
        return value, ravel_pytree(slope)[0]

    return jax.vmap(one)(xs, target)


def projections(g: Float[np.ndarray, "points P"], draws: np.ndarray) -> Float[np.ndarray, "chains draws points"]:
    """The numbers g · (θ_s − mean θ), whose variance over draws is gᵀΣg: Σ `[P, P]` is never formed.

    draws: `[chains, draws, P]`. Centred before they are projected, and in float64: nothing cancels.
    Cost: draws × points × P multiplications; memory one chain in float64 and draws × points.
    """
    centre = draws.mean(axis=(0, 1), dtype=np.float64)
    return np.stack([(chain - centre) @ g.T for chain in draws])


def perturbation(
    margins: Margins, theta: Any, directions: Float[Array, "draws P"], sigma: float
) -> Float[np.ndarray, " points"]:
    """W = Var_ε[p_c(x|θ* + σε)] over the given directions ε ~ N(0, I): isotropic, but not linearised.

    W / σ² tends to ‖g‖² as σ → 0, up to the error of so many directions. Cost: draws × points forward
    passes; memory draws × points, with the activations of one draw at a time.
    """
    return probabilities(_perturbed(margins, theta, directions, sigma), margins.kind).var(axis=0)


@jax.jit
def _perturbed(margins: Margins, theta: Any, directions: Array, sigma: float) -> Array:
    flat, unravel = ravel_pytree(theta)
    return jax.lax.map(lambda direction: margins(unravel(flat + sigma * direction)), directions)


def _within_budget(draws: np.ndarray, theta: Any) -> np.ndarray:
    """All draws `[chains, draws, P]`, or as many evenly spaced ones of every chain as the budget allows."""
    layers = theta["layers"]
    width = max((layers[depth]["bias"].size for depth in range(len(layers) - 1)), default=1)
    chains, count = draws.shape[:2]
    kept = min(count, max(2, ALIGNMENT_BUDGET // (chains * width**2)))
    return draws[:, np.linspace(0, count - 1, kept).round().astype(int)]


def _anisotropy(values: np.ndarray, identity: np.ndarray) -> float:
    some = identity > 0
    ratio = values[some] / identity[some]
    return float(ratio.std() / ratio.mean()) if some.any() else float("nan")


def summarise(results: list[Result], preset: str) -> Outputs:
    """The three correlations of every model, which term costs more, and the perturbation beside ‖g‖²."""
    rows = [result.numbers for result in results]
    problems = _groups([row for row in rows if row["width"] is None])
    sweep = _groups(sorted((row for row in rows if row["width"] is not None), key=_place))
    intervals = {name: _intervals(mine) for name, mine in (problems | sweep).items()}
    summary = "\n".join(
        [
            f"# Decomposition, preset `{preset}`\n",
            report.reading(),
            _lost(problems | sweep, intervals),
            _costs({"problems": problems, "width × prior": sweep}),
            _sizes(intervals),
            _perturbations({"problems": problems, "width × prior": sweep}, intervals),
            report.training(rows),
            report.unconverged(rows),
        ]
    )
    figures: dict[str, Any] = {}
    if sweep:
        curves: dict[tuple[str, float], dict[int, Intervals]] = {}
        for name, mine in sweep.items():
            curves.setdefault((mine[0]["prior"], mine[0]["sigma"]), {})[mine[0]["width"]] = intervals[name]
        figures["decomposition"] = plots.decomposition(curves, VERSIONS, "pearson")
        figures["decomposition_spearman"] = plots.decomposition(curves, VERSIONS, "spearman")
    if problems:
        chosen = {name: intervals[name] for name in problems}
        figures["decomposition_problems"] = plots.decomposition_problems(chosen, VERSIONS)
        figures["perturbation"] = plots.perturbation(chosen, SIGMAS)
    return Outputs(rows, summary, figures)


def _place(row: Row) -> tuple[bool, float, int]:
    """Where a model of the sweep stands: prior `unit` first, then by σ and width."""
    return row["prior"] != "unit", row["sigma"], row["width"]


def _groups(rows: Sequence[Row]) -> Groups:
    """The seeds of every model, by its name."""
    found: Groups = {}
    for row in rows:
        name = row["problem"] if row["width"] is None else f"{row['prior']} σ = {row['sigma']:g}, width {row['width']}"
        found.setdefault(name, []).append(row)
    return found


def _intervals(rows: Sequence[Row]) -> Intervals:
    """Every column of correlations and scales over the accepted seeds."""
    kinds = ("whole_", "taylor_", "isotropy_", "scale_", "anisotropy_", "perturbation_")
    return {name: report.over_seeds(rows, name) for name in rows[0] if name.startswith(kinds)}


def _with_bounds(interval: Interval) -> str:
    return f"{report.mean_sd(interval)} {report.bounds(interval)}" if interval.count > 1 else report.mean_sd(interval)


def _lost(groups: Groups, intervals: dict[str, Intervals]) -> str:
    """The three correlations of every model under every Σ."""
    text = (
        "## Where the correlation is lost\n\n"
        "V = Var_θ[p] (reference), L = gᵀΣg with Σ the covariance of the draws (linearised), I = ‖g‖² (linearised "
        "and isotropic). Taylor: corr(V, L). Isotropy: corr(L, I). Whole: corr(V, I). Draws visit symmetric copies "
        "of a mode, which makes the pooled Σ look isotropic: hence also the mean Σ of single chains, and Σ once the "
        "hidden units of every draw are matched to those of θ* (permutation and sign). 1 − correlation does "
        "not add up: the whole can lose less than either term.\n"
    )
    columns = ["whole", *(f"{term}_{version}" for version in VERSIONS for term in TERMS)]
    header = ["model", "accepted", "whole", *(f"{term}, {title}" for title in VERSIONS.values() for term in TERMS)]
    for statistic, symbol in STATISTICS.items():
        body = [
            [name, report.accepted_share(mine), *(_with_bounds(intervals[name][f"{c}_{statistic}"]) for c in columns)]
            for name, mine in groups.items()
        ]
        text += f"\n### {statistic.capitalize()}'s {symbol}\n\n{report.table(header, body)}"
    return text


def _costs(parts: dict[str, Groups]) -> str:
    """For how many models Taylor costs more than isotropy, and how much on average."""
    body = []
    for part, groups in parts.items():
        for statistic, symbol in STATISTICS.items():
            for version, title in VERSIONS.items():
                losses = _losses(groups, version, statistic)
                if not len(losses):
                    continue
                difference = stats.bootstrap_mean(losses[:, 0] - losses[:, 1])
                larger = int(np.sum(losses[:, 0] > losses[:, 1]))
                clear = "Taylor" if difference.low > 0 else "isotropy" if difference.high < 0 else "neither clearly"
                if difference.count < scaling.MIN_SEEDS:
                    clear = f"too few models ({difference.count})"
                terms = [_with_bounds(stats.bootstrap_mean(losses[:, i])) for i in range(2)]
                line = [part, symbol, title, f"{larger} of {len(losses)}", *terms, _with_bounds(difference), clear]
                body.append(line)
    header = [
        "models", "", "Σ", "Taylor costs more in", "loss to Taylor", "loss to isotropy", "Taylor − isotropy",
        "costs more",
    ]  # fmt: skip
    text = (
        "## Taylor or isotropy?\n\n"
        "The loss to Taylor is 1 − corr(V, L), to isotropy 1 − corr(L, I), paired by seed and averaged over the "
        "accepted seeds of a model; then mean ± sd and a bootstrap 95 % interval over the models that have one. "
        "One term costs more where the interval of the difference excludes 0. The models of width × prior "
        "share one problem: their interval speaks of these models and no others. All of it is along V → L → I, and V "
        "is the whole posterior's in all three versions: where draws visit several modes, Taylor is charged.\n\n"
    )
    return text + (report.table(header, body) if body else "No reference was accepted.\n")


def _losses(groups: Groups, version: str, statistic: str) -> Float[np.ndarray, "models 2"]:
    """The losses to Taylor and to isotropy of every model with an accepted reference."""
    names = [f"{term}_{version}_{statistic}" for term in TERMS]
    found = []
    for mine in groups.values():
        pairs = np.array([[row[name] for name in names] for row in mine if row["accepted"]]).reshape(-1, 2)
        pairs = pairs[np.isfinite(pairs).all(axis=1)]
        if len(pairs):
            found.append(1 - pairs.mean(axis=0))
    return np.array(found).reshape(-1, 2)


def _sizes(intervals: dict[str, Intervals]) -> str:
    """mean(L) / mean(V), and how evenly Σ acts on the gradients."""
    body = [
        [name, *(_with_bounds(mine[f"{what}_{version}"]) for what in ("scale", "anisotropy") for version in VERSIONS)]
        for name, mine in intervals.items()
    ]
    titles = list(VERSIONS.values())
    header = ["model", *(f"mean L / mean V, {t}" for t in titles), *(f"sd / mean of L / I, {t}" for t in titles)]
    return (
        "## Right in shape, right in size?\n\n"
        "mean(L) / mean(V) is 1 where linearising keeps the size of the variance. sd / mean of L / I over the grid is "
        "0 where Σ acts on the gradients as a multiple of the identity.\n\n" + report.table(header, body)
    )


def _perturbations(parts: dict[str, Groups], intervals: dict[str, Intervals]) -> str:
    """Isotropic and not linearised: one σ for all models, and the best of each."""
    curves = {f"{sigma:g}": f"perturbation_{sigma:g}" for sigma in SIGMAS}
    fixed = []
    for label, column in {**curves, "‖g‖²": "whole"}.items():
        line = [label]
        for groups in parts.values():
            for statistic in STATISTICS:
                means = [intervals[name][f"{column}_{statistic}"].mean for name in groups]
                line.append(_with_bounds(stats.bootstrap_mean([mean for mean in means if np.isfinite(mean)])))
        fixed.append(line)
    body = []
    for name, mine in intervals.items():
        line = [name]
        for statistic in STATISTICS:
            tried = {sigma: mine[f"{column}_{statistic}"] for sigma, column in curves.items()}
            known = {sigma: interval.mean for sigma, interval in tried.items() if interval.count}
            best = max(known, key=known.__getitem__, default=None)
            line += ["–", "unconverged"] if best is None else [best, _with_bounds(tried[best])]
            line.append(_with_bounds(mine[f"whole_{statistic}"]))
        body.append(line)
    over = [f"{symbol}, {part}" for part in parts for symbol in STATISTICS.values()]
    header = ["model", *(f"{t}" for s in STATISTICS.values() for t in ("best σ", f"{s} at it", f"{s} of ‖g‖²"))]
    return (
        "## Isotropic but not linearised: W = Var_ε[p(x|θ* + σε)], ε ~ N(0, I)\n\n"
        f"{NUM_DIRECTIONS} directions, the same for every σ. As σ → 0 W is ‖g‖² σ²: what W gains over ‖g‖² at a larger "
        "σ it gains by not linearising, isotropic as it stays. One σ for all models (mean ± sd and interval "
        f"over models):\n\n{report.table(['σ', *over], fixed)}\n"
        "The best σ of each model, by mean correlation with V. It is picked after looking, so its correlation is "
        f"too high: a bound, not an estimate.\n\n{report.table(header, body)}"
    )
