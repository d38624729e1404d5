"""Sentences and Markdown tables that several experiments share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isouq.stats import Interval

Row = dict[str, Any]


def accepted_share(rows: Sequence[Row]) -> str:
    """Return the accepted posteriors among all, as "4/5"."""
    return f"{sum(row['accepted'] for row in rows)}/{len(rows)}"


def number(value: float | None, digits: int = 2) -> str:
    """Return a value with fixed digits; a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{digits}f}"


def mean_sd(interval: Interval, digits: int = 2) -> str:
    """Return mean ± sd, the mean alone for one seed, "unconverged" for none."""
    if interval.count == 0:
        return "unconverged"
    mean = number(interval.mean, digits)
    return mean if interval.count == 1 else f"{mean} ± {number(interval.sd, digits)}"


def bounds(interval: Interval, digits: int = 2) -> str:
    """Return [low, high], or a dash below two seeds."""
    return "–" if interval.count < 2 else f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"


def mean_bounds(interval: Interval, digits: int = 2) -> str:
    """Return the mean and [low, high]; the mean alone where there is no interval."""
    mean = number(interval.mean, digits)
    return mean if interval.count < 2 else f"{mean} {bounds(interval, digits)}"


def mean_sd_bounds(interval: Interval) -> str:
    """Return mean ± sd and the interval, as far as there are seeds for them."""
    return f"{mean_sd(interval)} {bounds(interval)}" if interval.count > 1 else mean_sd(interval)


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
