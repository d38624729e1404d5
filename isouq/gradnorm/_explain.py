"""`explain` says how the norm of every parameter is computed, and what that costs."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from isouq.gradnorm._factors import route
from isouq.gradnorm._plan import Group, Plan
from isouq.gradnorm._trace import ArgNums, Traced, positions, trace

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Row:
    """One parameter in the table of `explain`, for ONE example.

    uses: how often the parameter meets data; None for a direct one.
    route: the way its norm is computed. cost: multiplications. memory: bytes of the largest array.
    instead_of: the form that the route was chosen over, with its multiplications; empty where there is no other.
    """

    leaf: str
    shape: tuple[int, ...]
    uses: int | None
    route: str
    cost: int
    memory: int
    instead_of: str = ""


class Explanation(tuple[Row, ...]):
    """The rows of the table of `explain`; prints as that table, with equal blocks on one line.

    Leaves whose names differ in their numbers alone, and whose rows are otherwise the same, are one line: the numbers
    that differ are a *, and "× 6" says that there are six, each of this cost and memory.
    """

    __slots__ = ()

    def __str__(self) -> str:
        head = ("leaf", "shape", "uses", "route", "cost", "memory", "instead of")
        cells = _fold([(row.leaf, *_cells(row)) for row in self])
        widths = [max(len(line[i]) for line in (head, *cells)) for i in range(len(head))]
        lines = [
            "  ".join(
                c.rjust(w) if i in (4, 5) else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
            )
            for line in (head, tuple("-" * w for w in widths), *cells)
        ]
        return "\n".join(line.rstrip() for line in lines)

    __repr__ = __str__


def _cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row behind its leaf."""
    uses = "–" if row.uses is None else str(row.uses)
    return str(list(row.shape)), uses, row.route, _count(row.cost), _count(row.memory) + "B", row.instead_of


def _fold(cells: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the lines, those that differ in the numbers of the leaf alone as one, in the order of the first."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for leaf, *others in cells:
        groups.setdefault((_NUMBER.sub("*", leaf), *others), []).append(leaf)
    return [(_name_of_group(leaves), *others) for (_, *others), leaves in groups.items()]


def _name_of_group(leaves: list[str]) -> str:
    """Return one name for leaves that differ in their numbers, with * for the numbers that differ, and their count."""
    if len(leaves) == 1:
        return leaves[0]
    columns = zip(*map(_NUMBER.findall, leaves), strict=True)
    numbers = iter([column[0] if len(set(column)) == 1 else "*" for column in columns])
    return f"{_NUMBER.sub(lambda _: next(numbers), leaves[0])} × {len(leaves)}"


def explain(f: Callable, argnums: ArgNums = 0, *, has_aux: bool = False) -> Callable:
    """Explain how `grad_sq_norm(f)` treats every parameter: `print(isouq.explain(f)(params, x))`. Nothing is computed.

    The columns are the leaf, its shape, its uses in f, the route, and for ONE example the multiplications that its norm
    takes beyond a forward and a backward pass to the activations, the bytes of the largest array on the way, and the
    form that the route was chosen over, with its multiplications. The routes:

    outer: one position, ‖x‖²‖δ‖². lookup: the rows that are looked up, each once. gram: ⟨XXᵀ, ΔΔᵀ⟩ over positions;
    where the positions of an example cancel and float32 would lose digits, the product form instead, which a test
    decides while the program runs. product: XᵀΔ, formed one site at a time, and its norm.
    direct: the gradient itself, by JAX, and the reason. Mostly that is the operation that no rule knows. For a bias or
    a scale it is "add" or "mul" and costs nothing extra, since such a gradient is no larger than an activation.
    It is "cheaper" for a weight of at most 128 entries that one position meets, and for a weight that is reused so
    often that the pairs (x, δ) of its uses hold more numbers than its gradient.

    Of gram and product gram is taken where it needs less than ¾ of the multiplications, since it reads its products
    again and tests them for cancellation.

    Args:
        f: a function that returns a scalar.
        argnums: which positional arguments to differentiate.
        has_aux: whether f returns `(value, aux)`.

    Returns:
        A function of f's arguments (arrays or `jax.ShapeDtypeStruct`) that returns an `Explanation`, a tuple of rows
        with these fields that prints as a table.
    """

    def explanation(*args: Any, **kwargs: Any) -> Explanation:
        numbers, single = positions(argnums, len(args))
        traced = _trace(f, args, kwargs, argnums, has_aux)
        params = [args[i] for i in numbers]
        leaves = jax.tree_util.tree_leaves_with_path(params[0] if single else params)
        plan = traced.plan() if traced else None
        return Explanation(_row(plan, i, path, leaf) for i, (path, leaf) in enumerate(leaves))

    return explanation


def _row(plan: Plan | None, number: int, path: Any, leaf: Any) -> Row:
    """Return the row of one parameter; without a plan all are direct."""
    name, shape = jax.tree_util.keystr(path) or "params", np.shape(leaf)
    size, itemsize = math.prod(shape), max(4, np.dtype(jax.dtypes.result_type(leaf)).itemsize)
    if plan is None or number in plan.direct:
        reason = plan.direct[number] if plan else "f looks at values and cannot be traced"
        return Row(name, shape, None, f"direct: {reason}", size, size * itemsize)
    groups = plan.groups.get(number, [])
    if not groups:
        return Row(name, shape, 0, "unused", 0, 0)
    routes, costs, memories, others = zip(*map(_route, groups), strict=True)
    uses = sum(len(group.sites) for group in groups)
    forms = ", ".join(dict.fromkeys(routes))
    return Row(name, shape, uses, forms, sum(costs), max(memories) * itemsize, _other_forms([*others]))


def _trace(f: Callable, args: Any, kwargs: Any, argnums: ArgNums, has_aux: bool) -> Traced | None:
    """Return the trace of f at its arguments, with tracers in place of those that are only described by a shape."""
    leaves, treedef = jax.tree.flatten((args, kwargs))
    described = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]
    traces: list[Traced | None] = []

    def trace_at(tracers: list[Any]) -> None:
        full = leaves.copy()
        for i, tracer in zip(described, tracers, strict=True):
            full[i] = tracer
        full_args, full_kwargs = jax.tree.unflatten(treedef, full)
        traces.append(trace(f, full_args, full_kwargs, argnums, has_aux))

    jax.eval_shape(trace_at, [leaves[i] for i in described])  # `explain` reads nothing but shapes from this trace
    return traces[0]


def _route(group: Group) -> tuple[str, int, int, tuple[str, int]]:
    """Return the route, its multiplications, the entries of the largest array, and the other form of one group."""
    steps = 1 if group.collect else math.prod(group.sites[0].steps)
    layouts, positions = zip(*(site.stacked for site in group.sites), strict=True)
    batch, rows, cols = map(layouts[0].size, layouts[0][:3])
    choice = route([*layouts], [*positions], [site.lookup for site in group.sites])
    memory = {
        "outer": batch * max(rows, cols),
        "lookup": batch * sum(positions) * cols,
        "gram": 2 * batch * max(positions) ** 2,
        "product": batch * rows * cols,
    }[choice.form]
    other = choice.instead_of, choice.other_cost * steps
    if group.collect:
        memory = max(memory, sum(site.pair_size for site in group.sites))
    return choice.form + (" of all uses together" if group.reused else ""), choice.cost * steps, memory, other


def _other_forms(others: list[tuple[str, int]]) -> str:
    """Return the forms that the groups did not take, each with its multiplications over all these groups."""
    costs: dict[str, int] = {}
    for form, cost in others:
        if form:
            costs[form] = costs.get(form, 0) + cost
    return ", ".join(f"{form} {_count(cost)}".rstrip() for form, cost in costs.items())


def _count(number: int) -> str:
    for limit, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g} {suffix}"
    return f"{number} "
