"""Projects the time of the studies of the paper at the paper preset from a tenth of their posteriors.

Of each problem and width at least a tenth of the posteriors are computed, with all studies of them, seeds and priors in
turn, by the runner as a user has it. The mean seconds of a study and width without those of compiling hold for all its
cells. One cell of each compiles as much as the sample's slowest did, and the others the share of it that the sample's
others did.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import provenance, report
from experiments.run.executors.settings import Settings
from experiments.run.loop import run_jobs
from experiments.run.progress import console
from experiments.run.store import PROVENANCE
from experiments.run.times import REST, Times
from experiments.synthetic.registry import EXPERIMENTS, REPRODUCED
from experiments.synthetic.study import Cell

SHARE = 10  # one posterior in so many is computed
CORES = 2
COLUMNS = (
    "study", "model", "cells", "sampled", "cpu_seconds", "seconds", "compiling_first", "compiling_later",
    "projected_cpu_seconds", "projected_seconds",
)  # fmt: skip
Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What a cell took: seconds of the wall clock and of the CPU, and those of compiling, part of the former."""

    cell: Cell
    seconds: float
    cpu_seconds: float
    compiling: float


def run(preset: str, folder: Path, record: dict[str, Any]) -> None:
    """Compute the sample, and write projection.csv, .md and .json; finished cells of an earlier run are read."""
    cells = all_cells("paper" if preset == "full" else "smoke")
    references = sample([cell for cell in cells if cell.study == "reference"])
    chosen = [cell for cell in cells if cell.reference() in references]
    out = Path("out") / "benchmarks" / f"projection-{preset}"
    times = Times()
    settings = Settings(workers=CORES, compilation_cache=str(out / "programs"))
    run_jobs(chosen, out, settings, console(), None, times)
    rest = [stage.cost.cpu_seconds for stage in times.stages() if stage.name == REST]
    ran = sum(stage.jobs for stage in times.stages())
    measured = [_read(out, cell) for cell in chosen]
    table, driver = rows(cells, measured), rest[0] / ran if rest else None
    record = record | {"driver_seconds_per_cell": driver}
    report.write_files("projection", COLUMNS, table, record, _page(table, driver, record), folder)
    print((folder / "projection.md").read_text(), flush=True)


def all_cells(preset: str) -> list[Cell]:
    """Return the cells of the studies that `reproduce` runs, at a preset, and the references that they read."""
    jobs: list[Cell] = [cell for name in REPRODUCED for cell in EXPERIMENTS[name].jobs(preset, None)]
    return list(dict.fromkeys([*(cell.reference() for cell in jobs), *jobs]))


def sample(references: list[Cell]) -> set[Cell]:
    """Return at least a tenth of the posteriors of each problem and width, with seeds and priors in turn."""
    groups: dict[str, list[Cell]] = {}
    for cell in references:
        groups.setdefault(model(cell), []).append(cell)
    chosen = set()
    for number, group in enumerate(groups.values()):
        count = math.ceil(len(group) / SHARE)
        for index in range(count):
            chosen.add(group[(7 * number + index * len(group) // count) % len(group)])
    return chosen


def model(cell: Cell) -> str:
    """Return the problem and the width, which decide the shapes of a cell."""
    return cell.problem if cell.width is None else f"{cell.problem}, width {cell.width}"


def rows(cells: list[Cell], measured: list[Measured]) -> list[Row]:
    """Return the projected seconds of each study and model; `seconds` are those of one worker."""
    counts = Counter((cell.study, model(cell)) for cell in cells)
    groups: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        groups.setdefault((one.cell.study, model(one.cell)), []).append(one)
    later = _share_of_later(groups)
    table = []
    for (study, name), group in groups.items():
        count, compiling = counts[study, name], max(one.compiling for one in group)
        again = compiling * later[study]
        # the CPU seconds of compiling, where other processes use the cores too
        ratio = min(1.0, sum(one.cpu_seconds for one in group) / sum(one.seconds for one in group))
        seconds = float(np.mean([one.seconds - one.compiling for one in group]))
        cpu_seconds = float(np.mean([one.cpu_seconds - ratio * one.compiling for one in group]))
        all_compiling = compiling + (count - 1) * again
        table.append({
            "study": study, "model": name, "cells": count, "sampled": len(group), "cpu_seconds": cpu_seconds,
            "seconds": seconds, "compiling_first": compiling, "compiling_later": again,
            "projected_cpu_seconds": count * cpu_seconds + ratio * all_compiling,
            "projected_seconds": count * seconds + all_compiling,
        })  # fmt: skip
    return table


def _share_of_later(groups: dict[tuple[str, str], list[Measured]]) -> dict[str, float]:
    """Return, for each study, the compiling of a model's other cells as a share of the slowest one's.

    A study with one cell a model in the sample gets the share of all studies, and 1 where none is known.
    """
    pairs: dict[str, list[tuple[float, float]]] = {study: [] for study, _ in groups}
    for (study, _), group in groups.items():
        if len(group) > 1:
            *others, slowest = sorted(one.compiling for one in group)
            pairs[study].append((float(np.mean(others)), slowest))
    every = [pair for study in pairs.values() for pair in study]

    def share(known: list[tuple[float, float]]) -> float:
        others, first = map(sum, zip(*known, strict=True)) if known else (1.0, 1.0)
        return others / first if first else 1.0

    return {study: share(known or every) for study, known in pairs.items()}


def _read(out: Path, cell: Cell) -> Measured:
    """Return what a finished cell took."""
    facts = json.loads((out / "cells" / f"{cell.key()}.json").read_text(encoding="utf-8"))[PROVENANCE]
    return Measured(cell, facts["job_seconds"], facts["cpu_seconds"], facts["compiling_seconds"])


def _page(table: list[Row], rest: float | None, record: dict[str, Any]) -> str:
    """Return the totals of each study and of all, and the table by model."""
    count = sum(row["cells"] for row in table)
    driver = (rest or 0.0) * count
    header = ("study", "cells", "sampled", "CPU hours", f"hours on {CORES} cores")
    lines = []
    for study in dict.fromkeys(row["study"] for row in table):
        group = [row for row in table if row["study"] == study]
        lines.append([study, *_totals(group)])
    if rest is not None:
        lines.append(["driver, starts", "", "", report.number(driver / 3600), report.number(driver / 3600 / CORES)])
    lines.append(["**all**", *_totals(table, driver)])
    models = [
        [*(str(row[key]) for key in COLUMNS[:4]), *(report.number(row[key]) for key in COLUMNS[4:])] for row in table
    ]
    names = (
        "study", "model", "cells", "sampled", "CPU s", "wall s", "compiling, first", "later", "all: CPU s", "wall s"
    )  # fmt: skip
    return (
        f"# The studies of the paper, projected\n\n{provenance.in_words(record)}\n\n"
        f"{report.body_of(__doc__)} {CORES} workers ran at once.\n\n{report.table(header, lines)}\n## By model\n\n"
        "Seconds of one cell without compiling, those of compiling, and those of all cells in one worker.\n\n"
        + report.table(names, models)
    )


def _totals(table: list[Row], more: float = 0.0) -> list[str]:
    cells, sampled, cpu, wall = (
        sum(row[key] for row in table) for key in ("cells", "sampled", "projected_cpu_seconds", "projected_seconds")
    )
    return [str(cells), str(sampled), report.number((cpu + more) / 3600), report.number((wall + more) / 3600 / CORES)]
