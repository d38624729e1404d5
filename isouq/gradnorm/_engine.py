"""The two functions that a user of the engine calls: `grad_sq_norm` and `value_and_grad_sq_norm`."""

from collections.abc import Callable
from typing import Any

import jax

from isouq.gradnorm import _plain
from isouq.gradnorm._norms import sq_norms
from isouq.gradnorm._trace import ArgNums, trace


def grad_sq_norm(f: Callable, argnums: ArgNums = 0, *, has_aux: bool = False, per_leaf: bool = False) -> Callable:
    """Return a function that gives ‖∂f/∂arg‖² of a scalar f. It is like `jax.grad`, but the gradient is not formed.

    For a layer y = xW the gradient of f is xᵀδ with δ = ∂f/∂y, and ‖xᵀδ‖² = ‖x‖²‖δ‖². The same holds with
    more terms for many positions, look-ups and convolutions, and for weights that are used more than once or inside
    scan, cond and checkpoint. JAX differentiates a parameter that is used in a way no rule knows, so that the result is
    exact for every f that `jax.grad` takes. `isouq.explain(f)` says how each parameter is treated.

    Args:
        f: a function of any JAX code that returns a scalar, such as `f(params, x)` of ONE example, used under
            `jax.vmap`.
        argnums: which positional arguments to differentiate, as in `jax.grad`; the squared norms of several are
            added up.
        has_aux: whether f returns `(value, aux)`; the result is then `(‖∂f/∂arg‖², aux)`.
        per_leaf: whether to return the squared norm of every leaf, as a pytree like the argument (a tuple of pytrees
            for several argnums). Their sum is the squared norm.

    Returns:
        A function of f's arguments that returns a scalar `[]`, float32 or better whatever the dtype of the
        parameters. Matrix products follow `jax_default_matmul_precision`. Composes with jit, vmap, checkpoint,
        lax.map, sharding and further differentiation.

    Raises:
        TypeError: f is not a real scalar, or the arguments to differentiate are not floating arrays.

    Cost: a forward and a backward pass without the products that form weight gradients, and the norms: two
    multiplications per activation for one position; for P positions of a `[C, F]` weight the cheaper of P²(C + F)
    and PCF. A weight whose gradient costs less than its norm is differentiated directly.
    Memory: the activations, and one gradient for the parameters that are differentiated directly.
    Under `jax.vmap` each example has its own of these; the weights are shared. f is traced as under `jax.jit`, outside
    jit at every call; arrays that it makes must not outlive the call, for instance in a cache.

    Source: Goodfellow, arXiv 1510.01799 (one position); Li et al., arXiv 2110.05679 (many positions). The
    transformation of a jaxpr is ours.

    >>> norms = jax.jit(jax.vmap(isouq.grad_sq_norm(f), in_axes=(None, 0)))(params, xs)  # doctest: +SKIP
    """
    with_value = value_and_grad_sq_norm(f, argnums, has_aux=has_aux, per_leaf=per_leaf)

    def sq_norm(*args: Any, **kwargs: Any) -> Any:
        value, norm = with_value(*args, **kwargs)
        return (norm, value[1]) if has_aux else norm

    return sq_norm


def value_and_grad_sq_norm(
    f: Callable, argnums: ArgNums = 0, *, has_aux: bool = False, per_leaf: bool = False
) -> Callable:
    """Return a function that gives `(f(...), ‖∂f/∂arg‖²)`, with has_aux `((f(...), aux), ‖∂f/∂arg‖²)`.

    Arguments, errors and cost are those of `grad_sq_norm`; the value costs nothing extra.
    """
    if not callable(f):
        raise TypeError(f"expected a function to differentiate; got a {type(f).__name__}")

    def value_and_sq_norm(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        traced = trace(f, args, kwargs, argnums, has_aux)
        if traced is None:
            return _plain.value_and_grad_sq_norm(f, argnums, has_aux, per_leaf)(*args, **kwargs)
        (value, *aux), norms = sq_norms(traced)
        norm = jax.tree.unflatten(traced.treedef, norms) if per_leaf else _plain.add(norms)
        return ((value, traced.aux(aux)) if has_aux else value), norm

    return value_and_sq_norm
