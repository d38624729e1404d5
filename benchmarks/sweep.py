"""What the runner itself costs: time and memory of a sweep against the number of jobs and workers.

Command: python -m benchmarks.sweep            (2 CPU cores, about 5 minutes)
Jobs that compute nothing show the overhead: storing (two files that are forced to the disk), progress and the driver.
Jobs that keep one core busy for a fixed time show what a second worker brings. Written to
benchmarks/results/sweep.csv, sweep.md and sweep.png. How one job grows with chains, draws, width and inputs is in
`python -m benchmarks reference`.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import plots
from benchmarks.provenance import in_words, provenance
from experiments.run.job import Result

ROOT = Path(__file__).parents[1]
COUNTS = (100, 1000, 10_000)
BUSY = (20, 1.0)  # jobs, seconds of one core each


@dataclass(frozen=True)
class Nothing:
    """A job that keeps a core busy for so many seconds of CPU time, and returns a few numbers."""

    seed: int
    seconds: float = 0.0

    @property
    def study(self) -> str:
        """Return the name of the one study."""
        return "sweep"

    def needs(self) -> None:
        """Return None: it reads no other job."""

    def key(self) -> str:
        """Return a unique name."""
        return f"{self.seed:08x}{int(self.seconds * 1000):08x}"

    def label(self) -> str:
        """Return its number in words."""
        return f"job {self.seed}"

    def program(self) -> str:
        """Return one name for all: nothing is compiled."""
        return "nothing"

    def weight(self) -> float:
        """Return the seconds that it takes."""
        return self.seconds or 0.01

    def run(self, needed: Any, checkpoint: Path | None, progress: Callable[[float], None] | None) -> Result:
        """Be busy, then return when it was started."""
        began, started = time.time(), time.process_time()
        while time.process_time() - started < self.seconds:
            np.linalg.norm(np.ones(1000))
        return Result({"seed": self.seed, "seconds": self.seconds, "began": began}, {"x": np.arange(100.0)})


def measure(count: int, seconds: float, workers: int, out: str) -> dict[str, float]:
    """Measure, in a process of its own, wall seconds of the sweep, of reading it again, and the driver's peak memory.

    span: seconds from the first job's start to the last one's files. peak_mb: in MB.
    """
    import resource

    from rich.console import Console

    from experiments.run.executors.settings import Settings
    from experiments.run.loop import run_jobs

    jobs = [Nothing(seed, seconds) for seed in range(count)]
    settings = Settings("processes", workers) if workers > 1 else Settings("local")
    with open("/dev/null", "w") as quiet:
        started = time.monotonic()
        results = run_jobs(jobs, Path(out), settings, Console(file=quiet))
        ran = time.monotonic() - started
        started = time.monotonic()
        run_jobs(jobs, Path(out), settings, Console(file=quiet))
        again = time.monotonic() - started
    last = max(path.stat().st_mtime for path in (Path(out) / "cells").glob("*.json"))
    span = last - min(result.numbers["began"] for result in results)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {"seconds": ran, "span": span, "again": again, "peak_mb": peak}


def _status(out: Path, count: int) -> float:
    """Return the seconds of `python -m experiments status`, the start of Python included."""
    plan: dict[str, Any] = {"name": "sweep", "preset": "", "command": ""}
    plan |= {"jobs": [[Nothing(seed).key(), f"job {seed}"] for seed in range(count)]}
    (out / "plans").mkdir(exist_ok=True)
    (out / "plans" / "sweep.json").write_text(json.dumps(plan))
    started = time.monotonic()
    command = [sys.executable, "-m", "experiments", "status", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"{count} of {count} jobs done" in done.stdout, done.stdout
    return time.monotonic() - started


def main(arguments: list[str] | None = None) -> int:
    """Measure all and write the table."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description="What the runner itself costs.")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)), help="numbers of jobs")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison of one worker with two")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in map(int, options.counts.split(",")):
            out = Path(folder) / f"idle{count}"
            row = {"jobs": count, "job_seconds": 0.0, "workers": 1, **_apart(count, 0.0, 1, out)}
            rows.append(row | {"status": _status(out, count)})
            print(rows[-1], flush=True)
        for repeat in range(options.repeats):
            for workers in (1, 2):
                out = Path(folder) / f"busy{workers}.{repeat}"
                rows.append({"jobs": BUSY[0], "job_seconds": BUSY[1], "workers": workers,
                             **_apart(*BUSY, workers, out)})  # fmt: skip
                print(rows[-1], flush=True)
    _write(options.out, rows, arguments)
    return 0


def _apart(count: int, seconds: float, workers: int, out: Path) -> dict[str, float]:
    code = (
        f"import json; from benchmarks.sweep import measure; print(json.dumps(measure({count}, {seconds}, {workers}, "
    )
    command = [sys.executable, "-c", code + f"{str(out)!r})))"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def _write(out: Path, rows: list[dict[str, Any]], arguments: list[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(out / "sweep.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    lines = [
        "# What the runner itself costs", "",
        in_words(provenance(arguments)).replace("-m benchmarks", "-m benchmarks.sweep"), "",
        "| jobs that compute nothing | ms a job | reading them again, s | `status`, s | driver's peak, MB |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for row in (row for row in rows if not row["job_seconds"]):
        each, again, status = 1000 * row["span"] / row["jobs"], row["again"], row["status"]
        lines.append(f"| {row['jobs']:,} | {each:.1f} | {again:.2f} | {status:.2f} | {row['peak_mb']:.0f} |")
    spans = {w: [row["span"] for row in rows if row["job_seconds"] and row["workers"] == w] for w in (1, 2)}
    whole = {
        w: np.median([row["seconds"] for row in rows if row["job_seconds"] and row["workers"] == w]) for w in (1, 2)
    }
    ratios = sorted(one / two for one, two in zip(spans[1], spans[2], strict=True))
    if ratios:
        lines += [
            "",
            f"{BUSY[0]} jobs of {BUSY[1]:g} s of one core: one worker takes {np.median(spans[1]):.1f} s, two take "
            f"{np.median(spans[2]):.1f} s, a factor of {np.median(ratios):.2f} (from {ratios[0]:.2f} to "
            f"{ratios[-1]:.2f} in {len(ratios)} runs of each), from the first job's start to the last one's end. "
            f"With the start of the workers it is {whole[1]:.1f} s and {whole[2]:.1f} s.",
        ]
    (out / "sweep.md").write_text("\n".join([*lines, "", "![](sweep.png)", ""]), encoding="utf-8")
    plots.growth(_points(rows), out / "sweep.png")


def _points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of the figure: one for each number of jobs and of workers, each the median of its runs."""
    idle, busy = ([row for row in rows if bool(row["job_seconds"]) is kind] for kind in (False, True))
    groups = [("jobs", row["jobs"], "jobs that compute nothing", [row]) for row in idle]
    for workers in sorted({row["workers"] for row in busy}):
        some = [row for row in busy if row["workers"] == workers]
        groups.append(("workers", workers, f"{BUSY[0]} jobs of {BUSY[1]:g} s", some))
    return [
        {"axis": axis, "value": value, "case": case, "contestant": "the runner",
         "seconds": float(np.median([row["span"] for row in some])),
         "peak_mb": float(np.median([row["peak_mb"] for row in some]))}
        for axis, value, case, some in groups
    ]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
