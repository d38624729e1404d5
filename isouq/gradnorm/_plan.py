"""The analysis: which parameters can be read off where they meet data, and which are differentiated.

One pass over the jaxpr follows every parameter as a `View`. Where it meets data in a primitive of
`_sites.RULES`, that is a site. Where anything else happens to it, the whole parameter is *direct*:
differentiated the ordinary way. Since a direct parameter is data to the others, the pass is repeated until
nothing changes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from isouq.gradnorm._sites import Site, site
from isouq.gradnorm._views import Shape, View, disjoint, is_float, named, rearrange

CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}


class Part(NamedTuple):
    """One parameter's range along an axis of a concatenation."""

    axis: int
    start: int
    stop: int


class Group(NamedTuple):
    """Sites of one parameter that must be squared together, since they share entries."""

    sites: list[Site]
    part: Part | None
    chain: tuple

    @property
    def reused(self) -> bool:
        """Whether an entry of the parameter is met more than once: by several sites, or in a scan that sees it all."""
        return len(self.sites) > 1 or None in self.sites[0].view.loops


class Inside(NamedTuple):
    """A call, scan or cond with sites inside: one list of nodes for every body."""

    bodies: list[list[Any]]


@dataclass
class Plan:
    """What the walk does at every equation, and what becomes of every parameter.

    nodes: for each equation None (bind it), a `Site` or an `Inside`. groups: for each parameter that is
    read off. direct: for each that is differentiated, why.
    """

    nodes: list[Any]
    groups: dict[int, list[Group]]
    direct: dict[int, str]

    @property
    def sites(self) -> list[Site]:
        """All sites, each once."""
        return list(dict.fromkeys(s for group in self._all() for s in group.sites))

    def parts(self, of: Site) -> list[Part | None]:
        """What a site stands for: the whole of its parameter (None), or parts of a concatenation."""
        return [group.part for group in self._all() if of in group.sites]

    def _all(self) -> list[Group]:
        return [group for groups in self.groups.values() for group in groups]


def plan(
    jaxpr: Any, num_leaves: int, num_outputs: int = 1, direct: Iterable[int] = (), collect: Iterable[int] = ()
) -> Plan:
    """The plan for a jaxpr whose first `num_leaves` inputs are parameters and first `num_outputs` outputs are f.

    Parameters in `direct` are differentiated in any case; pairs of those in `collect` are handed out in any case.
    """
    shapes = [v.aval.shape for v in jaxpr.invars[:num_leaves]]
    collect = frozenset(collect)
    reasons = dict.fromkeys(direct, "asked for")
    reasons |= {i: "not a real array" for i, v in enumerate(jaxpr.invars[:num_leaves]) if not is_float(v.aval)}
    reasons |= {i: "empty" for i, shape in enumerate(shapes) if math.prod(shape) == 0}
    while True:
        analysis = _Analysis(shapes, collect, dict(reasons))
        states = [None if i in reasons else View.of_leaf(i, shape) for i, shape in enumerate(shapes)]
        states += [None] * (len(jaxpr.invars) - num_leaves)
        nodes, outs = analysis.body(jaxpr, states, ())
        analysis.escape_all(outs[:num_outputs], "is the output")
        groups = analysis.group()
        if analysis.direct == reasons:
            return Plan(nodes, groups, reasons)
        reasons = analysis.direct


@dataclass
class _Analysis:
    shapes: list[Shape]
    collect: frozenset[int]
    direct: dict[int, str]
    uses: dict[int, dict[tuple, Group]] = field(default_factory=dict)  # parameter -> chain -> sites
    joins: list[tuple[tuple[View, ...], int]] = field(default_factory=list)  # concatenations: parts, axis

    def escape(self, view: View, reason: str) -> None:
        """What this view shows is to be differentiated the ordinary way."""
        if view.leaf < len(self.shapes):
            self.direct.setdefault(view.leaf, reason)
        else:
            for part in self.joins[view.leaf - len(self.shapes)][0]:
                self.escape(part, reason)

    def body(self, jaxpr: Any, states: list[View | None], steps: Shape) -> tuple[list[Any], list[View | None]]:
        """Nodes of a jaxpr's equations, and what its outputs are views of."""
        env: dict[Any, View] = {v: s for v, s in zip(jaxpr.invars, states, strict=True) if s is not None}

        def read(atom: Any) -> View | None:
            return None if hasattr(atom, "val") else env.get(atom)

        nodes = []
        for eqn in jaxpr.eqns:
            ins = [read(v) for v in eqn.invars]
            node, outs = None, None
            if any(view is not None for view in ins):
                if _touches_ref(eqn):  # what is written there comes out of other equations
                    self.escape_all(ins, f"{eqn.primitive.name} with a mutable Ref")
                elif any(_has_gradient(v.aval) for v in eqn.outvars):
                    node, outs = self.equation(eqn, ins, steps)
            nodes.append(node)
            for v, out in zip(eqn.outvars, outs or (), strict=bool(outs)):
                if out is not None:
                    env[v] = out
        return nodes, [read(v) for v in jaxpr.outvars]

    def equation(self, eqn: Any, ins: list[View | None], steps: Shape) -> tuple[Any, list[View | None] | None]:
        """The node of one equation with at least one view among its inputs, and its outputs' views."""
        name = eqn.primitive.name
        if name in CALLS:
            inner = eqn.params[CALLS[name]]
            nodes, outs = self.body(getattr(inner, "jaxpr", inner), ins, steps)
            return Inside([nodes]), outs
        if name == "scan":
            return self.scan(eqn, ins, steps)
        if name == "cond" and eqn.params.get("branches_platforms") is None:
            self.escape_all(ins[:1], name)
            bodies = []
            for branch in eqn.params["branches"]:
                nodes, outs = self.body(branch.jaxpr, ins[1:], steps)
                self.escape_all(outs, "chosen by cond")
                bodies.append(nodes)
            return Inside(bodies), None
        if name == "stop_gradient":
            return None, None
        if name in ("concatenate", "stack"):
            return None, self.concatenate(eqn, ins)
        views = [(i, view) for i, view in enumerate(ins) if view is not None]
        if len(views) > 1:  # two parameters meet: the smaller is data to the larger
            self.escape(min(views, key=lambda pair: math.prod(pair[1].shape))[1], f"{name} with another parameter")
            return None, None
        (operand, view), *_ = views
        moved = rearrange(eqn, view)
        if moved is not None:
            return None, [*moved]
        found = site(eqn, operand, view)
        if found is None or not self.add(found, eqn, ins, steps):
            self.escape(view, name)
            return None, None
        return found, None

    def scan(self, eqn: Any, ins: list[View | None], steps: Shape) -> tuple[Any, list[View | None]]:
        """Constants are seen whole at every step, scanned inputs slice by slice; a carry must not change."""
        inner, consts, carries = eqn.params["jaxpr"].jaxpr, eqn.params["num_consts"], eqn.params["num_carry"]
        kept = [inner.outvars[i] is inner.invars[consts + i] for i in range(carries)]
        states: list[View | None] = []
        for i, view in enumerate(ins):
            inside = None
            if view is not None:
                scanned = i >= consts + carries
                if scanned and view.leaf < len(self.shapes):
                    inside = view.enter_scan(True)
                elif not scanned and (i < consts or kept[i - consts]):
                    inside = view.enter_scan(False)
                if inside is None:
                    self.escape(view, "scan")
            states.append(inside)
        nodes, outs = self.body(inner, states, (*steps, eqn.params["length"]))
        through = [ins[consts + i] if kept[i] else None for i in range(carries)]
        self.escape_all([out for i, out in enumerate(outs) if i >= carries or not kept[i]], "leaves a scan")
        return Inside([nodes]), [*through, *[None] * (len(outs) - carries)]

    def concatenate(self, eqn: Any, ins: list[View | None]) -> list[View | None] | None:
        """A view of a new, joined parameter; only of plain parameters, and of nothing else."""
        parts = [view for view in ins if view is not None]
        plain = all(view.leaf < len(self.shapes) and not named(view.loops) for view in parts)
        if not plain or len(parts) < len(ins):
            self.escape_all(ins, "concatenated with data")
            return None
        axis = eqn.params["axis" if eqn.primitive.name == "stack" else "dimension"]
        if eqn.primitive.name == "stack":
            parts = [view.reshape((*view.sizes[:axis], 1, *view.sizes[axis:])) for view in parts]
        key = (tuple(parts), axis)
        if key not in self.joins:
            self.joins.append(key)
        joined = View.of_leaf(len(self.shapes) + self.joins.index(key), eqn.outvars[0].aval.shape)
        return [replace(joined, loops=parts[0].loops)]

    def escape_all(self, views: list[View | None], reason: str) -> None:
        """Every view among these."""
        for view in views:
            if view is not None:
                self.escape(view, reason)

    def add(self, found: Site, eqn: Any, ins: list[View | None], steps: Shape) -> bool:
        """Records a site with the parameters it speaks of; False where they are better differentiated."""
        view = found.view
        found.steps = steps
        found.kept = jax.eval_shape(found.keep, *(v.aval for v in eqn.invars))
        found.result = eqn.outvars[0].aval
        if not found.kept.size or not found.result.size:
            return False
        data = [v.aval for v, view in zip(eqn.invars, ins, strict=True) if view is None]
        found.varying = (_varying(*data), _varying(found.result))
        if view.leaf < len(self.shapes):
            if found.lookup and found.result.size * math.prod(steps) >= math.prod(self.shapes[view.leaf]):
                return False  # as many rows are looked up as there are
            if found.lookup and found.layout.size(found.layout.rows) > 2**24:
                return False  # an index travels as a float32, see `_norms._pair`
            self.uses.setdefault(view.leaf, {}).setdefault(view.chain, Group([], None, view.chain)).sites.append(found)
            return True
        parts, axis = self.joins[view.leaf - len(self.shapes)]
        if found.lookup or view.chain or axis in found.layout.batch:
            return False
        start = 0
        for of in parts:
            if not of.sizes[axis]:
                continue
            part = Part(axis, start, start + of.sizes[axis])
            chain = (*of.chain, ("part", (view.leaf, start), named(of.labels), of.sizes))
            self.uses.setdefault(of.leaf, {}).setdefault(chain, Group([], part, chain)).sites.append(found)
            start = part.stop
        return True

    def group(self) -> dict[int, list[Group]]:
        """Groups of every parameter; those whose groups might overlap become direct."""
        result = {}
        for leaf, by_chain in self.uses.items():
            chains = list(by_chain)
            if any(not disjoint(a, b) for i, a in enumerate(chains) for b in chains[:i]):
                self.direct.setdefault(leaf, "overlapping or differently reshaped uses")
            for group in by_chain.values():
                if group.reused and sum(s.pair_size for s in group.sites) > math.prod(self.shapes[leaf]):
                    self.direct.setdefault(leaf, "reused at more places than it has entries")
                for s in group.sites:
                    s.collect = s.collect or group.reused or leaf in self.collect
            result[leaf] = list(by_chain.values())
        return {leaf: groups for leaf, groups in result.items() if leaf not in self.direct}


def _has_gradient(aval: Any) -> bool:
    """True for real and complex arrays."""
    return jnp.issubdtype(getattr(aval, "dtype", bool), jnp.inexact)


def _touches_ref(eqn: Any) -> bool:
    """Return whether an equation reads, writes or makes a mutable Ref, itself or in a body that is handed one."""
    return any(hasattr(v.aval, "inner_aval") for v in (*eqn.invars, *eqn.outvars))


def _varying(*avals: Any) -> tuple[str, ...]:
    """Inside shard_map: the axes of the mesh along which any of these differ."""
    axes: set[str] = set()
    for aval in avals:  # aval.mat.varying; aval.vma in older JAX
        axes.update(getattr(getattr(aval, "mat", aval), "varying", getattr(aval, "vma", ())))
    return tuple(sorted(axes))
