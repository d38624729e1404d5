"""Lines of summary.csv for numbers over questions."""

from experiments.report.outputs import Number
from isouq.stats import Interval


def interval_line(group: str, statistic: str, interval: Interval, accepted: int) -> Number:
    """Return the line of a mean with its interval; accepted: how many answers of the group were judged."""
    return Number(group, statistic, interval.mean, interval.low, interval.high, interval.count, accepted)


def value_line(group: str, statistic: str, value: float, n: int, accepted: int) -> Number:
    """Return the line of a number without an interval, over n answers."""
    return Number(group, statistic, value, float("nan"), float("nan"), n, accepted)
