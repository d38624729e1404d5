"""The uncertainty maps: epistemic and aleatoric, reference beside estimate, for every problem.

Command: python -m experiments maps --preset quick
"""

from experiments.report import tables as report
from experiments.report.outputs import Outputs
from experiments.synthetic import validation
from experiments.synthetic.cell import Cell, Result
from isouq import plots


def cells(preset: str, seeds: int | None = None) -> list[Cell]:
    """Seed 0 of the validation's agreement cells of the same preset; computed once for both experiments."""
    return [cell for cell in validation.cells(preset, seeds) if cell.seed == 0 and cell.study == "agreement"]


def summarise(results: list[Result], preset: str) -> Outputs:
    """A figure a problem, and an overview of the two-dimensional ones."""
    figures = {}
    planar = [result for result in results if result.arrays["grid"].shape[1] == 2]
    if planar:
        figures["maps"] = plots.map_grid([(_title(result), result.arrays) for result in planar])
    for result in results:
        name = result.numbers["problem"].replace("/", "_")
        draw = plots.map_grid if result.arrays["grid"].shape[1] == 2 else plots.curves
        figures[name] = draw([(_title(result), result.arrays)])
    rows = [result.numbers for result in results]
    body = [
        [
            row["problem"],
            "accepted" if row["accepted"] else "unconverged",
            *(report.number(row.get(f"{e}_{s}")) for e in ("epistemic", "aleatoric") for s in ("pearson", "spearman")),
        ]
        for row in rows
    ]
    header = ["problem", "reference", "epistemic r", "epistemic ρ", "aleatoric r", "aleatoric ρ"]
    summary = (
        f"# Maps, preset `{preset}`, seed 0\n\nEvery map is scaled to [0, 1] by its own minimum and maximum, as in the "
        "paper: compare shapes, not sizes. The grid is the data's range widened by 0.5.\n\n"
        + report.table(header, body)
    )
    return Outputs(rows, summary, figures)


def _title(result: Result) -> str:
    mark = "" if result.numbers["accepted"] else " (unconverged)"
    return result.numbers["problem"] + mark
