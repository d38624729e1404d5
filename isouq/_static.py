"""A value that is structure and not data."""

from typing import Any

import jax


@jax.tree_util.register_static
class Static:
    """A hashable value that travels in a pytree as structure, compared by equality."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)
