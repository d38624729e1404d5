"""The report of the maps."""

from experiments.report import tables
from experiments.report.outputs import Numbers
from experiments.synthetic.numbers.models import STATISTICS, is_flat_row


def report(numbers: Numbers, preset: str) -> str:
    """Return the correlations of every map that is drawn."""
    columns = [f"{estimate}_{statistic}" for estimate in ("epistemic", "aleatoric") for statistic in STATISTICS]
    body = [
        [
            row["problem"],
            ("accepted" if row["accepted"] else "unconverged") + (", flat ‖g‖², not drawn" if is_flat_row(row) else ""),
            *(tables.number(row.get(column)) for column in columns),
        ]
        for row in numbers.rows
    ]
    header = ["problem", "reference", "epistemic r", "epistemic ρ", "aleatoric r", "aleatoric ρ"]
    return (
        f"# Maps, preset `{preset}`, seed 0\n\nEvery map is scaled to [0, 1] by its own minimum and maximum, as in the "
        "paper: compare shapes, not sizes. The grid is the data's range widened by 0.5.\n\n"
        + tables.table(header, body)
    )
