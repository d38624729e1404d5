"""Measures the synthetic study before and after: a whole run, and one reference, of a commit and of the working tree.

The commit's files are taken from git and run in the same Python environment. Every run has an empty folder for its
results and another for its compiled programs. CPU seconds are those of the command and all its workers. The reference
is the one of three rings that the sweep samples first at its width, in a process of its own, importing and compiling
included, both contestants in turn.
"""

import os
import shlex
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import child, provenance, report

ROOT = Path(__file__).parents[1]
BEFORE = "48038d6"  # version 0.1 with the experiments as they stood before they were made faster
# It runs in both trees, of which the older one lacks `child`, and so prints the mark itself.
REFERENCE = """
import json, sys, time
import isouq
from experiments.synthetic.presets import scaling
from experiments.synthetic.study import run_cell

cell = next(cell for cell in scaling.jobs(sys.argv[1]) if cell.width == int(sys.argv[2])).reference()
start = time.process_time()
numbers = run_cell(cell).numbers
seconds = time.process_time() - start
columns = ("gradient_evaluations", "ess_bulk", "rhat", "rounds", "accepted", "num_draws")
print("measured:", json.dumps({"cpu_seconds_after_import": seconds, **{name: numbers.get(name) for name in columns}}))
"""
COLUMNS = (
    "part", "contestant", "repeat", "status", "seconds", "cpu_seconds", "cpu_seconds_after_import",
    "gradient_evaluations", "ess_bulk", "rhat", "rounds", "accepted", "num_draws",
)  # fmt: skip
WHOLE = "whole run"
OLD_NAME = "all"  # in version 0.1 of what is `reproduce` now: it had no other synthetic studies
Row = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A tree of files that holds isouq and the experiments."""

    name: str
    tree: Path
    keeps_programs: bool = False  # whether its experiments have the option --compilation-cache


def run(preset: str, folder: Path, record: dict[str, Any], before: str, experiment: str, repeats: int) -> None:
    """Measure both parts; write study.csv, .md and .json after each run.

    before: the commit, as git names it. experiment: arguments of `python -m experiments` for the whole run; empty for
    none. repeats: runs of the one reference.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        old = Path(temporary) / "before"
        extract(before, old)
        contestants = [contestant(f"before ({before})", old), contestant("after", ROOT)]
        for row in _rows(preset, contestants, experiment, repeats):
            rows.append(row)
            print({name: value for name, value in row.items() if value is not None}, flush=True)
            _write(rows, record | {"before": before, "experiment": experiment}, folder)
    print((folder / "study.md").read_text(), flush=True)


def extract(commit: str, folder: Path) -> None:
    """Write the files of a commit of this repository into a new folder."""
    done = subprocess.run(["git", "archive", "--format=tar", commit], cwd=ROOT, capture_output=True)
    if done.returncode:
        reason = done.stderr.decode().strip().splitlines()[-1:] or ["git failed"]
        raise SystemExit(f"--before {commit}: {reason[0]}; name a commit of this repository")
    folder.mkdir(parents=True)
    with tempfile.TemporaryFile() as file:
        file.write(done.stdout)
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            archive.extractall(folder, filter="data")


def contestant(name: str, tree: Path) -> Contestant:
    """Return the contestant; raise unless Python imports its files."""
    code = "import isouq, experiments; print(isouq.__file__, experiments.__file__, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=_environment(tree), capture_output=True, text=True, check=True
    )
    elsewhere = [path for path in done.stdout.splitlines() if not Path(path).is_relative_to(tree)]
    if elsewhere:
        raise SystemExit(f"{name}: Python imports {elsewhere[0]} and not the files of {tree}; unset PYTHONPATH")
    options = subprocess.run(
        [sys.executable, "-m", "experiments", "--help"],
        cwd=tree,
        env=_environment(tree),
        capture_output=True,
        text=True,
    )
    return Contestant(name, tree, "--compilation-cache" in options.stdout)


def _rows(preset: str, contestants: list[Contestant], experiment: str, repeats: int) -> Iterator[Row]:
    """Yield the row of each run: the reference of both contestants in turn, then the whole run."""
    wanted = ("paper", "32") if preset == "full" else ("smoke", "2")
    for repeat in range(repeats):
        for one in contestants:
            row = measure(one, ["-c", REFERENCE, *wanted])
            yield row | {"part": f"one reference, width {wanted[1]}, preset {wanted[0]}", "repeat": repeat}
    for one in contestants if experiment else []:
        with tempfile.TemporaryDirectory() as folder:
            known = experiment if one.keeps_programs else experiment.replace("reproduce", OLD_NAME)
            command = ["-m", "experiments", *shlex.split(known), "--out", f"{folder}/out"]
            if one.keeps_programs:
                command += ["--compilation-cache", f"{folder}/programs"]
            yield measure(one, command) | {"part": f"{WHOLE}: {experiment}", "repeat": 0}


def measure(one: Contestant, arguments: list[str], environment: dict[str, str] | None = None) -> Row:
    """Run Python with these arguments in a contestant's tree, and return the seconds and what it printed."""
    row: Row = dict.fromkeys(COLUMNS) | {"contestant": one.name, "status": "ok"}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=one.tree,
            env=_environment(one.tree) | (environment or {}),
            stdout=output,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)  # the usage of its workers too, once it has waited for them
        row["seconds"] = time.perf_counter() - start
        row["cpu_seconds"] = usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (output, errors):
            file.seek(0)
        if process.returncode:
            reason = errors.read().strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
            return row | {"status": f"failed: {reason[0][:160]}"}
        for line in output:
            row |= child.read_row(line) or {}
    return row


def _environment(tree: Path) -> dict[str, str]:
    """Return the environment in which Python imports the tree's files and keeps no compiled programs unasked."""
    others = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    return others | {"PYTHONPATH": str(tree)}


def _write(rows: list[Row], record: dict[str, Any], folder: Path) -> None:
    text = f"# The study, before and after\n\n{provenance.in_words(record)}\n\n{report.body_of(__doc__)}\n"
    for part in dict.fromkeys(row["part"] for row in rows):
        text += f"\n## {part}\n\n{_table([row for row in rows if row['part'] == part])}"
    report.write_files("study", COLUMNS, rows, record, text, folder)


def _table(rows: list[Row]) -> str:
    """Return a line for each contestant, the medians over its runs, and the ratio of CPU seconds to the last one's."""
    names = list(dict.fromkeys(row["contestant"] for row in rows))
    columns = (
        "seconds", "cpu_seconds", "cpu_seconds_after_import", "gradient_evaluations", "ess_bulk", "rhat", "rounds"
    )  # fmt: skip

    def median(name: str, column: str) -> float | None:
        values = [row[column] for row in rows if row["contestant"] == name and row["status"] == "ok"]
        known = [value for value in values if value is not None]
        return float(np.median(known)) if known else None

    last = median(names[-1], "cpu_seconds")
    lines = []
    for name in names:
        group = [row for row in rows if row["contestant"] == name]
        cpu = median(name, "cpu_seconds")
        ratio = cpu / last if cpu and last else None
        notes = [row["status"] for row in group if row["status"] != "ok"]
        notes += ["unconverged"] if any(row["accepted"] is False for row in group) else []
        numbers = [report.number(median(name, column)) for column in columns]
        lines.append([name, str(len(group)), *numbers, report.number(ratio), "; ".join(dict.fromkeys(notes))])
    header = ("", "runs", "wall s", "CPU s", "CPU s after imports", "gradients", "ESS", "R-hat", "rounds",
              f"CPU ÷ {names[-1]}", "note")  # fmt: skip
    return report.table(header, lines)
