"""The walk: f evaluated equation by equation, as it would be, but for a tap on the result of every site.

A tap is the identity on values; what it does to derivatives is its maker's business: the backward pass of
`_norms.py` hands out norms there, the forward pass of `_probes.py` puts perturbations in. JAX's own
differentiation does everything else, through scan, cond and checkpoint.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from isouq.gradnorm._plan import CALLS, Inside
from isouq.gradnorm._sites import Site

Inputs = dict[int, Any]  # by id of the site: what its tap gets besides the result and the data


class Taps(NamedTuple):
    """What stands at the sites.

    tap: `tap(site, result, kept, input)` returns the result. sliced: `sliced(site, depth)` says whether
    the site's input has one slice for every step of the enclosing scan number `depth`, or is shared by them.
    """

    tap: Callable
    sliced: Callable


def evaluate(
    jaxpr: Any, consts: list[Any], args: list[Any], nodes: list[Any], taps: Taps, inputs: Inputs, depth: int = 0
) -> list[Any]:
    """The jaxpr's outputs; `inputs` may be differentiated."""
    env: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if hasattr(atom, "val") else env[atom]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn, node in zip(jaxpr.eqns, nodes, strict=True):
        operands = [read(v) for v in eqn.invars]
        if isinstance(node, Inside):
            outs = _inside(eqn, node, operands, taps, inputs, depth)
        else:
            with eqn.ctx.manager:
                outs = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            outs = outs if eqn.primitive.multiple_results else [outs]
        if isinstance(node, Site):
            kept = node.keep(*operands)
            outs = [taps.tap(node, outs[0], kept, inputs[id(node)])]
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _inside(eqn: Any, node: Inside, operands: list[Any], taps: Taps, inputs: Inputs, depth: int) -> list[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name == "scan":
        return _scan(params, node.bodies[0], operands, taps, inputs, depth)
    if name == "cond":
        index, *rest = operands
        branches = [
            functools.partial(_branch, branch, nodes, taps, inputs, depth)
            for branch, nodes in zip(params["branches"], node.bodies, strict=True)
        ]
        return lax.switch(index.astype(jnp.int32), branches, *rest)
    inner = params[CALLS[name]]
    jaxpr, consts = getattr(inner, "jaxpr", inner), getattr(inner, "consts", [])

    def call(operands: list[Any], inputs: Inputs) -> list[Any]:
        return evaluate(jaxpr, consts, operands, node.bodies[0], taps, inputs, depth)

    if name == "remat2":
        call = jax.checkpoint(call, prevent_cse=params["prevent_cse"], policy=params["policy"])
    return call(operands, inputs)


def _branch(branch: Any, nodes: list[Any], taps: Taps, inputs: Inputs, depth: int, *operands: Any) -> list[Any]:
    return evaluate(branch.jaxpr, branch.consts, list(operands), nodes, taps, inputs, depth)


def _scan(params: Any, nodes: list[Any], operands: list[Any], taps: Taps, inputs: Inputs, depth: int) -> list[Any]:
    num_consts, num_carry, inner = params["num_consts"], params["num_carry"], params["jaxpr"]
    consts = operands[:num_consts]
    carry, xs = operands[num_consts : num_consts + num_carry], operands[num_consts + num_carry :]
    inside = _sites_of(nodes)
    cut = {id(s): inputs[id(s)] for s in inside if taps.sliced(s, depth)}
    shared = {id(s): inputs[id(s)] for s in inside if not taps.sliced(s, depth)}

    def body(carry: list[Any], step: tuple[list[Any], Inputs]) -> tuple[list[Any], list[Any]]:
        xs, slices = step
        args = [*consts, *carry, *xs]
        outs = evaluate(inner.jaxpr, inner.consts, args, nodes, taps, shared | slices, depth + 1)
        return outs[:num_carry], outs[num_carry:]

    length, reverse, unroll = params["length"], params["reverse"], params["unroll"]
    carry, ys = lax.scan(body, carry, (xs, cut), length, reverse=reverse, unroll=unroll)
    return [*carry, *ys]


def _sites_of(nodes: list[Any]) -> list[Site]:
    found = []
    for node in nodes:
        if isinstance(node, Site):
            found.append(node)
        elif isinstance(node, Inside):
            found += [s for body in node.bodies for s in _sites_of(body)]
    return found
