"""Measures isouq on one accelerator: whether its numbers are those of the CPU, how fast it is, and what it needs.

On a machine with one GPU and Python 3.11 or newer, from the checkout:

    make device                 (make device CUDA=cuda12 for a driver that lacks CUDA 13)

or by hand:

    python3 -m venv .venv
    .venv/bin/pip install -e '.[experiments]' 'jax[cuda13]'
    .venv/bin/python -m benchmarks device

It takes at most seven minutes after the installation. Each part is a process of its own, which is ended when its time
is over; its rows are written as they come, so that a run that is cut leaves a table. Without an accelerator the same
parts run in small on the CPU.
"""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import child, provenance, report

SECONDS = {"equality": 70, "ratios": 60, "sweep": 200, "references": 60}  # after which a part is cut
COLUMNS = (
    "part", "case", "contestant", "status", "error", "error_of_jax_grad", "agrees", "seconds", "ratio", "first_seconds",
    "posteriors", "gradients_per_second", "references_per_minute", "acceptance", "rounds", "accepted", "peak_mb",
)  # fmt: skip
READING = {
    "equality": "Largest relative error of a squared norm, of single parameters, against `jax.grad` in float64 on the "
    "CPU; the error of `jax.grad` on the device stands beside it. It agrees where the error is at most ten times the "
    "larger of that error and the rounding of the inputs.",
    "ratios": "Time of isouq, and of vmap of grad as a multiple of it, as `python -m benchmarks mlp` measures it. "
    "First: compiling.",
    "sweep": "Three rings, one hidden layer: references of several posteriors with one round of draws, trained and "
    "sampled by vmap in one program, and by a program for one posterior at a time, judged and summarised on the CPU. "
    "First: with compiling; one by one, of two posteriors.",
    "references": "The study's references at the paper preset, one after the other, until the verdict accepts; a "
    "second run of compiled programs.",
}
Row = dict[str, Any]


def run(preset: str, folder: Path, record: dict[str, Any]) -> None:
    """Measure all parts, each in a process; write device.csv, .md and .json after every row."""
    import jax

    if preset == "full" and jax.default_backend() == "cpu":
        print("JAX sees no accelerator: the smoke preset is measured, on the CPU", flush=True)
        preset = "smoke"
    rows: list[Row] = []
    for part in SECONDS:
        for row in _rows_of(part, preset):
            rows.append(dict.fromkeys(COLUMNS) | {"part": part} | row)
            print({name: value for name, value in rows[-1].items() if value is not None}, flush=True)
            _write(rows, record, folder)
    print((folder / "device.md").read_text(), flush=True)


def _rows_of(part: str, preset: str) -> Iterator[Row]:
    """Yield the rows of a part as its process prints them, and one that says so where it was cut or failed."""
    command = [sys.executable, "-m", "benchmarks.device", part, preset]
    last_words: list[str] = []
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        output, errors = process.stdout, process.stderr
        assert output is not None
        assert errors is not None
        reader = threading.Thread(target=lambda: last_words.extend(errors.read().strip().splitlines()[-1:]))
        cut = threading.Timer(SECONDS[part], process.kill)
        reader.start()
        cut.start()
        try:
            for line in output:
                row = child.read_row(line)
                if row is not None:
                    yield row
            process.wait()
        finally:
            is_over = not cut.is_alive()
            cut.cancel()
            process.kill()
            reader.join()
    if is_over:
        yield {"status": f"cut after {SECONDS[part]} s"}
    elif process.returncode > 0:
        yield {"status": f"failed: {(last_words or [f'exit status {process.returncode}'])[0][:160]}"}


def _write(rows: list[Row], record: dict[str, Any], folder: Path) -> None:
    text = f"# One accelerator\n\n{provenance.in_words(record)}\n"
    for part in dict.fromkeys(row["part"] for row in rows):
        group = [row for row in rows if row["part"] == part]
        columns = [name for name in COLUMNS[1:] if name != "status" and any(row[name] is not None for row in group)]
        lines = [[*(_field(row[name]) for name in columns), row["status"] or ""] for row in group]
        header = [name.replace("_", " ") for name in columns] + ["note"]
        text += f"\n## {part}\n\n{READING[part]}\n\n{report.table(header, lines)}"
    report.write_files("device", COLUMNS, rows, record, text, folder)


def _field(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return report.number(value) if isinstance(value, (int, float)) else value or "–"


def _measure(part: str, preset: str) -> None:
    """Print the rows of a part, each with the memory that the device has needed so far."""
    import jax

    from benchmarks import device_parts

    for row in device_parts.PARTS[part](preset):
        stats = jax.local_devices()[0].memory_stats() or {}
        peak = stats.get("peak_bytes_in_use")
        child.print_row(row | {"peak_mb": None if peak is None else peak / 1e6})


if __name__ == "__main__":
    from benchmarks.settings import apply

    apply()
    _measure(*sys.argv[1:])
