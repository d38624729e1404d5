"""A function of rows over data that come in batches: `isouq.map_batches`."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from isouq import _checks
from isouq._checkpoint import Checkpoint, Saved, fingerprint
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
            whose score must be the one in the file.

    Returns:
        What score returns, with NumPy arrays over the rows of all batches in their order. The `epistemic` of an
        ensemble is relative to all rows, as in one call.

    Raises:
        ValueError: batches is empty or no iterable, a batch that score refuses (the message has its number), or a
            checkpoint of more batches than there are.

    Cost: that of score, and the memory of one batch and of all results. Batches of different sizes share programs, as
    in `isouq.uncertainty`.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, (np.ndarray, jax.Array, str, bytes)):
        raise ValueError(
            f"batches is {_checks.shape_or_type(batches)}; expected an iterable of batches, such as a DataLoader"
        )
    scored = _Scored([], 0)
    file: Checkpoint | None = None
    skipped, number = 0, -1
    for number, batch in enumerate(batches):
        if number == 0 or number >= skipped:
            try:
                batch = jax.tree.map(np.asarray, batch)
                added = jax.tree.map(np.asarray, score(batch))
            except ValueError as error:
                raise ValueError(f"batch {number}: {error}") from error
        if number == 0 and checkpoint is not None:
            means = [f"{np.nanmean(leaf):.4g}" for leaf in jax.tree.leaves(added)]  # other threads, other last digits
            mark = fingerprint({"result": type(added).__name__, "means": means}, batch)
            file = Checkpoint(Path(checkpoint), _SECONDS, mark)
            saved = file.load(added, None)
            if saved is not None:
                skipped, scored = saved.blocks, _Scored([saved.state], _rows(saved.state))
        if number >= skipped:
            scored = scored.add(added)
            if file is not None and file.due():
                scored = _Scored([scored.joined()], scored.rows)
                file.save(Saved(number + 1, scored.parts[0], None))
        if progress is not None:
            progress(scored.rows)
    if number < 0:
        raise ValueError("batches is empty; expected at least one batch (a generator can be read only once)")
    if number + 1 < skipped:
        raise ValueError(
            f"the checkpoint {checkpoint} has {skipped} batches, and batches gave {number + 1}; remove the file or "
            "give the same batches again"
        )
    result = scored.joined()
    if file is not None:
        file.save(Saved(number + 1, result, None))
    if isinstance(result, EnsembleUncertainty):
        parts = add_relative(Parts(*result[1:]))
        return jax.tree.map(np.asarray, parts)
    return result


class _Scored(NamedTuple):
    """The results of the batches so far, each a pytree, and the number of their rows."""

    parts: list[Any]
    rows: int

    def add(self, part: Any) -> "_Scored":
        """Return the results with those of one more batch."""
        self.parts.append(part)
        return _Scored(self.parts, self.rows + _rows(part))

    def joined(self) -> Any:
        """Return all results as one pytree."""
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *self.parts)


def _rows(part: Any) -> int:
    return int(jax.tree.leaves(part)[0].shape[0])
