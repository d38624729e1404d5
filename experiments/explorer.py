"""The data of the interactive page in docs/explorer: the committed tables, and the maps of their seed 0.

The tables hold no maps. Their rows of seed 0 hold the whole configuration of a cell, so the maps are read from OUT or
computed again: 58 cells. The numbers on the page are those of the committed tables.
Maps that do not agree with them are left out, and so are those of a flat estimate and of networks wider than `WIDEST`;
the page says so.

Command: python -m experiments.explorer OUT [--finished]
OUT is the --out folder of a run, or a new folder. With --finished nothing is run: a model whose cell is not in OUT is
shown without maps.
"""

import argparse
import base64
import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from experiments.publish import ROOT
from experiments.report.outputs import check_writable, group_numbers, read_rows, read_summary
from experiments.run.errors import RunError
from experiments.run.executors.settings import Settings
from experiments.run.job import Job, Result
from experiments.run.loop import finished_results, run_jobs
from experiments.run.progress import console
from experiments.synthetic.measure.decomposition import VERSIONS
from experiments.synthetic.numbers import decomposition
from experiments.synthetic.numbers.models import STATISTICS, model_name
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import is_flat, relative_range
from isouq import _files, problems, stats
from isouq.posterior.verdict import Verdict
from isouq.stats import Interval

SEED = 0
PAGE = Path("docs") / "explorer" / "data.js"
ESTIMATES = ("epistemic", "laplace", "aleatoric")
TERMS = ("whole", *(f"{term}_{version}" for version in VERSIONS for term in decomposition.TERMS))
MAPS = ("reference", "epistemic", "aleatoric_reference", "aleatoric")  # problems with two features
CURVES = ("reference", "epistemic", "mean", "probability")  # problems with one feature
WIDEST = 256  # hidden units of the largest network of the sweep whose maps are shown, so that the page stays small
FAR = 0.1  # r and ρ of a map that another machine computes lie closer to the committed ones than this
Row = dict[str, Any]


def cell_of(row: Row) -> Cell:
    """Return the cell that a row of a table came from; a field that is newer than the table has its default."""
    return Cell(**{field.name: row[field.name] for field in dataclasses.fields(Cell) if field.name in row})


def models(results: Path) -> list[list[Row]]:
    """Return the rows of every model on the page, one a seed: the sweep's, and `validation`'s of the other problems.

    A model that `decomposition` lacks is left out.
    """
    sweep = read_rows(results / "scaling" / "table.csv")
    swept = {row["problem"] for row in sweep}
    rows = [row for row in read_rows(results / "validation" / "table.csv") if row["problem"] not in swept] + sweep
    rows.sort(key=lambda row: list(problems.PROBLEMS).index(row["problem"]))  # stable
    decomposed = _summary(results, "decomposition")
    names = [name for name in dict.fromkeys(map(model_name, rows)) if name in decomposed]
    return [[row for row in rows if model_name(row) == name] for name in names]


def encode(values: np.ndarray) -> dict[str, Any]:
    """Return a map in one byte a point: value = low + (high − low) · (code / 255)³, codes in base64.

    The cube keeps small values apart; the error is at most 0.6 % of the range.
    """
    values = np.asarray(values, np.float64)
    low, high = float(values.min()), float(values.max())
    share = np.zeros_like(values) if high == low else (values - low) / (high - low)
    codes = np.round(255 * np.cbrt(share)).astype(np.uint8)
    return {"low": _round(low, 9), "high": _round(high, 9), "codes": base64.b64encode(codes.tobytes()).decode()}


def _round(value: float | None, digits: int = 4) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _interval_pair(values: Mapping[str, Interval], name: str) -> dict[str, list[Any]]:
    """Return r and ρ as [mean, low, high, seeds]; null where there is no number."""
    intervals = {statistic: values[f"{name}_{statistic}"] for statistic in STATISTICS}
    return {s: [*map(_round, (i.mean, i.low, i.high)), i.count] for s, i in intervals.items()}


def _correlations(row: Row, name: str) -> dict[str, float | None]:
    return {statistic: _round(row[f"{name}_{statistic}"]) for statistic in STATISTICS}


def _first_row(rows: list[Row]) -> Row:
    return next(row for row in rows if row["seed"] == SEED)


def _entry(
    rows: list[Row],
    agreement: Mapping[str, Interval],
    terms: Mapping[str, Interval],
    arrays: dict[str, np.ndarray] | None,
) -> dict[str, Any]:
    """Return everything that the page shows of a model.

    rows: one a seed. agreement, terms: the model's numbers in `scaling` (or `validation`) and in `decomposition`.
    arrays: the maps of the first seed.
    """
    first = _first_row(rows)
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
        "agreement": {name: _interval_pair(agreement, name) for name in estimates},
        "each": [{"accepted": row["accepted"], **_correlations(row, "epistemic")} for row in rows],
        "decomposition": {term: _interval_pair(terms, term) for term in TERMS},
        "is_accepted": first["accepted"],
        "verdict": str(Verdict(**{field: first[field] for field in Verdict._fields})),
        "seed": {name: _correlations(first, name) for name in estimates},
    }
    return entry if arrays is None else entry | maps_of(arrays)


def maps_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the maps as the page reads them, with the ends of their grid and its points a side."""
    grid = arrays["grid"]
    ends = {"low": _round_array(grid.min(axis=0)), "high": _round_array(grid.max(axis=0))}
    if grid.shape[1] == 2:
        maps = {name: encode(arrays[name]) for name in MAPS if name in arrays}
        return {"grid": ends, "side": round(len(grid) ** 0.5), "maps": maps}
    maps = {name: _curve(arrays[name]) for name in CURVES}
    return {"grid": ends, "side": len(grid), "maps": maps}


def _curve(values: np.ndarray) -> dict[str, Any]:
    return {"low": _round(values.min()), "high": _round(values.max()), "values": [_round(value) for value in values]}


def _round_array(values: np.ndarray) -> list[Any]:
    return np.round(np.asarray(values, np.float64), 3).tolist()


def distance(row: Row, result: Result) -> float:
    """Return how far r and ρ of the maps lie from the committed row at most; beyond FAR the page shows no maps.

    It is 0 for an unconverged reference, whose maps depend on the last digit of the arithmetic, and for a flat
    estimate, whose correlations are undefined.
    """
    if not row["accepted"] or row.get("flat", False):
        return 0.0
    arrays = result.arrays
    pairs = [("epistemic", "reference"), ("aleatoric", "aleatoric_reference")]
    return max(
        abs(getattr(stats, statistic)(arrays[name], arrays[reference]) - row[f"{name}_{statistic}"])
        for name, reference in pairs
        if name in arrays
        for statistic in STATISTICS
    )


def data(results: Path, out: Path, finished: bool = False) -> tuple[dict[str, Any], float]:
    """Return what the page reads, and how far the maps that it shows lie from the committed numbers at most.

    finished: True leaves out the maps of cells that OUT lacks, False runs those cells.
    """
    groups = models(results)
    cells = [cell_of(_first_row(rows)) for rows in groups]
    known: dict[Job, Result]
    if finished:
        known = finished_results(cells, out)
    else:
        known = dict(zip(cells, run_jobs(cells, out, Settings(), console()), strict=True))
    gap, entries = 0.0, []
    points: dict[str, dict[str, list[Any]]] = {}
    agreement = _summary(results, "validation") | _summary(results, "scaling")
    terms = _summary(results, "decomposition")
    for rows, cell in zip(groups, cells, strict=True):
        result, name = known.get(cell), model_name(rows[0])
        far = 0.0 if result is None else distance(_first_row(rows), result)
        flat = result is not None and is_flat(result.arrays["epistemic"])
        is_drawn = result is not None and far <= FAR and not flat and (cell.width or 0) <= WIDEST
        entries.append(_entry(rows, agreement[name], terms[name], result.arrays if result and is_drawn else None))
        if result is not None and flat:
            entries[-1]["flat"] = _round(relative_range(result.arrays["epistemic"]), 2)
        if far > FAR:
            entries[-1]["apart"] = _round(far, 2)
        elif result is not None:
            gap = max(gap, far)
            points[cell.problem] = {name: _round_array(result.arrays[name]) for name in ("xs", "ys")}
    facts = json.loads((results / "scaling" / "provenance.json").read_text(encoding="utf-8"))
    about = {"preset": facts["preset"], "finished": facts["finished"][:10], "seed": SEED}
    palette = [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 1, 65))]
    return {"about": about, "palette": palette, "points": points, "models": entries}, gap


def _summary(results: Path, name: str) -> dict[str, dict[str, Interval]]:
    return group_numbers(read_summary(results / name / "summary.csv"))


def page(content: dict[str, Any]) -> str:
    """Return the data file: a script, because a page that is opened from a folder may read no JSON."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return "// Written by: python -m experiments.explorer OUT\nwindow.ISOUQ = " + text + ";\n"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.explorer", description=__doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="the --out folder of a run, or a new folder")
    parser.add_argument("--finished", action="store_true", help="run nothing: only the maps of finished cells")
    options = parser.parse_args()
    try:
        check_writable(options.out)
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
