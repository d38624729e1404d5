"""Sums over data that come in batches, read once, with progress and a checkpoint."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq._checkpoint import Checkpoint, Saved, fingerprint, other_batches
from isouq._frozen import first_row
from isouq.density import LogDensity

NOT_FINITE = (
    "the log likelihood is not finite; look for a row of xs where predict is NaN or infinite, or for an enormous y, "
    "and remove it"
)
_SECONDS = 60.0  # between two writes of a checkpoint


class Stream(NamedTuple):
    """Data in batches.

    batches: pairs (xs, ys). progress: function that is called with the number of data after each batch. checkpoint: the
    file from which an interrupted sum goes on.
    """

    batches: Iterable[Any]
    progress: Callable[[int], None] | None
    checkpoint: Path | None


def sum_over_batches(
    add: Callable[[Any, LogDensity], Any],
    total: Any,
    stream: Stream,
    log_density: LogDensity,
    params: Any,
    name: str,
) -> tuple[Any, int]:
    """Return the sum over the batches, and the number of data.

    add: function from a sum and a log density with the data of one batch to the next sum, a pytree of arrays whose last
    is the log likelihood. It may reuse the memory of the sum that it is given. total: the sum of no batches. name: what
    is summed; a checkpoint of another sum, other parameters or another model is not used.

    Batches that a checkpoint has in its sum are read and skipped. The first of them is summed again: its log likelihood
    tells whether model, parameters and data are those of the checkpoint.
    """
    rows, skipped, rows_read = np.zeros((), np.int64), 0, 0
    checkpoint, number = None, -1
    for number, batch in enumerate(_densities(stream.batches, log_density, params)):
        rows_read += batch.ys.shape[0]
        if number == 0 or number >= skipped:
            total, rows = add(total, batch), rows + batch.ys.shape[0]
            if not np.isfinite(jax.tree.leaves(total)[-1]):
                raise ValueError(f"batch {number}: {NOT_FINITE}")
        if number == 0 and stream.checkpoint is not None:
            settings = {
                "sum": name,
                "kind": log_density.kind,
                "log_likelihood": f"{float(jax.tree.leaves(total)[-1]):.4g}",
            }
            mark = fingerprint(settings, (log_density.noise, params, batch.xs, batch.ys))
            checkpoint = Checkpoint(stream.checkpoint, _SECONDS, mark)
            saved = checkpoint.load((total, rows), None)
            if saved is not None:
                skipped, (total, rows) = saved.blocks, saved.state
        if number >= skipped:
            if checkpoint is not None and checkpoint.due():
                checkpoint.save(Saved(number + 1, (total, rows), None))
        elif number + 1 == skipped and rows_read != rows:
            raise ValueError(other_batches(stream.checkpoint, skipped, int(rows), number + 1, rows_read))
        if stream.progress is not None:
            stream.progress(int(rows))
    if number < 0:
        raise ValueError("batches is empty; expected an iterable of pairs (xs, ys)")
    if number + 1 < skipped:
        raise ValueError(other_batches(stream.checkpoint, skipped, int(rows), number + 1, rows_read))
    if checkpoint is not None:
        checkpoint.save(Saved(number + 1, (total, rows), None))
    return total, int(rows)


def _densities(batches: Iterable[Any], log_density: LogDensity, params: Any) -> Iterator[LogDensity]:
    """Yield the log density on the data of each batch; raise for a batch that does not fit."""
    num_outputs = count_outputs(log_density, params)
    for number, batch in enumerate(batches):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise ValueError(f"batch {number} is a {type(batch).__name__}; expected pairs (xs, ys)")
        try:
            part = on_other_data(log_density, num_outputs, *batch)
        except ValueError as error:
            raise ValueError(f"batch {number}: {error}") from error
        yield part


def count_outputs(log_density: LogDensity, params: Any) -> int | None:
    """Return the number of outputs of the model for one input; None for a scalar."""
    shape = jax.eval_shape(log_density.predict, params, first_row(log_density.xs)).shape
    return shape[0] if shape else None


def on_other_data(log_density: LogDensity, num_outputs: int | None, xs: Any, ys: Any) -> LogDensity:
    """Return the log density on data (xs, ys) in place of its own; raise unless they fit the model."""
    xs, ys = _checks.as_arrays(xs), np.asarray(ys)
    _checks.labels(xs, ys, log_density.kind, num_outputs)
    _check_like(xs, log_density.xs)
    xs = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, jnp.result_type(like)), xs, log_density.xs)
    dtype = log_density.ys.dtype if log_density.kind != "regression" else jnp.result_type(jnp.float32, log_density.ys)
    return replace(log_density, xs=xs, ys=jnp.asarray(ys, dtype))


def _check_like(xs: Any, like: Any) -> None:
    """Raise unless the rows of xs have the structure and the shapes of those of `like`."""
    if jax.tree.structure(xs) != jax.tree.structure(like):  # type: ignore[operator]
        raise ValueError("xs is not a pytree like the xs of log_density")
    for leaf, other in zip(jax.tree.leaves(xs), jax.tree.leaves(like), strict=True):
        if leaf.shape[1:] != other.shape[1:]:
            raise ValueError(f"a row of xs has shape {leaf.shape[1:]}; expected {other.shape[1:]}, as in log_density")
