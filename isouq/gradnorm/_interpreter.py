"""The interpreter evaluates f equation by equation, as JAX would, but for a tap on the result of every site.

A tap is the identity on values. What it does to derivatives is up to its maker: in the backward pass of `_norms.py` it
hands out norms, in the forward pass of `_probes.py` it puts perturbations in. Everything else is JAX's own
differentiation, through scan, cond and checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from isouq.gradnorm._jaxpr import Body, Call, Cond, Equation, Scan, control_flow, evaluate, walk
from isouq.gradnorm._plan import Nested, Node
from isouq.gradnorm._sites import Site

Inputs = dict[int, Any]  # by number of the site: what its tap takes besides the result and the data


@dataclass(frozen=True)
class Interpreter:
    """The evaluation of one jaxpr and the bodies inside it.

    sites: the sites of the plan, by number.
    tap: `tap(site, result, data, input)` returns the result.
    is_sliced: `is_sliced(site, depth)` says whether the input of the site has one slice for every step of the
        enclosing scan number `depth`; otherwise all steps share it.
    inputs: the inputs of the taps; they may be differentiated.
    depth: number of enclosing scans.
    """

    sites: list[Site]
    tap: Callable
    is_sliced: Callable
    inputs: Inputs
    depth: int = 0

    def run(self, body: Body, args: list[Any], nodes: list[Node]) -> list[Any]:
        """Return the outputs of a body at its arguments."""
        remaining = iter(nodes)

        def visit(equation: Equation, operands: list[Any]) -> list[Any]:
            node = next(remaining)
            if isinstance(node, Nested):
                return self._run_nested(equation, operands, node)
            results = evaluate(equation, operands)
            if node is None:
                return results
            site = self.sites[node]
            return [self.tap(site, results[0], site.keep(*operands), self.inputs[node])]

        return walk(body.jaxpr, args, visit, body.consts, lambda literal: literal.val)

    def _run_nested(self, equation: Equation, operands: list[Any], node: Nested) -> list[Any]:
        flow = control_flow(equation)
        if isinstance(flow, Scan):
            return self._run_scan(flow, operands, node.bodies[0])
        if isinstance(flow, Cond):
            return self._run_cond(flow, operands, node.bodies)
        assert flow is not None
        return self._run_call(flow, operands, node.bodies[0])

    def _run_call(self, call: Call, operands: list[Any], nodes: list[Node]) -> list[Any]:
        def run(operands: list[Any], inputs: Inputs) -> list[Any]:
            return replace(self, inputs=inputs).run(call.body, operands, nodes)

        if call.checkpoint is not None:
            run = jax.checkpoint(run, **call.checkpoint)
        return run(operands, self.inputs)

    def _run_cond(self, cond: Cond, operands: list[Any], bodies: list[list[Node]]) -> list[Any]:
        def run(branch: Body, nodes: list[Node], *operands: Any) -> list[Any]:
            return self.run(branch, [*operands], nodes)

        index, *rest = operands
        functions = [partial(run, branch, nodes) for branch, nodes in zip(cond.branches, bodies, strict=True)]
        return lax.switch(index.astype(jnp.int32), functions, *rest)

    def _run_scan(self, scan: Scan, operands: list[Any], nodes: list[Node]) -> list[Any]:
        consts, rest = operands[: scan.num_consts], operands[scan.num_consts :]
        carries, xs = rest[: scan.num_carries], rest[scan.num_carries :]
        sliced = [n for n in _numbers(nodes) if self.is_sliced(self.sites[n], self.depth)]

        def step(carries: list[Any], slices: tuple[list[Any], Inputs]) -> tuple[list[Any], list[Any]]:
            xs, inputs = slices
            deeper = replace(self, inputs=self.inputs | inputs, depth=self.depth + 1)
            outs = deeper.run(scan.body, [*consts, *carries, *xs], nodes)
            return outs[: scan.num_carries], outs[scan.num_carries :]

        slices = (xs, {number: self.inputs[number] for number in sliced})
        carries, ys = lax.scan(step, carries, slices, scan.length, reverse=scan.reverse, unroll=scan.unroll)
        return [*carries, *ys]


def _numbers(nodes: list[Node]) -> list[int]:
    """Return the numbers of all sites at these nodes and inside them."""
    numbers = []
    for node in nodes:
        if isinstance(node, Nested):
            numbers += [number for body in node.bodies for number in _numbers(body)]
        elif node is not None:
            numbers.append(node)
    return numbers
