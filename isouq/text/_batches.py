"""Batches of token sequences of similar lengths, padded to one of a few lengths so that few programs are compiled."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int


def batches_by_length(lengths: Sequence[Any], size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (indices, filled) of every batch, the shortest sequences first.

    indices: the numbers of the sequences in the batch. filled: the same with the last one repeated up to `size`, so
    that all batches run through one program. lengths: anything that sorts; equal lengths keep their order.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    for start in range(0, len(order), size):
        indices = order[start : start + size]
        yield indices, indices + indices[-1:] * (size - len(indices))


def groups_by_length(lengths: Sequence[Any], size: int) -> list[list[int]]:
    """Return the numbers of the sequences in groups of `size`, the shortest first; a smaller rest joins the last group.

    So no group has fewer than `size`, unless all together have, and each runs through programs for batches of `size`.
    """
    groups = [indices for indices, _ in batches_by_length(lengths, size)]
    if len(groups) > 1 and len(groups[-1]) < size:
        rest = groups.pop()
        groups[-1] += rest
    return groups


def round_up(length: int, per_octave: int, least: int) -> int:
    """Return the next of `per_octave` lengths between each power of two and the one above it, at least `least`."""
    if length <= least:
        return least
    step = max(1, 2 ** math.floor(math.log2(length - 1)) // per_octave)
    return -(-length // step) * step


def pad(sequences: Sequence[Any], width: int, fill: int = 0) -> Int[np.ndarray, "n width"]:
    """Return the sequences of integers as the rows of one int32 array, filled up on the right."""
    array = np.full((len(sequences), width), fill, np.int32)
    for row, sequence in zip(array, sequences, strict=True):
        row[: len(sequence)] = sequence
    return array
