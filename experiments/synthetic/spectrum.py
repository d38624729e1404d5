"""Why should isotropy work? Does the share of ‖g‖² in the Hessian's bulk predict the agreement of ‖g‖²?

The paper's argument: in large networks most eigenvalues of the Hessian are near zero, so that under a prior H⁻¹
is close to a multiple of I on most directions. H = −∇² log p(D|θ) at θ*, without the prior; its bulk: the
eigenvectors with |λ| below the smallest prior precision 1/max(scale)², where the prior decides.

Command: python -m experiments spectrum --preset quick
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from experiments.report import tables as report
from experiments.report.outputs import Outputs
from experiments.synthetic import scaling
from experiments.synthetic.cell import Cell, Result
from experiments.synthetic.decomposition import gradients
from experiments.synthetic.measure.lanczos import Spectrum, dense_spectra, histogram, lanczos_spectrum
from experiments.synthetic.numbers.prediction import prediction
from experiments.synthetic.subject import Clock, Subject, correlations
from isouq import plots

DENSE_LIMIT = 2000  # parameters; above it Lanczos
_STREAM = 2  # of the cell's second key
ZERO = 1e-6  # of the largest |λ|: what float32 leaves of an eigenvalue that is 0
_DECADES = np.logspace(-3, 6, 28)  # three bins a decade
HESSIAN_EDGES = np.concatenate([-_DECADES[::-1], _DECADES])  # of λ; |λ| < 10⁻³ is one bin
COVARIANCE_EDGES = np.logspace(-6, 3, 46)
Row = report.Row


def cells(preset: str, seeds: int | None = None, widths: tuple[int, ...] | None = None) -> list[Cell]:
    """The models of `validation` and of `scaling` at the same preset, on the references that those sampled.

    Beside the references: smoke seconds; quick about a minute; paper 6 minutes up to width 256
    (220 of its 290 cells) on 2 CPU cores.
    """
    return scaling.every_model("spectrum", preset, seeds, widths)


def measure(subject: Subject, dense_limit: int = DENSE_LIMIT) -> Result:
    """The spectra of the likelihood's Hessian and of the draws' covariance, and where ‖g‖² lies in them.

    Columns:
    bulk_dimension: share of directions in the bulk. bulk_mean, bulk_total: the mean over the grid's inputs of
        s(x) = ‖P_bulk g‖²/‖g‖², and Σ‖P_bulk g‖²/Σ‖g‖² (s weighted by ‖g‖²).
    effective_dimension: Σ λ₊/(λ₊ + 1) over the eigenvalues of S H S, S the prior's standard deviations
        (MacKay 1992); effective_error its Monte Carlo standard error (0 when dense); effective_share divides by P.
    largest, smallest: eigenvalues of H; negative_share: share of them below −10⁻⁶ of the largest |λ|.
    condition: (1 + max λ₊)/(1 + min λ₊) of S H S: of the posterior's precision in the prior's units.
    lowest_curvature: 1 + the smallest eigenvalue of S H S; below 0, θ* is a saddle and no maximum.
    inverse_pearson, inverse_spearman: corr(gᵀH⁻¹g, ‖g‖²) over the grid with (S⁻² + H)⁻¹ = S(I + λ₊)⁻¹S: negative
        curvature is repaired to the prior's.
    pooled_, within_: participation and top of `covariance_eigenvalues`, over all draws and centred per chain.
    isotropic_participation: 1/(1 + P/S), what S independent draws of an isotropic Σ would show.
    whole_pearson, whole_spearman: corr(V, ‖g‖²), V = Var_θ[p_c].

    dense_limit: up to that many parameters every eigenpair, O(P³); above it the Hessian is never formed,
    and `leading_residual` is the worst relative residual of an eigenvector outside the bulk.
    """
    clock = Clock()
    made, xs, theta = subject.setting, subject.xs[subject.here], subject.theta
    g = gradients(made.predict, theta, xs, subject.target, subject.kind)
    identity = np.sum(g**2, axis=1)
    variance = subject.variance[subject.here]
    scales = flat_scales(theta, made.log_density.scales)
    precision = 1 / scales.max() ** 2
    clock.lap("seconds_gradients")
    if len(scales) <= dense_limit:
        hessian, whitened = dense_spectra(made.log_density, theta, scales)
    else:
        keys = jax.random.split(jax.random.fold_in(made.second_key, _STREAM))
        hessian = lanczos_spectrum(made.log_density, theta, np.ones_like(scales), precision, keys[0])
        whitened = lanczos_spectrum(made.log_density, theta, scales, 1.0, keys[1])
    clock.lap("seconds_hessian")
    numbers = _hessian_numbers(hessian, whitened, precision)
    bulk = bulk_shares(g, hessian, precision)
    numbers["bulk_mean"] = float(np.nanmean(bulk))
    numbers["bulk_total"] = float(np.nansum(bulk * identity) / identity.sum())
    inverse = inverse_quadratic(g, whitened, scales)
    clock.lap("seconds_shares")
    densities = {"hessian_density": hessian.histogram(HESSIAN_EDGES)}
    eigenvalues = {"hessian_eigenvalues": hessian.values} if hessian.exact else {}
    for version, within in (("pooled", False), ("within", True)):
        values = covariance_eigenvalues(subject.draws, within)
        numbers[f"{version}_participation"], numbers[f"{version}_top"] = participation(values), top_share(values)
        densities[f"{version}_density"] = histogram(values, COVARIANCE_EDGES)
        eigenvalues[f"{version}_eigenvalues"] = values
    clock.lap("seconds_covariance")
    num_draws = subject.draws.shape[0] * subject.draws.shape[1]
    numbers["isotropic_participation"] = 1 / (1 + len(scales) / num_draws)
    for name, other in (("inverse", inverse), ("whole", variance)):
        numbers |= correlations(name, other, identity)
    arrays = {**densities, **eigenvalues, "bulk": bulk, "grid": np.asarray(xs)}
    arrays = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
    return Result({**subject.facts(), **numbers, **clock.laps()}, arrays)


def _hessian_numbers(hessian: Spectrum, whitened: Spectrum, precision: float) -> dict[str, Any]:
    size = len(hessian.vectors)
    effective, error = whitened.average(lambda values: np.maximum(values, 0) / (1 + np.maximum(values, 0)))
    bulk, bulk_error = hessian.average(lambda values: np.abs(values) < precision)
    floor = -ZERO * np.abs(hessian.values).max()
    outside = np.abs(hessian.values) >= precision
    residuals = hessian.residuals[outside] / np.abs(hessian.values[outside])
    low, high = whitened.values[0], whitened.values[-1]
    return {
        "dense": hessian.exact,
        "bulk_threshold": precision,
        "bulk_dimension": bulk,
        "bulk_dimension_error": bulk_error,
        "effective_dimension": size * effective,
        "effective_error": size * error,
        "effective_share": effective,
        "negative_share": hessian.average(lambda values: values < floor)[0],
        "largest": float(hessian.values[-1]),
        "smallest": float(hessian.values[0]),
        "condition": float((1 + max(high, 0)) / (1 + max(low, 0))),
        "lowest_curvature": float(1 + low),
        "leading_residual": float(residuals.max(initial=0)),
    }


def flat_scales(theta: Any, scales: Any) -> Float[np.ndarray, " P"]:
    """The prior's standard deviation of every parameter, in the order of `ravel_pytree(theta)`."""
    pairs = zip(jax.tree.leaves(theta), jax.tree.leaves(scales), strict=True)
    return np.concatenate([np.full(leaf.size, float(scale)) for leaf, scale in pairs])


def bulk_shares(g: Float[np.ndarray, "points P"], hessian: Spectrum, threshold: float) -> Float[np.ndarray, " points"]:
    """s(x) = 1 − Σ (u·g)²/‖g‖² over the eigenvectors u with |λ| ≥ threshold; NaN where g is 0."""
    outside = hessian.vectors[:, np.abs(hessian.values) >= threshold]
    total = np.sum(g**2, axis=1)
    left = np.maximum(total - np.sum((g @ outside) ** 2, axis=1), 0)
    return np.divide(left, total, out=np.full_like(total, np.nan), where=total > 0)


def inverse_quadratic(
    g: Float[np.ndarray, "points P"], whitened: Spectrum, scales: Float[np.ndarray, " P"]
) -> Float[np.ndarray, " points"]:
    """gᵀ S(I + λ₊)⁻¹S g from the eigenpairs of S H S; directions that have no pair count as λ = 0."""
    scaled = g * scales
    parts = (scaled @ whitened.vectors) ** 2
    rest = 0 if whitened.exact else np.maximum(np.sum(scaled**2, axis=1) - parts.sum(axis=1), 0)
    return parts @ (1 / (1 + np.maximum(whitened.values, 0))) + rest


def covariance_eigenvalues(draws: Float[np.ndarray, "chains draws P"], within: bool) -> Float[np.ndarray, " P"]:
    """Eigenvalues of the draws' covariance, descending; `within` centres every chain on its own mean.

    From the smaller of the two Gram matrices, float64: O(S·P·min(S, P)) for S draws in all. S draws broaden the
    spectrum even where Σ = cI: independent ones spread it over c(1 ± √(P/S))² (Marchenko and Pastur 1967), and
    leave P − S zeros where P > S; correlated draws count as fewer.
    """
    chains, num_draws, size = draws.shape
    centre = draws.mean(axis=1 if within else (0, 1), dtype=np.float64, keepdims=True)
    centred = (draws - centre).reshape(-1, size)
    freedom = chains * num_draws - (chains if within else 1)
    gram = centred @ centred.T if len(centred) < size else centred.T @ centred
    values = np.maximum(np.linalg.eigvalsh(gram / freedom)[::-1], 0)
    return np.pad(values, (0, size - len(values)))


def participation(values: Float[np.ndarray, " P"]) -> float:
    """(tr Σ)²/(P tr Σ²): 1 for Σ = cI, 1/P for one direction. Sampling lowers it to 1/(1 + P/S) for Σ = cI."""
    return float(values.sum() ** 2 / (len(values) * np.sum(values**2)))


def top_share(values: Float[np.ndarray, " P"], share: float = 0.1) -> float:
    """The share of tr Σ in the top tenth of the directions (rounded up); values descending."""
    return float(values[: int(np.ceil(share * len(values)))].sum() / values.sum())


COLUMNS = (
    ("parameters", "num_params", 0), ("bulk, directions", "bulk_dimension", 3), ("bulk, ‖g‖² mean", "bulk_mean", 3),
    ("bulk, ‖g‖² weighted", "bulk_total", 3), ("d_eff", "effective_dimension", 1), ("d_eff / P", "effective_share", 3),
    ("participation, pooled", "pooled_participation", 3), ("within", "within_participation", 3),
    ("if isotropic", "isotropic_participation", 3), ("r(gᵀH⁻¹g, ‖g‖²)", "inverse_pearson", 2),
    ("epistemic r", "whole_pearson", 2), ("epistemic ρ", "whole_spearman", 2),
)  # fmt: skip


def summarise(results: list[Result], preset: str) -> Outputs:
    """The spectra by width and prior and by problem, and whether the bulk predicts the agreement."""
    rows = [result.numbers for result in results]
    sweep = [row for row in rows if row["width"] is not None]
    problems = [row for row in rows if row["width"] is None]
    by_model = sorted(sweep, key=lambda row: (row["prior"] != "unit", row["sigma"], row["width"]))
    sections = [
        f"# Spectrum, preset `{preset}`: does the Hessian's bulk explain why ‖g‖² agrees?\n",
        report.reading(),
        _explanation(),
        _table(scaling.PROBLEM + ", by prior and width", by_model, lambda row: f"{_prior(row)}, width {row['width']}"),
        _table("The problems", problems, lambda row: row["problem"]),
        _maxima(rows),
        _where_g_lies(rows),
        prediction(sweep, problems),
        report.training(rows),
        report.unconverged(rows),
    ]
    figures = {"spectrum_agreement": plots.spectrum_agreement([_point(row) for row in rows])}
    lines = _lines(results)
    if lines:
        figures["spectrum"] = plots.spectrum(lines, HESSIAN_EDGES, COVARIANCE_EDGES)
    return Outputs(rows, "\n".join(section for section in sections if section), figures)


def _explanation() -> str:
    return (
        "H = −∇² log p(D|θ*) without the prior. Bulk: the eigenvectors with |λ| below the smallest prior precision; "
        "its share of directions and of ‖g‖² (mean over inputs, and weighted by ‖g‖²). d_eff = Σ λ₊/(λ₊ + 1) in the "
        "prior's units. Participation (tr Σ)²/(P tr Σ²) of the draws' covariance, 1 = isotropic; beside it what an "
        "isotropic Σ would show from as many independent draws. Draws that visit symmetric copies of a mode make "
        "the pooled Σ look isotropic; the one within chains suffers less.\n"
    )


def _table(title: str, rows: Sequence[Row], name: Any) -> str:
    body = []
    for label in dict.fromkeys(name(row) for row in rows):
        mine = [row for row in rows if name(row) == label]
        numbers = [report.mean_sd(report.over_seeds(mine, column), digits) for _, column, digits in COLUMNS[1:]]
        body.append([label, report.accepted_share(mine), str(mine[0]["num_params"]), *numbers])
    header = ["model", "accepted", *(heading for heading, _, _ in COLUMNS)]
    return f"## {title}\n\n{report.table(header, body)}" if body else ""


def _maxima(rows: Sequence[Row]) -> str:
    saddles = [row for row in rows if row["lowest_curvature"] < 0]
    text = (
        f"## Is θ* a maximum?\n\nAt {len(saddles)} of {len(rows)} θ* the log posterior curves upwards in some "
        "direction: a saddle, listed with its lowest curvature in units of the prior's precision. (Of a Krylov space, "
        "the lowest that it holds.)\n"
    )
    return text + "".join(f"- {report.where(row)}: {row['lowest_curvature']:.3g}\n" for row in saddles)


def _where_g_lies(rows: Sequence[Row]) -> str:
    shares = [(row["bulk_dimension"], row["bulk_mean"]) for row in rows if row["accepted"]]
    if not shares:
        return ""
    directions, norm = np.median(shares, axis=0)
    more = sum(mine > share + 1e-6 for share, mine in shares)  # 0 against rounding is no more
    return (
        f"## Where does ‖g‖² lie?\n\nOver {len(shares)} accepted models the bulk has a median of {directions:.1%} of "
        f"the directions and of {norm:.2%} of ‖g‖², at most {max(mine for _, mine in shares):.2%}. A gradient of "
        f"random direction would have equal shares; the gradients have more than that in {more} models.\n"
    )


def _prior(row: Row) -> str:
    return f"{row['prior']} σ = {row['sigma']:g}"


def _point(row: Row) -> dict[str, Any]:
    group = None if row["width"] is None else _prior(row)
    columns = {"share": "bulk_mean", "pearson": "whole_pearson", "spearman": "whole_spearman"}
    point = {name: row[column] for name, column in columns.items()}
    return {"group": group, "width": row["width"], "accepted": row["accepted"], **point}


def _lines(results: Sequence[Result]) -> dict[tuple[str, float], dict[int, dict[str, Any]]]:
    """The densities of the sweep's first seed, for the priors that `scaling` draws as curves."""
    sweep = [result for result in results if result.numbers["width"] is not None]
    first = min((result.numbers["seed"] for result in sweep), default=0)
    lines: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for prior in scaling.CURVES:
        mine = [r for r in sweep if (r.numbers["prior"], r.numbers["sigma"]) == prior and r.numbers["seed"] == first]
        if mine:
            lines[prior] = {
                result.numbers["width"]: {
                    **{name: result.arrays[f"{name}_density"] for name in ("hessian", "pooled", "within")},
                    "accepted": result.numbers["accepted"],
                }
                for result in sorted(mine, key=lambda result: result.numbers["width"])
            }
    return lines
