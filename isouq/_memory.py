"""Choose a batch size whose compiled program keeps to a number of bytes."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from isouq import _checks

_USED = 0.25  # share of the bound on a row that a compiled program may well take, since it fuses and frees early
_FULL = 0.8  # share of max_bytes from which no larger batch is tried


def batch_size(
    estimate: Any, args: tuple[Any, ...], engine: str, max_bytes: int, bytes_of_row: int, *options: Any
) -> int:
    """Return a batch size, about the largest, whose program keeps to max_bytes.

    `estimate(*args, batch_size, engine, *options)` is a jitted function, and the options are hashable. Its third and
    fourth arguments are the inputs and their labels, its sixth is a string. bytes_of_row: a bound on one row.

    Programs are compiled for abstract arguments, and nothing is computed: one for a batch by the bound, and mostly a
    second for the batch that the first one allows. A call of the same shapes uses the last one. The answer is
    cached for equal shapes.

    Raises:
        ValueError: not even one input at a time keeps to max_bytes, or the call is traced.
    """
    _checks.positive_int("max_bytes", max_bytes)
    if _checks.is_traced(args):
        raise ValueError("max_bytes was given under jax.jit, where no program can be compiled; give batch_size")
    *arrays, kind = args
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jax.numpy.shape(leaf), jax.dtypes.result_type(leaf)), arrays
    )
    leaves, treedef = jax.tree.flatten(abstract)
    return _batch_size(estimate, tuple(leaves), treedef, kind, engine, max_bytes, bytes_of_row, options)


@functools.lru_cache(maxsize=256)
def _batch_size(
    estimate: Any,
    leaves: tuple[Any, ...],
    treedef: Any,
    kind: str,
    engine: str,
    max_bytes: int,
    bytes_of_row: int,
    options: tuple[Any, ...],
) -> int:
    predict, params, xs, target, shared = jax.tree.unflatten(treedef, leaves)
    size = num_rows = jax.tree.leaves(xs)[0].shape[0]

    def needed(batch: int, engine: str = engine) -> int:
        rows = -(-num_rows // batch) * batch
        program = estimate.lower(
            predict, params, *shapes_of_rows((xs, target), rows), shared, kind, batch, engine, *options
        )
        return temporary_bytes(program.compile())

    batch = min(size, max(1, int(max_bytes / max(1, _USED * bytes_of_row))))
    try:
        used = needed(batch)
    except NotImplementedError:  # a primitive without a rule for vmap needs one input at a time
        batch = size = 1
        used = needed(batch)
    while used > max_bytes:
        if batch == 1:
            raise ValueError(_too_large(used, max_bytes, needed, engine))
        batch = max(1, min(batch - 1, int(0.9 * batch * max_bytes / used)))
        used = needed(batch)
    larger = min(size, int(0.95 * batch * max_bytes / max(1, used)))
    fits = batch < size and used < _FULL * max_bytes and larger > batch and needed(larger) <= max_bytes
    return larger if fits else batch


def shapes_of_rows(tree: Any, rows: int) -> Any:
    """Return the shapes and dtypes of leaves `[n, ...]` with `rows` rows instead."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *jax.numpy.shape(leaf)[1:]), jax.dtypes.result_type(leaf)), tree
    )


def temporary_bytes(compiled: Any) -> int:
    """Return the bytes that a compiled program takes beside its arguments and results."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ValueError("max_bytes needs a memory analysis, which this backend does not give; give batch_size")
    return int(analysis.temp_size_in_bytes)


def _too_large(least: int, max_bytes: int, needed: Callable, engine: str) -> str:
    """Return the message that one input needs more than max_bytes, with what would fit."""
    other = "vmap" if engine == "jaxpr" else "jaxpr"
    bytes_of_other = needed(1, other)
    advice = (
        f"engine={other!r} needs {bytes_of_other:,} and fits"
        if bytes_of_other <= max_bytes
        else f"engine={other!r} needs {bytes_of_other:,}; wrap the blocks of predict in jax.checkpoint, "
        "or use isouq.grad_sq_norm_probes"
    )
    return f"max_bytes is {max_bytes:,}, but one input needs {least:,} bytes with engine={engine!r}; {advice}"
