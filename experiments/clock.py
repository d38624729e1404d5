"""The times of the parts of a measurement."""

import time
from itertools import pairwise
from typing import Any

import jax


class Clock:
    """Seconds between named points, and in all."""

    def __init__(self) -> None:
        self._points = [("", time.perf_counter())]

    def lap(self, name: str, value: Any = None) -> None:
        """End a lap once `value` is computed."""
        jax.block_until_ready(value)
        self._points.append((name, time.perf_counter()))

    def laps(self) -> dict[str, float]:
        """Return the laps by name, and all of them as `seconds`."""
        self.lap("seconds_rest")
        laps = {name: end - start for (_, start), (name, end) in pairwise(self._points)}
        return {**laps, "seconds": self._points[-1][1] - self._points[0][1]}
