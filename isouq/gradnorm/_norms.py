"""The backward pass: at every site it turns the pair (data, cotangent) into a squared norm.

A tap is an identity on the output of a site, with a second input that is zero and changes nothing. Its backward pass
hands the cotangent on, and returns as the "gradient" of the zero input the squared norm of the pair. Where a parameter
is used at several sites, whose gradients must be added before they are squared, it returns the pair itself.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from isouq.gradnorm._factors import Factors, at_least_float32, leaf_sq_norm, route, sq_norm, window
from isouq.gradnorm._interpreter import Inputs, Interpreter
from isouq.gradnorm._jaxpr import is_float
from isouq.gradnorm._plan import Group, Part, Plan
from isouq.gradnorm._sites import Site
from isouq.gradnorm._trace import Traced


def sq_norms(traced: Traced) -> tuple[list[Any], list[Array]]:
    """Return all outputs of f, and for every parameter ‖∂f/∂parameter‖²."""
    plan = traced.plan()
    outputs, gradients, received = backward(traced, plan)
    norms = []
    for i, leaf in enumerate(traced.leaves):
        if i in plan.direct:
            norms.append(leaf_sq_norm(gradients[i]))
            continue
        norm = jnp.zeros((), at_least_float32(jnp.result_type(leaf)))
        for group in plan.groups.get(i, []):
            norm += sq_norm(factors_of(group, received)) if group.collect else received_norm(plan, group, received)
        norms.append(norm)
    return outputs, norms


def backward(traced: Traced, plan: Plan) -> tuple[list[Any], dict[int, Array], Inputs]:
    """Return all outputs of f, the gradients of the direct parameters, and what the taps handed out."""
    parts = [plan.parts(site) for site in plan.sites]
    inputs = {site.number: _zeros(site, parts[site.number]) for site in plan.sites}
    receivers = [_pair if site.collect else functools.partial(_norm, site, parts[site.number]) for site in plan.sites]

    def tap(site: Site, result: Array, data: Array, zeros: Any) -> Array:
        return _tap(receivers[site.number], result, data, zeros)

    def f(direct: dict[int, Any], inputs: Inputs) -> tuple[Any, list[Any]]:
        args = [direct.get(i, leaf) for i, leaf in enumerate(traced.leaves)]
        interpreter = Interpreter(plan.sites, tap, lambda site, depth: site.collect, inputs)
        outputs = interpreter.run(traced.body, args, plan.nodes)
        return outputs[0], outputs

    direct = {i: traced.leaves[i] for i in plan.direct}
    (_, outputs), (gradients, received) = jax.value_and_grad(f, (0, 1), has_aux=True)(direct, inputs)
    return outputs, gradients, received


def received_norm(plan: Plan, group: Group, received: Inputs) -> Array:
    """Return the squared norm that the tap of a group's only site handed out."""
    (site,) = group.sites
    return received[site.number][plan.parts(site).index(group.part)]


def factors_of(group: Group, received: Inputs) -> list[Factors]:
    """Return the factors of all sites of a group whose pairs were collected."""
    return [_cut(site.gather(*received[site.number]), group.part) for site in group.sites]


def _cut(factors: Factors, part: Part | None) -> Factors:
    return factors if part is None else window(factors, part.axis, part.start, part.stop)


def _zeros(site: Site, parts: list[Part | None]) -> Any:
    """Return the input of a site's tap, shaped like what the tap hands out."""
    if not site.collect:
        return [_vary(jnp.zeros((), at_least_float32(site.result.dtype)), site.varying[1]) for _ in parts]
    data = site.data.dtype if is_float(site.data) else jnp.float32
    return (
        _vary(jnp.zeros((*site.steps, *site.data.shape), data), site.varying[0]),
        _vary(jnp.zeros((*site.steps, *site.result.shape), site.result.dtype), site.varying[1]),
    )


def _vary(array: Array, axes: tuple[str, ...]) -> Array:
    """Return an array that may differ between the devices along these axes of the mesh inside shard_map."""
    return jax.lax.pcast(array, axes, to="varying") if axes else array


def _norm(site: Site, parts: list[Part | None], data: Array, cotangent: Array) -> list[Array]:
    """Return the squared norms of the parts of one pair."""
    form = route([site.layout], [site.positions], [site.lookup]).form
    if site.product_sq_norm and parts == [None] and form == "product":
        return [site.product_sq_norm(data, cotangent)]
    factors = site.gather(data, cotangent)
    return [sq_norm([_cut(factors, part)]).astype(at_least_float32(site.result.dtype)) for part in parts]


def _pair(data: Array, cotangent: Array) -> tuple[Array, Array]:
    """Return the pair, with indices as floats: a derivative of them must exist, and below 2²⁴ they are exact."""
    return (data if is_float(data) else data.astype(jnp.float32)), cotangent


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tap(receive: Any, result: Array, data: Array, zeros: Any) -> Array:
    """Return the result; the derivative with respect to `zeros` is `receive(data, cotangent)`."""
    return result


def _tap_forward(receive: Any, result: Array, data: Array, zeros: Any) -> tuple[Array, Array]:
    return result, data


def _tap_backward(receive: Any, data: Array, cotangent: Array) -> tuple[Array, None, Any]:
    return cotangent, None, receive(_unshard(data), _unshard(cotangent))


def _unshard(array: Array) -> Array:
    """Return the array unsharded along the explicit axes of a mesh: rules merge axes, which sharded ones forbid."""
    is_sharded = any(jax.typeof(array).sharding.spec)
    return jax.sharding.reshard(array, PartitionSpec(*[None] * array.ndim)) if is_sharded else array


_tap.defvjp(_tap_forward, _tap_backward)
