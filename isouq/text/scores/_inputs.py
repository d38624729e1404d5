"""Checks of what the scores are computed from: each raises one line that says what is wrong."""

from typing import Any

import numpy as np


def floats(name: str, values: Any) -> np.ndarray:
    """Return the values as an array of float64; raise a ValueError with their name where they are no numbers."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} does not hold numbers alone; expected an array or a list of them") from None


def log_probabilities(log_p: Any) -> np.ndarray:
    """Return log_p as float64 `[n]`; raise unless it holds logarithms of probabilities."""
    log_p = floats("log_p", log_p)
    if log_p.ndim != 1:
        raise ValueError(f"log_p has shape {log_p.shape}; expected one number a sample")
    if not log_p.size:
        raise ValueError("log_p is empty; expected at least one sample")
    if np.any(np.isnan(log_p) | (log_p == np.inf)):
        raise ValueError("log_p holds NaN or +inf; expected logarithms of probabilities")
    if log_p.max() > 1e-3:  # rounding aside
        raise ValueError(f"log_p holds {log_p.max():.3g}; expected logarithms of probabilities, which are at most 0")
    return log_p


def whole_numbers(name: str, values: Any, size: int | None = None) -> np.ndarray:
    """Return the values as integers `[n]`; raise unless they are whole and as many as `size`."""
    values = np.asarray(values)
    if values.ndim != 1 or not values.size:
        state = "is empty" if not values.size else f"has shape {values.shape}"
        raise ValueError(f"{name} {state}; expected one whole number a sample, at least one sample")
    if size is not None and values.size != size:
        raise ValueError(f"{name} has {values.size} values for {size} samples; expected one each")
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"{name} holds {values.dtype}; expected whole numbers")
    return values
