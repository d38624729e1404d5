"""The parameters that a gradient is taken of, as a prefix of all parameters: `wrt` of `isouq.uncertainty`."""

from dataclasses import dataclass
from typing import Any

import jax

from isouq import _checks
from isouq._errors import first_line


@dataclass(frozen=True)
class Selection:
    """Which branches of a pytree of parameters are chosen; hashable, so that a compiled program can depend on it.

    flags: the leaves of wrt in their order, True for a chosen branch of params. treedef: the structure of wrt.
    """

    flags: tuple[bool, ...]
    treedef: Any

    @classmethod
    def of(cls, wrt: Any, params: Any) -> "Selection":
        """Return the selection of wrt, a pytree of booleans, or None for everything; raise unless it fits params."""
        if wrt is None:
            return EVERYTHING
        for path, flag in jax.tree.leaves_with_path(wrt):
            _checks.boolean(f"wrt{jax.tree_util.keystr(path)}", flag)
        flags, treedef = jax.tree.flatten(wrt)
        selection = cls(tuple(map(bool, flags)), treedef)
        try:
            chosen = selection.choose(params)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"wrt is no prefix of params ({first_line(error)}); expected True or False for each branch of params"
            ) from error
        if not jax.tree.leaves(chosen):
            raise ValueError("wrt chooses no parameter; expected True for at least one branch of params")
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


EVERYTHING = Selection((True,), jax.tree.structure(True))  # type: ignore[operator]
