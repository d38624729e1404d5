"""The report of the covariance study."""

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.measure.covariance import CLIPPED, METHODS
from experiments.synthetic.measure.proxies import CURVATURES, DATA
from experiments.synthetic.numbers.covariance import PROXIES, planar_models, proxy_columns
from experiments.synthetic.numbers.models import STATISTICS
from experiments.synthetic.report.page import page


def report(numbers: Numbers, preset: str) -> str:
    """Return the tables of proxies, of agreement and of costs."""
    agreement = (_agreement(numbers, statistic) for statistic in STATISTICS)
    return page(f"Covariances, preset `{preset}`", numbers, _proxies(numbers), *agreement, _costs(numbers))


def _proxies(numbers: Numbers) -> str:
    """Return the table of the proxies' asymmetry."""
    body = []
    for model in planar_models(numbers.details):
        values = numbers.groups[model.name]
        for data, label in DATA.items():
            for curvature, title in CURVATURES.items():
                cells = [tables.mean_bounds(values[f"{data}{column}"]) for column in proxy_columns(curvature)]
                stated = values[f"{data}as_stated_{curvature}"]
                share = f"{stated.mean * stated.count:.0f}/{stated.count}"
                body.append([model.name, label, title, *cells, share])
    header = [
        "problem", "θ* of", "curvature", "symmetry, identity", "symmetry, A", "symmetry, B", "inside/outside, A",
        "inside/outside, B", "log(U_A/U_B) in A's half", "in B's half", "as stated",
    ]  # fmt: skip
    return (
        "## Proxies: Σ = H⁻¹ from new data of one half of the inputs\n\n"
        "A has as many new points as the training data, all from one half of the inputs (x₁ < 0; x₂ < 0 for "
        "clusters); B has as many from the other half. θ* of: the protocol's sample, or a symmetric data set (half a "
        "sample, for spirals a third, with its images), where an asymmetric map can come from Σ alone. symmetry: "
        "Pearson's r of the map with its image under the problem's own symmetry (mirrored; x ↦ −x for linear; turned "
        "by 120° for spirals, which does not swap the halves). inside/outside: mean uncertainty in the half of the "
        "proxy's data over that in the other. as stated: seeds in which both proxies are surer where their data lie "
        "and the log ratio changes its sign between the halves. All seeds count but those with a flat ‖g‖²: nothing is "
        "compared with a reference here. Mean and 95 % interval.\n\n" + tables.table(header, body)
    )


def _agreement(numbers: Numbers, statistic: str) -> str:
    """Return one correlation of every method on every problem."""
    problems = list(numbers.details)
    body = []
    for method, label in (METHODS | PROXIES).items():
        intervals = [numbers.groups[model.name].get(f"{method}_{statistic}") for model in problems]
        body.append([label, *("–" if interval is None else tables.mean_sd(interval) for interval in intervals)])
    body.append(["accepted references", *(model.accepted_share for model in problems)])
    title = f"## Agreement of gᵀΣg with the reference, {statistic.capitalize()}'s {STATISTICS[statistic]}\n\n"
    return title + tables.table(["Σ", *(model.name for model in problems)], body)


def _costs(numbers: Numbers) -> str:
    """Return the costs for the problem with the largest model, beside the cost of its reference."""
    model = max(numbers.details, key=lambda model: model.num_params)
    values = numbers.groups[model.name]
    body = [
        [
            label,
            f"{values[f'{method}_gradients'].mean:.3g}",
            f"{values[f'seconds_{method}_build'].mean:.2f}",
            f"{1e3 * values[f'seconds_{method}_apply'].mean:.1f}",
            f"{values[f'{method}_bytes'].mean / 1024:.1f}",
            tables.number(values[f"{method}_clipped"].mean, 3) if method in CLIPPED else "–",
            tables.mean_sd(values[f"{method}_spearman"]),
            f"{values[f'{method}_scale'].mean:.3g}",
        ]
        for method, label in METHODS.items()
    ]
    body.append(["HMC itself", f"{values['gradient_evaluations'].mean:.3g}", "–", "–", "–", "–", "1", "1"])
    header = ["Σ", "gradients", "build, s", "apply, ms", "kept, KiB", "clipped", "ρ", "scale"]
    return (
        f"## What it costs: {model.name}, {model.num_params} parameters\n\n"
        "gradients: of the log likelihood over all training data, to build Σ. build: seconds, compilation included. "
        "apply: milliseconds for the whole grid, compiled. kept: memory of Σ. clipped: share of curvatures below "
        "zero that were lifted (low rank keeps positive ones alone). scale: mean of gᵀΣg over mean of the "
        "reference. The times were taken with two cells at work on two cores: read them as orders of magnitude.\n\n"
        + tables.table(header, body)
    )
