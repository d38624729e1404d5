"""Table 1: how well ‖g‖², Laplace and p(1 − p) agree with the reference, on all eight problems.

Command: python -m experiments validation --preset quick
"""

from dataclasses import replace
from typing import Any

from experiments.report import tables as report
from experiments.report.outputs import Outputs
from experiments.run.errors import RunError
from experiments.synthetic.cell import Cell, Result
from isouq import plots, problems

# arXiv 2603.29466, Table 1: (r, ρ) by estimate and problem.
PAPER: dict[str, dict[str, tuple[float, float]]] = {
    "epistemic": {
        "binary/linear": (0.95, 0.99),
        "binary/xor": (0.65, 0.68),
        "binary/rings": (0.86, 0.44),
        "multiclass/clusters": (0.86, 0.97),
        "multiclass/spirals": (0.76, 0.91),
        "multiclass/rings": (0.88, 0.97),
        "regression/linear": (0.98, 0.99),
        "regression/nonlinear": (0.73, 0.81),
    },
    "laplace": {
        "binary/linear": (0.95, 0.99),
        "binary/xor": (0.68, 0.70),
        "binary/rings": (0.86, 0.46),
        "regression/linear": (1.00, 1.00),
        "regression/nonlinear": (0.93, 0.97),
    },
    "aleatoric": {
        "binary/linear": (0.99, 1.00),
        "binary/xor": (0.76, 0.74),
        "binary/rings": (0.95, 0.58),
        "multiclass/clusters": (0.95, 0.99),
        "multiclass/spirals": (0.96, 0.97),
        "multiclass/rings": (0.96, 0.98),
    },
}

ESTIMATES = {
    "epistemic": "Epistemic: ‖g‖² against Var_θ[p]",
    "laplace": "Laplace: gᵀH⁻¹g against Var_θ[p]",
    "aleatoric": "Aleatoric: p(1 − p) at θ* against E_θ[p(1 − p)]",
}
REGIONS = {"_data": "data's range", "": "grid (± 0.5)", "_wide": "wide (1.5 ×)"}
SECOND_OPINION = ("binary/xor", "multiclass/rings")
LONG_TRAJECTORIES = ("regression/nonlinear",)  # small noise: a stiff posterior, small steps


def cells(preset: str, seeds: int | None = None) -> list[Cell]:
    """smoke: three problems, tiny chains, seconds. quick: eight problems, 2 seeds, about 4 minutes
    on 2 CPU cores. paper: 5 seeds, twice the draws, the second opinion, about 40 minutes.
    """
    if preset == "smoke":
        names = ("binary/xor", "multiclass/clusters", "regression/linear")
        tiny: dict[str, Any] = {
            "num_points": 40,
            "num_warmup": 50,
            "num_draws": 50,
            "num_leapfrog": 10,
            "resolution": 8,
        }
        return [Cell(name, seed, **tiny) for name in names for seed in range(seeds or 2)]
    draws = {"quick": 500, "paper": 1000}[preset]
    cells = [
        Cell(name, seed, num_draws=draws, num_leapfrog=200 if name in LONG_TRAJECTORIES else 50)
        for seed in range(seeds or {"quick": 2, "paper": 5}[preset])
        for name in problems.PROBLEMS
    ]
    if preset == "paper":
        cells += [replace(cell, study="second_opinion") for cell in cells if cell.problem in SECOND_OPINION]
    return cells


def summarise(results: list[Result], preset: str) -> Outputs:
    """The tables beside the paper's, and the dot plot."""
    rows = _rows(results)
    if not rows:
        raise RunError("no agreement cell of validation is finished: a second opinion alone makes no table")
    names = list(dict.fromkeys(row["problem"] for row in rows))
    sections = [f"# Validation, preset `{preset}`\n", report.reading()]
    for estimate, title in ESTIMATES.items():
        body = []
        for name in names:
            mine = [row for row in rows if row["problem"] == name]
            if f"{estimate}_pearson" not in mine[0]:
                continue
            paper = PAPER[estimate].get(name, (None, None))
            line = [name, report.accepted_share(mine)]
            for statistic, theirs in zip(("pearson", "spearman"), paper, strict=True):
                interval = report.over_seeds(mine, f"{estimate}_{statistic}")
                line += [report.mean_sd(interval), report.bounds(interval), report.number(theirs)]
            body.append(line)
        header = ["problem", "accepted", "r", "95 % interval", "paper r", "ρ", "95 % interval", "paper ρ"]
        sections.append(f"## {title}\n\n{report.table(header, body)}")
    sections.append(_regions(rows, names))
    sections.append(_gold(rows))
    sections.append(_second_opinion(rows))
    sections.append(report.training(rows))
    sections.append(report.unconverged(rows))
    figure = plots.agreement(
        {
            estimate: {
                name: [
                    (row["accepted"], row[f"{estimate}_pearson"], row[f"{estimate}_spearman"])
                    for row in rows
                    if row["problem"] == name and f"{estimate}_pearson" in row
                ]
                for name in names
            }
            for estimate in ESTIMATES
        },
        PAPER,
        ESTIMATES,
    )
    return Outputs(rows, "\n".join(section for section in sections if section), {"validation": figure})


def _rows(results: list[Result]) -> list[dict[str, Any]]:
    """One row a problem and seed: the second opinion's columns stand on the agreement's row."""
    numbers = [result.numbers for result in results]
    opinions = {
        (row["problem"], row["seed"]): {name: value for name, value in row.items() if name.startswith("numpyro_")}
        for row in numbers
        if row["study"] == "second_opinion"
    }
    agreements = [row for row in numbers if row["study"] == "agreement"]
    return [{**row, **opinions.get((row["problem"], row["seed"]), {})} for row in agreements]


def _regions(rows: list[dict[str, Any]], names: list[str]) -> str:
    body = []
    for name in names:
        mine = [row for row in rows if row["problem"] == name]
        line = [name]
        for statistic in ("pearson", "spearman"):
            for region in REGIONS:
                flag = "accepted_wide" if region == "_wide" else "accepted"
                line.append(report.mean_sd(report.over_seeds(mine, f"epistemic_{statistic}{region}", flag)))
        body.append(line)
    header = ["problem", *(f"{symbol}, {region}" for symbol in "rρ" for region in REGIONS.values())]
    return (
        "## Where it is compared matters: epistemic ‖g‖² by region\n\n"
        "The grid of the comparison is the data's range widened by 0.5 on each side. Beside it: its part inside "
        "the data's range, and a grid 1.5 times as wide as the range.\n\n" + report.table(header, body)
    )


def _gold(rows: list[dict[str, Any]]) -> str:
    gold = [row for row in rows if "exact_reference_scale" in row]
    if not gold:
        return ""
    body = [
        [label, *(report.mean_sd(report.over_seeds(gold, f"exact_{name}_{what}"), 4) for what in ("pearson", "scale"))]
        for name, label in (("reference", "HMC"), ("laplace", "gᵀΣg, Σ = H⁻¹"))
    ]
    return "## Gold case: regression/linear against its closed-form posterior variance\n\n" + report.table(
        ["", "r", "scale (ratio of means)"], body
    )


def _second_opinion(rows: list[dict[str, Any]]) -> str:
    both = [row for row in rows if "numpyro_scale" in row]
    if not both:
        return ""
    body = [
        [
            row["problem"],
            str(row["seed"]),
            "yes" if row["accepted"] else "no",
            "yes" if row["numpyro_accepted"] else "no",
            *(report.number(row[f"numpyro_{what}"], 3) for what in ("pearson", "spearman", "scale")),
        ]
        for row in both
    ]
    header = ["problem", "seed", "HMC accepted", "NUTS accepted", "r", "ρ", "scale (HMC / NUTS)"]
    return "## Second opinion: NumPyro NUTS on the same model, epistemic map\n\n" + report.table(header, body)
