"""Measures the memory and time of `isouq.laplace(batches=...)` for an MLP of 10 M parameters, in a process of its own.

The batches are generated one at a time. Peak memory is that of the first call, compilation included, above what the
process held before: its libraries and the weights.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks import child, memory


@dataclass(frozen=True)
class Stream:
    """An MLP, with widths from input to classes, and a number of batches of `rows` data each."""

    sizes: tuple[int, ...]
    batches: int
    rows: int

    def label(self) -> str:
        """Return the case in words."""
        return f"MLP {'-'.join(map(str, self.sizes))}, {self.batches} batches of {self.rows}"


FULL = Stream((784, *[1024] * 10, 10), 4, 256)
SMOKE = Stream((20, 30, 30, 3), 3, 16)


def measure(structure: str, stream: Stream) -> dict[str, Any]:
    """Return parameters, seconds and peak bytes of a structure, or the reason in `status`, from a new process."""
    return child.measure("benchmarks.stream", structure, json.dumps(asdict(stream)))


def _data(stream: Stream) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    for _ in range(stream.batches):
        xs = rng.standard_normal((stream.rows, stream.sizes[0]), dtype=np.float32)
        yield xs, rng.integers(stream.sizes[-1], size=stream.rows)


def _measure(structure: str, stream: Stream) -> dict[str, float]:
    """Measure in the child process."""
    import jax

    import isouq
    from isouq import models
    from isouq.posterior import LogDensity

    predict, init = models.mlp(stream.sizes[0], stream.sizes[1:-1], stream.sizes[-1], "relu")
    params = jax.block_until_ready(init(jax.random.key(0)))
    xs, _ = next(_data(stream))
    labels = np.arange(len(xs)) % stream.sizes[-1]
    log_density = LogDensity.of(predict, params, xs[:10], labels[:10], "multiclass", sigma=0.1)
    jax.block_until_ready(jax.jit(jax.grad(lambda a: (a @ a).sum()))(jax.numpy.ones((512, 512))))  # starts the threads
    meter = memory.ResidentSet()
    meter.start()
    start = time.perf_counter()
    covariance = isouq.laplace(log_density, params, "ggn", structure, batches=_data(stream))
    jax.block_until_ready(covariance)
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "fit_seconds": time.perf_counter() - start,
        "fit_peak_mb": meter.peak() / 1e6,
        "result_mb": sum(leaf.nbytes for leaf in jax.tree.leaves(covariance) if hasattr(leaf, "nbytes")) / 1e6,
    }


if __name__ == "__main__":
    from benchmarks.settings import apply

    apply()
    settings = json.loads(sys.argv[2])
    child.print_row(_measure(sys.argv[1], Stream(tuple(settings["sizes"]), settings["batches"], settings["rows"])))
