"""`explain`: which parameter takes which way, and what it costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from isouq.gradnorm._factors import route
from isouq.gradnorm._plan import Group
from isouq.gradnorm._trace import ArgNums, Traced, positions, trace


@dataclass(frozen=True)
class Row:
    """One parameter, for ONE example.

    uses: how often it meets data; None for a direct one. cost: multiplications. memory: bytes of the largest array.
    """

    leaf: str
    shape: tuple[int, ...]
    uses: int | None
    route: str
    cost: int
    memory: int


class Explanation(tuple[Row, ...]):
    """Rows of the table; prints as one."""

    __slots__ = ()

    def __str__(self) -> str:
        head = ("leaf", "shape", "uses", "route", "cost", "memory")
        cells = [
            (
                row.leaf,
                str(list(row.shape)),
                "–" if row.uses is None else str(row.uses),
                row.route,
                _count(row.cost),
                _count(row.memory) + "B",
            )
            for row in self
        ]
        widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
        lines = [
            "  ".join(c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in (head, tuple("-" * w for w in widths), *cells)
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def explain(f: Callable, argnums: ArgNums = 0, has_aux: bool = False) -> Callable:
    """How `grad_sq_norm(f)` treats every parameter: `print(isouq.explain(f)(params, x))`. Nothing is computed.

    Columns: leaf, its shape, its uses in f, the route, and for ONE example the multiplications that its norm takes
    beyond a forward and a backward pass to the activations, and the bytes of the largest array on the way. Routes:

    outer: one position, ‖x‖²‖δ‖². lookup: the rows looked up, each once. gram: ⟨XXᵀ, ΔΔᵀ⟩ over positions; where
    the positions of an example cancel, so that float32 would lose digits, its product form instead, decided by
    a test while the program runs (`_gram.py`). product: XᵀΔ formed site by site, its norm taken at once.
    direct: the gradient itself, by JAX, and why: the operation no rule knows (for a bias or a scale, "add" or
    "mul", that is no loss: its gradient is no larger than an activation).

    Returns:
        A function of f's arguments (arrays or `jax.ShapeDtypeStruct`) that returns an `Explanation`, a tuple of rows
        with these fields that prints as a table.
    """

    def explained(*args: Any, **kwargs: Any) -> Explanation:
        numbers, single = positions(argnums, len(args))
        traced = _trace(f, args, kwargs, argnums, has_aux)
        params = [args[i] for i in numbers]
        named = jax.tree_util.tree_leaves_with_path(params[0] if single else params)
        rows = []
        plan = traced.plan() if traced else None
        for i, (path, leaf) in enumerate(named):
            shape, itemsize = np.shape(leaf), max(4, np.dtype(jax.dtypes.result_type(leaf)).itemsize)
            size = math.prod(shape)
            if plan is None or i in plan.direct:
                reason = plan.direct[i] if plan else "f looks at values and cannot be traced"
                rows.append(Row(_name(path), shape, None, f"direct: {reason}", size, size * itemsize))
                continue
            groups = plan.groups.get(i, [])
            routes = [_route(group) for group in groups]
            rows.append(
                Row(
                    _name(path),
                    shape,
                    sum(len(group.sites) for group in groups),
                    ", ".join(dict.fromkeys(name for name, _, _ in routes)) or "unused",
                    sum(cost for _, cost, _ in routes),
                    max((memory for _, _, memory in routes), default=0) * itemsize,
                )
            )
        return Explanation(rows)

    return explained


def _trace(f: Callable, args: Any, kwargs: Any, argnums: ArgNums, has_aux: bool) -> Traced | None:
    """The trace of f at its arguments, or at stand-ins for those that are only described."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    described = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]
    found: list[Traced | None] = []

    def at(stand_ins: list[Any]) -> None:
        full = leaves.copy()
        for i, stand_in in zip(described, stand_ins, strict=True):
            full[i] = stand_in
        full_args, full_kwargs = jax.tree.unflatten(treedef, full)
        found.append(trace(f, full_args, full_kwargs, argnums, has_aux))

    jax.eval_shape(at, [leaves[i] for i in described])  # only shapes of what it leaves in `found` are read
    return found[0]


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path) or "params"


def _route(group: Group) -> tuple[str, int, int]:
    """Route, multiplications and floats of the largest array of one group."""
    first = group.sites[0]
    layouts, positions = zip(*(s.folded for s in group.sites), strict=True)
    batch, rows, cols = map(layouts[0].size, layouts[0][:3])
    name, cost = route([*layouts], [*positions], [s.lookup for s in group.sites])
    memory = {
        "outer": batch * max(rows, cols),
        "lookup": batch * sum(positions) * cols,
        "gram": 2 * batch * max(positions) ** 2,
        "product": batch * rows * cols,
    }
    reused = " of all uses together" if group.reused else ""
    if first.collect:
        return name + reused, cost, max(memory[name], sum(s.pair_size for s in group.sites))
    return name, cost * math.prod(first.steps), memory[name]


def _count(number: int) -> str:
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {suffix}"
    return f"{number} "
