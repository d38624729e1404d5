"""The cheap similarity of two texts that both sides of benchmarks.polygraph are given in place of a cross-encoder."""

from collections.abc import Sequence


def shared_words(pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Return |A ∩ B| / |A ∪ B| of the sets of words of the two texts of every pair."""
    return [_jaccard(set(a.lower().split()), set(b.lower().split())) for a, b in pairs]


def _jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 1.0
