"""Compares isouq with vmap of grad on twenty small and middling models, compiled and as called without `jax.jit`.

Jitted: `jit(vmap(grad_sq_norm(f)))` and `jit(vmap)` of `jax.grad`, squared and summed; f is the probability of class 0.
Ratios are isouq ÷ vmap of grad, below 1 where isouq is faster: the median of paired rounds, in shuffled order, with its
10–90 % range. Their seconds are CPU seconds of the process on one core, which other processes on the machine disturb
least. Temp: MB that the compiled programs need beside arguments and results. Error: of the largest squared norm of a
batch. Unjitted: one call of `isouq.uncertainty` (wall seconds on the same core) beside vmap of the gradient of the
predicted class's probability, called without jit, and compiled and kept by the user.
"""

import functools
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import isouq
from benchmarks import provenance, report, timing
from benchmarks.engine_models import MODELS, Model
from benchmarks.jax_contestants import squares
from isouq._memory import temporary_bytes

COLUMNS = (
    "part", "model", "parameters", "batch", "isouq_seconds", "vmap_seconds", "ratio", "ratio_p10", "ratio_p90",
    "jitted_seconds", "ratio_to_jitted", "rounds", "isouq_temp_mb", "vmap_temp_mb", "error", "routes",
)  # fmt: skip
ALLOWED = 1.05
UNJITTED_BATCH = 256
SAMPLE_SECONDS = 0.004
Row = dict[str, Any]


def run(preset: str, folder: Path, record: dict[str, Any], only: str = "") -> None:
    """Measure the models whose name contains `only`; write engine.csv, .md and .json after each."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    seconds, batches = (0.4, (1, 16, 256, 2000)) if preset == "full" else (0.0, (1, 4))
    rows: list[Row] = []
    for name, make in MODELS.items():
        if only.lower() not in name.lower():
            continue
        model = make()
        for row in _rows(model, batches, seconds):
            count = sum(leaf.size for leaf in jax.tree.leaves(model.params))
            rows.append(dict.fromkeys(COLUMNS) | {"model": name, "parameters": count} | row)
            print({key: rows[-1][key] for key in ("part", "model", "batch", "ratio", "rounds")}, flush=True)
        report.write_files("engine", COLUMNS, rows, record, _page(rows, record), folder)
        jax.clear_caches()
    print((folder / "engine.md").read_text(), flush=True)


def _rows(model: Model, batches: tuple[int, ...], seconds: float) -> Iterator[Row]:
    """Yield the rows of one model: compiled at each batch, then uncompiled at one of them."""
    for batch in batches:
        if batch in model.batches or seconds == 0:
            yield _jitted(model, batch, seconds)
    yield _unjitted(model, UNJITTED_BATCH if seconds else batches[-1], seconds)


def _jitted(model: Model, batch: int, seconds: float) -> Row:
    """Return the CPU time, memory and error of the compiled programs."""

    def f(params: Any, x: Any) -> jax.Array:
        return jax.nn.softmax(model.predict(params, x))[0]

    args = model.params, jnp.asarray(model.inputs(batch))
    functions = isouq.grad_sq_norm(f), lambda params, x: squares(jax.grad(f)(params, x))
    programs = [jax.jit(jax.vmap(function, (None, 0))).lower(*args).compile() for function in functions]
    ours, theirs = (np.asarray(program(*args), np.float64) for program in programs)
    calls = [functools.partial(_wait, program, *args) for program in programs]
    samples = _interleaved(calls, seconds, time.process_time)
    ratio = timing.paired_ratio(samples[:, 0], samples[:, 1])
    temps = [temporary_bytes(program) / 1e6 for program in programs]
    routes = dict.fromkeys(row.route.split(":")[0].split(" of")[0] for row in isouq.explain(f)(args[0], args[1][0]))
    return {
        "part": "jitted", "batch": batch, "isouq_seconds": np.median(samples[:, 0]),
        "vmap_seconds": np.median(samples[:, 1]), "ratio": ratio.median, "ratio_p10": ratio.low,
        "ratio_p90": ratio.high, "rounds": len(samples), "isouq_temp_mb": temps[0], "vmap_temp_mb": temps[1],
        "error": float(np.max(np.abs(ours - theirs)) / np.max(theirs)), "routes": ", ".join(routes),
    }  # fmt: skip


def _unjitted(model: Model, batch: int, seconds: float) -> Row:
    """Return the wall time of a call without `jax.jit`, beside vmap of grad without and with it."""
    params, xs = model.params, jnp.asarray(model.inputs(batch))

    def one(params: Any, x: Any) -> jax.Array:
        return squares(jax.grad(lambda params: jnp.max(jax.nn.softmax(model.predict(params, x))))(params))

    plain = jax.vmap(one, (None, 0))
    kept = jax.jit(plain)
    ours = functools.partial(isouq.uncertainty, model.predict, params, xs, "multiclass")
    calls = [functools.partial(_wait, ours), *(functools.partial(_wait, call, params, xs) for call in (plain, kept))]
    samples = _interleaved(calls, seconds, time.perf_counter)
    ratio, to_jitted = (timing.paired_ratio(samples[:, 0], samples[:, i]) for i in (1, 2))
    medians = np.median(samples, axis=0)
    return {
        "part": "unjitted", "batch": batch, "isouq_seconds": medians[0], "vmap_seconds": medians[1],
        "jitted_seconds": medians[2], "ratio": ratio.median, "ratio_p10": ratio.low, "ratio_p90": ratio.high,
        "ratio_to_jitted": to_jitted.median, "rounds": len(samples),
    }  # fmt: skip


def _wait(call: Callable, *args: Any) -> None:
    jax.block_until_ready(call(*args))


def _interleaved(calls: Sequence[Callable], seconds: float, clock: Callable[[], float]) -> np.ndarray:
    """Return the seconds per call [rounds, calls], by this clock, of rounds in shuffled order.

    There are at least 5 rounds, and as many as fit into `seconds` for each call. The first calls are not counted.
    """
    rng = random.Random(0)
    samples: list[list[float]] = []
    for call in calls:
        call()
    start = time.perf_counter()
    for call in calls:
        call()
    repeats = int(np.clip(SAMPLE_SECONDS * len(calls) / (time.perf_counter() - start), 1, 20))
    end = time.perf_counter() + seconds * len(calls)
    while len(samples) < 5 or time.perf_counter() < end:
        order, times = list(range(len(calls))), [0.0] * len(calls)
        rng.shuffle(order)
        for i in order:
            calls[i]()
            start = clock()
            for _ in range(repeats):
                calls[i]()
            times[i] = (clock() - start) / repeats
        samples.append(times)
    return np.array(samples)


def _page(rows: list[Row], record: dict[str, Any]) -> str:
    jitted = [row for row in rows if row["part"] == "jitted"]
    slower = [row for row in jitted if row["ratio"] > ALLOWED]
    words = "".join(f"- {row['model']}, batch {row['batch']}: {report.number(row['ratio'])}\n" for row in slower)
    body = [
        [
            row["model"], f"{row['parameters']:,}", str(row["batch"]), report.duration(row["isouq_seconds"]),
            report.duration(row["vmap_seconds"]), f"{row['ratio']:.2f}",
            f"({row['ratio_p10']:.2f}–{row['ratio_p90']:.2f})", str(row["rounds"]),
            report.number(row["isouq_temp_mb"]), report.number(row["vmap_temp_mb"]), f"{row['error']:.0e}",
            row["routes"],
        ]
        for row in jitted
    ]  # fmt: skip
    header = ("model", "parameters", "batch", "isouq", "vmap of grad", "ratio", "(10–90 %)", "rounds", "temp MB",
              "vmap: temp MB", "error", "routes")  # fmt: skip
    calls = [
        [
            row["model"], str(row["batch"]), report.duration(row["isouq_seconds"]),
            report.duration(row["vmap_seconds"]), report.duration(row["jitted_seconds"]), f"{row['ratio']:.2f}",
            f"({row['ratio_p10']:.2f}–{row['ratio_p90']:.2f})", f"{row['ratio_to_jitted']:.2f}",
        ]
        for row in rows
        if row["part"] == "unjitted"
    ]  # fmt: skip
    names = ("model", "batch", "isouq", "vmap of grad", "jitted vmap of grad", "÷ vmap of grad", "(10–90 %)",
             "÷ jitted")  # fmt: skip
    return (
        f"# The engine beside vmap of grad\n\n{provenance.in_words(record)}\n\n{report.body_of(__doc__)}\n\n"
        f"## Jitted\n\nThe ratio is above {ALLOWED} in {len(slower)} of {len(jitted)} rows.\n\n{words}\n"
        f"{report.table(header, body)}\n## Unjitted\n\n{report.table(names, calls)}"
    )
