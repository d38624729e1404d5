"""The summary of the calibration on texts."""

from experiments.calibration import LOSSES
from experiments.domains.configuration import MIN_SEEDS
from experiments.domains.measure.calibration import PREDICTORS
from experiments.domains.numbers.calibration import NUMBERS, CalibrationNumbers, Change, Row
from experiments.domains.report.domains import VARIANTS, describe_encoder
from experiments.report import tables
from experiments.report.outputs import Numbers

_NUMBERS = dict(
    zip(NUMBERS, ("temperature", "scale of ‖g‖²", "prior by the evidence", "scale, last layer"), strict=True)
)
_DIGITS = 4


def report(numbers: Numbers, preset: str) -> str:
    """Return the summary: what every predictor changes, all losses, and the fitted numbers of each seed."""
    details: CalibrationNumbers = numbers.details
    return "\n".join(
        (
            f"# Does a scale for ‖g‖² help a fine-tuned encoder? Preset `{preset}`\n",
            _reading(details.facts),
            _changes(details),
            _losses(numbers),
            _fitted(details),
        )
    )


def _reading(row: Row) -> str:
    return (
        f"{describe_encoder(row)} "
        "Of the texts that a seed has neither trained on nor stopped early by, a few fit the one number of a predictor "
        "(a scale or a temperature), and all others give the losses. ‖g‖² is over all trained parameters. The prior of "
        "the last layer's Laplace approximation (a dense GGN of the training texts) is chosen by the evidence. The "
        "heads of an ensemble have one encoder and bootstrap samples of the training texts; the networks of an "
        "ensemble are fine-tuned whole, each from its own head, on the same texts in an order of its own.\n"
    )


def _changes(details: CalibrationNumbers) -> str:
    text = (
        "## What each predictor changes\n\nThe loss less that of the network as it is, on the same texts: the mean "
        "over seeds; below 0 is better. The first interval is over the seeds, each with a split and a training of its "
        "own; the second is over the texts, which are redrawn for all seeds together, because the seeds share them. "
        "Both are bootstrap 95 %. The calibration error of few texts is too large, and more so when they are redrawn. "
        f"Bold: neither interval holds 0, on {MIN_SEEDS} seeds or more. Nothing is adjusted for the number of "
        "changes.\n"
    )
    for variant, rows in details.rows.items():
        body = []
        for name, title in PREDICTORS.items():
            cells = [
                details.changes[variant, name, loss] for loss in LOSSES if (variant, name, loss) in details.changes
            ]
            if cells:
                body.append([title, str(cells[0].over_seeds.count), *map(_change, cells)])
        errors, compared = (sum(row[name] for row in rows) for name in ("errors", "compared"))
        title = VARIANTS[variant].capitalize()
        text += (
            f"\n### {title}: {rows[0]['fitting']} texts fit, {rows[0]['compared']} test; {errors} of {compared} "
            f"predictions wrong (seeds: {len(rows)})\n\n" + tables.table(["predictor", "seeds", *LOSSES.values()], body)
        )
    return text


def _change(change: Change) -> str:
    mean = f"{change.over_texts.value:+.{_DIGITS}f}"
    low, high = (tables.number(float(end), _DIGITS) for end in (change.over_texts.low, change.over_texts.high))
    seeds = tables.bounds(change.over_seeds, _DIGITS)
    return f"{f'**{mean}**' if change.is_clear else mean} {seeds} [{low}, {high}]"


def _losses(numbers: Numbers) -> str:
    details: CalibrationNumbers = numbers.details
    header = ["predictor", *(f"{title}, {VARIANTS[variant]}" for variant in details.rows for title in LOSSES.values())]
    body = []
    for name, title in PREDICTORS.items():
        cells = [numbers.groups[variant].get(f"{name}_{loss}") for variant in details.rows for loss in LOSSES]
        body.append([title, *("–" if cell is None else tables.mean_bounds(cell, _DIGITS) for cell in cells)])
    return "## The losses\n\nMeans over the seeds, with intervals over the seeds.\n\n" + tables.table(header, body)


def _fitted(details: CalibrationNumbers) -> str:
    body = []
    for variant, rows in details.rows.items():
        body += [
            [VARIANTS[variant], str(row["seed"]), str(row["errors"]), *(f"{row[name]:.3g}" for name in _NUMBERS)]
            for row in rows
        ]
    return (
        "## The fitted numbers\n\nA scale of 0 says that no positive scale lowered the loss of the texts that fit it. "
        "The prior is a standard deviation.\n\n"
        + tables.table(["", "seed", "wrong predictions", *_NUMBERS.values()], body)
    )
