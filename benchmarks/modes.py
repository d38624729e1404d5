"""Compares θ* as version 0.1 trained it, over raw parameters, with θ* in the standardised coordinates of the prior.

Both start from the same initial parameters, end at the same norm of the gradient in their own coordinates, and take the
best of four starts. Only the second leaves saddles. Both estimates ‖g‖² are compared with the same reference posterior,
which is sampled by the runner at the quick preset with three seeds. Command: `python -m benchmarks modes` (2 cores,
about 5 minutes).
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import provenance, report
from experiments.run.executors.settings import Settings
from experiments.run.job import Result
from experiments.run.loop import run_jobs
from experiments.run.progress import console
from experiments.synthetic.numbers.models import model_name
from experiments.synthetic.presets import scaling, validation
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import Subject, epistemic_map, subject
from isouq import problems, stats
from isouq.posterior import MapFit, fit_map
from isouq.posterior import map as training

SEEDS = 3
COLUMNS = (
    "model", "seed", "accepted", "density_raw", "density_standardised", "gain", "converged_raw",
    "converged_standardised", "spread_raw", "spread_standardised", "pearson_raw", "pearson_standardised",
    "spearman_raw", "spearman_standardised",
)  # fmt: skip
Row = dict[str, Any]


def run(preset: str, folder: Path, record: dict[str, Any]) -> None:
    """Sample the references, train both θ* of each, and write modes.csv, .md and .json."""
    name = "quick" if preset == "full" else "smoke"
    seeds = SEEDS if preset == "full" else 1
    cells = [cell.reference() for jobs in (validation.jobs, scaling.jobs) for cell in jobs(name, seeds)]
    cells = list(dict.fromkeys(cells))
    results = run_jobs(cells, Path("out") / "benchmarks" / f"modes-{preset}", Settings(), console())
    rows = [_row(cell, result) for cell, result in zip(cells, results, strict=True)]
    report.write_files("modes", COLUMNS, rows, record, _page(rows, record), folder)
    print((folder / "modes.md").read_text(), flush=True)


def _row(cell: Cell, reference: Result) -> Row:
    measured = subject(cell, problems.get(cell.problem), reference)
    log_density, inits = measured.setting.log_density, measured.setting.inits
    fits = {
        "raw": _fit_raw(log_density, inits),
        "standardised": fit_map(log_density, inits),
    }
    row: Row = {"model": model_name(reference.numbers), "seed": cell.seed, "accepted": reference.numbers["accepted"]}
    for name, fit in fits.items():
        best = int(fit.best_index())
        row[f"density_{name}"] = float(fit.log_density[best])
        row[f"converged_{name}"] = bool(fit.converged[best])
        row[f"spread_{name}"] = float(np.ptp(np.asarray(fit.log_density)))
        row |= _agreement(name, measured, fit)
    return row | {"gain": row["density_standardised"] - row["density_raw"]}


def _fit_raw(log_density: Any, inits: Any) -> MapFit:
    """Return the fit over the parameters themselves, wherever the gradient is small."""
    ones = jax.tree.map(lambda _: 1.0, inits)
    return training._fit(*training._target(3000, log_density, inits, ones), 0.05)


def _agreement(name: str, measured: Subject, fit: MapFit) -> dict[str, float]:
    """Return how ‖g‖² at this θ* agrees with the reference over the grid; NaN where it is constant."""
    estimate = epistemic_map(measured.setting, fit.best(), measured.xs[measured.grid])
    truth = measured.variance[measured.grid]
    return {
        f"pearson_{name}": stats.pearson(truth, estimate),
        f"spearman_{name}": stats.spearman(truth, estimate),
    }


def _page(rows: list[Row], record: dict[str, Any]) -> str:
    body = []
    for model in dict.fromkeys(row["model"] for row in rows):
        group = [row for row in rows if row["model"] == model]
        accepted = [row for row in group if row["accepted"]]
        gains = [row["gain"] for row in group]
        line = [
            model,
            f"{len(accepted)}/{len(group)}",
            f"{np.mean(gains):+.2f}",
            f"{min(gains):+.2f} to {max(gains):+.2f}",
        ]
        for statistic in ("pearson", "spearman"):
            for name in ("raw", "standardised"):
                values = [row[f"{statistic}_{name}"] for row in accepted if np.isfinite(row[f"{statistic}_{name}"])]
                line.append(f"{np.mean(values):.2f}" if values else "–")
        for name in ("raw", "standardised"):
            line.append(f"{np.mean([row[f'spread_{name}'] for row in group]):.2f}")
        body.append(line)
    header = [
        "model", "accepted", "log density, standardised − raw", "from … to", "r, raw", "r, standardised", "ρ, raw",
        "ρ, standardised", "spread over starts, raw", "standardised",
    ]  # fmt: skip
    higher = sum(row["gain"] > 0.01 for row in rows)
    lower = sum(row["gain"] < -0.01 for row in rows)
    return (
        f"# θ* over raw parameters and in the prior's coordinates\n\n{provenance.in_words(record)}\n\n"
        "Log densities in nats, means over seeds. r and ρ: of ‖g‖² at θ* with the accepted references. Spread: best "
        f"minus worst of four starts. The standardised θ* is higher by more than 0.01 nats in {higher} of {len(rows)} "
        f"posteriors, and lower in {lower}.\n\n" + report.table(header, body)
    )
