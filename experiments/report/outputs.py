"""What an experiment made, and how it is written."""

import csv
import io
import json
import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.run import locks
from experiments.run.errors import RunError
from isouq import _files


@dataclass(frozen=True)
class Outputs:
    """What an experiment hands back: one row a cell or question, a Markdown summary, named figures, further files."""

    rows: list[dict[str, Any]]
    summary: str
    figures: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    def noting(self, note: str) -> "Outputs":
        """The same with a sentence under the summary's title."""
        title, rest = self.summary.split("\n", 1)
        return replace(self, summary=f"{title}\n\n{note}\n{rest}")


def writable(out: Path) -> None:
    """Raises RunError unless files can be made in `out`: before the long part, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        claim = locks.claim(probe, "")  # a file system without locks is told of here
        assert claim is not None
        claim.release()
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}; choose another folder with --out") from error


def write_outputs(outputs: Outputs, folder: Path, provenance: dict[str, Any]) -> list[Path]:
    """Writes table.csv, summary.md, further files, figures as PNG and PDF, and provenance.json; returns the paths."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "table.csv", folder / "summary.md"]
    _files.replace_text(paths[0], table_csv(outputs.rows))
    _files.replace_text(paths[1], outputs.summary)
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
