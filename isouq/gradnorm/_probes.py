"""The stochastic engine estimates ‖∂f‖² in forward mode, from E[(∂f·v)²] = ‖∂f‖² for v ~ N(0, I).

One forward pass with a tangent gives ∂f·v for every output of f at once. All token positions of a sequence, or all
classes, therefore cost what one does, and nothing is stored for a backward pass.

Drawing a Gaussian for every weight, and multiplying the data by it, would be half of the work. The probe of a weight
[C, F] is therefore V = A Bᵀ/√r with Gaussian A [C, r] and B [F, r], r = 32. Given A, ⟨G, V⟩ is Gaussian with variance
‖GᵀA‖²/r, whose mean is ‖G‖², so that the estimate stays unbiased and

    Var[⟨G, V⟩²] = 2‖G‖⁴ + 6 ‖GᵀG‖²_F / r  ≤  (2 + 6/r) ‖G‖⁴.

The standard deviation is at most 5 % above that of a full Gaussian, for a fraction r(C + F)/CF of its cost.

A complex parameter counts as its real and imaginary parts, and both get a Gaussian.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from isouq.gradnorm._factors import at_least_float32
from isouq.gradnorm._interpreter import Interpreter
from isouq.gradnorm._plan import Plan
from isouq.gradnorm._sites import Site
from isouq.gradnorm._trace import ArgNums, Traced, trace
from isouq.gradnorm._views import Shape, base_axes

RANK = 32


class Estimate(NamedTuple):
    """`estimate` of ‖∂f/∂params‖² and its `standard_error`, each shaped like f's output."""

    estimate: Any
    standard_error: Any


class _Factor(NamedTuple):
    """The draw that gives the probe of a site, shared by all sites of a cluster.

    cluster: number of the cluster's first site. swapped: whether the site's rows are the cluster's columns.
    rows, cols: shapes of A `[scans over the weight, B, C, r]` and of B, with F in place of C.
    """

    cluster: int
    swapped: bool
    rows: Shape
    cols: Shape


def grad_sq_norm_probes(f: Callable, num_probes: int, key: Array, argnums: ArgNums = 0, *, chunk: int = 4) -> Callable:
    """Estimate ‖∂f_i/∂arg‖² without bias for every output f_i of f at once, without a backward pass.

    The estimate is the mean over K probes of (∂f_i·v)² with v ~ N(0, I). Its relative standard deviation is √(2/K),
    and up to 5 % more for matrix weights, whose probes have rank 32.

    Args:
        f: returns any pytree of floating arrays: logits of every class, log p of every token of a trace.
        num_probes: K. 64 gives 18 % for each output.
        key: a JAX random key; the same key gives the same probes. An "rbg" key draws faster.
        argnums: which positional arguments to differentiate, as in `jax.grad`.
        chunk: number of probes that are evaluated together; memory and speed grow with it.

    Returns:
        A function of f's arguments that returns `Estimate(estimate, standard_error)`, each shaped like f's
        output. standard_error is estimate · √(2/K).

    Raises:
        TypeError: f returns something else than floating arrays, or the arguments are not floating.
        ValueError: num_probes or chunk is not a positive whole number.

    Cost: K forward passes with a tangent, each about twice a forward pass, and the memory of `chunk` of them; nothing
    is stored for a backward pass. f must allow forward mode, which a custom_vjp inside it does not.

    Source: Hutchinson's estimator for g gᵀ; the low-rank probes are ours.
    """
    for name, number in (("num_probes", num_probes), ("chunk", chunk)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {number!r}; expected a whole number of at least 1")

    def estimate(*args: Any, **kwargs: Any) -> Estimate:
        traced = trace(f, args, kwargs, argnums, scalar=False)
        if traced is None:
            raise TypeError(
                "f cannot be traced, because it looks at values or calls code that is not JAX; probes need a function "
                "that works under jax.jit"
            )
        plan, factors = _factored(traced)
        probe = functools.partial(_squares, traced, plan, factors)
        squares = lax.map(probe, jax.random.split(key, num_probes), batch_size=min(chunk, num_probes))
        means = [jnp.mean(s, axis=0) for s in squares]
        errors = [m * math.sqrt(2 / num_probes) for m in means]
        return Estimate(jax.tree.unflatten(traced.outputs, means), jax.tree.unflatten(traced.outputs, errors))

    return estimate


def _factored(traced: Traced) -> tuple[Plan, dict[int, _Factor]]:
    """Return a plan whose sites all get low-rank probes, and the draw of each site by its number."""
    direct: set[int] = set()
    while True:
        plan = traced.plan(direct=direct)
        factors: dict[int, _Factor] = {}
        misfits = set()
        for leaf, groups in plan.groups.items():
            for group in groups:
                for site in group.sites:
                    factor = _factor(site, group.sites[0])
                    if factor is None:
                        misfits.add(leaf)
                    else:
                        factors[site.number] = factor
        if not misfits:
            return plan, factors
        direct |= misfits


def _factor(site: Site, first: Site) -> _Factor | None:
    """Return the draw for a site of the cluster that `first` begins.

    None where the low-rank probe costs no less than a full one, or where the two sites split the parameter differently.
    """
    scans = base_axes(site.view.loops)
    (batch, rows, cols, shape), other = site.layout, first.layout
    if (scans, batch) != (base_axes(first.view.loops), other.batch):
        return None
    if {rows, cols} != {other.rows, other.cols}:
        return None
    c, f = site.layout.size(rows), site.layout.size(cols)
    if 2 * RANK * (c + f) > c * f:
        return None
    lead = (*(shape[axis] for axis in scans), site.layout.size(batch))
    return _Factor(first.number, rows != other.rows, (*lead, c, RANK), (*lead, f, RANK))


def _squares(traced: Traced, plan: Plan, factors: dict[int, _Factor], key: Array) -> list[Array]:
    """Return (∂f·v)² of one probe for every output."""
    direct = {i: traced.leaves[i] for i in plan.direct}
    tangents = {
        i: _normal(jax.random.fold_in(key, i), jnp.shape(leaf), jnp.result_type(leaf)) for i, leaf in direct.items()
    }
    clusters = list(dict.fromkeys(factor.cluster for factor in factors.values()))
    draws = {}
    for site in plan.sites:
        factor = factors[site.number]
        cluster = jax.random.fold_in(key, len(traced.leaves) + clusters.index(factor.cluster))
        keys = jax.random.split(cluster)[:: -1 if factor.swapped else 1]
        dtype = site.result.dtype
        draws[site.number] = (_normal(keys[0], factor.rows, dtype), _normal(keys[1], factor.cols, dtype))

    def f(switch: Array, direct: dict[int, Any]) -> list[Array]:
        def tap(site: Site, result: Array, data: Array, draw: tuple[Array, Array]) -> Array:
            return _perturb(site, result, data, switch.astype(result.dtype), *draw)

        args = [direct.get(i, leaf) for i, leaf in enumerate(traced.leaves)]
        interpreter = Interpreter(plan.sites, tap, lambda site, depth: site.view.loops[depth] is not None, draws)
        return interpreter.run(traced.body, args, plan.nodes)

    _, projections = jax.jvp(f, (jnp.zeros(()), direct), (jnp.ones(()), tangents))
    return [jnp.square(p.astype(at_least_float32(p.dtype))) for p in projections]


def _normal(key: Array, shape: Shape, dtype: Any) -> Array:
    """Draw from N(0, 1), for a complex dtype both parts, in float32 or better (JAX's in 8 bits have variance 0.88)."""
    draw = jax.random.normal(key, shape, at_least_float32(dtype)).astype(dtype)
    return (
        draw * math.sqrt(2) if jnp.iscomplexobj(draw) else draw
    )  # JAX draws complex numbers of variance 1, both parts together


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _perturb(site: Site, result: Array, data: Array, switch: Array, a: Array, b: Array) -> Array:
    """Return the result; its tangent is that of a parameter that moves by A Bᵀ/√r times the tangent of the switch."""
    return result


@_perturb.defjvp
def _perturb_jvp(site: Site, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    result, data, _, a, b = primals
    rows, _ = site.factors(data, jnp.zeros(site.result.shape, site.result.dtype))
    products = jax.vmap(lambda at, table: table[at])(rows, a) if site.lookup else rows @ a
    change = products @ b.transpose(0, 2, 1) / math.sqrt(RANK)
    from_result = jax.linear_transpose(lambda cotangent: site.factors(data, cotangent)[1], result)
    (moved,) = from_result(change.astype(result.dtype))
    return result, tangents[0] + tangents[2] * moved
