"""Times contestants in interleaved rounds: each round runs every contestant once, in a newly shuffled order."""

import random
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.contestant import Prepared

SAMPLE_SECONDS = 0.05  # fast calls are repeated until a sample takes about this long
MOST_REPEATS = 20
PAUSE_SECONDS = 0.02  # lets idle threads of the previous contestant stop spinning
MORE_ROUNDS = 4  # at most this many times the requested rounds, if the budget allows


class Plan(NamedTuple):
    """Runs at least `rounds` rounds; a contestant that has used `budget` seconds stops earlier."""

    rounds: int
    budget: float


class Ratio(NamedTuple):
    """The median over rounds of a paired ratio and its 10–90 % range; NaN if there was no pair."""

    median: float
    low: float
    high: float


def first_call(prepared: Prepared) -> tuple[Any, float]:
    """Return the result of the first call and the seconds that it took."""
    start = time.perf_counter()
    result = prepared.call()
    return result, time.perf_counter() - start


def rounds(
    contestants: Mapping[str, Prepared],
    first: Mapping[str, float],
    plan: Plan,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the seconds per call of every contestant in every round, NaN after it has stopped.

    A contestant whose first call alone used up the budget is not called again: its first call is its one sample.
    """
    rng = random.Random(seed)
    spent = {name: 0.0 for name in contestants}
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for name, seconds in first.items():
        if seconds > plan.budget:
            samples[name], spent[name] = [seconds], seconds
    for index in range(MORE_ROUNDS * plan.rounds):
        enough = index >= plan.rounds
        active = [name for name in contestants if spent[name] < plan.budget]
        if not active or (enough and max(spent.values()) + max(first.values()) > plan.budget):
            break
        rng.shuffle(active)
        for name in contestants:
            if name not in active and len(samples[name]) == index:
                samples[name].append(float("nan"))
        for name in active:
            start = time.perf_counter()
            samples[name].append(_sample(contestants[name], first[name]))
            spent[name] += time.perf_counter() - start
    length = max(map(len, samples.values()), default=0)
    return {name: np.array(row + [np.nan] * (length - len(row))) for name, row in samples.items()}


def paired_ratio(times: np.ndarray, of: np.ndarray) -> Ratio:
    """Return the ratio of `times` to `of`, paired by round."""
    both = np.isfinite(times) & np.isfinite(of)
    if not both.any():
        return Ratio(np.nan, np.nan, np.nan)
    low, median, high = np.percentile(times[both] / of[both], (10, 50, 90))
    return Ratio(float(median), float(low), float(high))


def _sample(prepared: Prepared, expected: float) -> float:
    """Return the seconds per call, after a pause and, for short calls, an untimed call."""
    repeats = int(np.clip(SAMPLE_SECONDS / max(expected, 1e-6), 1, MOST_REPEATS))
    time.sleep(PAUSE_SECONDS)
    if expected < 10 * SAMPLE_SECONDS:
        prepared.call()
    start = time.perf_counter()
    for _ in range(repeats):
        prepared.call()
    return (time.perf_counter() - start) / repeats
