"""The inside of a jaxpr, JAX's form of a traced function. No other file of the library touches it.

A jaxpr is a list of equations, each a primitive applied to variables. JAX changes the details between versions, so
that the analysis, the interpreter and the comparison of programs see them through this file alone: `walk` visits the
equations, and an `Equation` says what a rule needs to know.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun, mapped_aval

_CALLS = {"jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat2": "jaxpr"}
RULES = ("jvp_jaxpr_fun", "fwd_jaxpr_thunk", "bwd", "out_trees")  # parameters that hold derivative rules


class Body(NamedTuple):
    """A jaxpr and the values of its constants: a whole traced function, or the body of a call, scan or cond."""

    jaxpr: Jaxpr
    consts: Sequence[Any] = ()

    @property
    def inputs(self) -> list[Any]:
        """The shapes and dtypes of the inputs."""
        return [variable.aval for variable in self.jaxpr.invars]

    @property
    def outputs(self) -> list[Any]:
        """The shapes and dtypes of the outputs."""
        return [variable.aval for variable in self.jaxpr.outvars]

    @property
    def constants(self) -> list[Any]:
        """The shapes and dtypes of the constants."""
        return [variable.aval for variable in self.jaxpr.constvars]

    def __call__(self, *args: Any) -> list[Any]:
        """Return the outputs as flat arrays."""
        return jaxpr_as_fun(ClosedJaxpr(self.jaxpr, self.consts))(*args)


class Equation(NamedTuple):
    """One equation: `name` and `params` of its primitive, shapes and dtypes of its operands and its results."""

    name: str
    params: dict[str, Any]
    inputs: list[Any]
    outputs: list[Any]
    source: Any  # the object of JAX, for this file


class Call(NamedTuple):
    """A call of a body on all operands. checkpoint: the options of `jax.checkpoint` where that made the call."""

    body: Body
    checkpoint: dict[str, Any] | None


class Cond(NamedTuple):
    """A choice between branches; the first operand is the index of the branch."""

    branches: list[Body]


class Scan(NamedTuple):
    """The parts of a scan: its operands are constants, then carries, then arrays whose leading axis it runs over.

    constant_carries: for each carry, whether the body returns it as it is.
    """

    body: Body
    num_consts: int
    num_carries: int
    constant_carries: list[bool]
    length: int
    reverse: bool
    unroll: int


def walk(
    jaxpr: Jaxpr,
    args: Iterable[Any],
    visit: Callable,
    consts: Iterable[Any] = (),
    literal: Callable = lambda literal: None,
) -> list[Any]:
    """Visit the equations in order and return what is known of the outputs.

    args: what is known of each input: its value, or any description of it. consts: the same of each constant.
    visit: `visit(equation, operands)` returns what is known of each result, a list.
    literal: says what is known of a number that stands in the equation itself, an object with `val` and `aval`.
        Of whatever nothing is known, None is.
    """
    known = dict(zip(jaxpr.constvars, consts, strict=False))
    known.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return literal(atom) if isinstance(atom, Literal) else known.get(atom)

    for eqn in jaxpr.eqns:
        inputs, outputs = [atom.aval for atom in eqn.invars], [variable.aval for variable in eqn.outvars]
        equation = Equation(eqn.primitive.name, eqn.params, inputs, outputs, eqn)
        known.update(zip(eqn.outvars, visit(equation, [read(atom) for atom in eqn.invars]), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def evaluate(equation: Equation, operands: list[Any]) -> list[Any]:
    """Return the results of one equation."""
    eqn = equation.source
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def control_flow(equation: Equation) -> Call | Cond | Scan | None:
    """Return the bodies of a call, cond or scan and what is done with them; None for any other equation."""
    name, params = equation.name, equation.params
    if name in _CALLS:
        checkpoint = {key: params[key] for key in ("prevent_cse", "policy")} if name == "remat2" else None
        return Call(body_of(params[_CALLS[name]]), checkpoint)
    if name == "cond" and params.get("branches_platforms") is None:
        return Cond([body_of(branch) for branch in params["branches"]])
    if name == "scan":
        body, (num_consts, num_carries) = body_of(params["jaxpr"]), _scan_counts(params)
        outs, ins = body.jaxpr.outvars, body.jaxpr.invars[num_consts:]
        constant = [outs[i] is ins[i] for i in range(num_carries)]
        return Scan(body, num_consts, num_carries, constant, params["length"], params["reverse"], params["unroll"])
    return None


def _scan_counts(params: dict[str, Any]) -> tuple[int, int]:
    """Return how many of a scan's operands are constants, and how many are carries."""
    if "ft_in" in params:  # since JAX 0.11: constants, carries and arrays as three groups
        consts, carries, _ = params["ft_in"].unpack()
        return len(consts), len(carries)
    return params["num_consts"], params["num_carry"]


def bodies(equation: Equation) -> list[Body]:
    """Return every body of an equation, whatever its primitive does with them."""
    values = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
    return [body_of(value) for value in values if _is_jaxpr(value)]


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def body_of(jaxpr: Any) -> Body:
    """Return a jaxpr with its constants, whether it is closed or not; since JAX 0.11 these are one class."""
    return Body(getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ()))


def is_float(aval: Any) -> bool:
    """Return whether an array is real and floating, the small formats included."""
    return jnp.issubdtype(getattr(aval, "dtype", bool), jnp.floating)


def is_differentiable(aval: Any) -> bool:
    """Return whether an array is floating, real or complex."""
    return jnp.issubdtype(getattr(aval, "dtype", bool), jnp.inexact)


def touches_ref(equation: Equation) -> bool:
    """Return whether an equation reads, writes or makes a mutable Ref, itself or in a body that is handed one."""
    return any(hasattr(aval, "inner_aval") for aval in (*equation.inputs, *equation.outputs))


def varying_axes(*avals: Any) -> tuple[str, ...]:
    """Return the axes of the mesh along which any of these differ inside shard_map."""
    axes: set[str] = set()
    for aval in avals:  # aval.mat.varying; aval.vma in older JAX
        axes.update(getattr(getattr(aval, "mat", aval), "varying", getattr(aval, "vma", ())))
    return tuple(sorted(axes))


def row_aval(aval: Any) -> Any:
    """Return the abstract value of one row of an array."""
    return mapped_aval(aval.shape[0], 0, aval)


def trace_of(value: Any) -> Any:
    """Return the trace that a tracer belongs to; None for any other value."""
    return getattr(value, "_trace", None) if isinstance(value, jax.core.Tracer) else None


def operation(equation: Equation) -> tuple[Any, ...]:
    """Return the primitive of an equation and the configuration that it was traced under."""
    context = equation.source.ctx
    names = [name for name in getattr(context, "__slots__", ()) if not name.startswith("__")]
    return equation.source.primitive, tuple(getattr(context, name, None) for name in names)


def has_derivative_rules(equation: Equation) -> bool:
    """Return whether an equation is a call of a custom_jvp or custom_vjp function."""
    return equation.name in ("custom_jvp_call", "custom_vjp_call")


def rules_source(equation: Equation) -> str:
    """Return where the derivative rules of a custom_jvp or custom_vjp function are defined."""
    rule = equation.params["jvp_jaxpr_fun" if equation.name == "custom_jvp_call" else "bwd"]
    return str(rule.debug_info.func_src_info)


def derivative_rules(equation: Equation) -> tuple[dict[str, Any], list[Any]]:
    """Return the traced derivative rules of a custom_jvp or custom_vjp function by parameter, and their constants."""
    return (_jvp_rule if equation.name == "custom_jvp_call" else _vjp_rules)(equation.params)


def _jvp_rule(params: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    count = len(params["call_jaxpr"].in_avals) - params["num_consts"]
    rule = params["jvp_jaxpr_fun"].call_wrapped(*[False] * count)
    return {"jvp_jaxpr_fun": tuple(rule)}, list(rule[1])


def _vjp_rules(params: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    inputs, outputs = params["call_jaxpr"].in_avals, params["call_jaxpr"].out_avals
    out_trees = params["out_trees"]
    fwd, consts = params["fwd_jaxpr_thunk"].call_wrapped(*[True] * (len(inputs) - params["num_consts"]))
    results = iter([variable.aval for variable in fwd.outvars])
    residuals = [next(results) if index is None else inputs[index] for index in out_trees()[2]]
    constant: list[Any] = []

    def backward(*leaves: Any) -> list[Any]:
        cotangents = params["bwd"].call_wrapped(*leaves)
        if cotangents and isinstance(cotangents[0], list):  # since JAX 0.11 their list is the first of two results
            cotangents = cotangents[0]
        constant[:] = [None if isinstance(c, jax.Array) else (type(c), c.aval) for c in cotangents]
        return [c for c in cotangents if isinstance(c, jax.Array)]

    bwd = jax.make_jaxpr(backward)(*residuals, *(aval.to_ct_aval() for aval in outputs))
    rules = {"fwd_jaxpr_thunk": (fwd, consts), "bwd": (bwd, constant), "out_trees": out_trees()}
    return rules, [*consts, *bwd.consts]
