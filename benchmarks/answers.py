"""Measures a first answer and the decoding of 20 answers, of a commit and of the working tree.

The commit's files are taken from git and run in the same Python environment, in turn with those of the working tree.
"First answer": a process that imports isouq, loads the model, generates one answer and scores it. Nothing is stored
between processes, or the programs that an earlier process compiled are ("programs kept"), with JAX's own option before
and with `isouq.text.keep_compiled_programs` after. "20 answers": one call of `generate` with 20 different prompts, 32
tokens each, after a first call that compiles; sampled ones are drawn with temperature 1. CPU seconds are those of the
process, or of the call. Ratios are paired within a round, the median with its smallest and largest.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cases, provenance, report, study, text_models

BEFORE = "edd9dc2"  # the last commit before the work on language models of version 0.2
AFTER = "after"
# The scripts run in both trees, of which the older one lacks `child`, and so they print the mark themselves.
FIRST = """
import os, sys
from isouq import text

if os.environ.get("KEPT_BY_ISOUQ"):
    text.keep_compiled_programs(os.environ["KEPT_BY_ISOUQ"])
model = text.load(sys.argv[1])
answer = text.generate(model, ["The capital of France is"], max_new_tokens=16)[0]
text.score(model, [("The capital of France is", answer.text or " Paris")])
"""
DECODING = """
import json, sys, time
import jax
from isouq import text

model = text.load(sys.argv[1])
things = "sea sky sun moon rain snow wind fire iron gold wood salt milk bread grass horse river stone".split()
things += ["glass", "paper"]
options = {"temperature": 1.0, "key": jax.random.key(0)} if sys.argv[2] == "sampled" else {}


def answer():
    text.generate(model, [f"A thing one can say about {thing} is" for thing in things], 32, batch_size=20, **options)


answer()
wall, cpu = time.perf_counter(), time.process_time()
answer()
seconds = {"call_seconds": time.perf_counter() - wall, "call_cpu_seconds": time.process_time() - cpu}
print("measured:", json.dumps(seconds))
"""
PARTS = ("first answer", "first answer, programs kept", "20 answers, greedy", "20 answers, sampled")
COLUMNS = ("part", "contestant", "round", "status", "seconds", "cpu_seconds", "call_seconds", "call_cpu_seconds")
Row = dict[str, Any]


def run(preset: str, folder: Path, record: dict[str, Any], before: str, rounds: int) -> None:
    """Measure every part in turn, and write answers.csv, .md and .json after each run.

    before: the commit, as git names it.
    """
    rows: list[Row] = []
    model = str(text_models.path(cases.text_cases(preset)[0]))
    with tempfile.TemporaryDirectory() as temporary:
        old = Path(temporary) / "before"
        study.extract(before, old)
        trees = {f"before ({before})": old, AFTER: study.ROOT}
        contestants = [study.contestant(name, tree) for name, tree in trees.items()]
        for row in _rows(contestants, model, Path(temporary), rounds):
            rows.append({name: row.get(name) for name in COLUMNS})
            print({name: value for name, value in rows[-1].items() if value is not None}, flush=True)
            text = f"# Answers, before and after\n\n{provenance.in_words(record)}\n\n{report.body_of(__doc__)}\n"
            report.write_files("answers", COLUMNS, rows, record | {"before": before}, text + _tables(rows), folder)
    print((folder / "answers.md").read_text(), flush=True)


def _rows(contestants: list[study.Contestant], model: str, temporary: Path, rounds: int) -> Iterator[Row]:
    """Yield the row of each process; those that fill the stores of compiled programs have none."""
    for one in contestants:
        study.measure(one, ["-c", FIRST, model], _kept(one, temporary))
    for i in range(rounds):
        for part in PARTS:
            for one in contestants if i % 2 == 0 else contestants[::-1]:
                if part.startswith("first"):
                    environment = _kept(one, temporary) if part.endswith("kept") else {}
                    row = study.measure(one, ["-c", FIRST, model], environment)
                else:
                    row = study.measure(one, ["-c", DECODING, model, part.split()[-1]])
                yield row | {"part": part, "round": i}


def _kept(one: study.Contestant, temporary: Path) -> dict[str, str]:
    """Return the environment in which a contestant stores its compiled programs in a folder of its own."""
    option = "KEPT_BY_ISOUQ" if one.name == AFTER else "JAX_COMPILATION_CACHE_DIR"
    return {option: str(temporary / f"programs-{option}")}


def _tables(rows: list[Row]) -> str:
    """Return a line for each part and contestant; the ratio is to the working tree in the same round."""
    lines = []
    for part in PARTS:
        known = [row for row in rows if row["part"] == part]
        of_call = "" if part.startswith("first") else "call_"
        after = {row["round"]: row[f"{of_call}cpu_seconds"] for row in known if row["contestant"] == AFTER}
        for name in dict.fromkeys(row["contestant"] for row in known):
            own = [row for row in known if row["contestant"] == name]
            good = [row for row in own if row["status"] == "ok"]
            medians = [
                report.number(float(np.median([row[f"{of_call}{unit}"] for row in good]))) if good else "–"
                for unit in ("seconds", "cpu_seconds")
            ]
            paired = [row[f"{of_call}cpu_seconds"] / after[row["round"]] for row in good if after.get(row["round"])]
            ratio = f"{np.median(paired):.2f} ({min(paired):.2f}–{max(paired):.2f})" if paired else "–"
            notes = dict.fromkeys(row["status"] for row in own if row["status"] != "ok")
            lines.append([part, name, str(len(good)), *medians, ratio, "; ".join(notes)])
    header = ("", "", "rounds", "wall s", "CPU s", f"CPU ÷ {AFTER}", "note")
    return "\n" + report.table(header, lines)
