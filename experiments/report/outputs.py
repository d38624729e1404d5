"""The numbers and files of an experiment, and the one writer of tables and figures."""

import csv
import io
import json
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.run.errors import RunError
from isouq import _files
from isouq.stats import Interval


class Number(NamedTuple):
    """A statistic of an experiment, one line of summary.csv.

    group: what it is about, as "binary/xor" or "unit σ = 1, width 32". statistic: its name, as "epistemic_pearson".
    mean, low, high, sd: the mean over the values, its 95 % interval and their standard deviation; NaN (an empty field)
    where there is none. n: how many values the mean is over. accepted: how many posteriors of the group were accepted,
    or how many answers were judged.
    """

    group: str
    statistic: str
    mean: float
    low: float
    high: float
    n: int
    accepted: int
    sd: float = float("nan")

    @classmethod
    def of(cls, group: str, statistic: str, interval: Interval, accepted: int) -> "Number":
        """Return the number whose mean, interval and count are those of `interval`."""
        mean, low, high, sd = interval.mean, interval.low, interval.high, interval.sd
        return cls(group, statistic, mean, low, high, interval.count, accepted, sd)

    @classmethod
    def value(cls, group: str, statistic: str, value: float, n: int, accepted: int) -> "Number":
        """Return a number without an interval, over n values."""
        return cls(group, statistic, value, float("nan"), float("nan"), n, accepted)

    @property
    def interval(self) -> Interval:
        """Return the mean with its interval, as `isouq.stats.bootstrap_mean` does."""
        return Interval(self.n, self.mean, self.sd, self.low, self.high)


def group_numbers(numbers: Iterable[Number]) -> dict[str, dict[str, Interval]]:
    """Return the numbers by group and statistic."""
    groups: dict[str, dict[str, Interval]] = {}
    for number in numbers:
        groups.setdefault(number.group, {})[number.statistic] = number.interval
    return groups


@dataclass(frozen=True)
class Numbers:
    """All numbers of an experiment: what its report and figures show.

    rows: table.csv, one row a posterior or question. summary: summary.csv. files: further text files by name. details:
    what report and figures of this experiment read besides, already computed.
    """

    rows: list[dict[str, Any]]
    summary: list[Number]
    files: dict[str, str] = field(default_factory=dict)
    details: Any = None

    @cached_property
    def groups(self) -> dict[str, dict[str, Interval]]:
        """Return the summary by group and statistic."""
        return group_numbers(self.summary)


def check_writable(out: Path) -> None:
    """Raise RunError unless files can be made in `out`: before the long part, not after."""
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise RunError(f"the name {os.fsencode(out)!r} is not UTF-8; choose another folder with --out") from None
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}; choose another folder with --out") from error


def figure_style() -> AbstractContextManager[None]:
    """Return the context in which figures are drawn and written."""
    from isouq.plots import style

    return style()


def write_outputs(
    folder: Path, numbers: Numbers, report: str, figures: dict[str, Any], provenance: dict[str, Any]
) -> list[Path]:
    """Write tables, report, further files, figures (PNG and PDF) and provenance.json; return their paths."""
    import matplotlib.pyplot as plt

    texts = {
        "table.csv": table_csv(numbers.rows),
        "summary.csv": summary_csv(numbers.summary),
        "summary.md": report,
        **numbers.files,
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        _files.replace_text(path, text)
    for name, figure in figures.items():
        figure.draw_without_rendering()  # lays the figure out once: each file would do it again
        figure.set_layout_engine("none")
        for suffix, extra in (("png", {"metadata": {"Software": None}}), ("pdf", {"metadata": {"CreationDate": None}})):
            paths.append(folder / f"{name}.{suffix}")
            _files.replace(paths[-1], partial(figure.savefig, format=suffix, **extra))
        plt.close(figure)
    paths.append(folder / "provenance.json")  # last: where it is, the rest is whole
    _files.replace_text(paths[-1], json.dumps(provenance, indent=1) + "\n")
    return paths


def table_csv(rows: list[dict[str, Any]]) -> str:
    """Return the rows as CSV: the union of their columns, timing columns last; empty for None, NaN stays "nan"."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=lambda name: name.startswith("seconds"))  # stable: the order is kept within both groups
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def summary_csv(numbers: Iterable[Number]) -> str:
    """Return the numbers as CSV; empty where a number is undefined."""
    rows = [number._asdict() for number in numbers]
    return table_csv([{name: None if value != value else value for name, value in row.items()} for row in rows])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a table.csv with Python's types; None where a field is empty."""
    with open(path, encoding="utf-8") as file:
        return [{column: _value(text) for column, text in row.items()} for row in csv.DictReader(file)]


def read_summary(path: Path) -> list[Number]:
    """Return the numbers of a summary.csv."""
    nan = float("nan")
    rows: list[dict[str, Any]] = [
        {name: nan if value is None else value for name, value in row.items()} for row in read_rows(path)
    ]
    return [Number(**row) for row in rows]


def _value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
