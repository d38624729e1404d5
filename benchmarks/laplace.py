"""Compares Laplace approximations of isouq, laplace-torch and laplax: predictions, time and memory, with one θ*.

A CNN on scikit-learn's digits and an MLP on its breast cancer data (standardised) are trained in JAX under a standard
normal prior, and every library is given the same weights, in float32. The binary problem has two logits and a softmax
in all libraries: laplace-torch has no likelihood of one logit, and with two the posterior of all is the same. Each
library takes the GGN, chooses one prior standard deviation σ by its evidence (isouq: choose_prior; laplace-torch:
optimize_prior_precision by marglik; laplax: its grid) and predicts the held-out data by the probit approximation,
laplace-torch 32 inputs at a time, because the memory of its Kronecker prediction grows with the square of their number
(24 GB for 539 digits). NLL: mean −log p of the held-out labels, mean over random splits with a 95 % bootstrap interval;
the difference is paired by split. Times are those of the first split, medians over interleaved rounds; fit: curvature,
and the choice of σ. Compiling: of the first fit and prediction, not in the times, except laplax's, which compiles at
every fit. Ratios: to isouq in the same structure (θ*: to Kronecker), paired by round; above 1 means slower. Memory: the
peak of a second call above what a fresh process held before it.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import child, memory, provenance, report, stream, timing
from benchmarks.contestant import CannotRun, Prepared
from benchmarks.laplace_contestants import (
    CONTESTANTS,
    ISOUQ_DIAGONAL,
    ISOUQ_KRONECKER,
    MODE,
    TORCH_KRONECKER,
    fit_function,
)
from benchmarks.laplace_subjects import CANCER, DIGITS, Posterior, Subject, subject
from experiments.run.compilations import count_compilations
from isouq import stats

COLUMNS = (
    "data", "parameters", "contestant", "seed", "status", "nll", "nll_minus_laplace_torch_kronecker", "sigma",
    "evidence", "fit_seconds", "fit_ratio", "fit_ratio_p10", "fit_ratio_p90", "predict_seconds", "predict_ratio",
    "predict_ratio_p10", "predict_ratio_p90", "fit_rounds", "predict_rounds", "compile_seconds", "fit_peak_mb",
    "predict_peak_mb", "result_mb",
)  # fmt: skip
STREAM = "stream"
SLOW = 120.0  # seconds of a fit after which a contestant gets no further split
Row = dict[str, Any]


@dataclass(frozen=True)
class Preset:
    """How much is measured: splits, epochs of training, rows of data (None: all), rounds, seconds a contestant."""

    seeds: int
    epochs: int
    size: int | None
    plan: timing.Plan
    stream: stream.Stream


PRESETS = {
    "full": Preset(5, 40, None, timing.Plan(5, 15.0), stream.FULL),
    "smoke": Preset(2, 2, 60, timing.Plan(1, 0.1), stream.SMOKE),
}


def run(preset: str, folder: Path, record: dict[str, Any], only: str = "", with_memory: bool = True) -> None:
    """Measure all contestants and the stream; write laplace.csv, .md and .json after each data set and structure."""
    settings = PRESETS[preset]
    names = [name for name in CONTESTANTS if only.lower() in name.lower() or name in (ISOUQ_KRONECKER, ISOUQ_DIAGONAL)]
    rows: list[Row] = []
    for structure in ("diagonal", "kronecker"):
        row = _row(STREAM, ISOUQ_DIAGONAL if structure == "diagonal" else ISOUQ_KRONECKER, 0)
        rows.append(row | stream.measure(structure, settings.stream))
        _report(rows[-1:])
        _write(rows, record, folder, settings)
    for data in (CANCER, DIGITS):
        running = names
        for seed in range(settings.seeds):
            rows += _split(data, seed, running, settings, with_memory)
            _write(rows, record, folder, settings)
            slow = {row["contestant"] for row in rows if row["status"].startswith("slow")}
            running = [name for name in running if name not in slow]
    print((folder / "laplace.md").read_text(), flush=True)


def _split(data: str, seed: int, names: list[str], settings: Preset, with_memory: bool) -> list[Row]:
    """Return the rows of one split of the data; the first split has times and memory too."""
    trained = subject(data, seed, settings.epochs, settings.size)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    rows = {name: _row(data, name, seed) | {"parameters": parameters} for name in names}
    calls: dict[str, Prepared] = {}
    for name, row in rows.items():
        try:
            row |= _predictions(name, trained, calls)
        except CannotRun as error:
            row["status"] = str(error)
        except Exception as error:  # a contestant that fails must not stop the others
            row["status"] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
        _report([row])
    rival = rows.get(TORCH_KRONECKER, {}).get("nll")
    for row in rows.values():
        if row["nll"] is not None and rival is not None:
            row["nll_minus_laplace_torch_kronecker"] = row["nll"] - rival
    if seed == 0:
        _time(rows, calls, settings.plan)
        if with_memory:
            _memory(data, rows, settings)
    return list(rows.values())


def _predictions(name: str, trained: Subject, calls: dict[str, Prepared]) -> Row:
    """Fit and predict once; add both calls to those that are timed."""
    fit = fit_function(name, trained)
    with count_compilations() as count:
        posterior, seconds = timing.first_call(Prepared(fit))
        probabilities = posterior.probabilities()
    measured: Row = {}
    if seconds > SLOW:
        measured = {
            "fit_seconds": seconds,
            "status": f"slow: a fit took over {SLOW:.0f} s, so that no further split was run",
        }
    else:
        calls |= {f"fit: {name}": Prepared(fit), f"predict: {name}": Prepared(posterior.probabilities)}
    return measured | {
        "nll": stats.log_loss(np.asarray(probabilities, np.float64), trained.test_ys),
        "sigma": posterior.sigma,
        "evidence": posterior.evidence,
        "compile_seconds": count.seconds if count.programs else None,
    }


def _time(rows: dict[str, Row], calls: dict[str, Prepared], plan: timing.Plan) -> None:
    """Add the times of interleaved rounds, and the ratios to isouq in the same structure."""
    calls = {name: call for name, call in calls.items() if name != f"fit: {MODE}"}  # it fits nothing
    second = {name: timing.first_call(call)[1] for name, call in calls.items()}  # all but laplax have compiled
    times = timing.rounds(calls, second, plan)
    nothing = np.full(max(map(len, times.values()), default=0), np.nan)
    for call, samples in times.items():
        step, name = call.split(": ", 1)
        rows[name][f"{step}_seconds"] = float(np.nanmedian(samples))
        rows[name][f"{step}_rounds"] = int(np.isfinite(samples).sum())
        ours = times.get(f"{step}: {ISOUQ_DIAGONAL if 'diagonal' in name else ISOUQ_KRONECKER}", nothing)
        ratio = timing.paired_ratio(samples, ours)
        rows[name] |= {f"{step}_ratio": ratio.median, f"{step}_ratio_p10": ratio.low, f"{step}_ratio_p90": ratio.high}


def _memory(data: str, rows: dict[str, Row], settings: Preset) -> None:
    """Add the peaks of memory, from a process for each contestant."""
    for name, row in rows.items():
        if row["status"] != "ok":
            continue
        measured = child.measure("benchmarks.laplace", data, name, json.dumps(settings.size))
        if "status" in measured:
            measured = {"status": f"ok; memory: {measured['status']}"}
        row |= measured
        _report([row])


def _measure_memory(data: str, name: str, size: int | None) -> dict[str, float]:
    """Measure the peaks of a second fit and a second prediction in the child process; the weights are initial ones."""
    fit = fit_function(name, subject(data, 0, 0, size))
    fit().probabilities()
    meter = memory.ResidentSet()
    meter.start()
    posterior: Posterior = fit()
    fit_peak = meter.peak()
    meter.start()
    posterior.probabilities()
    return {"fit_peak_mb": fit_peak / 1e6, "predict_peak_mb": meter.peak() / 1e6}


def _row(data: str, contestant: str, seed: int) -> Row:
    return dict.fromkeys(COLUMNS) | {"data": data, "contestant": contestant, "seed": seed, "status": "ok"}


def _report(rows: list[Row]) -> None:
    for row in rows:
        print({key: value for key, value in row.items() if value is not None}, flush=True)


def _write(rows: list[Row], record: dict[str, Any], folder: Path, settings: Preset) -> None:
    report.write_files("laplace", COLUMNS, rows, record, _page(rows, record, settings), folder)


def _page(rows: list[Row], record: dict[str, Any], settings: Preset) -> str:
    text = f"# Laplace approximations\n\n{provenance.in_words(record)}\n\n{report.body_of(__doc__)}\n\n"
    header = (
        "", "NLL", "− laplace-torch Kronecker", "σ", "log evidence", "fit", "÷ isouq", "predict", "÷ isouq",
        "fit: peak MB", "predict: peak MB", "compiling s", "note",
    )  # fmt: skip
    for data in dict.fromkeys(row["data"] for row in rows if row["data"] != STREAM):
        group = [row for row in rows if row["data"] == data]
        seeds = len({row["seed"] for row in group})
        lines = [
            _line([row for row in group if row["contestant"] == name], seeds)
            for name in dict.fromkeys(row["contestant"] for row in group)
        ]
        text += f"## {data}, {group[0]['parameters']:,} parameters, {seeds} splits\n\n{report.table(header, lines)}\n"
    group = [row for row in rows if row["data"] == STREAM]
    parameters = next((f", {row['parameters']:,} parameters" for row in group if row["parameters"]), "")
    lines = [
        [
            f"**{row['contestant']}**",
            report.duration(row["fit_seconds"]),
            *(report.number(row[key]) for key in ("fit_peak_mb", "result_mb")),
            "" if row["status"] == "ok" else row["status"],
        ]
        for row in group
    ]
    text += f"## A stream: {settings.stream.label()}{parameters}\n\n{report.body_of(stream.__doc__)}\n\n"
    return text + report.table(("", "time", "peak MB above the weights", "of them the covariance", "note"), lines)


def _line(group: list[Row], seeds: int) -> list[str]:
    """Return the line of a contestant: means over the splits, and the times of the first."""
    first, good = group[0], [row for row in group if row["nll"] is not None]
    notes = list(dict.fromkeys(row["status"] for row in group if row["status"] != "ok"))
    notes += [f"{len(good)} of {seeds} splits"] if good and len(good) < seeds else []
    name = f"**{first['contestant']}**" if first["contestant"].startswith("isouq") else first["contestant"]

    def mean(key: str, digits: int, sign: str = "") -> str:
        values = [row[key] for row in good if row[key] is not None]
        if not values:
            return "–"
        if len(values) == 1:
            return f"{values[0]:{sign}.{digits}f}"
        interval = stats.bootstrap_mean(values)
        return f"{interval.mean:{sign}.{digits}f} ({interval.low:{sign}.{digits}f} to {interval.high:{sign}.{digits}f})"

    def plain_mean(key: str) -> str:
        values = [row[key] for row in good if row[key] is not None]
        return report.number(float(np.mean(values))) if values else "–"

    return [
        name,
        mean("nll", 4),
        mean("nll_minus_laplace_torch_kronecker", 4, "+") if first["contestant"] != TORCH_KRONECKER else "0",
        plain_mean("sigma"),
        plain_mean("evidence"),
        report.duration(first["fit_seconds"]),
        report.number(first["fit_ratio"]),
        report.duration(first["predict_seconds"]),
        report.number(first["predict_ratio"]),
        report.number(first["fit_peak_mb"]),
        report.number(first["predict_peak_mb"]),
        report.number(first["compile_seconds"]),
        "; ".join(notes).replace("|", "\\|"),
    ]


if __name__ == "__main__":
    from benchmarks.settings import apply

    apply()
    child.print_row(_measure_memory(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
