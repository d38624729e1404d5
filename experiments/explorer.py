"""The data of the interactive page in docs/explorer: the committed tables, and the maps of their seed 0.

The tables hold no maps. Their rows of seed 0 name the cells whole, so these are read from OUT or run again: 43 cells,
about 15 minutes on 2 CPU cores from nothing. The numbers on the page are those of the committed tables; maps that do
not agree with them are left out, and the page says so.

Command: python -m experiments.explorer OUT [--finished]
OUT is the --out folder of a run, or a new folder. With --finished nothing is run: a model whose cell is not in OUT is
shown without maps.
"""

import argparse
import base64
import csv
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from experiments.publish import ROOT
from experiments.report import tables as report
from experiments.report.outputs import writable
from experiments.run.errors import RunError
from experiments.run.executors.settings import Settings
from experiments.run.job import Job, Result
from experiments.run.loop import finished_results, run_jobs
from experiments.run.progress import console
from experiments.synthetic.measure.decomposition import VERSIONS
from experiments.synthetic.numbers import decomposition
from experiments.synthetic.numbers.scaling import FLAT, relative_range
from experiments.synthetic.study import Cell
from isouq import _files, problems, stats
from isouq.posterior.verdict import Verdict

SEED = 0
PAGE = Path("docs") / "explorer" / "data.js"
ESTIMATES = ("epistemic", "laplace", "aleatoric")
STATISTICS = ("pearson", "spearman")
TERMS = ("whole", *(f"{term}_{version}" for version in VERSIONS for term in decomposition.TERMS))
MAPS = ("reference", "epistemic", "aleatoric_reference", "aleatoric")  # of two features
CURVES = ("reference", "epistemic", "mean", "probability")  # of one
FAR = 0.1  # a map run again on another machine: its r and ρ lie closer to the committed ones than this
Row = dict[str, Any]


def rows_of(results: Path, name: str) -> list[Row]:
    """The rows of results/NAME/table.csv, with Python's types: empty is None."""
    with open(results / name / "table.csv", encoding="utf-8") as file:
        return [{column: _value(text) for column, text in row.items()} for row in csv.DictReader(file)]


def _value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def cell_of(row: Row) -> Cell:
    """The cell that a row of a table came from."""
    return Cell(**{field.name: row[field.name] for field in dataclasses.fields(Cell)})


def models(results: Path) -> list[list[Row]]:
    """The rows of every model on the page, one a seed: the sweep's, and `validation`'s of the problems not swept."""
    sweep = rows_of(results, "scaling")
    swept = {row["problem"] for row in sweep}
    rows = [row for row in rows_of(results, "validation") if row["problem"] not in swept] + sweep
    rows.sort(key=lambda row: list(problems.PROBLEMS).index(row["problem"]))  # stable
    return [[row for row in rows if _model(row) == model] for model in dict.fromkeys(map(_model, rows))]


def _model(row: Row) -> tuple:
    return row["problem"], row["width"], row["prior"], row["sigma"]


def encoded(values: np.ndarray) -> dict[str, Any]:
    """A map in one byte a point: value = low + (high − low) · (code / 255)³, codes in base64.

    The cube keeps small values apart; the error is at most 0.6 % of the range.
    """
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    share = np.zeros_like(values) if high == low else (values - low) / (high - low)
    codes = np.round(255 * np.cbrt(share)).astype(np.uint8)
    return {"low": _short(low, 9), "high": _short(high, 9), "codes": base64.b64encode(codes.tobytes()).decode()}


def _short(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _over_seeds(rows: list[Row], columns: str) -> dict[str, list[Any]]:
    """R and ρ as [mean, low, high, seeds]; null where there is no number."""
    found = {}
    for statistic in STATISTICS:
        column = f"{columns}_{statistic}"
        known = [{**row, column: math.nan if row[column] is None else row[column]} for row in rows]
        interval = report.over_seeds(known, column)
        found[statistic] = [*map(_short, (interval.mean, interval.low, interval.high)), interval.count]
    return found


def _both(row: Row, name: str) -> dict[str, float | None]:
    return {statistic: _short(row[f"{name}_{statistic}"]) for statistic in STATISTICS}


def _first(rows: list[Row]) -> Row:
    return next(row for row in rows if row["seed"] == SEED)


def _entry(rows: list[Row], terms: list[Row], arrays: dict[str, np.ndarray] | None) -> dict[str, Any]:
    """Everything the page shows of a model: `rows` of its seeds, `terms` of its decomposition, the maps of one seed."""
    first = _first(rows)
    problem = problems.get(first["problem"])
    hidden = problem.hidden if first["width"] is None else (first["width"],)
    estimates = [name for name in ESTIMATES if first.get(f"{name}_pearson") is not None]
    entry: dict[str, Any] = {
        "problem": problem.name,
        "kind": problem.kind,
        "width": sum(hidden),  # 0: no hidden layer
        "noise": problem.noise,
        "prior": first["prior"],
        "sigma": first["sigma"],
        "is_own": (hidden, first["prior"], first["sigma"]) == (problem.hidden, "unit", 1.0),
        "parameters": first["num_params"],
        "seeds": len(rows),
        "accepted": sum(row["accepted"] for row in rows),
        "agreement": {name: _over_seeds(rows, name) for name in estimates},
        "each": [{"accepted": row["accepted"], **_both(row, "epistemic")} for row in rows],
        "decomposition": {term: _over_seeds(terms, term) for term in TERMS},
        "is_accepted": first["accepted"],
        "verdict": str(Verdict(**{field: first[field] for field in Verdict._fields})),
        "seed": {name: _both(first, name) for name in estimates},
    }
    return entry if arrays is None else entry | maps_of(arrays)


def maps_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The maps as the page reads them, with the ends of their grid and its points a side."""
    grid = arrays["grid"]
    ends = {"low": _rounded(grid.min(axis=0)), "high": _rounded(grid.max(axis=0))}
    if grid.shape[1] == 2:
        maps = {name: encoded(arrays[name]) for name in MAPS if name in arrays}
        return {"grid": ends, "side": round(len(grid) ** 0.5), "maps": maps}
    maps = {name: _curve(arrays[name]) for name in CURVES}
    return {"grid": ends, "side": len(grid), "maps": maps}


def _curve(values: np.ndarray) -> dict[str, Any]:
    return {"low": _short(values.min()), "high": _short(values.max()), "values": [_short(value) for value in values]}


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(np.asarray(values, np.float64), 3).tolist()


def apart(row: Row, result: Result) -> float:
    """How far r and ρ of the maps lie from the committed row, at most; beyond FAR the page shows no maps.

    Unconverged references are passed over: their maps depend on the last digit of the arithmetic.
    """
    if not row["accepted"]:
        return 0.0
    arrays = result.arrays
    pairs = [("epistemic", "reference"), ("aleatoric", "aleatoric_reference")]
    return max(
        abs(getattr(stats, statistic)(arrays[name], arrays[reference]) - row[f"{name}_{statistic}"])
        for name, reference in pairs
        if name in arrays
        for statistic in STATISTICS
    )


def data(results: Path, out: Path, finished: bool = False, executor: str = "processes") -> tuple[dict[str, Any], float]:
    """What the page reads, and how far the maps it shows lie from the committed numbers.

    finished: True leaves out the maps of cells that OUT lacks, False runs those cells.
    """
    groups = models(results)
    cells = [cell_of(_first(rows)) for rows in groups]
    found: dict[Job, Result]
    if finished:
        found = finished_results(cells, out)
    else:
        found = dict(zip(cells, run_jobs(cells, out, Settings(executor), console()), strict=True))
    gap, entries = 0.0, []
    points: dict[str, dict[str, list[Any]]] = {}
    terms = rows_of(results, "decomposition")
    for rows, cell in zip(groups, cells, strict=True):
        result = found.get(cell)
        mine = [row for row in terms if _model(row) == _model(rows[0])]
        far = 0.0 if result is None else apart(_first(rows), result)
        entries.append(_entry(rows, mine, None if result is None or far > FAR else result.arrays))
        if result is not None and (share := relative_range(result.arrays["epistemic"])) < FLAT:
            entries[-1]["flat"] = _short(share, 2)
        if far > FAR:
            entries[-1]["apart"] = _short(far, 2)
        elif result is not None:
            gap = max(gap, far)
            points[cell.problem] = {name: _rounded(result.arrays[name]) for name in ("xs", "ys")}
    facts = json.loads((results / "scaling" / "provenance.json").read_text(encoding="utf-8"))
    about = {"preset": facts["preset"], "finished": facts["finished"][:10], "seed": SEED}
    palette = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 1, 65))]
    return {"about": about, "palette": palette, "points": points, "models": entries}, gap


def page(content: dict[str, Any]) -> str:
    """The data file: a script, for a page opened from a folder may read no JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "// Written by: python -m experiments.explorer OUT\nwindow.ISOUQ = " + text + ";\n"


def read(path: Path) -> dict[str, Any]:
    """The content of a data file."""
    return json.loads(path.read_text(encoding="utf-8").split("window.ISOUQ = ", 1)[1].rstrip().rstrip(";"))


def decoded(one: dict[str, Any]) -> np.ndarray:
    """The values of an `encoded` map, float64."""
    codes = np.frombuffer(base64.b64decode(one["codes"]), np.uint8)
    return one["low"] + (one["high"] - one["low"]) * (codes / 255.0) ** 3


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.explorer", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the --out folder of a run, or a new folder")
    parser.add_argument("--finished", action="store_true", help="run nothing: only the maps of finished cells")
    options = parser.parse_args()
    try:
        writable(options.out)
        content, gap = data(ROOT / "results", options.out, options.finished)
    except RunError as error:
        print(f"explorer: {error}", file=sys.stderr)
        return 1
    target, text = ROOT / PAGE, page(content)
    target.parent.mkdir(parents=True, exist_ok=True)
    _files.replace_text(target, text)
    entries = content["models"]
    drawn = sum("maps" in entry for entry in entries)
    print(f"{PAGE}: {len(entries)} models, {drawn} with maps, {len(text.encode()) / 1e3:.0f} kB")
    print(f"r and ρ of the maps are at most {gap:.4f} from the committed ones")
    return 0


if __name__ == "__main__":
    sys.exit(main())
