"""What an experiment made, and how it is written."""

import csv
import io
import json
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.run.errors import RunError
from isouq import _files


class Number(NamedTuple):
    """A statistic of an experiment, one line of summary.csv.

    group: what it is about, as "rings, width 32, unit σ=1". statistic: its name, as "epistemic_pearson". mean, low,
    high: the mean over accepted posteriors and its 95 % interval; NaN (an empty field) where there is none. n: how many
    values the mean is over. accepted: how many posteriors of the group were accepted.
    """

    group: str
    statistic: str
    mean: float
    low: float
    high: float
    n: int
    accepted: int


@dataclass(frozen=True)
class Numbers:
    """All numbers of an experiment. rows: table.csv, one row a posterior or question. summary: summary.csv.

    files: further text files by name. details: other computed values that report and figures read.
    """

    rows: list[dict[str, Any]]
    summary: list[Number]
    files: dict[str, str] = field(default_factory=dict)
    details: Any = None


@dataclass(frozen=True)
class Outputs:
    """What an experiment writes: one row a cell or question, a Markdown summary, named figures, files, numbers."""

    rows: list[dict[str, Any]]
    summary: str
    figures: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    numbers: list[Number] = field(default_factory=list)

    def noting(self, note: str) -> "Outputs":
        """The same with a sentence under the summary's title."""
        title, rest = self.summary.split("\n", 1)
        return replace(self, summary=f"{title}\n\n{note}\n{rest}")


def writable(out: Path) -> None:
    """Raises RunError unless files can be made in `out`: before the long part, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}; choose another folder with --out") from error


def write_outputs(outputs: Outputs, folder: Path, provenance: dict[str, Any]) -> list[Path]:
    """Writes table.csv, summary.md, further files, figures as PNG and PDF, and provenance.json; returns the paths."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "table.csv", folder / "summary.md"]
    _files.replace_text(paths[0], table_csv(outputs.rows))
    _files.replace_text(paths[1], outputs.summary)
    if outputs.numbers:
        paths.append(folder / "summary.csv")
        _files.replace_text(paths[-1], table_csv([number._asdict() for number in outputs.numbers]))
    for name, text in outputs.files.items():
        paths.append(folder / name)
        _files.replace_text(paths[-1], text)
    for name, figure in outputs.figures.items():
        for suffix, extra in (("png", {"metadata": {"Software": None}}), ("pdf", {"metadata": {"CreationDate": None}})):
            paths.append(folder / f"{name}.{suffix}")
            _files.replace(paths[-1], partial(figure.savefig, format=suffix, dpi=150, **extra))
        plt.close(figure)
    paths.append(folder / "provenance.json")
    _files.replace_text(paths[-1], json.dumps(provenance, indent=1) + "\n")
    return paths


def table_csv(rows: list[dict[str, Any]]) -> str:
    """All rows under the union of their columns, timing columns last; empty where a row has none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=is_timing)  # stable: the order is kept within both groups
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def is_timing(column: str) -> bool:
    """True for the columns that differ from run to run."""
    return column.startswith("seconds")
