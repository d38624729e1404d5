"""Measures time and memory of the reference posterior against chains, draws, width, inputs and devices.

Every measurement is a process of its own: a first run compiles, a second one of the same shapes is timed, and its peak
of resident memory is read above what the process held before. Devices are virtual ones on the same cores, so that
their axis shows what turns and copies cost, and no speed-up beyond the cores.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import child, memory, plots, provenance, report

ONE, ALL = "one chain a program", "all chains in one program"
COLUMNS = (
    "axis", "value", "contestant", "case", "seconds", "first_seconds", "peak_mb", "kept_mb", "gradient_evaluations",
    "microseconds_per_gradient", "status",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """XOR with `points` points and a network of one hidden layer; margins are stored at `inputs` inputs."""

    axis: str
    value: int
    chains: int = 4
    draws: int = 200
    width: int = 32
    inputs: int = 200
    points: int = 200
    warmup: int = 100
    leapfrog: int = 10
    devices: int = 1
    chains_at_once: int = 1

    def label(self) -> str:
        """Return the case in words."""
        return f"{self.chains} chains of {self.draws} draws, MLP 2-{self.width}-1, {self.inputs} inputs"


def cases(preset: str) -> Iterator[Case]:
    """Return cases that vary one quantity at a time, with one chain or all chains in a program where that matters."""
    full = preset == "full"
    base = Case("", 0) if full else Case("", 0, draws=20, width=4, inputs=10, points=20, warmup=10, leapfrog=2)
    values = {
        "chains": (2, 4, 8) if full else (2, 4),
        "width": (8, 64, 512) if full else (4, 8),
        "inputs": (100, 800, 6400) if full else (10, 20),
        "draws": (100, 400, 1600) if full else (10, 20),
        "devices": (1, 2, 8) if full else (1, 2),
    }
    for axis, numbers in values.items():
        for value in numbers:
            case = replace(base, axis=axis, value=value, **{axis: value})
            yield replace(case, chains=8) if axis == "devices" else case
            if axis in ("chains", "width"):
                yield replace(case, chains_at_once=case.chains)


def run(preset: str, folder: Path, record: dict[str, Any]) -> None:
    """Measure all cases; write reference.csv, .md, .png and .json after each, so that an interruption loses one."""
    rows: list[dict[str, Any]] = []
    for case in cases(preset):
        rows.append(_row(case))
        print({key: rows[-1][key] for key in ("axis", "value", "contestant", "seconds", "status")}, flush=True)
        _write(rows, record, folder)


def _row(case: Case) -> dict[str, Any]:
    environment = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={case.devices}"}
    row = dict.fromkeys(COLUMNS) | {"axis": case.axis, "value": case.value, "case": case.label(), "status": "ok"}
    row["contestant"] = ONE if case.chains_at_once == 1 else ALL
    return row | child.measure("benchmarks.reference", json.dumps(asdict(case)), environment=environment)


def _measure(case: Case) -> dict[str, float]:
    """Measure one case in the child process."""
    import jax

    from isouq import models, problems
    from isouq.posterior import LogDensity, Margins, Sampling, sample_reference

    problem = problems.get("binary/xor")
    data = problem.sample(jax.random.key(0), case.points)
    predict, init = models.mlp(2, (case.width,), problem.num_outputs)
    inits = jax.vmap(init)(jax.random.split(jax.random.key(1), case.chains))
    one = jax.tree.map(lambda leaf: leaf[0], inits)
    log_density = LogDensity.of(predict, one, data.xs, data.ys, problem.kind)
    xs = jax.random.normal(jax.random.key(2), (case.inputs, 2))
    record = Margins(predict, xs, jax.numpy.ones(case.inputs, jax.numpy.int32), problem.kind)

    sampling = Sampling(case.draws, case.warmup, case.leapfrog, chains_at_once=case.chains_at_once)

    def sample(seed: int) -> Any:
        return sample_reference(
            log_density, inits, jax.random.key(seed), sampling=sampling, record=record, verdict=False
        )

    start = time.perf_counter()
    sample(0)
    first = time.perf_counter() - start
    meter = memory.ResidentSet()
    meter.start()
    start = time.perf_counter()
    last_reference = sample(1)
    seconds = time.perf_counter() - start
    gradients = last_reference.cost.gradient_evaluations
    return {
        "seconds": seconds,
        "first_seconds": first,
        "peak_mb": meter.peak() / 1e6,
        "kept_mb": last_reference.predictions.nbytes / 1e6,
        "gradient_evaluations": gradients,
        "microseconds_per_gradient": 1e6 * seconds / gradients,
    }


def _write(rows: list[dict[str, Any]], record: dict[str, Any], folder: Path) -> None:
    text = f"# The reference posterior\n\n{provenance.in_words(record)}\n\n{report.body_of(__doc__)}\n\n"
    header = ("", "contestant", "time", "first run", "µs a gradient", "peak MB", "kept MB", "note")
    for axis in dict.fromkeys(row["axis"] for row in rows):
        lines = [_line(row) for row in rows if row["axis"] == axis]
        case = next(row["case"] for row in rows if row["axis"] == axis)
        text += f"## {axis} (first: {case})\n\n{report.table((axis, *header[1:]), lines)}\n"
    report.write_files("reference", COLUMNS, rows, record, text + "![](reference.png)\n", folder)
    plots.growth([row | {"case": row["axis"]} for row in rows], folder / "reference.png")


def _line(row: dict[str, Any]) -> list[str]:
    numbers = [report.number(row[key]) for key in ("microseconds_per_gradient", "peak_mb", "kept_mb")]
    times = [report.duration(row[key]) for key in ("seconds", "first_seconds")]
    return [str(row["value"]), row["contestant"], *times, *numbers, "" if row["status"] == "ok" else row["status"]]


if __name__ == "__main__":
    from benchmarks.settings import apply

    apply()
    child.print_row(_measure(Case(**json.loads(sys.argv[1]))))
