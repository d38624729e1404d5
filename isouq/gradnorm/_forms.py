"""Quadratic forms gᵀΣg from the factors of a gradient g; Σ has a block for each parameter and a low-rank part."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from isouq.gradnorm import _plain
from isouq.gradnorm._factors import (
    Factors,
    Layout,
    OneHot,
    at_least_float32,
    dense,
    leaf_sq_norm,
    merge_lookups,
    rescale,
    sq_norm,
)
from isouq.gradnorm._gram import gram_sums, guard
from isouq.gradnorm._norms import backward, factors_of, received_norm
from isouq.gradnorm._plan import Group, Plan
from isouq.gradnorm._trace import Traced, trace
from isouq.gradnorm._views import Shape, base_axes, follow, order_axes


class Form(NamedTuple):
    """The covariance of one parameter: a block Σ₀, and its rows of a low-rank U Uᵀ that all parameters share.

    scale: Σ₀ = scale · I, where neither of the next two is given.
    diagonal: Σ₀ = diag(diagonal); shaped like the parameter.
    kronecker: Σ₀ = A Aᵀ ⊗ B Bᵀ with A `[C, r]` on all axes but the last (flattened) and B `[F, s]` on the last. With a
        diagonal too, `[r, s]`, Σ₀ = (A ⊗ B) diag(diagonal) (A ⊗ B)ᵀ. A factor with one axis, `[C]`, is a
        diagonal matrix.
    directions: U as `[K, *parameter]`; without it there is no low-rank part.
    weights: `[K]`, of any sign, the same for all parameters; the low-rank part is then U diag(weights) Uᵀ.
    """

    scale: Any = 1.0
    diagonal: Array | None = None
    kronecker: tuple[Array, Array] | None = None
    directions: Array | None = None
    weights: Array | None = None


def value_and_grad_quadratic(f: Callable, forms: list[Form], *, has_aux: bool = False) -> Callable:
    """Return a function that gives `(f(...), gᵀΣg)` with g the gradient of f with respect to its first argument.

    Args:
        f: a function that returns a scalar; its first argument is the parameters.
        forms: one `Form` for each leaf of the parameters, in the order of `jax.tree.leaves`.
        has_aux: whether f returns `(value, aux)`; the result is then `((value, aux), gᵀΣg)`.

    Returns:
        A function of the arguments of f; gᵀΣg is float32 or better.

    Raises:
        ValueError: the number of forms is not that of the leaves.

    Cost, beyond a forward and a backward pass, for one position of a `[C, F]` weight: C·F multiplications for a
    diagonal, C² + F² for a Kronecker product, K·C·F for K directions. The pairs at the sites of such weights live until
    the backward pass ends, which takes twice the memory of their activations.
    """

    def value_and_quadratic(*args: Any, **kwargs: Any) -> tuple[Any, Array]:
        traced = trace(f, args, kwargs, 0, has_aux)
        if traced is None:
            value, grad = jax.value_and_grad(f, has_aux=has_aux)(*args, **kwargs)
            return value, quadratic(grad, forms)
        if len(forms) != len(traced.leaves):
            raise ValueError(f"there are {len(forms)} forms for {len(traced.leaves)} parameters; give one for each")
        plan = _plan(traced, forms)
        (value, *aux), gradients, received = backward(traced, plan)
        terms = [_terms_of_gradient(gradients[i], forms[i]) for i in plan.direct]
        for i, groups in plan.groups.items():
            for group in groups:
                if group.collect:
                    terms.append(
                        _terms_of_factors(factors_of(group, received), group.chain, forms[i], traced.leaves[i])
                    )
                else:
                    terms.append((forms[i].scale * received_norm(plan, group, received), None))
        return ((value, traced.aux(aux)) if has_aux else value), _combine(terms, forms)

    return value_and_quadratic


def quadratic(grad: Any, forms: list[Form]) -> Array:
    """Return gᵀΣg of a gradient."""
    return _combine([_terms_of_gradient(g, form) for g, form in zip(jax.tree.leaves(grad), forms, strict=True)], forms)


def _combine(terms: list[tuple[Array, Array | None]], forms: list[Form]) -> Array:
    """Return the sum of the forms of all blocks and of the weighted ‖Uᵀg‖², where Uᵀg is the sum of the projections."""
    projections = [projection for _, projection in terms if projection is not None]
    total = _plain.add([block for block, _ in terms])
    if not projections:
        return total
    squares = jnp.square(functools.reduce(jnp.add, projections))
    if forms[0].weights is None:
        return total + jnp.sum(squares)
    return jnp.maximum(total + jnp.sum(forms[0].weights * squares), 0)  # negative weights make this a difference


def _terms_of_gradient(g: Array, form: Form) -> tuple[Array, Array | None]:
    """Return the form of one parameter's block, and its projections on U, from its gradient."""
    g = _wide(g)
    if form.kronecker is not None:
        left, right = map(_wide, form.kronecker)
        block = _kronecker_of_gradient(g.reshape(left.shape[0], right.shape[0]), left, right, form.diagonal)
    elif form.diagonal is not None:
        block = jnp.sum(_wide(form.diagonal) * jnp.square(g))
    else:
        block = form.scale * leaf_sq_norm(g)
    if form.directions is None:
        return block, None
    return block, _wide(form.directions).reshape(form.directions.shape[0], -1) @ g.reshape(-1)


def _wide(array: Any) -> Any:
    return array if isinstance(array, OneHot) else array.astype(at_least_float32(array.dtype))


def _plan(traced: Traced, forms: list[Form]) -> Plan:
    """Return a plan that collects the pairs of all leaves whose form needs more than a norm."""
    shaped = [i for i, form in enumerate(forms) if any(field is not None for field in form[1:])]
    plan = traced.plan(collect=shaped)
    misfits = [
        i
        for i, groups in plan.groups.items()
        if forms[i].kronecker is not None and not all(fits(group, *lead_and_last(traced.leaves[i])) for group in groups)
    ]
    return traced.plan(collect=shaped, direct=misfits) if misfits else plan


def fits(group: Group, lead: Shape, last: Shape) -> bool:
    """Return whether every site of the group splits the parameter as a Kronecker form does."""
    if group.chain or any(base_axes(s.view.loops) for s in group.sites):
        return False
    return all(not s.layout.batch and {s.layout.rows, s.layout.cols} == {lead, last} for s in group.sites)


def lead_and_last(leaf: Any) -> tuple[Shape, Shape]:
    """Return all axes but the last, and the last, as layouts name them: without those of size one."""
    shape = jnp.shape(leaf)
    axes = tuple(axis for axis, size in enumerate(shape) if size != 1)
    lead = tuple(axis for axis in axes if axis < len(shape) - 1)
    return lead, axes[len(lead) :]


def _terms_of_factors(factors: list[Factors], chain: tuple, form: Form, leaf: Any) -> tuple[Array, Array | None]:
    """Return the form of one group's block, and its projections on U, from the factors of its sites."""
    if form.diagonal is not None or form.kronecker is not None or form.directions is not None:
        factors = [Factors(_wide(rows), _wide(cols), layout) for rows, cols, layout in factors]
    if form.kronecker is not None:
        block = _kronecker(factors, form, lead_and_last(leaf)[0])
    elif form.diagonal is not None:
        block = _diagonal(factors, follow(chain, _wide(form.diagonal)))
    else:
        block = form.scale * sq_norm(factors)
    if form.directions is None:
        return block, None
    directions = jax.vmap(lambda u: follow(chain, u))(_wide(form.directions))
    return block, functools.reduce(jnp.add, [_project(f, directions) for f in factors])


def _arrange(array: Array, layout: Layout) -> Array:
    """Return an array shaped like the base as [B, C, F]."""
    array = order_axes(array, (*layout.batch, *layout.rows, *layout.cols))
    return array.reshape(*(layout.size(axes) for axes in layout[:3]))


def _diagonal(factors: list[Factors], weights: Array) -> Array:
    """Return Σ weights · G², entry by entry. The gradient is formed unless its squares have factors of their own."""
    (rows, cols, layout), *others = factors
    if others or (factors[0].positions > 1 and not isinstance(rows, OneHot)):
        return jnp.sum(weights * jnp.square(sum(dense(f) for f in factors)))
    weights = _arrange(weights, layout)
    if isinstance(rows, OneHot):
        rows, cols = _merge(rows, cols)
        return jnp.sum(_times(rows, weights) * jnp.square(cols))
    rows, cols = rescale(rows, cols)
    return jnp.sum(_times(jnp.square(rows), weights) * jnp.square(cols))


def _merge(rows: OneHot, cols: Array) -> tuple[OneHot, Array]:
    """Return the same gradient with each row looked up once."""
    if cols.shape[1] == 1:
        return rows, cols
    at, cols = merge_lookups(rows.at, cols, rows.size)
    return OneHot(jnp.minimum(at, rows.size - 1), rows.size), cols  # the places that are left over add zero


def _project(factors: Factors, directions: Array) -> Array:
    """Return the inner products of the gradient with all directions."""
    rows, cols, layout = factors
    return jax.vmap(lambda u: jnp.sum(_times(rows, _arrange(u, layout)) * cols))(directions)


def _kronecker(factors: list[Factors], form: Form, lead: Shape) -> Array:
    """Return ‖Aᵀ G B‖², or Σ v (Aᵀ G B)².

    Several positions go through `guard`: where their sum cancels, it is no longer exact once its terms are multiplied
    by A and B.
    """
    left, right = map(_wide, form.kronecker or ())
    variances = None if form.diagonal is None else _wide(form.diagonal)
    if any(isinstance(f.rows, OneHot) for f in factors) or sum(f.positions for f in factors) == 1:
        turned = _multiply(factors, left, right, lead)
        return sq_norm(turned) if variances is None else _diagonal(turned, variances)
    pairs = [(f.rows, f.cols) if f.layout.rows == lead else (f.cols, f.rows) for f in factors]
    rows, cols = [row for row, _ in pairs], [col for _, col in pairs]
    return jnp.sum(_guarded_kronecker(rows, cols, (left, right, variances)))


def _kronecker_of_factors(rows: list[Array], cols: list[Array], shared: tuple) -> tuple[Array, Array]:
    """Return the form [B] from rows times A and columns times B, and the sum of the forms of single positions."""
    left, right, variances = shared
    rows, cols = [_times_factor(row, left) for row in rows], [_times_factor(col, right) for col in cols]
    r, s, positions = rows[0].shape[2], cols[0].shape[2], sum(row.shape[1] for row in rows)
    if variances is None and positions * (r + s) < r * s:
        return gram_sums(rows, cols)
    g = functools.reduce(jnp.add, [jnp.einsum("bpr,bps->brs", *pair) for pair in zip(rows, cols, strict=True)])
    weights = jnp.ones((r, s), g.dtype) if variances is None else variances
    terms = [
        jnp.sum((jnp.square(row) @ weights) * jnp.square(col), axis=(1, 2)) for row, col in zip(rows, cols, strict=True)
    ]
    return jnp.sum(weights[None] * jnp.square(g), axis=(1, 2)), functools.reduce(jnp.add, terms)


def _kronecker_of_product(rows: list[Array], cols: list[Array], shared: tuple) -> Array:
    """Return the form of one gradient that is multiplied out first."""
    g = functools.reduce(jnp.add, [row.T @ col for row, col in zip(rows, cols, strict=True)])
    return _kronecker_of_gradient(g, *shared)


def _kronecker_of_gradient(g: Array, left: Array, right: Array, variances: Array | None) -> Array:
    """Return ‖Aᵀ G B‖², or Σ v (Aᵀ G B)², of a gradient [C, F]."""
    turned = _times_factor(_times_factor(g, right).T, left).T
    return leaf_sq_norm(turned) if variances is None else jnp.sum(variances * jnp.square(turned))


_guarded_kronecker = guard(_kronecker_of_factors, _kronecker_of_product)


def _multiply(factors: list[Factors], left: Array, right: Array, lead: Shape) -> list[Factors]:
    """Return the factors of Aᵀ G B `[r, s]`."""
    turned = []
    for rows, cols, layout in factors:
        of_rows, of_cols, names = (left, right, (0, 1)) if layout.rows == lead else (right, left, (1, 0))
        new = Layout((), names[:1], names[1:], (left.shape[-1], right.shape[-1]))
        cols = _times_factor(cols, of_cols)
        if not isinstance(rows, OneHot):
            rows = _times_factor(rows, of_rows)
        elif of_rows.ndim == 1:  # a diagonal factor leaves one-hot rows one-hot
            cols = cols * of_rows[rows.at][..., None]
        else:
            rows = _times(rows, of_rows[None])
        turned.append(Factors(rows, cols, new))
    return turned


def _times_factor(vectors: Array, factor: Array) -> Array:
    """Return vectors [..., C] times a factor [C, r], or [C] where it is diagonal."""
    if factor.ndim == 1:
        return vectors * jnp.expand_dims(factor, tuple(range(vectors.ndim - 1)))
    return vectors @ factor


def _times(rows: Array | OneHot, matrix: Array) -> Array:
    """Return rows [B, P, C] times a matrix [B, C, F]."""
    if isinstance(rows, OneHot):
        return jax.vmap(lambda index, m: m[index])(rows.at, matrix)
    return jnp.einsum("bpc,bcf->bpf", rows, matrix)
