"""The numbers of the calibration on texts: losses by variant, and what a predictor changes, over seeds and texts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.calibration import LOSSES, class_probabilities, losses
from experiments.domains.configuration import MIN_SEEDS, NETWORKS, VARIANTS
from experiments.domains.measure.calibration import ENSEMBLE, PLAIN, PREDICTORS, mean_logits
from experiments.domains.measure.tuned import KIND
from experiments.domains.statistics import Estimate, estimate
from experiments.report.outputs import Number, Numbers
from experiments.run.job import Result
from isouq.stats import Interval, bootstrap_mean

NUMBERS = ("temperature_number", "scale_number", "last_layer_prior", "last_layer_scale_number")
COLUMNS = (
    "data", "encoder", "variant", "seed", "max_length", "epochs", "accepted", "accuracy", "num_params", "train",
    "validation", "fitting", "compared", "errors", "best_epoch", *NUMBERS,
)  # fmt: skip
Row = dict[str, Any]


class Seed(NamedTuple):
    """The predictions of a variant and seed. rows: the row numbers of the texts; logits: by predictor."""

    facts: Row
    rows: np.ndarray
    labels: np.ndarray
    logits: dict[str, np.ndarray]

    def losses(self, name: str, texts: Any = slice(None)) -> np.ndarray:
        """Return `LOSSES` of a predictor on some of the texts."""
        p = class_probabilities(self.logits[name][texts, None], KIND)
        return np.array(list(losses(p, self.labels[texts]).values()))


class Change(NamedTuple):
    """The change of a loss against the network as it is: a mean over seeds, with its interval over seeds and texts."""

    over_seeds: Interval
    over_texts: Estimate

    @property
    def is_clear(self) -> bool:
        """Return whether neither interval holds 0, from `MIN_SEEDS` seeds or more."""
        ends = self.over_seeds.low, self.over_seeds.high, self.over_texts.low, self.over_texts.high
        return self.over_seeds.count >= MIN_SEEDS and (min(ends) > 0 or max(ends) < 0)


class CalibrationNumbers(NamedTuple):
    """facts: the columns that all rows share. rows: one a seed, by variant. changes: by variant, predictor and loss."""

    facts: Row
    rows: dict[str, list[Row]]
    changes: dict[tuple[str, str, str], Change]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return the losses of every seed, their means, and the changes against the network as it is.

    Groups: the variants "whole" and "head", with NAME_LOSS; NAME_LOSS_gain, the mean change (below 0 is better) with
    its interval over seeds; NAME_LOSS_text_gain, the same with its interval over texts; and the fitted numbers.
    """
    rows: dict[str, list[Row]] = {}
    changes: dict[tuple[str, str, str], Change] = {}
    for variant in VARIANTS:
        seeds = _seeds([result for result in results if result.numbers["variant"] == variant])
        if seeds:
            rows[variant] = [_row(seed) for seed in seeds]
            changes |= {(variant, *case): change for case, change in _changes(seeds, rows[variant]).items()}
    every = [row for some in rows.values() for row in some]
    return Numbers(every, _summary(rows, changes), details=CalibrationNumbers(results[0].numbers, rows, changes))


def _seeds(results: Sequence[Result]) -> list[Seed]:
    """Return the predictions of each seed of a variant; an ensemble where all of its networks are finished."""
    members: dict[int, list[np.ndarray]] = {}
    for result in results:
        if result.numbers["study"] == "member":
            members.setdefault(result.numbers["seed"], []).append(result.arrays[PLAIN])
    seeds = []
    for result in results:
        if result.numbers["study"] == "calibration":
            logits = {name: result.arrays[name] for name in PREDICTORS if name in result.arrays}
            networks = [logits[PLAIN], *members.get(result.numbers["seed"], [])]
            if len(networks) == NETWORKS:
                logits[ENSEMBLE] = mean_logits(np.array(networks))
            seeds.append(Seed(result.numbers, result.arrays["rows"], result.arrays["labels"], logits))
    return sorted(seeds, key=lambda seed: seed.facts["seed"])


def _row(seed: Seed) -> Row:
    """Return a row of table.csv: the facts of a seed and the losses of every predictor."""
    row = {name: seed.facts[name] for name in COLUMNS}
    for name in seed.logits:
        row |= {f"{name}_{loss}": float(value) for loss, value in zip(LOSSES, seed.losses(name), strict=True)}
    return row


def _changes(seeds: Sequence[Seed], rows: Sequence[Row]) -> dict[tuple[str, str], Change]:
    """Return the change of each loss by each predictor, over the seeds that have the predictor."""
    names = [name for name in PREDICTORS if name != PLAIN and any(name in seed.logits for seed in seeds)]
    over_texts = _estimate_over_texts(seeds, names)
    changes = {}
    for i, name in enumerate(names):
        for j, loss in enumerate(LOSSES):
            column, plain = f"{name}_{loss}", f"{PLAIN}_{loss}"
            over_seeds = bootstrap_mean([row[column] - row[plain] for row in rows if column in row])
            changes[name, loss] = Change(over_seeds, Estimate(*(float(values[i, j]) for values in over_texts)))
    return changes


def _estimate_over_texts(seeds: Sequence[Seed], names: Sequence[str]) -> Estimate:
    """Return the mean changes over seeds `[names, losses]`, with intervals as the texts of all seeds are redrawn.

    A text that is drawn counts for every seed whose test it is in.
    """
    texts = np.unique(np.concatenate([seed.rows for seed in seeds]))
    places = np.full((len(seeds), texts.max() + 1), -1)
    for place, seed in zip(places, seeds, strict=True):
        place[seed.rows] = np.arange(len(seed.rows))

    def mean_changes(drawn: np.ndarray) -> np.ndarray:
        changes = np.full((len(seeds), len(names), len(LOSSES)), np.nan)
        for own_changes, place, seed in zip(changes, places, seeds, strict=True):
            own = place[drawn]
            own = own[own >= 0]
            plain = seed.losses(PLAIN, own)
            for i, name in enumerate(names):
                if name in seed.logits:
                    own_changes[i] = seed.losses(name, own) - plain
        return np.nanmean(changes, axis=0)

    return estimate(mean_changes, texts)


def _summary(rows: dict[str, list[Row]], changes: dict[tuple[str, str, str], Change]) -> list[Number]:
    """Return the lines of summary.csv; accepted: the seeds whose fine-tuning reached `configuration.ACCURACY`."""
    lines = []
    for variant, some in rows.items():
        accepted = sum(row["accepted"] for row in some)
        columns = [*NUMBERS, *(f"{name}_{loss}" for name in PREDICTORS for loss in LOSSES)]
        accuracies = [1 - row["errors"] / row["compared"] for row in some]
        lines.append(Number.of(variant, "accuracy", bootstrap_mean(accuracies), accepted))
        for column in columns:
            values = [row[column] for row in some if column in row]
            if values:
                lines.append(Number.of(variant, column, bootstrap_mean(values), accepted))
        for (other, name, loss), change in changes.items():
            if other == variant:
                lines.append(Number.of(variant, f"{name}_{loss}_gain", change.over_seeds, accepted))
                count = change.over_seeds.count
                lines.append(Number(variant, f"{name}_{loss}_text_gain", *change.over_texts, count, accepted))
    return lines
