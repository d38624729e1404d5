"""From a Python function and its arguments to a jaxpr whose inputs are the parameters."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np

from isouq.gradnorm._jaxpr import Body
from isouq.gradnorm._leaves import describe, is_foreign, is_inexact, is_sparse
from isouq.gradnorm._plan import Plan, plan

ArgNums = SupportsIndex | Sequence[SupportsIndex]


@dataclass(frozen=True)
class Traced:
    """A traced function f at its arguments.

    body: takes the leaves and gives the values of f, then the arrays among aux.
    leaves, treedef: the parameters, flat, and their structure.
    num_outputs: number of values of f. outputs: their structure.
    aux: function from the arrays among aux back to aux.
    """

    body: Body
    leaves: list[Any]
    treedef: Any
    num_outputs: int
    outputs: Any
    aux: Callable

    def plan(self, **options: Any) -> Plan:
        """Return what becomes of every leaf; options as in `_plan.plan`."""
        return plan(self.body, len(self.leaves), self.num_outputs, **options)


def trace(
    f: Callable,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argnums: ArgNums = 0,
    has_aux: bool = False,
    scalar: bool = True,
) -> Traced | None:
    """Trace f; return None where that fails because f looks at values, as only an untraced function may.

    Everything but the parameters is closed over, as in `jax.grad`: it may be any Python object. With
    `scalar=False` f may return any pytree of floating arrays.
    """
    numbers, single = positions(argnums, len(args))
    params = tuple(args[i] for i in numbers)
    _check_leaves(params[0] if single else params)
    leaves, treedef = jax.tree.flatten(params[0] if single else params)
    leaves = [_as_array(leaf) for leaf in leaves]
    structure: list[Any] = []  # the structure of what f returns: the traced function itself returns nothing but arrays

    def flat(*leaves: Any) -> list[Any]:
        tree = jax.tree.unflatten(treedef, leaves)
        new = dict(zip(numbers, (tree,) if single else tree, strict=True))
        out = f(*(new.get(i, arg) for i, arg in enumerate(args)), **kwargs)
        value, aux = _value_and_aux(out, has_aux)
        values = [_check_value(v, scalar) for v in ([value] if scalar else jax.tree.leaves(value))]
        aux_leaves, aux_treedef = jax.tree.flatten(aux)
        arrays = [leaf for leaf in aux_leaves if isinstance(leaf, jax.Array)]
        others = [None if isinstance(leaf, jax.Array) else leaf for leaf in aux_leaves]
        structure[:] = len(values), jax.tree.structure(value), aux_treedef, others
        return [*values, *arrays]

    try:
        closed = jax.make_jaxpr(flat)(*leaves)
    except OutputError:
        raise
    except Exception:  # f may work untraced; if it does not, jax.grad will say what is wrong with it
        return None
    num_values, outputs, aux_treedef, others = structure

    def aux(arrays: list[Any]) -> Any:
        remaining = iter(arrays)
        return jax.tree.unflatten(aux_treedef, [next(remaining) if leaf is None else leaf for leaf in others])

    body = Body(closed.jaxpr, [_as_array(c) for c in closed.consts])
    return Traced(body, leaves, treedef, num_values, outputs, aux)


def positions(argnums: ArgNums, count: int) -> tuple[list[int], bool]:
    """Return which of `count` arguments are meant, counted from the front, and whether argnums is a single number."""
    if isinstance(argnums, Sequence):
        return [_position(operator.index(number), count) for number in argnums], False
    return [_position(operator.index(argnums), count)], True


def _position(number: int, count: int) -> int:
    if not -count <= number < count:
        error = ValueError if number < -count else TypeError  # the types that jax.grad raises
        raise error(f"argnums is {number!r}, but the function was called with {count} positional arguments")
    return number % count


def _as_array(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, (np.ndarray, np.generic)) else leaf


def _check_leaves(params: Any) -> None:
    """Raise unless all leaves are floating arrays."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_sparse):
        if not is_inexact(leaf):
            at = f" at {jax.tree_util.keystr(path)}" if path else ""
            hint = "bind the rest in the function, or choose other argnums"
            if is_sparse(leaf):
                hint = "differentiate its data, put the matrix together in the function"
            elif is_foreign(leaf):
                hint = "in JAX's dtypes and native byte order, such as numpy.asarray(leaf, float)"
            raise TypeError(
                f"the argument to differentiate holds {describe(leaf)}{at}; expected floating arrays only ({hint})"
            )


class OutputError(TypeError):
    """The function returned something that cannot be differentiated, traced or not."""


def _value_and_aux(out: Any, has_aux: bool) -> tuple[Any, Any]:
    """Return the value that a function returned, and its aux."""
    if not has_aux:
        return out, ()
    if not (isinstance(out, tuple) and len(out) == 2):
        raise OutputError(f"with has_aux the function returns (value, aux); it returned a {type(out).__name__}")
    return out


def _check_value(value: Any, scalar: bool) -> Any:
    """Return the value as an array; raise unless it is real and floating, and a scalar if it must be."""
    expected = "a floating scalar []" if scalar else "floating arrays"
    if not hasattr(value, "dtype") and not isinstance(value, (bool, int, float, complex)):
        raise OutputError(f"the function returned a {type(value).__name__}; expected {expected}")
    value = jnp.asarray(value)
    hint = "; pick one value, or isouq.grad_sq_norm_probes for all" if scalar and value.size > 1 else ""
    if (scalar and value.shape != ()) or not jnp.issubdtype(value.dtype, jnp.floating):
        raise OutputError(f"the function returned {value.dtype}{list(value.shape)}; expected {expected}{hint}")
    return value
