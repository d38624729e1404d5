"""The report of the lineage."""

from collections.abc import Sequence

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.measure.lineage import ACCEPTED, GRIDS, THETAS
from experiments.synthetic.numbers.lineage import FEWEST_SEEDS, Lineage, TableRow
from experiments.synthetic.numbers.models import STATISTICS, Row
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.report.page import page, row_name
from experiments.synthetic.report.validation import HEADINGS
from isouq.stats import Interval

SHOWN = 10


def report(numbers: Numbers, preset: str) -> str:
    """Return the nearest settings, the nearest beside paper and protocol, each factor, and each entry of the table."""
    lineage: Lineage = numbers.details
    return page(
        f"Lineage, preset `{preset}`: {len(lineage.comparisons)} shared settings against the paper's Table 1",
        numbers,
        _nearest(lineage),
        _nearest_beside_paper(lineage),
        _effects(numbers),
        _table(lineage.table),
        _acceptance(numbers.rows),
        _maximum_likelihood(numbers.rows),
        _flat_grids(numbers.rows),
    )


def _nearest(lineage: Lineage) -> str:
    """Return which setting is nearest, with what the choice is worth, and the table of the nearest ones."""
    complete = [one for one in lineage.comparisons if one.complete]
    text = (
        "## The nearest shared setting\n\n"
        "The settings of the paper are unknown. This table does not replace the protocol's: it says how near one "
        "choice of activation, prior, n, θ*, grid, variance and gap, the same for all problems, comes to the paper. "
        "Grid: the evaluation inputs span the data's range widened by 0.5 or by 1.5 at both ends, or are 1.5 times as "
        "wide as it. Variance: of the probability of the class that θ* predicts, or summed over the classes. Gap: "
        "whether the inputs of the nonlinear regression have one. MLE: θ* is trained without the prior.\n\n"
        "Distance: mean |difference| over the 16 epistemic numbers, r and ρ of eight problems. Distance, all: over "
        "the 38 numbers of all three estimates, where they exist (Laplace is taken at the MAP alone). "
        f"A setting is complete with {FEWEST_SEEDS} accepted seeds for each of the 16; {len(complete)} of "
        f"{len(lineage.comparisons)} are. `settings.csv` holds all of them.\n\n"
    )
    if lineage.nearest is None:
        text += "No setting is complete, and none is called the nearest.\n\n"
    else:
        near = lineage.nearest.distance
        others = sum(one.distance.mean <= near.high for one in complete) - 1
        text += (
            f"Nearest: **{lineage.nearest.setting.name}**, distance {tables.mean_bounds(near, 3)}. It is the best of "
            f"{len(complete)}, picked by looking at all of them, so that its distance is too small and its "
            f"interval too narrow. (A distance adds up noise of either sign, so that resampled seeds lie farther from "
            f"the paper than the seeds themselves, and the interval reaches high.) {others} other settings have a "
            "distance below the upper end of that interval.\n\n"
        )
    shown = [(str(place), one) for place, one in enumerate(lineage.comparisons[:SHOWN], 1)]
    if lineage.protocol is not None:
        shown.append(("protocol", lineage.protocol))
    header = ["", *lineage.comparisons[0].setting.levels(), "numbers", "fewest seeds", "distance", "distance, all"]
    body = [
        [
            place, *one.setting.levels().values(), f"{one.existing}/16", str(one.seeds),
            tables.mean_bounds(one.distance, 3), tables.mean_bounds(one.distance_all, 3),
        ]
        for place, one in shown
    ]  # fmt: skip
    return text + tables.table(header, body)


def _nearest_beside_paper(lineage: Lineage) -> str:
    """Return every number of the nearest setting beside the paper's and the protocol's."""
    if lineage.nearest is None:
        return ""
    body = []
    for row in lineage.table:
        line = [row.problem, _title(row)]
        for place in range(len(STATISTICS)):
            line.append(tables.number(PAPER[row.estimate][row.problem][place]))
            for one in (lineage.nearest, lineage.protocol):
                entry = None if one is None else one.entry(row.estimate, row.problem)
                line.append("–" if entry is None else tables.mean_bounds(entry.intervals[place]))
        body.append(line)
    columns = [f"{symbol}, {whose}" for symbol in STATISTICS.values() for whose in ("paper", "nearest", "protocol")]
    return (
        "## The nearest setting beside the paper and the protocol\n\n"
        "In a setting without the gap the row regression/nonlinear shows regression/sine, whose inputs have none.\n\n"
        + tables.table(["problem", "estimate", *columns], body)
    )


def _title(row: TableRow) -> str:
    return HEADINGS[row.estimate].split(":")[0]


def _effects(numbers: Numbers) -> str:
    levels = [group.split(": ") for group in numbers.groups if ": " in group]
    body = []
    for factor, level in levels:
        effect: Interval = numbers.groups[f"{factor}: {level}"]["distance"]
        body.append([factor, level, tables.number(effect.mean, 3), str(effect.count)])
    return (
        "## What each factor does\n\nMean distance over the complete settings with this level. Where two levels have "
        "different numbers of complete settings, their means are over different settings of the other factors.\n\n"
        + tables.table(["factor", "level", "mean distance", "complete settings"], body)
    )


def _table(table: Sequence[TableRow]) -> str:
    """Return the nearest that any setting comes to each entry of the paper's table, and the entries out of reach."""
    body = []
    for row in table:
        paper = "/".join(tables.number(value) for value in PAPER[row.estimate][row.problem])
        line = ["–", "–", "–"]
        if row.entry is not None and row.nearest is not None:
            values = "/".join(tables.number(interval.mean) for interval in row.entry.intervals)
            line = [values, tables.number(row.entry.difference, 3), row.nearest]
        body.append([row.problem, _title(row), paper, *line, f"{row.reaching}/{row.entries}"])
    return (
        "## Rows of the paper's table\n\n"
        "Each entry by itself, with the setting that comes nearest to it; settings that share a posterior and a grid "
        f"share an entry, and an entry has at least {FEWEST_SEEDS} seeds. Reached: how many different entries have "
        "95 % intervals of r and of ρ that contain the paper's two numbers, to the digits that it prints, and how many "
        "entries there are. Among many a wide interval may contain them by chance.\n\n"
        f"{_out_of_reach(table)}\n\n"
        + tables.table(["problem", "estimate", "paper r/ρ", "nearest r/ρ", "difference", "setting", "reached"], body)
    )


def _out_of_reach(table: Sequence[TableRow]) -> str:
    """Return the sentence that lists the entries which no setting reaches."""
    entries = [row for row in table if row.entry is not None]
    missed = [
        f"{row.problem} ({_title(row)}, nearest {tables.number(row.entry.difference, 3)})"
        for row in entries
        if row.entry is not None and not row.reaching
    ]
    if not entries:
        return f"No entry has {FEWEST_SEEDS} accepted seeds."
    return (
        f"Entries that no setting reaches: {', '.join(missed)}." if missed else "Every entry is reached by a setting."
    )


def _acceptance(rows: Sequence[Row]) -> str:
    """Return how many references are accepted on each grid, by problem."""
    body = []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        own = [row for row in rows if row["problem"] == problem]
        body.append([problem, str(len(own)), *(str(sum(row[ACCEPTED[grid]] for row in own)) for grid in GRIDS)])
    return (
        "## Accepted references\n\nEach grid has a verdict of its own. Sampling ends when that on ± 0.5 accepts.\n\n"
        + tables.table(["problem", "references", *GRIDS.values()], body)
    )


def _maximum_likelihood(rows: Sequence[Row]) -> str:
    """Return how often the training without a prior converged, and how often it separates its data."""
    body = []
    for problem, n, activation in dict.fromkeys((row["problem"], row["num_points"], row["activation"]) for row in rows):
        own = [r for r in rows if (r["problem"], r["num_points"], r["activation"]) == (problem, n, activation)]
        counts = (sum(row[column] for row in own) for column in ("mle_converged", "mle_separates"))
        body.append([problem, str(n), activation, *(f"{count}/{len(own)}" for count in counts)])
    return (
        "## Maximum likelihood\n\nθ* without a prior is where training stops, and the same under every prior. Where it "
        "classifies all training data correctly (separates), the likelihood may have no maximum.\n\n"
        + tables.table(["problem", "n", "activation", "converged", "separates"], body)
    )


def _flat_grids(rows: Sequence[Row]) -> str:
    """Return the list of the rows whose ‖g‖² is flat at a θ* on a grid; empty where there is none."""
    lines = []
    for row in rows:
        flat = [f"{THETAS[theta]} {GRIDS[grid]}" for theta in THETAS for grid in GRIDS if row[f"flat_{theta}_{grid}"]]
        lines += [f"- {row_name(row)}: {', '.join(flat)}\n"] if flat else []
    if not lines:
        return ""
    text = "‖g‖² is nearly constant there, no correlation is computed, and no number above contains one.\n"
    return f"## Flat on a grid\n\n{text}" + "".join(lines)
