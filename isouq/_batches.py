"""A function of rows over data that come in batches: `isouq.map_batches`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from isouq import _checks
from isouq._checkpoint import Checkpoint, Saved, fingerprint, other_batches
from isouq._ensemble import EnsembleUncertainty, Parts, add_relative

_SECONDS = 60.0  # between two writes of a checkpoint


def map_batches(
    score: Callable[[Any], Any],
    batches: Iterable[Any],
    *,
    progress: Callable[[int], None] | None = None,
    checkpoint: Path | str | None = None,
) -> Any:
    """Return `score` of all rows of `batches`, which is read once and is never in memory as a whole.

    >>> score = functools.partial(isouq.uncertainty, predict, params, kind="multiclass")  # doctest: +SKIP
    >>> u = isouq.map_batches(score, loader, checkpoint="scores.npz")  # doctest: +SKIP

    Args:
        score: function of a batch of inputs that returns a pytree of arrays with a leading axis of rows, such as
            `isouq.uncertainty` or `isouq.perturbation` with all arguments but xs.
        batches: an iterable of batches of inputs: arrays of NumPy or JAX, tensors that NumPy can read (those of a
            DataLoader, or `dataset.as_numpy_iterator()`), or pytrees of them, each with a leading axis of rows. For
            pairs with labels take the inputs: `(xs for xs, ys in loader)`.
        progress: function that is called after each batch with the number of rows so far.
        checkpoint: a file of results, written at the end and at most every 60 seconds. If the call is interrupted, the
            same call goes on from there: it reads the finished batches again without scoring them, but for the first,
            whose score must be the one in the file. The other finished batches are not compared: give the same rows
            in the same order, so do not shuffle.

    Returns:
        What score returns, with NumPy arrays over the rows of all batches in their order. The `epistemic` of an
        ensemble is relative to all rows, as in one call.

    Raises:
        ValueError: batches is empty or no iterable, a batch that score refuses (the message has its number), or a
            checkpoint of more batches than there are.

    Cost: that of score, and the memory of one batch and of all results. Batches of different sizes share programs, as
    in `isouq.uncertainty`.
    """
    _checks.batches(batches, "batches, such as a DataLoader")
    parts: list[Any] = []  # the results so far, in the order of their rows
    rows, skipped, rows_read, number = 0, 0, 0, -1
    file: Checkpoint | None = None
    for number, batch in enumerate(batches):
        try:
            batch = _checks.as_arrays(batch)
            size = _checks.count_rows(batch)
            rows_read += size
            if number == 0 or number >= skipped:
                added = jax.tree.map(np.asarray, score(batch))
                scored = _checks.count_rows(added, "score(batch)")
                if scored != size:
                    raise ValueError(
                        f"score returned {scored} rows for {size} inputs; let it return one for each input"
                    )
        except ValueError as error:
            raise ValueError(f"batch {number}: {error}") from error
        if number == 0 and checkpoint is not None:
            with np.errstate(invalid="ignore"):  # the sum of ∞ and −∞ is NaN
                # four digits, because further ones may depend on the number of threads
                sums = [f"{np.nansum(leaf, dtype=float):.4g}" for leaf in jax.tree.leaves(added)]
            mark = fingerprint({"result": type(added).__name__, "sums": sums}, batch)
            file = Checkpoint(Path(checkpoint), _SECONDS, mark)
            saved = file.load(added, None)
            if saved is not None:
                skipped, parts, rows = saved.blocks, [saved.state], _checks.count_rows(saved.state)
        if number >= skipped:
            parts.append(added)
            rows += scored
            if file is not None and file.due():
                parts = [_join(parts)]
                file.save(Saved(number + 1, parts[0], None))
        elif number + 1 == skipped and rows_read != rows:
            raise ValueError(other_batches(checkpoint, skipped, rows, number + 1, rows_read))
        if progress is not None:
            progress(rows)
    if number < 0:
        raise ValueError("batches is empty; expected at least one batch (a generator can be read only once)")
    if number + 1 < skipped:
        raise ValueError(other_batches(checkpoint, skipped, rows, number + 1, rows_read))
    result = _join(parts)
    if file is not None:
        file.save(Saved(number + 1, result, None))
    if isinstance(result, EnsembleUncertainty):
        return jax.tree.map(np.asarray, add_relative(Parts(*result[1:])))
    return result


def _join(parts: list[Any]) -> Any:
    """Return the results of several batches as one."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
