"""The numbers of the maps: the correlations of the first seed of every problem."""

from collections.abc import Sequence

from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from experiments.synthetic.numbers.models import STATISTICS, numbers_of, rows_by_model


def numbers(results: Sequence[Result]) -> Numbers:
    """Return r and ρ of every map. A group is a problem; the report reads the rows, accepted or not."""
    rows = [result.numbers for result in results]
    columns = [f"{name}_{statistic}" for name in ("epistemic", "aleatoric") for statistic in STATISTICS]
    summary: list[Number] = []
    for model, group in rows_by_model(rows).items():
        summary += numbers_of(model, group, columns)
    return Numbers(rows, summary)
