"""Measures the effective samples per gradient of the study's HMC, of HMC as version 0.1 had it, and of two NUTS.

All start at the same trained parameters and draw as often. ESS: bulk effective sample size of the predictions that 95 %
of the inputs reach, all chains together. Gradients: of the log density, those of the draws alone or with those of the
warm-up, which BlackJAX's NUTS does not count. CPU seconds: of warm-up and draws, without those of compiling; NumPyro's
contain its tracing. Ratios are those of ESS per gradient of the draws, within one seed.
"""

import csv
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import provenance, report
from experiments.run.compilations import NONE, compilations
from experiments.synthetic.measure.reference import sampler_settings
from experiments.synthetic.presets import scaling, validation
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import Setting, evaluation_inputs, set_up
from isouq import problems, uncertainty
from isouq.posterior import Margins, Reference, Sampling, fit_map, sample_numpyro, sample_reference

BEFORE, NOW, BLACKJAX, NUMPYRO = "HMC of version 0.1", "HMC of the study", "BlackJAX NUTS", "NumPyro NUTS"
CONTESTANTS = (BEFORE, NOW, BLACKJAX, NUMPYRO)
LONG_BEFORE = "regression/nonlinear"  # which had 200 leapfrog steps instead of 50
WIDTHS = ((4, "unit", 1.0), (32, "unit", 1.0), (32, "fan_in", 1.0), (256, "unit", 1.0))
KEY = ("problem", "width", "prior", "sigma", "seed", "sampler")
COLUMNS = (
    *KEY, "status", "chains", "draws", "ess_bulk", "rhat", "divergent", "acceptance", "draw_gradients", "gradients",
    "ess_per_1000_draw_gradients", "ess_per_1000_gradients", "ratio_to_before", "ratio_to_numpyro",
    "cpu_seconds_per_1000_gradients", "compiling_seconds",
)  # fmt: skip
Row = dict[str, Any]


def cells(preset: str) -> list[Cell]:
    """Return the posteriors: all problems, and three rings at some widths, as the study's paper preset has them."""
    if preset == "smoke":
        return [validation.jobs("smoke")[0], scaling.jobs("smoke")[0]]
    sweep = [cell for cell in scaling.jobs("paper") if (cell.width, cell.prior, cell.sigma) in WIDTHS]
    every = [cell for cell in validation.jobs("paper") if cell.study == "agreement"] + sweep
    return [cell for cell in every if cell.seed < 2]


def run(preset: str, folder: Path, record: dict[str, Any], only: str = "") -> None:
    """Measure all contestants on all posteriors, and write samplers.csv, .md and .json after each row.

    Rows that an interrupted run of the same commit and command has written to the folder are kept.
    """
    num_draws = 500 if preset == "full" else 50
    names = [name for name in CONTESTANTS if only.lower() in name.lower()]
    rows = _earlier_rows(folder, record)
    for cell in cells(preset):
        missing = [name for name in names if _key(cell, name) not in {_key_of(row) for row in rows}]
        if not missing:
            continue
        setting = set_up(cell, problems.get(cell.problem))
        starts = fit_map(setting.log_density, setting.inits)
        margins = _margins(cell, setting, starts.best())
        for name in missing:
            rows.append(_row(cell, name, setting, starts.params, margins, num_draws))
            print({key: rows[-1][key] for key in (*KEY, "ess_per_1000_draw_gradients", "status")}, flush=True)
            _write(rows, record, folder)
        jax.clear_caches()
    print((folder / "samplers.md").read_text(), flush=True)


def settings(name: str, cell: Cell, num_draws: int) -> Sampling | None:
    """Return the settings of a contestant: warm-up as long as the draws, or the study's own; None for NumPyro."""
    study = replace(sampler_settings(cell), num_draws=num_draws, max_rounds=1)
    return {
        BEFORE: Sampling(num_draws, num_draws, 200 if cell.problem == LONG_BEFORE else 50),
        NOW: study,
        BLACKJAX: Sampling(num_draws, num_draws, sampler="nuts"),
    }.get(name)


def _margins(cell: Cell, setting: Setting, theta: Any) -> Margins:
    """Return the record of the predictions at the inputs of the study's comparison."""
    xs, grid, _ = evaluation_inputs(cell, setting)
    kind = setting.log_density.kind
    target = uncertainty(setting.predict, theta, xs[grid], kind).target
    return Margins(setting.predict, xs[grid], target, kind)


def _sampler(
    name: str, cell: Cell, setting: Setting, starts: Any, margins: Margins, num_draws: int
) -> Callable[[], Reference]:
    """Return a function that samples, with its programs compiled where it is the library's own sampler."""
    sampling = settings(name, cell, num_draws)
    log_density, key = setting.log_density, setting.chain_key
    if sampling is None:
        return lambda: sample_numpyro(
            log_density, starts, key, record=margins, num_draws=num_draws, num_warmup=num_draws, count_warmup=True
        )
    variance = jax.tree.map(jnp.square, log_density.scales)

    def sample(sampling: Sampling) -> Reference:
        return sample_reference(
            log_density, starts, key, sampling=sampling, record=margins, inverse_mass_matrix=variance
        )

    sample(
        replace(
            sampling, num_warmup=min(sampling.num_warmup, 100), num_draws=min(num_draws, 100), num_integration_steps=1
        )
    )
    return lambda: sample(sampling)


def _row(cell: Cell, name: str, setting: Setting, starts: Any, margins: Margins, num_draws: int) -> Row:
    """Measure one contestant on one posterior; one that fails keeps its row, with the reason."""
    row: Row = dict.fromkeys(COLUMNS) | dict(zip(KEY, _key(cell, name), strict=True)) | {"status": "ok"}
    try:
        sample = _sampler(name, cell, setting, starts, margins, num_draws)
        with compilations(NONE) as count:
            wall, start = time.perf_counter(), time.process_time()
            reference = sample()
            wall, seconds = time.perf_counter() - wall, time.process_time() - start
    except Exception as error:  # a contestant that fails must not stop the others
        return row | {"status": f"failed: {type(error).__name__}: {str(error).splitlines()[0][:120]}"}
    verdict, cost = reference.verdict, reference.cost
    assert verdict is not None
    of_draws = cost.gradient_evaluations - (cost.warmup_gradients or 0)
    is_counted = cost.warmup_gradients is not None
    compiling = count.seconds * min(1.0, seconds / wall)  # CPU seconds, where other processes use the cores too
    return row | {
        "chains": cell.chains, "draws": num_draws, "ess_bulk": verdict.ess_bulk, "rhat": verdict.rhat,
        "divergent": verdict.divergent, "acceptance": float(np.mean(reference.acceptance_rate)),
        "draw_gradients": of_draws, "gradients": cost.gradient_evaluations if is_counted else None,
        "ess_per_1000_draw_gradients": 1000 * verdict.ess_bulk / of_draws,
        "ess_per_1000_gradients": 1000 * verdict.ess_bulk / cost.gradient_evaluations if is_counted else None,
        "cpu_seconds_per_1000_gradients":
            1000 * (seconds - compiling) / cost.gradient_evaluations if is_counted else None,
        "compiling_seconds": compiling,
    }  # fmt: skip


def _key(cell: Cell, name: str) -> tuple[str, ...]:
    """Return what names a row, as its CSV holds it."""
    width = "" if cell.width is None else str(cell.width)
    return (cell.problem, width, cell.prior, f"{cell.sigma:g}", str(cell.seed), name)


def _key_of(row: Row) -> tuple[str, ...]:
    return tuple(row[column] for column in KEY)


def _earlier_rows(folder: Path, record: dict[str, Any]) -> list[Row]:
    """Return the rows that the same commit and command has written; none where either is another."""
    try:
        earlier = json.loads((folder / "samplers.json").read_text())
        with (folder / "samplers.csv").open(newline="") as file:
            rows = [dict.fromkeys(COLUMNS) | row for row in csv.DictReader(file)]
    except (OSError, ValueError):
        return []
    if any(earlier.get(name) != record[name] for name in ("commit", "command")):
        return []
    text = (*KEY, "status")
    return [
        {name: value if name in text else (float(value) if value else None) for name, value in row.items()}
        for row in rows
        if row["status"] == "ok"
    ]


def _write(rows: list[Row], record: dict[str, Any], folder: Path) -> None:
    """Write all rows, with the ratios of those whose rivals have run."""
    per_gradient = {_key_of(row): row["ess_per_1000_draw_gradients"] for row in rows}
    for row in rows:
        for column, name in (("ratio_to_before", BEFORE), ("ratio_to_numpyro", NUMPYRO)):
            rival, value = per_gradient.get((*_key_of(row)[:-1], name)), row["ess_per_1000_draw_gradients"]
            row[column] = value / rival if rival and value is not None else None
    report.write_files("samplers", COLUMNS, rows, record, _page(rows, record), folder)


def _page(rows: list[Row], record: dict[str, Any]) -> str:
    """Return the table, a line for each posterior and sampler: the mean over seeds, and of ratios the geometric one."""
    header = ("posterior", "sampler", "seeds", "ESS", "R-hat", "acceptance", "gradients of draws", "in all",
              "ESS per 1,000 of draws", "of all", "÷ version 0.1", "÷ NumPyro", "CPU s per 1,000", "note")  # fmt: skip
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((*_key_of(row)[:4], row["sampler"]), []).append(row)
    lines = [_line(key, group) for key, group in groups.items()]
    table = report.table(header, lines)
    return f"# Samplers\n\n{provenance.in_words(record)}\n\n{report.body_of(__doc__)} Means over seeds.\n\n{table}"


def _line(key: tuple[str, ...], group: list[Row]) -> list[str]:
    problem, width, prior, sigma, sampler = key
    posterior = problem + (f", width {width}" if width else "") + f", {prior} σ = {sigma}"
    good = [row for row in group if row["status"] == "ok"]

    def mean(column: str) -> str:
        values = [row[column] for row in good if row[column] is not None]
        if not values:
            return "–"
        return report.number(float(np.exp(np.mean(np.log(values))) if column.startswith("ratio") else np.mean(values)))

    columns = (
        "ess_bulk", "rhat", "acceptance", "draw_gradients", "gradients", "ess_per_1000_draw_gradients",
        "ess_per_1000_gradients", "ratio_to_before", "ratio_to_numpyro", "cpu_seconds_per_1000_gradients",
    )  # fmt: skip
    note = next((row["status"] for row in group if row["status"] != "ok"), "")
    return [posterior, sampler, str(len(good)), *map(mean, columns), note]
