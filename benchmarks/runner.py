"""Runs cases: prepares every contestant, checks its norms, times all in rounds, and measures memory one by one."""

import gc
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import memory, models, timing
from benchmarks.cases import BACKWARDS, GRADS, ISOUQ, LAX_MAP, PROBES, TORCH, TORCH_LOOP, VMAP, Case, contestants
from benchmarks.contestant import CannotRun, Prepared
from benchmarks.prepare import prepare
from experiments.run.status import duration

Row = dict[str, Any]
COLUMNS = (
    *("benchmark", "case", "kind", "batch", "width", "length", "tied", "parameters", "axis", "value"),
    *("contestant", "framework", "status", "seconds", "seconds_p10", "seconds_p90", "rounds"),
    *("time_ratio", "time_ratio_p10", "time_ratio_p90", "compile_seconds", "temp_mb", "peak_mb", "memory_ratio"),
    *("max_relative_error", "estimate_mean", "estimate_rms", "estimate_rms_expected", "estimate_p10", "estimate_p90"),
)
LEAST_MB = 1.0  # smaller peaks are below the resolution of the method, and no ratio is given
WEIGHTS = {"mlp": 1, "cnn": 2, "encoder": 4, "lm": 12, "text": 12}  # relative times, to estimate the time left


@dataclass(frozen=True)
class Options:
    """The options of the command line that affect the measurement."""

    plan: timing.Plan
    memory: bool = True
    only: str = ""  # runs isouq and the contestants whose name contains this


class Progress:
    """Prints a line per step, with the time left as estimated from the steps so far."""

    def __init__(self, cases: Sequence[tuple[str, Case]], options: Options) -> None:
        self.start, self.done = time.monotonic(), 0.0
        steps = 3 if options.memory else 2
        self.total = sum(steps * WEIGHTS[case.kind] * len(taking_part(name, case, options)) for name, case in cases)

    def step(self, case: Case, text: str, count: int = 1) -> None:
        """Record that `count` contestants have finished a step: preparation, timing or memory."""
        self.done += WEIGHTS[case.kind] * count
        elapsed = time.monotonic() - self.start
        left = elapsed / self.done * (self.total - self.done)
        print(f"[{100 * self.done / self.total:3.0f} %, about {duration(left)} left] {case.label}: {text}", flush=True)


def taking_part(name: str, case: Case, options: Options) -> list[str]:
    """Return the contestants of a case that `--only` selects, and always those that the others are compared with."""
    return [c for c in contestants(name, case) if options.only.lower() in c.lower() or c in (ISOUQ, PROBES)]


def run_case(name: str, case: Case, options: Options, progress: Progress) -> list[Row]:
    """Return one row per contestant, including those that cannot run."""
    names = taking_part(name, case, options)
    rows = {c: _row(name, case, c) for c in names}
    ready, norms, first = _set_up(case, rows, progress)
    _check(case, rows, ready, norms)
    _time(case, rows, ready, first, options, progress)
    ready.clear()
    _forget()
    if options.memory:
        _memory(case, rows, progress)
    return list(rows.values())


def _row(name: str, case: Case, contestant: str) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"benchmark": name, "case": case.label, "contestant": contestant, "status": "ok"}
    row |= {field: getattr(case, field) for field in ("kind", "batch", "width", "length", "axis", "value")}
    tied = case.tied if case.kind == "lm" else None
    framework = "torch" if contestant in TORCH else "JAX"
    return row | {"tied": tied, "parameters": models.count(case), "framework": framework}


def _set_up(
    case: Case, rows: dict[str, Row], progress: Progress
) -> tuple[dict[str, Prepared], dict[str, np.ndarray], dict[str, float]]:
    """Build, compile and call each contestant once. One that fails keeps its row, with the reason, and is dropped."""
    ready: dict[str, Prepared] = {}
    norms: dict[str, np.ndarray] = {}
    first: dict[str, float] = {}
    for name, row in rows.items():
        try:
            prepared = prepare(name, case)
            result, first[name] = timing.first_call(prepared)
            if prepared.norms is not None:
                norms[name] = np.asarray(prepared.norms(result), np.float64)
            ready[name] = prepared
            del result
            row["compile_seconds"] = prepared.compile_seconds
            row["temp_mb"] = None if prepared.temp_bytes is None else prepared.temp_bytes / 1e6
            text = f"first call {first[name]:.3g} s"
        except CannotRun as error:
            row["status"] = text = str(error)
        except Exception as error:  # a contestant that fails must not stop the others
            row["status"] = text = f"failed: {type(error).__name__}: {_one_line(error)}"
        progress.step(case, f"{name}: {text}")
        _forget(arrays=False)
    return ready, norms, {name: first[name] for name in ready}


def _check(case: Case, rows: dict[str, Row], ready: dict[str, Prepared], norms: dict[str, np.ndarray]) -> None:
    """Record the largest relative error against JAX's gradients (text: torch's); for estimates, its distribution."""
    trusted = (TORCH_LOOP, LAX_MAP) if case.kind == "text" else (VMAP, LAX_MAP, BACKWARDS)
    exact = next((norms[name] for name in trusted if name in norms), None)
    if exact is None:
        return
    for name, values in norms.items():
        error = values[: len(exact)] / exact - 1
        if not ready[name].stochastic:
            rows[name]["max_relative_error"] = float(np.max(np.abs(error)))
            continue
        low, high = np.percentile(error, (10, 90))
        rows[name] |= {"estimate_mean": float(error.mean()), "estimate_rms": float(np.sqrt(np.mean(error**2)))}
        rows[name] |= {"estimate_p10": float(low), "estimate_p90": float(high)}
        rows[name]["estimate_rms_expected"] = (2 / case.probes) ** 0.5


def _time(
    case: Case,
    rows: dict[str, Row],
    ready: dict[str, Prepared],
    first: dict[str, float],
    options: Options,
    progress: Progress,
) -> None:
    times = timing.rounds(ready, first, options.plan, case.seed)
    ours = next((times[name] for name in (ISOUQ, PROBES) if name in times), None)
    for name, samples in times.items():
        finite = samples[np.isfinite(samples)]
        low, median, high = np.percentile(finite, (10, 50, 90))
        rows[name] |= {"seconds": median, "seconds_p10": low, "seconds_p90": high, "rounds": len(finite)}
        if ours is not None:
            ratio = timing.paired_ratio(samples, ours)
            rows[name] |= {"time_ratio": ratio.median, "time_ratio_p10": ratio.low, "time_ratio_p90": ratio.high}
    most = max((row["rounds"] or 0 for row in rows.values()), default=0)
    progress.step(case, f"timed, up to {most} rounds", count=len(rows))


def _memory(case: Case, rows: dict[str, Row], progress: Progress) -> None:
    for name, row in rows.items():
        if row["status"] != "ok":
            progress.step(case, f"{name}: no memory measured")
            continue
        loops = name in (BACKWARDS, GRADS)  # a few positions show the peak, for a loop reuses its buffers
        small = replace(case, positions=min(4, case.length)) if loops else case
        peak, reason = memory.peak_bytes(name, small)
        row["peak_mb"] = None if peak is None else peak / 1e6
        if reason:
            row["status"] = f"ok; {reason}"
        progress.step(case, f"{name}: " + (reason or f"peak {row['peak_mb']:.1f} MB"))
    ours = next((rows[name]["peak_mb"] for name in (ISOUQ, PROBES) if name in rows), None)
    for row in rows.values():
        if row["peak_mb"] is not None and ours is not None and min(ours, row["peak_mb"]) >= LEAST_MB:
            row["memory_ratio"] = row["peak_mb"] / ours


def _forget(arrays: bool = True) -> None:
    """Free the memory of the last contestant or case."""
    if arrays:
        from benchmarks import jax_contestants

        jax_contestants.forget()
        models.weights.cache_clear()
    gc.collect()
    if "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()  # has no effect without CUDA


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
