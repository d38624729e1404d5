"""The backward pass: at every site the pair (data, cotangent) becomes a squared norm.

The tap's backward pass passes the cotangent on and hands out, as the "gradient" of an input that is
zero, what is wanted of the pair: its squared norm at once, or the pair itself where several uses must be
squared together.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from isouq.gradnorm._factors import Factors, at_least_float32, leaf_sq_norm, route, sq_norm, window
from isouq.gradnorm._plan import Group, Part, Plan
from isouq.gradnorm._sites import Site
from isouq.gradnorm._trace import Traced
from isouq.gradnorm._views import is_float
from isouq.gradnorm._walk import Inputs, Taps, evaluate


def sq_norms(traced: Traced) -> tuple[list[Any], list[Array]]:
    """All outputs of f, and for every parameter ‖∂f/∂parameter‖²."""
    plan = traced.plan()
    outputs, gradients, received = backward(traced, plan)
    norms = []
    for i, leaf in enumerate(traced.leaves):
        if i in plan.direct:
            norms.append(leaf_sq_norm(gradients[i]))
            continue
        norm = jnp.zeros((), at_least_float32(jnp.result_type(leaf)))
        for group in plan.groups.get(i, []):
            if group.sites[0].collect:
                norm += sq_norm(factors_of(group, received))
            else:
                norm += received_norm(plan, group, received)
        norms.append(norm)
    return outputs, norms


def backward(traced: Traced, plan: Plan) -> tuple[list[Any], dict[int, Array], Inputs]:
    """All outputs of f, gradients of the direct parameters, and what the taps handed out."""
    inputs = {id(s): _zeros(s, plan.parts(s)) for s in plan.sites}
    receivers = {id(s): functools.partial(_norm, s, plan.parts(s)) for s in plan.sites if not s.collect}

    def tap(s: Site, result: Array, kept: Array, zeros: Any) -> Array:
        return _tap(receivers.get(id(s), _pair), result, kept, zeros)

    def f(direct: dict[int, Any], inputs: Inputs) -> tuple[Any, list[Any]]:
        args = [direct.get(i, leaf) for i, leaf in enumerate(traced.leaves)]
        taps = Taps(tap, lambda s, depth: s.collect)
        value, *rest = evaluate(traced.jaxpr, traced.consts, args, plan.nodes, taps, inputs)
        return value, [value, *rest]

    direct = {i: traced.leaves[i] for i in plan.direct}
    (_, outputs), (gradients, received) = jax.value_and_grad(f, (0, 1), has_aux=True)(direct, inputs)
    return outputs, gradients, received


def received_norm(plan: Plan, group: Group, received: Inputs) -> Array:
    """The squared norm that the tap of a group's only site handed out."""
    (s,) = group.sites
    return received[id(s)][plan.parts(s).index(group.part)]


def factors_of(group: Group, received: Inputs) -> list[Factors]:
    """The factors of all sites of a group whose pairs were collected."""
    return [_windowed(s.gather(*received[id(s)]), group.part) for s in group.sites]


def _windowed(factors: Factors, part: Part | None) -> Factors:
    return factors if part is None else window(factors, part.axis, part.start, part.stop)


def _zeros(s: Site, parts: list[Part | None]) -> Any:
    if not s.collect:
        return [_vary(jnp.zeros((), at_least_float32(s.result.dtype)), s.varying[1]) for _ in parts]
    kept = s.kept.dtype if is_float(s.kept) else jnp.float32
    return (
        _vary(jnp.zeros((*s.steps, *s.kept.shape), kept), s.varying[0]),
        _vary(jnp.zeros((*s.steps, *s.result.shape), s.result.dtype), s.varying[1]),
    )


def _vary(array: Array, axes: tuple[str, ...]) -> Array:
    """Inside shard_map: an array that may differ between the devices along these axes of the mesh."""
    return jax.lax.pcast(array, axes, to="varying") if axes else array


def _norm(s: Site, parts: list[Part | None], kept: Array, cotangent: Array) -> list[Array]:
    if s.product_sq_norm and parts == [None] and route([s.layout], [s.positions], [s.lookup])[0] == "product":
        return [s.product_sq_norm(kept, cotangent)]
    factors = s.gather(kept, cotangent)
    return [sq_norm([_windowed(factors, part)]).astype(at_least_float32(s.result.dtype)) for part in parts]


def _pair(kept: Array, cotangent: Array) -> tuple[Array, Array]:
    return (kept if is_float(kept) else kept.astype(jnp.float32)), cotangent  # an index below 2²⁴ is exact in float32


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(receive: Any, result: Array, kept: Array, zeros: Any) -> Array:
    return result


def _tap_forward(receive: Any, result: Array, kept: Array, zeros: Any) -> tuple[Array, Array]:
    return result, kept


def _tap_backward(receive: Any, kept: Array, cotangent: Array) -> tuple[Array, None, Any]:
    return cotangent, None, receive(_whole(kept), _whole(cotangent))


def _whole(array: Array) -> Array:
    """Return the array unsharded along the explicit axes of a mesh: rules merge axes, which sharded ones forbid."""
    sharded = any(jax.typeof(array).sharding.spec)
    return jax.sharding.reshard(array, PartitionSpec(*[None] * array.ndim)) if sharded else array


_tap.defvjp(_tap_forward, _tap_backward)
