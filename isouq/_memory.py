"""Choose a batch size whose compiled program keeps to a number of bytes."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from isouq import _checks


def batch_size(estimate: Any, args: tuple[Any, ...], engine: str, max_bytes: int, *options: Any) -> int | None:
    """Return a batch size, about the largest, whose program keeps to max_bytes; None stands for all inputs at once.

    `estimate(*args, batch_size, engine, *options)` is a jitted function, and the options are hashable. Its third
    argument is the inputs and its sixth a string.
    Programs are compiled for abstract arguments, and nothing is computed. The answer is cached for equal shapes.

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
    return _batch_size(estimate, tuple(leaves), treedef, kind, engine, max_bytes, options)


@functools.lru_cache(maxsize=256)
def _batch_size(
    estimate: Any,
    leaves: tuple[Any, ...],
    treedef: Any,
    kind: str,
    engine: str,
    max_bytes: int,
    options: tuple[Any, ...],
) -> int | None:
    args = jax.tree.unflatten(treedef, leaves)
    size = jax.tree.leaves(args[2])[0].shape[0]

    def needed(batch: int | None, engine: str = engine) -> int:
        return temporary_bytes(estimate.lower(*args, kind, batch, engine, *options).compile())

    try:
        bytes_of_all = needed(None)
    except NotImplementedError:  # a primitive without a rule for vmap needs one input at a time
        if (least := needed(1)) > max_bytes:
            raise ValueError(_too_large(least, max_bytes, needed, engine)) from None
        return 1
    if bytes_of_all <= max_bytes:
        return None
    low, high, guess = 0, size, round(size * max_bytes / bytes_of_all)  # low fits, high does not
    for _ in range(8):
        if high - low <= max(1, low // 4):
            break
        guess = min(max(guess, low + 1), high - 1)
        if needed(guess) <= max_bytes:
            low, guess = guess, guess + guess // 4
        else:
            high, guess = guess, (low + guess) // 2
    if not low and (least := needed(1)) > max_bytes:
        raise ValueError(_too_large(least, max_bytes, needed, engine))
    return max(low, 1)


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
