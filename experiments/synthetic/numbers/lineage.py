"""The numbers of the lineage: the distance of every shared setting to the paper's Table 1."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.report.outputs import Number, Numbers, table_csv
from experiments.run.job import Result
from experiments.synthetic.measure.lineage import ACCEPTED, GRIDS, THETAS, VARIANCES
from experiments.synthetic.numbers.models import STATISTICS, Row, usable_rows
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.presets.lineage import UNUSED
from isouq.problems import PROBLEMS
from isouq.stats import Interval, bootstrap_mean, percentile_interval

FEWEST_SEEDS = 3  # accepted seeds of every entry of a setting that may be called the nearest
RESAMPLES = 1000
ROUNDING = 0.005  # half a unit of the last digit that the paper prints
GAP, NO_GAP = "regression/nonlinear", "regression/sine"  # both stand against the paper's nonlinear regression
Key = tuple[str, str]  # an estimate and a problem
Posterior = tuple[str, str, str, float, int]  # problem, activation, prior, σ, n
_STREAMS = {problem: stream for stream, problem in enumerate(PROBLEMS)}  # the seed of each problem's bootstrap


class Setting(NamedTuple):
    """A choice of everything that the paper does not state, shared by all problems."""

    activation: str
    prior: str
    sigma: float
    num_points: int
    theta: str
    grid: str
    variance: str
    gap: bool

    def levels(self) -> dict[str, str]:
        """Return the level of each factor, as it is shown."""
        return {
            "activation": self.activation,
            "prior": f"{self.prior} σ = {self.sigma:g}",
            "n": f"{self.num_points}",
            "θ*": THETAS[self.theta],
            "grid": GRIDS[self.grid],
            "variance": VARIANCES[self.variance],
            "gap": "yes" if self.gap else "no",
        }

    @property
    def name(self) -> str:
        """The setting in words."""
        return in_words(self.levels())

    def name_for(self, estimate: str, problem: str) -> str:
        """Return the setting in words, without the factors that an entry of the table does not depend on."""
        levels = self.levels()
        if not PROBLEMS[problem].hidden:
            del levels["activation"]
        if estimate != "epistemic" or PROBLEMS[problem].kind != "multiclass":
            del levels["variance"]
        if problem != GAP:
            del levels["gap"]
        return in_words(levels)

    def has(self, problem: str) -> bool:
        """Return whether the problem is one of the eight of this setting."""
        return problem != (NO_GAP if self.gap else GAP)


def in_words(levels: Mapping[str, str]) -> str:
    """Return the levels of a setting's factors as one phrase."""
    words = {**levels, "n": f"n = {levels['n']}"}
    if "gap" in levels:
        words["gap"] = "gap" if levels["gap"] == "yes" else "no gap"
    return ", ".join(words.values())


PROTOCOL = Setting("tanh", "unit", 1.0, 200, "map", "near", "class", True)


class Entry(NamedTuple):
    """An estimate on a problem in one setting.

    values: r and ρ of every seed whose reference was accepted on the grid and whose ‖g‖² is not flat there. resampled:
    their bootstrap means.
    intervals: of r and of ρ. difference: mean of |r − paper's r| and |ρ − paper's ρ|. reached: whether the intervals,
    widened by the rounding of the paper's two digits, hold both of the paper's numbers, on FEWEST_SEEDS or more.
    """

    values: Float[np.ndarray, "seeds 2"]
    resampled: Float[np.ndarray, "resamples 2"]
    intervals: tuple[Interval, Interval]
    difference: float
    reached: bool

    @classmethod
    def of(cls, values: np.ndarray, paper: Sequence[float], stream: int) -> "Entry":
        """Return the entry of some seeds beside the paper's r and ρ; stream: the seed of the bootstrap."""
        count = len(values)
        chosen = np.random.default_rng(stream).integers(count, size=(RESAMPLES, count))
        resampled = values[chosen].mean(axis=1)
        means = values.mean(axis=0)
        sds = values.std(axis=0, ddof=1) if count > 1 else np.full(2, np.nan)
        low, high = percentile_interval(resampled) if count > 1 else np.full((2, 2), np.nan)
        intervals = [Interval(count, *map(float, line)) for line in zip(means, sds, low, high, strict=True)]
        inside = np.all((low - ROUNDING <= paper) & (paper <= high + ROUNDING))
        difference = float(np.abs(means - paper).mean())
        return cls(values, resampled, (intervals[0], intervals[1]), difference, bool(inside and count >= FEWEST_SEEDS))


class Comparison(NamedTuple):
    """A setting beside the paper.

    entries: those with an accepted seed, by estimate and problem. distance: mean |difference| to the paper over the
    epistemic entries that exist. distance_all: over those of all three estimates; NaN unless each exists.
    existing: how many of the 16 epistemic numbers exist. seeds: the fewest accepted seeds of the 16.
    """

    setting: Setting
    entries: dict[Key, Entry]
    distance: Interval
    distance_all: Interval
    existing: int
    seeds: int

    def entry(self, estimate: str, problem: str) -> Entry | None:
        """Return what stands against an entry of the paper's table; None without an accepted seed."""
        name = NO_GAP if problem == GAP and not self.setting.gap else problem
        return self.entries.get((estimate, name))

    @property
    def complete(self) -> bool:
        """Whether every entry rests on enough seeds for the setting to be called the nearest."""
        return self.seeds >= FEWEST_SEEDS


class TableRow(NamedTuple):
    """An estimate and a problem of the paper's table over all settings.

    nearest: the setting, in words, whose entry is nearest, among entries of `FEWEST_SEEDS` or more, and entry: that
    entry; None where there is none. reaching, entries: how many different entries reach both numbers, and how many
    there are.
    """

    estimate: str
    problem: str
    nearest: str | None
    entry: Entry | None
    reaching: int
    entries: int


class Lineage(NamedTuple):
    """What the report and the figure show. comparisons: all settings, the nearest first and incomplete ones last."""

    comparisons: list[Comparison]
    nearest: Comparison | None
    protocol: Comparison | None
    table: list[TableRow]


def numbers(results: Sequence[Result]) -> Numbers:
    """Return the distance of every setting to the paper, the effect of every factor, and the nearest of each entry.

    Groups: "nearest" and "protocol" with all their numbers, a factor's level, a problem of the paper, a setting.
    files: settings.csv, the whole grid. details: a `Lineage`.
    """
    rows = [result.numbers for result in results]
    in_order = compare(rows)
    comparisons = sorted(in_order, key=lambda one: (not one.complete, -one.existing, one.distance.mean))
    nearest = comparisons[0] if comparisons[0].complete else None
    protocol = next((one for one in comparisons if one.setting == PROTOCOL), None)
    table = table_rows(comparisons)
    summary = [*_numbers_of_setting("nearest", nearest), *_numbers_of_setting("protocol", protocol)]
    summary += [*_effects(in_order), *_numbers_of_table(table)]
    summary += [Number.of(one.setting.name, "distance", one.distance, one.seeds) for one in comparisons]
    files = {"settings.csv": table_csv([_row_of_setting(one) for one in comparisons])}
    return Numbers(rows, summary, files, Lineage(comparisons, nearest, protocol, table))


def compare(rows: Iterable[Row]) -> list[Comparison]:
    """Return the comparison of every setting of the grid that was run, in the order of the grid."""
    posteriors: dict[Posterior, list[Row]] = defaultdict(list)
    for row in rows:
        posteriors[row["problem"], row["activation"], row["prior"], row["sigma"], row["num_points"]].append(row)
    shared = dict.fromkeys(posterior[1:] for posterior in posteriors)
    entries: dict[tuple, Entry | None] = {}
    return [
        _comparison(Setting(*model, *variant), posteriors, entries)
        for model in shared
        for variant in product(THETAS, GRIDS, VARIANCES, (True, False))
    ]


def _comparison(
    setting: Setting, posteriors: Mapping[Posterior, list[Row]], entries: dict[tuple, Entry | None]
) -> Comparison:
    """Return the comparison of one setting; `entries` keeps those that several settings share."""
    by_key: dict[Key, Entry] = {}
    keys = [(estimate, problem) for estimate in PAPER for problem in PAPER[estimate] if setting.has(problem)]
    for estimate, problem in keys:
        place = _place(setting, estimate, problem)
        if place not in entries:
            values = accepted_values(posteriors.get(place[0], []), place[1], ACCEPTED[setting.grid])
            paper = PAPER[estimate][problem]
            entries[place] = Entry.of(values, paper, _STREAMS[problem]) if len(values) else None
        entry = entries[place]
        if entry is not None:
            by_key[estimate, problem] = entry
    epistemic = {key: entry for key, entry in by_key.items() if key[0] == "epistemic"}
    missing = sum(estimate == "epistemic" for estimate, _ in keys) - len(epistemic)
    seeds = 0 if missing else min(len(entry.values) for entry in epistemic.values())
    everything = by_key if len(by_key) == len(keys) else {}
    return Comparison(setting, by_key, distance(epistemic), distance(everything), 2 * len(epistemic), seeds)


def _place(setting: Setting, estimate: str, problem: str) -> tuple[Posterior, str]:
    """Return the posterior and the beginning of the columns of an entry.

    A model without a hidden layer has no activation, and the sum over classes exists for several classes alone.
    """
    activation = setting.activation if PROBLEMS[problem].hidden else UNUSED
    column = f"{estimate}_{setting.theta}_{setting.grid}"
    if estimate == "epistemic":
        column += f"_{setting.variance if PROBLEMS[problem].kind == 'multiclass' else 'class'}"
    return (problem, activation, setting.prior, setting.sigma, setting.num_points), column


def accepted_values(rows: Iterable[Row], column: str, flag: str) -> Float[np.ndarray, "seeds 2"]:
    """Return r and ρ of the rows whose reference was accepted; flat ones have none and are left out."""
    values = [[row.get(f"{column}_{statistic}", np.nan) for statistic in STATISTICS] for row in usable_rows(rows, flag)]
    seeds = np.reshape(np.asarray(values, np.float64), (-1, 2))
    return seeds[np.isfinite(seeds).all(axis=1)]


def distance(entries: Mapping[Key, Entry]) -> Interval:
    """Return the mean |difference| to the paper over entries, with a bootstrap interval.

    The seeds of each problem are resampled by themselves, r and ρ of a seed together. The count is the fewest seeds of
    an entry; without entries the distance is NaN. A resampled mean lies farther from the paper on average than the mean
    itself, so that the interval reaches higher than it would around a mean.
    """
    if not entries:
        return bootstrap_mean([])
    paper = np.array([PAPER[estimate][problem] for estimate, problem in entries])
    means = np.array([entry.values.mean(axis=0) for entry in entries.values()])
    resampled = np.stack([entry.resampled for entry in entries.values()], axis=1)
    count = min(len(entry.values) for entry in entries.values())
    low, high = percentile_interval(np.abs(resampled - paper).mean(axis=(1, 2)))
    ends = (float(low), float(high)) if count > 1 else (float("nan"), float("nan"))
    return Interval(count, float(np.abs(means - paper).mean()), float("nan"), *ends)


def table_rows(comparisons: Sequence[Comparison]) -> list[TableRow]:
    """Return the paper's table with the nearest that any setting comes to each of its entries."""
    rows = []
    for estimate, problem in paper_entries():
        different: dict[int, tuple[Entry, str]] = {}  # settings share entries: each counts once
        for one in comparisons:
            entry = one.entry(estimate, problem)
            if entry is not None and len(entry.values) >= FEWEST_SEEDS:
                different.setdefault(id(entry), (entry, one.setting.name_for(estimate, problem)))
        pairs = list(different.values())
        best, nearest = min(pairs, key=lambda pair: pair[0].difference, default=(None, None))
        reaching = sum(entry.reached for entry, _ in pairs)
        rows.append(TableRow(estimate, problem, nearest, best, reaching, len(pairs)))
    return rows


def paper_entries() -> list[Key]:
    """Return the entries of the paper's table by estimate and problem, the nonlinear regression once."""
    return [(estimate, problem) for estimate in PAPER for problem in PAPER[estimate] if problem != NO_GAP]


def _numbers_of_setting(group: str, one: Comparison | None) -> list[Number]:
    """Return the numbers of one setting, "nearest" or "protocol": its distance, and a group for each problem."""
    if one is None:
        return []
    lines = [
        Number.of(group, "distance", one.distance, one.seeds),
        Number.of(group, "distance_all", one.distance_all, one.seeds),
    ]
    for (estimate, problem), entry in one.entries.items():
        for statistic, interval in zip(STATISTICS, entry.intervals, strict=True):
            lines.append(Number.of(f"{group}, {problem}", f"{estimate}_{statistic}", interval, interval.count))
    return lines


def _effects(comparisons: Sequence[Comparison]) -> list[Number]:
    """Return the mean distance of the complete settings at each level of each factor."""
    by_level: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in comparisons:
        for factor, level in one.setting.levels().items():
            by_level[factor][level] += [one.distance.mean] if one.complete else []
    return [
        Number.of(f"{factor}: {level}", "distance", _mean(distances), len(distances))
        for factor, levels in by_level.items()
        for level, distances in levels.items()
    ]


def _mean(distances: Sequence[float]) -> Interval:
    """Return the mean over settings; they share seeds, and an interval would say nothing."""
    nan = float("nan")
    return Interval(len(distances), float(np.mean(distances)) if distances else nan, nan, nan, nan)


def _numbers_of_table(table: Sequence[TableRow]) -> list[Number]:
    """Return for each entry of the paper's table the nearest difference, and how many entries reach it."""
    lines = []
    for row in table:
        if row.entry is not None:
            count = len(row.entry.values)
            lines.append(Number.value(row.problem, f"{row.estimate}_nearest", row.entry.difference, count, count))
        lines.append(
            Number.value(row.problem, f"{row.estimate}_reaching", float(row.reaching), row.entries, row.entries)
        )
    return lines


def _row_of_setting(one: Comparison) -> dict[str, Any]:
    """Return the line of a setting in settings.csv, to four digits; a number without an accepted seed is empty."""
    line: dict[str, Any] = {
        **one.setting.levels(), "complete": one.complete, "entries": one.existing, "fewest_seeds": one.seeds,
        "distance": one.distance.mean, "low": one.distance.low, "high": one.distance.high,
        "distance_all": one.distance_all.mean,
    }  # fmt: skip
    for estimate, problem in paper_entries():
        entry = one.entry(estimate, problem)
        for place, statistic in enumerate(STATISTICS):
            mean = None if entry is None else entry.intervals[place].mean
            line[f"{problem} {estimate}_{statistic}"] = mean
        line[f"{problem} {estimate}_seeds"] = 0 if entry is None else len(entry.values)
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in line.items()}
    return {name: None if value != value else value for name, value in rounded.items()}
