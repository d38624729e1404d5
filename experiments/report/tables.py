"""Sentences and Markdown tables that several experiments share."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isouq.posterior.verdict import Verdict
from isouq.stats import Interval

Row = dict[str, Any]


def how_to_read() -> str:
    """Return how to read every table."""
    return (
        "Mean ± sd over the seeds whose reference posterior was accepted, and a bootstrap 95 % interval of the mean. "
        "`accepted` counts those seeds; the others are listed at the end and averaged nowhere. "
        "r is Pearson's, ρ Spearman's correlation over the evaluation inputs. A percentile interval from five "
        "seeds covers about 84 %, from fewer seeds less: read it as the spread of the seeds.\n"
    )


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


def mean_sd_bounds(interval: Interval) -> str:
    """Return mean ± sd and the interval, as far as there are seeds for them."""
    return f"{mean_sd(interval)} {bounds(interval)}" if interval.count > 1 else mean_sd(interval)


def table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def where(row: Row) -> str:
    """Return the name of a row's model and seed."""
    width = "" if row["width"] is None else f", width {row['width']}"
    return f"{row['problem']}{width}, {row['prior']} σ = {row['sigma']:g}, seed {row['seed']}"


def training_section(rows: Sequence[Row]) -> str:
    """Return whether every θ* reached a maximum, and the list of those that did not."""
    worst = max(row["map_grad_norm"] for row in rows)
    late = [row for row in rows if not row["map_converged"]]
    text = f"## Training\n\n{len(rows) - len(late)} of {len(rows)} θ* converged; largest ‖∇ log p(θ*|D)‖ {worst:.3g}.\n"
    return text + "".join(f"- not converged: {where(row)}, {row['map_grad_norm']:.3g}\n" for row in late)


def reference_section(rows: Sequence[Row]) -> str:
    """Return every reference that was not accepted, with the rule that it broke."""
    failed = [row for row in rows if not row["accepted"]]
    text = f"## Reference posteriors\n\n{len(rows) - len(failed)} of {len(rows)} accepted.\n"
    for row in failed:
        verdict = Verdict(**{field: row[field] for field in Verdict._fields})
        text += f"- {where(row)}: {verdict}\n"
    return text
