"""The report of the validation."""

from collections.abc import Sequence

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.numbers.models import STATISTICS, Row
from experiments.synthetic.numbers.validation import PAPER, REGIONS
from experiments.synthetic.report.page import costs_section, page

HEADINGS = {
    "epistemic": "Epistemic: ‖g‖² against Var_θ[p]",
    "laplace": "Laplace: gᵀH⁻¹g against Var_θ[p]",
    "aleatoric": "Aleatoric: p(1 − p) at θ* against E_θ[p(1 − p)]",
}


def report(numbers: Numbers, preset: str) -> str:
    """Return the tables beside the paper's, the regions, the closed form and the second opinion."""
    agreement = (_agreement(numbers, estimate, title) for estimate, title in HEADINGS.items())
    opinion = _second_opinion([row for row in numbers.rows if "numpyro_scale" in row])
    costs = costs_section(list(numbers.details), numbers)
    return page(
        f"Validation, preset `{preset}`", numbers, *agreement, _regions(numbers), _gold(numbers), opinion, costs
    )


def _agreement(numbers: Numbers, estimate: str, title: str) -> str:
    """Return one estimate's table: a row a problem, beside the paper's r and ρ."""
    body = []
    for model in numbers.details:
        values = numbers.groups[model.name]
        if f"{estimate}_pearson" not in values:
            continue
        line = [model.name, model.accepted_share]
        paper = PAPER.get(estimate, {}).get(model.problem, (None, None))
        for statistic, published in zip(STATISTICS, paper, strict=True):
            interval = values[f"{estimate}_{statistic}"]
            line += [tables.mean_sd(interval), tables.bounds(interval), tables.number(published)]
        body.append(line)
    header = ["problem", "accepted", "r", "95 % interval", "paper r", "ρ", "95 % interval", "paper ρ"]
    return f"## {title}\n\n{tables.table(header, body)}"


def _regions(numbers: Numbers) -> str:
    columns = [f"epistemic_{statistic}{region}" for statistic in STATISTICS for region in REGIONS]
    body = [[name, *(tables.mean_sd(values[column]) for column in columns)] for name, values in numbers.groups.items()]
    header = ["problem", *(f"{symbol}, {region}" for symbol in STATISTICS.values() for region in REGIONS.values())]
    return (
        "## Where it is compared matters: epistemic ‖g‖² by region\n\n"
        "The grid of the comparison is the data's range widened by 0.5 on each side. Beside it stand its part inside "
        "the data's range, and a grid 1.5 times as wide as the range.\n\n" + tables.table(header, body)
    )


def _gold(numbers: Numbers) -> str:
    gold = [values for values in numbers.groups.values() if "exact_reference_scale" in values]
    if not gold:
        return ""
    body = [
        [label, *(tables.mean_sd(gold[0][f"exact_{name}_{what}"], 4) for what in ("pearson", "scale"))]
        for name, label in (("reference", "HMC"), ("laplace", "gᵀΣg, Σ = H⁻¹"))
    ]
    return "## Gold case: regression/linear against its closed-form posterior variance\n\n" + tables.table(
        ["", "r", "scale (ratio of means)"], body
    )


def _second_opinion(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    body = [
        [
            row["problem"],
            str(row["seed"]),
            "yes" if row["accepted"] else "no",
            "yes" if row["numpyro_accepted"] else "no",
            *(tables.number(row[f"numpyro_{what}"], 3) for what in ("pearson", "spearman", "scale")),
        ]
        for row in rows
    ]
    header = ["problem", "seed", "HMC accepted", "NUTS accepted", "r", "ρ", "scale (HMC / NUTS)"]
    return "## Second opinion: NumPyro NUTS on the same model, epistemic map\n\n" + tables.table(header, body)
