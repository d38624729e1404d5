"""Training to the maximum of the log posterior, θ*, with optax."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from isouq import _checks
from isouq._frozen import Frozen
from isouq.covariance._curvature import hessian
from isouq.density import LogDensity, freeze_density
from isouq.posterior._groups import check_alike, fill, groups, per_posterior

MAX_CHECKED = 4000  # parameters of a model whose curvature is checked: its Hessian takes 64 MB
_MAX_ESCAPES = 10
_ESCAPES = np.concatenate([sign * np.geomspace(0.01, 3.0, 12) for sign in (1, -1)])


class MapFit(NamedTuple):
    """Parameters trained from several starts.

    params: a pytree with a leading axis of starts.
    log_density: the log posterior at the end, `[starts]`.
    grad_norm: ‖∇_z log p(θ|D)‖ at the end, z = θ/scales, `[starts]`.
    converged: whether grad_norm ≤ tolerance at a finite density, and no direction was found to lead up, `[starts]`.
    num_steps: the number of optimiser steps, `[starts]`.
    num_escapes: how often training stopped at a saddle and went on from beside it, `[starts]`.
    """

    params: Any
    log_density: Float[Array, " starts"]
    grad_norm: Float[Array, " starts"]
    converged: Bool[Array, " starts"]
    num_steps: Int[Array, " starts"]
    num_escapes: Int[Array, " starts"]

    def best_index(self) -> Array:
        """Return the index of the start with the highest log density, which NaN never is."""
        return jnp.argmax(jnp.where(jnp.isnan(self.log_density), -jnp.inf, self.log_density))

    def best(self) -> Any:
        """Return the parameters of the start with the highest log density (θ*)."""
        return _row(self.params, self.best_index())


@jax.jit
def _row(tree: Any, index: Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def fit_map(
    log_density: Callable,
    inits: Any,
    *,
    scales: Any = None,
    max_steps: int = 3000,
    tolerance: float = 0.05,
    leave_saddles: bool = True,
) -> MapFit:
    """Maximise the log posterior from each start by full-batch L-BFGS with line search, over z = θ/scales.

    In these coordinates the prior is the same in every direction, and training ends at a higher density and in fewer
    steps than over θ. A model of at most 4,000 parameters is also kept from saddles: where the Hessian at the end has a
    direction that leads up, training goes on from a point along it, at most ten times.

    Args:
        log_density: function from parameters to a scalar. It is traced anew at every call; arrays that it closes over
            are arguments of the compiled program.
        inits: a pytree of parameters with a leading axis of starts.
        scales: the size of each leaf, as a pytree of scalars or arrays; as a rule the standard deviations of the prior,
            which are the default for a `LogDensity`. For another function the default is 1.
        max_steps: largest number of steps from each start, and after each escape from a saddle.
        tolerance: a start has converged, and stops, when ‖∇_z log p‖ falls to this, in nats. In float32 a log posterior
            of a few hundred nats resolves about 1e-2.
        leave_saddles: whether to look for saddles; without it a start that has converged may be at one.

    Returns:
        A `MapFit`, which also says which starts have not converged.

    Raises:
        ValueError: a wrong shape or setting, or NaN in inits.

    Cost: 1 to 3 gradients a step, on a CPU one start after the other; for a checked model P Hessian products and a
    Cholesky factor of P³/3 operations for each start.
    Source: Liu and Nocedal (1989); `optax.lbfgs`.
    """
    scales = None if scales is None else [scales]
    return fit_maps(
        [log_density], [inits], scales=scales, max_steps=max_steps, tolerance=tolerance, leave_saddles=leave_saddles
    )[0]


def fit_maps(
    log_densities: Sequence[Callable],
    inits: Sequence[Any],
    *,
    scales: Sequence[Any] | None = None,
    max_steps: int = 3000,
    tolerance: float = 0.05,
    leave_saddles: bool = True,
    at_once: int | None = None,
) -> list[MapFit]:
    """Maximise several log posteriors of one shape as `fit_map` does, on a GPU together in one program.

    Args:
        log_densities: the function of each posterior. They may differ in the values of arrays, and not in Python
            numbers, which are part of a program.
        inits: the starts of each.
        scales: the size of each leaf, for each posterior; see `fit_map`.
        max_steps: largest number of steps from each start, and after each escape from a saddle.
        tolerance: the norm of the gradient at which a start has converged.
        leave_saddles: whether to look for saddles.
        at_once: the number of posteriors in one program; by default 1 on a CPU and all elsewhere. With 1, each result
            is that of `fit_map` to the bit.

    Returns:
        A `MapFit` for each posterior, in order.

    Raises:
        ValueError: as for `fit_map`; the posteriors differ in more than the values of their data; or a sequence is not
            as long as that of the log densities.

    Cost: that of `fit_map` for each posterior; together all take as many steps as the slowest. Compiled once for a
    shape. Memory: the data of every posterior, and for every start its parameters, gradient and 20 pairs of both.
    """
    _checks.positive_int("max_steps", max_steps)
    _checks.positive("tolerance", tolerance)
    _checks.boolean("leave_saddles", leave_saddles)
    rows = per_posterior(len(log_densities), log_densities=log_densities, inits=inits, scales=scales)
    targets = [_target(max_steps, *row) for row in zip(*rows, strict=True)]
    check_alike(targets)
    fits: list[MapFit] = []
    for group, size in groups(targets, at_once):
        fits += (_fit_beyond_saddles if leave_saddles else _fit_all)(group, size, tolerance)
    return fits


class _Target(NamedTuple):
    """A log density to maximise, the starts, the size of each leaf, and the most steps of each start; a pytree."""

    log_density: Frozen
    inits: Any
    scales: Any
    max_steps: np.ndarray


def _target(max_steps: int, log_density: Callable, inits: Any, scales: Any) -> _Target:
    """Check the arguments of a posterior and trace its log density."""
    _checks.float_leaves("inits", inits)
    starts = _checks.count_rows(inits, "inits", "start")
    _checks.finite("inits", inits)
    if scales is None:
        scales = log_density.scales if isinstance(log_density, LogDensity) else jax.tree.map(lambda _: 1.0, inits)
    _checks.positive_like("scales", scales, inits)
    return _Target(freeze_density(log_density, inits), inits, scales, np.full(starts, max_steps, np.int32))


def _fit_beyond_saddles(targets: Sequence[_Target], size: int, tolerance: float) -> list[MapFit]:
    """Return the fits of posteriors that are trained together; a start that ends at a saddle goes on from beside it."""
    fits = _fit_all(targets, size, tolerance)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(targets[0].inits)) // len(fits[0].log_density)
    if num_params > MAX_CHECKED:
        return fits
    if _checks.is_traced(fits):
        raise ValueError(
            "fit_map cannot be traced, because it looks for saddles in NumPy; call it outside jit and vmap"
        )
    targets, waiting = list(targets), list(range(len(targets)))
    is_saddle = [np.ones(len(fit.log_density), bool) for fit in fits]
    max_steps = targets[0].max_steps
    for escapes in range(_MAX_ESCAPES + 1):
        for index in waiting:
            target = targets[index]
            ends, is_saddle[index] = _leave_saddles(target.log_density, fits[index], target.scales, is_saddle[index])
            targets[index] = target._replace(inits=ends, max_steps=max_steps * is_saddle[index])
        waiting = [index for index in waiting if is_saddle[index].any()]
        if not waiting or escapes == _MAX_ESCAPES:
            break
        further = _fit_all(targets, size, tolerance)
        for index in waiting:
            fits[index] = _continue(fits[index], further[index], is_saddle[index])
    return [
        fit._replace(converged=jnp.asarray(np.asarray(fit.converged) & ~at))
        for fit, at in zip(fits, is_saddle, strict=True)
    ]


@jax.jit
def _continue(fit: MapFit, further: MapFit, is_saddle: Array) -> MapFit:
    """Return the fit of the starts that went on from beside a saddle, and the earlier fit of all others."""
    further = further._replace(num_steps=fit.num_steps + further.num_steps, num_escapes=fit.num_escapes + 1)
    return jax.tree.map(
        lambda old, new: jnp.where(is_saddle.reshape(-1, *[1] * (old.ndim - 1)), new, old), fit, further
    )


def _fit_all(targets: Sequence[_Target], size: int, tolerance: float) -> list[Any]:
    """Return the fit of every posterior, from a program for `size` posteriors."""
    if size == 1:
        return [_fit(*target, tolerance) for target in targets]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *fill(targets, size))
    fits = _fit_several(*stacked, tolerance)
    return [_row(fits, jnp.asarray(index)) for index in range(len(targets))]


@jax.jit
def _fit(log_density: Callable, inits: Any, scales: Any, max_steps: Array, tolerance: Array) -> MapFit:
    """Return the fit from all starts; the compiled part of `fit_map`."""
    to_params, _ = _standardise(jax.tree.map(lambda leaf: leaf[0], inits), scales)
    positions = jax.vmap(lambda params: _standardise(params, scales)[1])(inits)

    def loss(z: Array) -> Array:
        # the line search needs value and gradient in one dtype, and may step in a wider one than that of the start
        return -log_density(to_params(z)).astype(z.dtype)

    optimiser = optax.lbfgs(memory_size=20)

    def fit(z: Array, max_steps: Array) -> MapFit:
        def continues(carry: tuple[Any, Any, Array, Array, Array]) -> Array:
            _, _, _, grad, step = carry
            return (step < max_steps) & (jnp.linalg.norm(grad) > tolerance)

        def advance(carry: tuple[Any, Any, Array, Array, Array]) -> tuple[Any, Any, Array, Array, Array]:
            z, state, value, grad, step = carry
            updates, state = optimiser.update(grad, state, z, value=value, grad=grad, value_fn=loss)
            value, grad = optax.tree.get(state, "value"), optax.tree.get(state, "grad")
            return optax.apply_updates(z, updates), state, value, grad, step + 1

        start = (z, optimiser.init(z), *jax.value_and_grad(loss)(z), jnp.int32(0))
        z, _, value, grad, step = jax.lax.while_loop(continues, advance, start)
        norm = jnp.linalg.norm(grad)
        converged = (norm <= tolerance) & jnp.isfinite(value)
        return MapFit(to_params(z), -value, norm, converged, step, jnp.int32(0))

    return _over_starts(fit, positions, max_steps)


@jax.jit
def _fit_several(log_density: Any, inits: Any, scales: Any, max_steps: Array, tolerance: Array) -> MapFit:
    """Return the fits of several posteriors, with a leading axis in all their arrays."""
    return jax.vmap(_fit, (0, 0, 0, 0, None))(log_density, inits, scales, max_steps, tolerance)


def _standardise(params: Any, scales: Any) -> tuple[Callable, Array]:
    """Return the function from flat z to parameters, and the flat z of these parameters, `[P]`."""
    flat, unravel = ravel_pytree(params)
    spread = jax.tree.map(
        lambda leaf, scale: jnp.broadcast_to(jnp.asarray(scale, leaf.dtype), leaf.shape), params, scales
    )
    scale = ravel_pytree(spread)[0]
    return lambda z: unravel((z * scale).astype(flat.dtype)), flat / scale


def _over_starts(function: Callable, *arrays: Any) -> Any:
    """Return the function at every start: one after the other on a CPU, where a batch of them gains nothing."""
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda row: function(*row), arrays)
    return jax.vmap(function)(*arrays)


def _leave_saddles(log_density: Callable, fit: MapFit, scales: Any, has_trained: np.ndarray) -> tuple[Any, np.ndarray]:
    """Return the ends of all starts, those at saddles moved along the steepest way up, and which these are.

    has_trained: which starts have trained since they were last looked at, `[starts]`; the others are at no saddle.

    A matrix that has a Cholesky factor has no eigenvalue below zero, and is not decomposed. Eigenvalues of less than
    10⁻⁵ of the largest entry are rounding, and a saddle counts only where a step raises the density.
    """
    densities = np.asarray(fit.log_density)
    is_saddle = np.zeros(len(densities), bool)
    ends = jax.tree.map(np.array, fit.params)
    for start in np.flatnonzero(np.asarray(fit.converged) & has_trained):
        end = jax.tree.map(lambda leaf, i=start: leaf[i], ends)
        curvature = np.array(_curvature(log_density, end, scales), np.float64)
        curvature += 1e-5 * np.abs(curvature).max() * np.eye(len(curvature))
        try:
            np.linalg.cholesky(curvature)
        except np.linalg.LinAlgError:
            direction = scipy.linalg.eigh(curvature, subset_by_index=[0, 0])[1][:, 0]
            above, density = _step_up(log_density, end, scales, direction)
            if float(density) > densities[start]:
                is_saddle[start] = True
                for leaf, new in zip(jax.tree.leaves(ends), jax.tree.leaves(above), strict=True):
                    leaf[start] = new
    return ends, is_saddle


@jax.jit
def _curvature(log_density: Callable, params: Any, scales: Any) -> Array:
    """Return −∇_z² log p at one point, `[P, P]`."""
    to_params, z = _standardise(params, scales)
    return -hessian(lambda z: log_density(to_params(z)), z)


@jax.jit
def _step_up(log_density: Callable, params: Any, scales: Any, direction: Array) -> tuple[Any, Array]:
    """Return the point of highest density along a direction, both ways, and its density."""
    to_params, z = _standardise(params, scales)
    steps = jnp.asarray(_ESCAPES, z.dtype)
    points = jax.vmap(lambda step: to_params(z + step * direction.astype(z.dtype)))(steps)
    densities = jax.vmap(log_density)(points)
    best = jnp.argmax(jnp.where(jnp.isnan(densities), -jnp.inf, densities))
    return jax.tree.map(lambda leaf: leaf[best], points), densities[best]
