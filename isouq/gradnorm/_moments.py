"""Second moments of the factors of a gradient: what KFAC is made of."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from isouq.gradnorm._factors import Factors, OneHot, at_least_float32
from isouq.gradnorm._forms import fits, lead_and_last
from isouq.gradnorm._norms import backward, factors_of
from isouq.gradnorm._plan import Group
from isouq.gradnorm._trace import trace


def factor_moments(f: Callable) -> Callable:
    """For a scalar f(params, ...), a function that gives the moments `(A, B)` of every leaf of params, in order.

    With G = Σ_p x_p δ_pᵀ `[C, F]` the gradient of a weight that is used once, A = mean_p x_p x_pᵀ `[C, C]` and
    B = Σ_p δ_p δ_pᵀ `[F, F]` over its positions p (KFAC-expand, Eschenhagen et al., arXiv 2311.00636). A vector has
    A = 1 and B = g gᵀ, exact. A matrix that is used otherwise (several times, or in a way no rule knows) has
    A = G Gᵀ / ‖G‖² and B = Gᵀ G: the right trace, and exact for a gradient of rank one.
    """

    def moments(*args: Any, **kwargs: Any) -> list[tuple[Array, Array]]:
        traced = trace(f, args, kwargs, 0, False)
        if traced is None:
            return [_of_gradient(g) for g in jax.tree.leaves(jax.grad(f)(*args, **kwargs))]
        plan = traced.plan(collect=range(len(traced.leaves)))
        others = [i for i, leaf in enumerate(traced.leaves) if not _is_one_product(plan.groups.get(i, []), leaf)]
        plan = traced.plan(collect=range(len(traced.leaves)), direct=others)
        _, gradients, received = backward(traced, plan)
        factors = {i: factors_of(groups[0], received)[0] for i, groups in plan.groups.items() if i not in plan.direct}
        return [
            _of_factors(factors[i], leaf) if i in factors else _of_gradient(gradients[i])
            for i, leaf in enumerate(traced.leaves)
        ]

    return moments


def _is_one_product(groups: list[Group], leaf: Any) -> bool:
    """Whether the leaf is a matrix that meets data once, in a product that splits it as Kronecker factors do."""
    if jnp.ndim(leaf) < 2 or len(groups) != 1 or len(groups[0].sites) != 1:
        return False
    return fits(groups[0], *lead_and_last(leaf))


def _of_factors(factors: Factors, leaf: Any) -> tuple[Array, Array]:
    rows, cols, layout = factors
    second = jnp.einsum("bpf,bpg->fg", cols, cols, preferred_element_type=at_least_float32(cols.dtype))
    if isinstance(rows, OneHot):
        counts = jnp.zeros(rows.size, second.dtype).at[rows.at.reshape(-1)].add(1.0)
        first = jnp.diag(counts)
    else:
        first = jnp.einsum("bpc,bpd->cd", rows, rows, preferred_element_type=second.dtype)
    # the data may stand on either side of the weight; A belongs to the leading axes
    data_leads = layout.rows == lead_and_last(leaf)[0]
    return (first / factors.positions, second) if data_leads else (second, first / factors.positions)


def _of_gradient(g: Array) -> tuple[Array, Array]:
    g = g.astype(at_least_float32(g.dtype))
    last = g.shape[-1] if g.ndim else 1
    g = g.reshape(-1, last)
    if g.shape[0] == 1:
        return jnp.ones((1, 1), g.dtype), g.T @ g
    total = jnp.sum(jnp.square(g))
    flat = jnp.eye(g.shape[0], dtype=g.dtype) / g.shape[0]  # of a zero gradient: any A of trace one
    return jnp.where(total > 0, g @ g.T / jnp.where(total > 0, total, 1.0), flat), g.T @ g
