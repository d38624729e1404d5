"""The contestants in JAX: isouq, ordinary differentiation, and the two lower bounds."""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import isouq
from benchmarks import models
from benchmarks.cases import BACKWARDS, FLOOR, GRADS, ISOUQ, LAX_MAP, PROBES, REMAT, TRAINING, VMAP, Case
from benchmarks.contestant import Prepared


def prepare(name: str, case: Case) -> Prepared:
    """Compile the contestant for the case's weights and inputs."""
    params, xs = _placed(case)
    if name == PROBES:
        return _probes(case, params, xs[0])
    if name == BACKWARDS:
        return compiled(_backward_per_position(case), params, xs[0])
    if name == GRADS:
        return compiled(_grad_per_position(case), params, xs[0])
    f = models.jax_function(case)
    if name == TRAINING:
        return compiled(jax.grad(_batch_sum(f)), params, xs, norms=False)
    if name == FLOOR:
        zeros = jnp.zeros((case.batch, *models.nudge_shape(case)))
        of_nudge = jax.grad(lambda nudge, params, xs: jnp.sum(jax.vmap(f, (None, 0, 0))(params, xs, nudge)))
        return compiled(of_nudge, zeros, params, xs, norms=False)
    return compiled(_norms(name, case, f), params, xs)


def _norms(name: str, case: Case, f: Callable[..., Array]) -> Callable[[Any, Array], Array]:
    """Return a function from (params, xs) to squared norms [B]."""
    if name in (ISOUQ, REMAT):
        single = isouq.grad_sq_norm(models.jax_function(case, remat=name == REMAT))
        return jax.vmap(single, (None, 0))

    def slow(params: Any, x: Array) -> Array:
        return squares(jax.grad(f)(params, x))

    if name == VMAP:
        return jax.vmap(slow, (None, 0))
    if name == LAX_MAP:
        return lambda params, xs: jax.lax.map(lambda x: slow(params, x), xs)
    raise ValueError(f"no contestant is called {name!r}")


def _probes(case: Case, params: Any, x: Array) -> Prepared:
    """Prepare K probes that serve all positions at once."""
    estimate = isouq.grad_sq_norm_probes(
        lambda params, x: models.token_log_probs(case, params, x), num_probes=case.probes, key=jax.random.key(case.seed)
    )
    prepared = compiled(lambda params, x: estimate(params, x).estimate, params, x)
    return replace(prepared, stochastic=True)


def _backward_per_position(case: Case) -> Callable[[Any, Array], Array]:
    """Return one forward pass followed by a backward pass for log p of every position."""
    positions = case.positions or case.length

    def norms(params: Any, x: Array) -> Array:
        _, pull = jax.vjp(lambda params: models.token_log_probs(case, params, x), params)
        return jax.lax.map(lambda seed: squares(pull(seed)[0]), jnp.eye(positions, case.length))

    return norms


def _grad_per_position(case: Case) -> Callable[[Any, Array], Array]:
    """Return a forward and a backward pass for log p of every position, as in a loop over jax.grad."""

    def norms(params: Any, x: Array) -> Array:
        of = jax.grad(lambda params, t: models.token_log_probs(case, params, x)[t])
        return jax.lax.map(lambda t: squares(of(params, t)), jnp.arange(case.positions or case.length))

    return norms


def compiled(function: Callable[..., Any], *args: Any, norms: bool = True) -> Prepared:
    """Compile `function` ahead of time, so that compilation is timed separately and no warm-up call is needed."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*args).compile()
    seconds = time.perf_counter() - start
    analysis = program.memory_analysis()
    return Prepared(
        call=lambda: jax.block_until_ready(program(*args)),
        norms=np.asarray if norms else None,
        compile_seconds=seconds,
        temp_bytes=getattr(analysis, "temp_size_in_bytes", None),
    )


@functools.lru_cache(maxsize=1)
def _placed(case: Case) -> tuple[Any, Array]:
    """Return weights and inputs on the device, once per case for all contestants."""
    params = jax.tree.map(jnp.asarray, models.weights(case))
    return jax.block_until_ready((params, jnp.asarray(models.inputs(case))))


def forget() -> None:
    """Free the arrays and programs of the last case."""
    _placed.cache_clear()
    jax.clear_caches()


def _batch_sum(f: Callable[..., Array]) -> Callable[[Any, Array], Array]:
    return lambda params, xs: jnp.sum(jax.vmap(f, (None, 0))(params, xs))


def squares(tree: Any) -> Array:
    """Return the sum of the squares of all entries."""
    return sum((jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree)), jnp.float32(0))
