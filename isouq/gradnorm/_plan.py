"""The analysis: which parameters are read off where they meet data, and which are differentiated directly.

One pass over the jaxpr follows every parameter as a `View`. The places where it meets data in a primitive of
`_sites.RULES` are its sites. Where anything else happens to it, the whole parameter is *direct*: JAX differentiates it.
Since a direct parameter is data to the others, the pass is repeated until nothing changes.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from isouq.gradnorm._jaxpr import (
    Body,
    Call,
    Cond,
    Equation,
    Scan,
    control_flow,
    is_differentiable,
    is_float,
    touches_ref,
    walk,
)
from isouq.gradnorm._sites import Site, site
from isouq.gradnorm._views import Shape, View, are_disjoint, base_axes, rearrange

SMALL = 128  # entries of a weight up to which its gradient costs less than the operations that avoid it

Views: TypeAlias = list[View | None]  # what each of several variables shows; None is data


class Part(NamedTuple):
    """The range of one parameter along an axis of a concatenation."""

    axis: int
    start: int
    stop: int


@dataclass(frozen=True)
class Group:
    """Sites of one parameter that must be squared together, since they share entries.

    part: the range of a concatenation that the parameter is; None where the sites show the parameter itself.
    chain: the moves from the parameter to what the sites show; see `View`.
    """

    sites: tuple[Site, ...]
    part: Part | None
    chain: tuple

    @property
    def reused(self) -> bool:
        """Whether an entry of the parameter is met more than once: by several sites, or in a scan that sees it all."""
        return len(self.sites) > 1 or None in self.sites[0].view.loops

    @property
    def collect(self) -> bool:
        """Whether the pairs of the sites are handed out, rather than their norms."""
        return self.sites[0].collect


class Nested(NamedTuple):
    """The node of a call, scan or cond with sites inside: one list of nodes for each of its bodies."""

    bodies: list[list["Node"]]


Node: TypeAlias = int | Nested | None  # for one equation: the number of its site, its bodies, or nothing to do


@dataclass(frozen=True)
class Plan:
    """What is to be done at every equation of a jaxpr, and with every parameter.

    nodes: one `Node` for each equation.
    sites: all sites, each at the index that is its number.
    groups: for each parameter that is read off, its groups of sites.
    direct: for each parameter that is differentiated directly, the reason.
    """

    nodes: list[Node]
    sites: list[Site]
    groups: dict[int, list[Group]]
    direct: dict[int, str]

    def parts(self, site: Site) -> list[Part | None]:
        """Return what a site stands for: its whole parameter (None), or parts of a concatenation."""
        return [group.part for groups in self.groups.values() for group in groups if site in group.sites]


def plan(
    body: Body, num_leaves: int, num_outputs: int = 1, direct: Iterable[int] = (), collect: Iterable[int] = ()
) -> Plan:
    """Return the plan for a function whose first inputs are parameters.

    Args:
        body: the traced function.
        num_leaves: number of inputs that are parameters.
        num_outputs: number of outputs that are values of f; the others are not differentiated.
        direct: parameters that are differentiated directly in any case.
        collect: parameters whose pairs are handed out in any case.
    """
    shapes = [aval.shape for aval in body.inputs[:num_leaves]]
    reasons = dict.fromkeys(direct, "asked for")
    reasons |= {i: "not a real array" for i, aval in enumerate(body.inputs[:num_leaves]) if not is_float(aval)}
    reasons |= {i: "empty" for i, shape in enumerate(shapes) if math.prod(shape) == 0}
    collect = frozenset(collect)
    while True:
        analysis = _Analysis(shapes, collect, dict(reasons))
        views = [None if i in reasons else View.of_leaf(i, shape) for i, shape in enumerate(shapes)]
        views += [None] * (len(body.inputs) - num_leaves)
        nodes, outputs = analysis.body(body, views, ())
        analysis.make_direct(outputs[:num_outputs], "is the output")
        analysis.check_groups()
        if analysis.direct == reasons:
            return analysis.plan(nodes)
        reasons = analysis.direct


class _Use(NamedTuple):
    """The sites of one parameter after one chain of moves, by number, before they become a `Group`."""

    part: Part | None
    numbers: list[int]


@dataclass
class _Analysis:
    """One pass over a jaxpr.

    shapes: of the parameters. collect: the parameters whose pairs are handed out in any case.
    direct: the direct parameters and the reasons, which the pass adds to.
    sites: all sites so far. uses: for each parameter, its sites by chain. joins: parts and axis of each concatenation.
    """

    shapes: list[Shape]
    collect: frozenset[int]
    direct: dict[int, str]
    sites: list[Site] = field(default_factory=list)
    uses: dict[int, dict[tuple, _Use]] = field(default_factory=dict)
    joins: list[tuple[tuple[View, ...], int]] = field(default_factory=list)

    def make_direct(self, views: Iterable[View | None], reason: str) -> None:
        """Make the parameters that these views show direct."""
        for view in views:
            if view is None:
                continue
            if view.leaf < len(self.shapes):
                self.direct.setdefault(view.leaf, reason)
            else:
                self.make_direct(self.joins[view.leaf - len(self.shapes)][0], reason)

    def body(self, body: Body, views: Views, steps: Shape) -> tuple[list[Node], Views]:
        """Return the nodes of the equations, and what the outputs are views of.

        views: what the inputs are views of. steps: the lengths of the enclosing scans.
        """
        nodes: list[Node] = []

        def visit(equation: Equation, operands: Views) -> Views:
            node, results = None, None
            if any(view is not None for view in operands):
                if touches_ref(equation):  # what is written to a Ref comes out of other equations
                    self.make_direct(operands, f"{equation.name} with a mutable Ref")
                elif any(map(is_differentiable, equation.outputs)):
                    node, results = self.equation(equation, operands, steps)
            nodes.append(node)
            return results or [None] * len(equation.outputs)

        outputs = walk(body.jaxpr, views, visit)
        return nodes, outputs

    def equation(self, equation: Equation, operands: Views, steps: Shape) -> tuple[Node, Views | None]:
        """Return the node of an equation that has a view among its operands, and the views that its results are."""
        name, flow = equation.name, control_flow(equation)
        if isinstance(flow, Call):
            nodes, results = self.body(flow.body, operands, steps)
            return Nested([nodes]), results
        if isinstance(flow, Cond):
            return self.cond(flow, operands, steps), None
        if isinstance(flow, Scan):
            return self.scan(flow, operands, steps)
        if name == "stop_gradient":
            return None, None
        if name in ("concatenate", "stack"):
            return None, self.concatenate(equation, operands)
        (operand, view), *others = [(i, view) for i, view in enumerate(operands) if view is not None]
        if others:  # two parameters meet: the smaller one is data to the larger one
            smaller = min((view for view in operands if view is not None), key=lambda view: math.prod(view.shape))
            self.make_direct([smaller], f"{name} with another parameter")
            return None, None
        moved = rearrange(equation, view)
        if moved is not None:
            return None, [*moved]
        new = site(equation, operand, view, steps)
        if new is None or not self.is_worthwhile(new):
            self.make_direct([view], name)
            return None, None
        if self.is_small(new):
            self.make_direct([view], f"cheaper (at most {SMALL} entries)")
            return None, None
        return self.add(new), None

    def cond(self, cond: Cond, operands: Views, steps: Shape) -> Nested:
        """Return the node of a cond; what its branches return is data, and so is the index of the branch."""
        self.make_direct(operands[:1], "cond")
        bodies = []
        for branch in cond.branches:
            nodes, results = self.body(branch, operands[1:], steps)
            self.make_direct(results, "chosen by cond")
            bodies.append(nodes)
        return Nested(bodies)

    def scan(self, scan: Scan, operands: Views, steps: Shape) -> tuple[Node, Views]:
        """Return the node of a scan, and the views that its results are.

        Every step sees its constants whole and a slice of the arrays that it runs over; a carry may not change.
        """
        num_whole = scan.num_consts + scan.num_carries
        inside: Views = []
        for i, view in enumerate(operands):
            entered = None
            if view is not None:
                if i >= num_whole and view.leaf < len(self.shapes):
                    entered = view.enter_scan(True)
                elif i < num_whole and (i < scan.num_consts or scan.constant_carries[i - scan.num_consts]):
                    entered = view.enter_scan(False)
                if entered is None:
                    self.make_direct([view], "scan")
            inside.append(entered)
        nodes, outs = self.body(scan.body, inside, (*steps, scan.length))
        constant = [*scan.constant_carries, *[False] * (len(outs) - scan.num_carries)]
        self.make_direct([out for i, out in enumerate(outs) if not constant[i]], "leaves a scan")
        return Nested([nodes]), [operands[scan.num_consts + i] if constant[i] else None for i in range(len(outs))]

    def concatenate(self, equation: Equation, operands: Views) -> Views | None:
        """Return the view of a new, joined parameter where parameters alone are joined; else make them direct."""
        parts = [view for view in operands if view is not None]
        plain = all(view.leaf < len(self.shapes) and not base_axes(view.loops) for view in parts)
        if not plain or len(parts) < len(operands):
            self.make_direct(operands, "concatenated with data")
            return None
        axis = equation.params["axis" if equation.name == "stack" else "dimension"]
        if equation.name == "stack":
            parts = [view.reshape((*view.sizes[:axis], 1, *view.sizes[axis:])) for view in parts]
        join = (tuple(parts), axis)
        if join not in self.joins:
            self.joins.append(join)
        joined = View.of_leaf(len(self.shapes) + self.joins.index(join), equation.outputs[0].shape)
        return [replace(joined, loops=parts[0].loops)]

    def is_worthwhile(self, new: Site) -> bool:
        """Return whether the parameters that a site shows may be read off there and are not better differentiated."""
        view = new.view
        if not new.data.size or not new.result.size:
            return False
        if view.leaf >= len(self.shapes):
            _, axis = self.joins[view.leaf - len(self.shapes)]
            return not (new.lookup or view.chain or axis in new.layout.batch)
        if not new.lookup:
            return True
        if new.result.size * math.prod(new.steps) >= math.prod(self.shapes[view.leaf]):
            return False  # as many rows are looked up as there are
        return new.layout.size(new.layout.rows) <= 2**24  # an index travels as a float32, see `_norms._pair`

    def is_small(self, new: Site) -> bool:
        """Return whether one position meets a parameter that is so small that JAX differentiates it sooner."""
        leaf = new.view.leaf
        if leaf >= len(self.shapes) or leaf in self.collect or new.lookup:
            return False
        return new.positions == 1 and not new.steps and math.prod(self.shapes[leaf]) <= SMALL

    def add(self, new: Site) -> int:
        """Record a site with the parameters that it shows, and return its number."""
        number, view = len(self.sites), new.view
        self.sites.append(replace(new, number=number))
        if view.leaf < len(self.shapes):
            self.uses.setdefault(view.leaf, {}).setdefault(view.chain, _Use(None, [])).numbers.append(number)
            return number
        parts, axis = self.joins[view.leaf - len(self.shapes)]
        start = 0
        for shown in parts:
            stop = start + shown.sizes[axis]
            if stop > start:
                chain = (*shown.chain, ("part", (view.leaf, start), base_axes(shown.labels), shown.sizes))
                use = _Use(Part(axis, start, stop), [])
                self.uses.setdefault(shown.leaf, {}).setdefault(chain, use).numbers.append(number)
            start = stop
        return number

    def check_groups(self) -> None:
        """Make direct the parameters whose groups might overlap, or whose pairs are larger than a gradient."""
        for leaf, uses in self.uses.items():
            chains = list(uses)
            if any(not are_disjoint(a, b) for i, a in enumerate(chains) for b in chains[:i]):
                self.direct.setdefault(leaf, "overlapping or differently reshaped uses")
            for group in self.groups(leaf):
                pairs, size = sum(s.pair_size for s in group.sites), math.prod(self.shapes[leaf])
                if group.reused and pairs > size:
                    self.direct.setdefault(leaf, f"cheaper ({size:,} numbers; pairs of all uses: {pairs:,})")

    def groups(self, leaf: int) -> list[Group]:
        """Return the groups of one parameter."""
        return [
            Group(tuple(self.sites[number] for number in use.numbers), use.part, chain)
            for chain, use in self.uses[leaf].items()
        ]

    def plan(self, nodes: list[Node]) -> Plan:
        """Return the plan of a pass that has made no parameter direct."""
        pairs = {
            s.number
            for leaf in self.uses
            for g in self.groups(leaf)
            if g.reused or leaf in self.collect
            for s in g.sites
        }
        self.sites = [replace(s, collect=s.number in pairs) for s in self.sites]
        return Plan(nodes, self.sites, {leaf: self.groups(leaf) for leaf in self.uses}, self.direct)
