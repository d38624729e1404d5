"""Writes rows to files: a CSV with every number, a Markdown table, and the provenance."""

import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots, provenance
from benchmarks.cases import GROWTH
from benchmarks.runner import COLUMNS, Row

TITLES = {
    "mlp": "MLPs",
    "cnn": "A small CNN",
    "encoder": "A transformer encoder",
    "lm": "A causal language model",
    "growth": "Growth with batch, width and length",
    "probes": "Every position of a sequence by forward-mode probes",
    "text": "A pretrained language model",
}
READING = (
    "Time: median over interleaved rounds. Ratios: to isouq, the median over rounds of the paired ratio with its "
    "10–90 % range; above 1 means slower or more than isouq. Peak memory: of one call above the weights and inputs, "
    "in a fresh process. XLA temp: what the compiled program says it needs. "
    "Error: largest relative error of a squared norm, in float32 if not said otherwise, against vmap of grad; where "
    "that does not fit, against lax.map of grad, for probes against the backward passes, for text against torch's loop."
    "\n"
)


def write(name: str, rows: Sequence[Row], record: dict[str, Any], folder: Path, section: str = "") -> None:
    """Write NAME.csv, NAME.md (with `section` after the tables), NAME.png and NAME.json (provenance)."""
    body = growth_tables(rows) if name == "growth" else case_tables(rows)
    text = f"# {TITLES[name]}\n\n{provenance.in_words(record)}\n\n{READING}\n{body}{section}\n![]({name}.png)\n"
    write_files(name, COLUMNS, rows, record, text, folder)
    (plots.growth if name == "growth" else plots.bars)(rows, folder / f"{name}.png")


def write_files(
    name: str, columns: Sequence[str], rows: Iterable[Row], record: dict[str, Any], page: str, folder: Path
) -> None:
    """Write the rows to NAME.csv, the provenance to NAME.json and the page to NAME.md."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(page)


def body_of(docstring: str | None) -> str:
    """Return what follows the first line of a module's docstring, in one paragraph: how its table is read."""
    return " ".join((docstring or "").split("\n\n", 1)[1].split())


def case_tables(rows: Sequence[Row]) -> str:
    """Return one table per case."""
    header = ("", "time", "÷ isouq", "(10–90 %)", "peak MB", "÷ isouq", "compile s", "XLA temp MB", "error", "note")
    text = ""
    for case in dict.fromkeys(row["case"] for row in rows):
        group = [row for row in rows if row["case"] == case]
        text += f"## {case}, {group[0]['parameters']:,} parameters\n\n"
        text += table(header, [_line(row) for row in group]) + "\n"
    return text


def growth_tables(rows: Sequence[Row]) -> str:
    """Return one table per axis, with a column per contestant."""
    present = [name for name in GROWTH if any(row["contestant"] == name for row in rows)]
    text = ""
    for axis in dict.fromkeys(row["axis"] for row in rows):
        group = [row for row in rows if row["axis"] == axis]
        text += f"## {axis} ({group[0]['case']})\n\n"
        header = [axis, *[f"{n}: time" for n in present], *[f"{n}: ÷ isouq" for n in present if n != present[0]]]
        header += [f"{n}: peak MB" for n in present]
        lines = []
        for value in dict.fromkeys(row["value"] for row in group):
            at = {row["contestant"]: row for row in group if row["value"] == value}
            line = [str(value), *[duration(at[n]["seconds"]) for n in present]]
            line += [number(at[n]["time_ratio"]) for n in present if n != present[0]]
            lines.append(line + [number(at[n]["peak_mb"]) for n in present])
        text += table(header, lines) + "\n"
        notes = [
            f"- {axis} {row['value']}, {row['contestant']}: {row['status']}\n" for row in group if row["status"] != "ok"
        ]
        text += "".join(notes) + ("\n" if notes else "")
    return text


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *lines))


def duration(seconds: float | None) -> str:
    """Return three digits with a unit, or a dash for none."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{number(seconds / scale)} {unit}"
    return f"{number(seconds / 1e-6)} µs"


def number(value: float | None) -> str:
    """Return three digits without an exponent, or a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.1g}"


def _line(row: Row) -> list[str]:
    name = f"**{row['contestant']}**" if row["contestant"].startswith("isouq") else row["contestant"]
    spread = f"({number(row['time_ratio_p10'])}–{number(row['time_ratio_p90'])})" if (row["rounds"] or 0) > 1 else "–"
    error = "–" if row["max_relative_error"] is None else f"{row['max_relative_error']:.0e}"
    note = "" if row["status"] == "ok" else row["status"].replace("|", "\\|")
    if row["estimate_rms"] is not None:
        note += (
            f"{'; ' if note else ''}relative error: mean {row['estimate_mean']:+.3f}, rms {row['estimate_rms']:.3f} "
        )
        note += f"(√(2/K) = {row['estimate_rms_expected']:.3f}), "
        note += f"10–90 % {row['estimate_p10']:+.3f} to {row['estimate_p90']:+.3f}"
    numbers = [number(row[key]) for key in ("peak_mb", "memory_ratio", "compile_seconds", "temp_mb")]
    return [name, duration(row["seconds"]), number(row["time_ratio"]), spread, *numbers, error, note]
