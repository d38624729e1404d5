"""Sums over data that come in batches, read once, with progress and a checkpoint."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq._checkpoint import Checkpoint, Saved, fingerprint
from isouq.density import LogDensity

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
    part: Callable[[LogDensity], Any], stream: Stream, log_density: LogDensity, params: Any, name: str
) -> tuple[Any, int]:
    """Return the sum of `part` over the batches, and the number of data.

    part: function from a log density with the data of one batch to a pytree of arrays. name: what is summed; a
    checkpoint of another sum, other parameters or another model is not used.

    Batches that a checkpoint has in its sum are read and skipped.
    """
    total, rows, skipped = None, np.zeros((), np.int64), 0
    checkpoint = None
    for number, batch in enumerate(_densities(stream.batches, log_density, params)):
        if number == 0 and stream.checkpoint is not None:
            mark = fingerprint({"sum": name}, (log_density.predict, log_density.noise, params))
            checkpoint = Checkpoint(stream.checkpoint, _SECONDS, mark)
            saved = checkpoint.load((jax.eval_shape(part, batch), rows), None)
            if saved is not None:
                skipped, (total, rows) = saved.blocks, saved.state
        if number >= skipped:
            added = part(batch)
            total = added if total is None else jax.tree.map(jnp.add, total, added)
            rows = rows + batch.ys.shape[0]
            if checkpoint is not None and checkpoint.due():
                checkpoint.save(Saved(number + 1, (total, rows), None))
        if stream.progress is not None:
            stream.progress(int(rows))
    if total is None:
        raise ValueError("batches is empty; expected an iterable of pairs (xs, ys)")
    if number + 1 < skipped:
        raise ValueError(
            f"the checkpoint {stream.checkpoint} has {skipped} batches, and batches gave {number + 1}; remove the file "
            "or give the same batches again"
        )
    if checkpoint is not None:
        checkpoint.save(Saved(number + 1, (total, rows), None))
    return total, int(rows)


def _densities(batches: Iterable[Any], log_density: LogDensity, params: Any) -> Iterator[LogDensity]:
    """Return the log density with the data of each batch; raise for a batch that does not fit."""
    num_outputs = jax.eval_shape(log_density.predict, params, jax.tree.map(lambda leaf: leaf[0], log_density.xs)).shape
    for number, batch in enumerate(batches):
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            raise ValueError(f"batch {number} is a {type(batch).__name__}; expected pairs (xs, ys)")
        xs, ys = jax.tree.map(np.asarray, batch[0]), np.asarray(batch[1])
        try:
            _checks.labels(xs, ys, log_density.kind, num_outputs[0] if num_outputs else None)
            check_like(xs, log_density.xs)
        except ValueError as error:
            raise ValueError(f"batch {number}: {error}") from error
        yield replace(log_density, xs=jax.tree.map(jnp.asarray, xs), ys=jnp.asarray(ys, log_density.ys.dtype))


def check_like(xs: Any, like: Any) -> None:
    """Raise unless the rows of xs have the structure and the shapes of those of `like`."""
    if jax.tree.structure(xs) != jax.tree.structure(like):  # type: ignore[operator]
        raise ValueError("xs is not a pytree like the xs of log_density")
    for leaf, other in zip(jax.tree.leaves(xs), jax.tree.leaves(like), strict=True):
        if leaf.shape[1:] != other.shape[1:]:
            raise ValueError(f"a row of xs has shape {leaf.shape[1:]}; expected {other.shape[1:]}, as in log_density")
