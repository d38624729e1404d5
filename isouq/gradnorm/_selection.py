"""The parameters that a gradient is taken of: the argument `select` of `isouq.uncertainty` and others."""

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np


@jax.tree_util.register_static
@dataclass(frozen=True)
class Selection:
    """Which branches of a pytree of parameters are chosen; hashable, so that a compiled program can depend on it.

    flags: True for each chosen branch of params, in their order. treedef: the structure of the prefix that they are.
    """

    flags: tuple[bool, ...]
    treedef: Any

    @classmethod
    def of(cls, select: Any, params: Any) -> "Selection":
        """Return the selection of `select`, or of None for everything; raise unless it fits params.

        select: a regular expression that matches the path of a parameter, or the path of a branch that holds it, such
        as "layers.1" for "layers.1.kernel" and "layers.1.bias"; or a pytree of booleans that is a prefix of params.
        """
        if select is None:
            return EVERYTHING
        if isinstance(select, str):
            select = _matches(select, params)
        for path, flag in jax.tree.leaves_with_path(select):
            if not isinstance(flag, (bool, np.bool_)):
                where = f"select{jax.tree_util.keystr(path)}"
                raise ValueError(f"{where} is {flag!r:.60}; expected True or False, or a regular expression for all")
        flags, treedef = jax.tree.flatten(select)
        selection = cls(tuple(map(bool, flags)), treedef)
        try:
            chosen = selection.choose(params)
        except (ValueError, TypeError, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"select is no prefix of params ({reason}); expected True or False for each branch of params"
            ) from error
        if not jax.tree.leaves(chosen):
            raise ValueError("select chooses no parameter; expected True for at least one branch of params")
        return selection

    def choose(self, params: Any) -> Any:
        """Return params with None in place of each branch that is not chosen."""
        return jax.tree.map(lambda keep, branch: branch if keep else None, self._prefix, params)

    def replace(self, params: Any, chosen: Any) -> Any:
        """Return params with their chosen branches replaced by those of `chosen`, which has None elsewhere."""
        return jax.tree.map(lambda keep, branch, other: other if keep else branch, self._prefix, params, chosen)

    @property
    def _prefix(self) -> Any:
        return jax.tree.unflatten(self.treedef, self.flags)


def _matches(pattern: str, params: Any) -> Any:
    """Return a pytree like params: whether the path of each leaf, "layers.0.kernel", or of a branch of it, matches."""
    leaves, treedef = jax.tree.flatten_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    try:
        of_branch = re.compile(rf"(?:{pattern})(?=\.|$)")  # "layers.1" is not the start of "layers.10"
        flags = [of_branch.match(path) is not None for path in paths]
    except re.error as error:
        raise ValueError(f"select is {pattern!r}, not a regular expression: {error}") from None
    if not any(flags):
        listed = ", ".join(paths[:6]) + (f" and {len(paths) - 6} more" if len(paths) > 6 else "")
        raise ValueError(f"select is {pattern!r}, which matches none of {listed}")
    return jax.tree.unflatten(treedef, flags)


EVERYTHING = Selection((True,), jax.tree.structure(True))  # type: ignore[operator]
