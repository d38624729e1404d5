"""Quadratic forms gᵀΣg from the factors of g, for covariances that respect the shape of the parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from isouq.gradnorm import _plain
from isouq.gradnorm._factors import Factors, Layout, OneHot, dense, sq_norm
from isouq.gradnorm._norms import backward, factors_of
from isouq.gradnorm._plan import Group, Plan
from isouq.gradnorm._trace import Traced, trace
from isouq.gradnorm._views import Shape, follow, order_axes


class Form(NamedTuple):
    """Σ for one parameter: a block Σ₀ of its own, and its rows of a low-rank U Uᵀ shared by all parameters.

    scale: Σ₀ = scale · I. diagonal: Σ₀ = diag(diagonal), shaped like the parameter, if given.
    kronecker: Σ₀ = A Aᵀ ⊗ B Bᵀ with A on all axes but the last (flattened) and B on the last, if given.
    directions: U as `[K, *parameter]`, if given.
    """

    scale: Any = 1.0
    diagonal: Array | None = None
    kronecker: tuple[Array, Array] | None = None
    directions: Array | None = None


def value_and_grad_quadratic(f: Callable, forms: list[Form], has_aux: bool = False) -> Callable:
    """Like `value_and_grad_sq_norm` for the first argument, with gᵀΣg; one `Form` a leaf, in `jax.tree.leaves` order.

    Cost: P=1 diagonal, C·F multiplications an example; Kronecker, C² + F²; K directions, K·C·F. The pairs of all
    sites are kept until the end of the backward pass: memory of twice the activations.
    """

    def value_and_quadratic(*args: Any, **kwargs: Any) -> tuple[Any, Array]:
        traced = trace(f, args, kwargs, 0, has_aux)
        if traced is None:
            value, grad = jax.value_and_grad(f, has_aux=has_aux)(*args, **kwargs)
            return value, combine([of_gradient(g, form) for g, form in zip(jax.tree.leaves(grad), forms, strict=True)])
        plan = _plan(traced, forms)
        (value, *aux), gradients, received = backward(traced, plan)
        terms = [of_gradient(gradients[i], forms[i]) for i in plan.direct]
        for i, groups in plan.groups.items():
            for group in groups:
                terms.append(_of_factors(factors_of(group, received), group.chain, forms[i], traced.leaves[i]))
        return ((value, traced.aux(aux)) if has_aux else value), combine(terms)

    return value_and_quadratic


def combine(terms: list[tuple[Array, Array | None]]) -> Array:
    """Σ of the blocks' forms, and ‖Uᵀg‖² of the projections' sum."""
    projections = [projection for _, projection in terms if projection is not None]
    total = _plain.add([block for block, _ in terms])
    return total + jnp.sum(jnp.square(sum(projections))) if projections else total


def of_gradient(g: Array, form: Form) -> tuple[Array, Array | None]:
    """Block form and projections of one parameter's gradient: the slow twin of what factors give."""
    g = g.astype(jnp.promote_types(g.dtype, jnp.float32))
    if form.diagonal is not None:
        block = jnp.sum(form.diagonal * jnp.square(g))
    elif form.kronecker is not None:
        left, right = form.kronecker
        block = jnp.sum(jnp.square(left.T @ g.reshape(left.shape[0], right.shape[0]) @ right))
    else:
        block = form.scale * jnp.sum(jnp.square(g))
    if form.directions is None:
        return block, None
    return block, form.directions.reshape(form.directions.shape[0], -1) @ g.reshape(-1)


def _plan(traced: Traced, forms: list[Form]) -> Plan:
    everything = range(len(traced.leaves))
    plan = traced.plan(collect=everything)
    misfits = [
        i
        for i, groups in plan.groups.items()
        if forms[i].kronecker is not None and not all(_fits(group, *_axes(traced.leaves[i])) for group in groups)
    ]
    return traced.plan(collect=everything, direct=misfits) if misfits else plan


def _fits(group: Group, lead: Shape, last: Shape) -> bool:
    """Whether every site of the group splits the parameter as the Kronecker form does."""
    if group.chain or any(axis is not None for s in group.sites for axis in s.view.loops):
        return False
    return all(not s.layout.batch and {s.layout.rows, s.layout.cols} == {lead, last} for s in group.sites)


def _axes(leaf: Any) -> tuple[Shape, Shape]:
    """All axes but the last, and the last, as layouts name them: without those of size one."""
    shape = jnp.shape(leaf)
    axes = tuple(axis for axis, size in enumerate(shape) if size != 1)
    lead = tuple(axis for axis in axes if axis < len(shape) - 1)
    return lead, axes[len(lead) :]


def _of_factors(factors: list[Factors], chain: tuple, form: Form, leaf: Any) -> tuple[Array, Array | None]:
    if form.diagonal is not None:
        block = _diagonal(factors, follow(chain, form.diagonal))
    elif form.kronecker is not None:
        block = _kronecker(factors, *form.kronecker, _axes(leaf)[0])
    else:
        block = form.scale * sq_norm(factors)
    if form.directions is None:
        return block, None
    directions = jax.vmap(lambda u: follow(chain, u))(form.directions)
    return block, functools.reduce(jnp.add, [_project(f, directions) for f in factors])


def _arrange(array: Array, layout: Layout) -> Array:
    """An array shaped like the base as [B, C, F]."""
    array = order_axes(array, (*layout.batch, *layout.rows, *layout.cols))
    return array.reshape(*(layout.size(axes) for axes in layout[:3]))


def _diagonal(factors: list[Factors], weights: Array) -> Array:
    if len(factors) > 1 or factors[0].positions > 1:
        return jnp.sum(weights * jnp.square(sum(dense(f) for f in factors)))
    ((rows, cols, layout),) = factors
    weights = _arrange(weights, layout)
    return jnp.sum(_times(_square(rows), weights) * jnp.square(cols))


def _project(factors: Factors, directions: Array) -> Array:
    rows, cols, layout = factors
    return jax.vmap(lambda u: jnp.sum(_times(rows, _arrange(u, layout)) * cols))(directions)


def _kronecker(factors: list[Factors], left: Array, right: Array, lead: Shape) -> Array:
    """‖Aᵀ G B‖²: the norm of the gradient whose factors are multiplied by A and B."""
    turned = []
    for rows, cols, layout in factors:
        of_rows, of_cols, names = (left, right, (0, 1)) if layout.rows == lead else (right, left, (1, 0))
        new = Layout((), names[:1], names[1:], (left.shape[1], right.shape[1]))
        turned.append(Factors(_times(rows, of_rows[None]), cols @ of_cols, new))
    return sq_norm(turned)


def _times(rows: Array | OneHot, matrix: Array) -> Array:
    """Rows [B, P, C] times a matrix [B, C, F]."""
    if isinstance(rows, OneHot):
        return jax.vmap(lambda index, m: m[index])(rows.at, matrix)
    return jnp.einsum("bpc,bcf->bpf", rows, matrix)


def _square(rows: Array | OneHot) -> Array | OneHot:
    return rows if isinstance(rows, OneHot) else jnp.square(rows)
