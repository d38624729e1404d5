"""The stochastic engine: E[(∂f·v)²] = ‖∂f‖² for v ~ N(0, I), by forward mode.

One forward pass with a tangent gives ∂f·v for every output of f at once, so all token positions of a
sequence, or all classes, cost what one does, and nothing is kept for a backward pass.

Drawing a Gaussian for every weight, and the product of data with it, would be half of the work. For a
weight [C, F] the probe is therefore V = A Bᵀ/√r with Gaussian A [C, r] and B [F, r], r = 32: given A, ⟨G, V⟩ is
Gaussian with variance ‖GᵀA‖²/r, whose mean is ‖G‖², so that the estimate stays unbiased and

    Var[⟨G, V⟩²] = 2‖G‖⁴ + 6 ‖GᵀG‖²_F / r  ≤  (2 + 6/r) ‖G‖⁴,

at most 5 % more standard deviation than a full Gaussian's, for a fraction r(C + F)/CF of its price.

A complex parameter counts as its real and imaginary parts: both get a Gaussian.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from isouq.gradnorm._factors import at_least_float32
from isouq.gradnorm._plan import Plan
from isouq.gradnorm._sites import Site
from isouq.gradnorm._trace import ArgNums, Traced, trace
from isouq.gradnorm._views import Shape, named
from isouq.gradnorm._walk import Taps, evaluate

RANK = 32


class Estimate(NamedTuple):
    """`estimate` of ‖∂f/∂params‖² and its `standard_error`, each shaped like f's output."""

    estimate: Any
    standard_error: Any


class _Factor(NamedTuple):
    """Where a site's probe comes from: one draw shared by all sites of a cluster."""

    cluster: int
    swapped: bool  # the site's rows are the cluster's columns
    rows: Shape  # shape of A: scans over the weight, B, C, r
    cols: Shape


def grad_sq_norm_probes(f: Callable, num_probes: int, key: Array, argnums: ArgNums = 0, chunk: int = 4) -> Callable:
    """Unbiased estimates of ‖∂f_i/∂arg‖² for every output f_i of f at once, without a backward pass.

    The mean over K probes of (∂f_i·v)², v ~ N(0, I); relative standard deviation √(2/K) (for matrix
    weights up to 5 % more, since their probes have rank 32; see the module).

    Args:
        f: returns any pytree of floating arrays: logits of every class, log p of every token of a trace.
        num_probes: K. 64 gives 18 % for each output.
        key: a JAX random key; the same key gives the same probes. An "rbg" key draws faster.
        argnums: which positional arguments to differentiate, as in `jax.grad`.
        chunk: probes evaluated together; memory and speed grow with it.

    Returns:
        A function of f's arguments that returns `Estimate(estimate, standard_error)`, each shaped like f's
        output; standard_error = estimate · √(2/K), the plug-in value.

    Raises:
        TypeError: f returns something else than floating arrays, or the arguments are not floating.
        ValueError: num_probes or chunk is not a positive whole number.

    Cost: K forward passes with a tangent, each about twice a forward pass; memory of `chunk` of them, nothing is
    kept. Antithetic probes gain nothing, for the square is even; orthogonal ones gain K/P, nothing for a
    network of P parameters. f must allow forward mode (a custom_vjp inside does not).

    Source: Hutchinson's estimator for g gᵀ; the low-rank probes are ours.
    """
    for name, number in (("num_probes", num_probes), ("chunk", chunk)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} is {number!r}; expected a whole number of at least 1")

    def estimate(*args: Any, **kwargs: Any) -> Estimate:
        traced = trace(f, args, kwargs, argnums, scalar=False)
        if traced is None:
            raise TypeError(
                "f cannot be traced, for it looks at values or calls what is not JAX; probes need a function that "
                "works under jax.jit"
            )
        plan, factors = _factored(traced)
        probe = functools.partial(_squares, traced, plan, factors)
        squares = lax.map(probe, jax.random.split(key, num_probes), batch_size=min(chunk, num_probes))
        means = [jnp.mean(s, axis=0) for s in squares]
        errors = [m * math.sqrt(2 / num_probes) for m in means]
        return Estimate(jax.tree.unflatten(traced.outputs, means), jax.tree.unflatten(traced.outputs, errors))

    return estimate


def _factored(traced: Traced) -> tuple[Plan, dict[int, _Factor]]:
    """A plan whose remaining sites all get low-rank probes, and the shape of each one's factors."""
    direct: set[int] = set()
    while True:
        plan = traced.plan(direct=direct)
        factors: dict[int, _Factor] = {}
        misfits = set()
        for leaf, groups in plan.groups.items():
            for group in groups:
                first = group.sites[0]
                for s in group.sites:
                    found = _factor(s, first)
                    if found is None:
                        misfits.add(leaf)
                    else:
                        factors[id(s)] = found
        if not misfits:
            return plan, factors
        direct |= misfits


def _factor(s: Site, first: Site) -> _Factor | None:
    """None where the low-rank probe is no cheaper, or two sites split the parameter differently."""
    scans = named(s.view.loops)
    (batch, rows, cols, shape), same = s.layout, first.layout
    if (scans, batch) != (named(first.view.loops), same.batch):
        return None
    if {rows, cols} != {same.rows, same.cols}:
        return None
    c, f = s.layout.size(rows), s.layout.size(cols)
    if 2 * RANK * (c + f) > c * f:
        return None
    lead = (*(shape[axis] for axis in scans), s.layout.size(batch))
    return _Factor(id(first), rows != same.rows, (*lead, c, RANK), (*lead, f, RANK))


def _squares(traced: Traced, plan: Plan, factors: dict[int, _Factor], key: Array) -> list[Array]:
    """(∂f·v)² of one probe, for every output."""
    direct = {i: traced.leaves[i] for i in plan.direct}
    tangents = {
        i: _normal(jax.random.fold_in(key, i), jnp.shape(leaf), jnp.result_type(leaf)) for i, leaf in direct.items()
    }
    clusters = list(dict.fromkeys(factor.cluster for factor in factors.values()))
    draws = {}
    for s in plan.sites:
        factor = factors[id(s)]
        cluster = jax.random.fold_in(key, len(traced.leaves) + clusters.index(factor.cluster))
        keys = jax.random.split(cluster)[:: -1 if factor.swapped else 1]
        dtype = s.result.dtype
        draws[id(s)] = (_normal(keys[0], factor.rows, dtype), _normal(keys[1], factor.cols, dtype))

    def f(switch: Array, direct: dict[int, Any]) -> list[Array]:
        def tap(s: Site, result: Array, kept: Array, draw: tuple[Array, Array]) -> Array:
            return _perturb(s, result, kept, switch.astype(result.dtype), *draw)

        taps = Taps(tap, lambda s, depth: s.view.loops[depth] is not None)
        args = [direct.get(i, leaf) for i, leaf in enumerate(traced.leaves)]
        return evaluate(traced.jaxpr, traced.consts, args, plan.nodes, taps, draws)

    _, projections = jax.jvp(f, (jnp.zeros(()), direct), (jnp.ones(()), tangents))
    return [jnp.square(p.astype(at_least_float32(p.dtype))) for p in projections]


def _normal(key: Array, shape: Shape, dtype: Any) -> Array:
    """N(0, 1), of a complex dtype for each part. Drawn in float32 or better: of 8 bits JAX's have variance 0.88."""
    draw = jax.random.normal(key, shape, at_least_float32(dtype)).astype(dtype)
    return draw * math.sqrt(2) if jnp.iscomplexobj(draw) else draw  # JAX gives both parts together variance 1


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _perturb(s: Site, result: Array, kept: Array, switch: Array, a: Array, b: Array) -> Array:
    """The result; its tangent as if the parameter moved by A Bᵀ/√r times the switch's."""
    return result


@_perturb.defjvp
def _perturb_jvp(s: Site, primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    result, kept, _, a, b = primals
    rows, _ = s.factors(kept, jnp.zeros(s.result.shape, s.result.dtype))
    products = jax.vmap(lambda at, table: table[at])(rows, a) if s.lookup else rows @ a
    change = products @ b.transpose(0, 2, 1) / math.sqrt(RANK)
    from_result = jax.linear_transpose(lambda cotangent: s.factors(kept, cotangent)[1], result)
    (moved,) = from_result(change.astype(result.dtype))
    return result, tangents[0] + tangents[2] * moved
