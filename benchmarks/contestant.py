"""What every contestant provides, and the error that it raises where it cannot run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

NOT_INSTALLED = "not installed: pip install torch==2.13.0 first, then opacus, backpack-for-pytorch"
NO_TRANSFORMERS = "not installed: pip install torch==2.13.0 transformers accelerate"
SHARE_OF_MEMORY = 0.7


class CannotRun(Exception):
    """A contestant cannot run; the text is the reason shown in its row."""


@dataclass(frozen=True)
class Prepared:
    """A contestant that is ready to be timed: compiled if it is compiled, with weights and inputs on the device."""

    call: Callable[[], Any]  # runs once and waits until the device is done
    norms: Callable[[Any], np.ndarray] | None = None  # from the result of `call` to squared norms [B], if any
    compile_seconds: float | None = None
    temp_bytes: int | None = None
    stochastic: bool = False  # `norms` are estimates, not expected to equal the exact ones


def fits(need: int, words: str) -> None:
    """Raise CannotRun if the bytes exceed the free memory; words: what needs them."""
    from benchmarks import provenance

    free = provenance.free_bytes()
    if free is not None and need > SHARE_OF_MEMORY * free:
        raise CannotRun(f"left out: {words} {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
