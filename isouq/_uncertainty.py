"""The epistemic and aleatoric uncertainty of predictions: `isouq.uncertainty`.

With the margin m = log p_c − log(1 − p_c) (the log-odds of class c) and
a = p_c(1 − p_c), the chain rule gives ∇p_c = a ∇m, hence

    aleatoric = a,    epistemic = gᵀΣg = a² · ∇mᵀ Σ ∇m,    g = ∇_θ p_c.

Differentiating m in place of p_c is exact and keeps the digits where a probability saturates: in float32 σ(20) is 1
and its automatic derivative is 0, while a = σ(m)σ(−m) ≈ 2·10⁻⁹ is right. The product is computed as
a · (a · ∇mᵀΣ∇m), because a² underflows in float32 where the product does not. Its logarithm is computed from
log a = −|m| − 2 log(1 + e^−|m|), which never underflows.

Source: "An Isotropic Approach to Efficient Uncertainty Quantification with Gradient Norms",
arXiv 2603.29466; the factorisation through the margin is ours.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isouq import _checks, _memory
from isouq._ensemble import EnsembleUncertainty, Parts, add_relative, class_of_mean, combine, first_member
from isouq._frozen import Program
from isouq._predict import check_predict, check_target, margin, predicted_class
from isouq._room import bytes_of_one
from isouq._rows import estimate_rows, lay_out, map_rows, share_program
from isouq.covariance import Covariance, Dense, Identity, StructuredCovariance
from isouq.gradnorm import value_and_grad_quadratic, value_and_grad_sq_norm
from isouq.gradnorm._plain import tree_sq_norm
from isouq.gradnorm._selection import EVERYTHING, Selection

ENGINES = ("jaxpr", "vmap")


class Uncertainty(NamedTuple):
    """The two uncertainties of n predictions; every field has shape `[n]`.

    epistemic: gᵀΣg, or ‖g‖² without a covariance (units: probability² per parameter²; for regression output² per
        parameter²). It ranks the inputs of one model and has no scale across models.
    aleatoric: p_c(1 − p_c), between 0 and ¼. None for regression, where a predicted mean says nothing about the noise.
    probability: p_c; for regression the predicted mean.
    target: the class c whose probability was differentiated; None for regression.
    log_epistemic: the natural logarithm of epistemic. It is right where epistemic itself underflows to 0 (in float32
        from a margin of about 50 on), so that a ranking by it has no such ties. It is −inf where ∇m = 0 (or, in
        float32, where ‖∇m‖² < 10⁻³⁸), and where p_c is exactly 0 or 1 because all other logits, or that of c, are −inf.
    """

    epistemic: Float[Array, " n"]
    aleatoric: Float[Array, " n"] | None
    probability: Float[Array, " n"]
    target: Int[Array, " n"] | None
    log_epistemic: Float[Array, " n"]


@overload
def uncertainty(
    predict: Callable,
    params: Any,
    xs: Any,
    kind: str,
    *,
    target: Any = None,
    covariance: Any = None,
    select: Any = None,
    ensemble: Literal[False] = False,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    engine: str = "jaxpr",
    devices: Any = None,
) -> Uncertainty: ...


@overload
def uncertainty(
    predict: Callable,
    params: Any,
    xs: Any,
    kind: str,
    *,
    target: Any = None,
    covariance: Any = None,
    select: Any = None,
    ensemble: Literal[True],
    batch_size: int | None = None,
    max_bytes: int | None = None,
    engine: str = "jaxpr",
    devices: Any = None,
) -> EnsembleUncertainty: ...


def uncertainty(
    predict: Callable,
    params: Any,
    xs: Any,
    kind: str,
    *,
    target: Any = None,
    covariance: Any = None,
    select: Any = None,
    ensemble: bool = False,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    engine: str = "jaxpr",
    devices: Any = None,
) -> Uncertainty | EnsembleUncertainty:
    """Return the epistemic uncertainty gᵀΣg and the aleatoric uncertainty p(1 − p) of every prediction, exactly.

    Args:
        predict: `predict(params, x) -> outputs` of ONE example: logits `[classes]` (multiclass),
            a logit `[]` of class 1 (binary), a mean `[]` (regression). Any callable of JAX code. It is traced anew at
            every call, so that it reads the present values of globals and attributes; a function of `jax.jit`, such as
            those of `isouq.models`, is traced once for a shape and keeps what it read then.
        params: any pytree of floating arrays; the gradient is taken with respect to all of it, or to the part that
            select chooses. A complex array counts as its real and imaginary parts (without a covariance, or with
            `Identity`).
        xs: inputs with a leading axis n (an array or a pytree of arrays).
        kind: "binary", "multiclass" or "regression".
        target: class labels `[n]`, or one label for all; by default the predicted class of each.
        covariance: Σ of the parameters (see `isouq.covariance`); None is the identity, the paper's
            isotropic choice. With select it is that of the chosen parameters, as `isouq.laplace(..., select=select)`
            gives it: it fits params with None in place of the others.
        select: the parameters that the gradient is taken of, by default all. Either a regular expression that matches
            their paths, such as "layers.1.kernel", or those of branches: "layers.1" is layer 1, and not 10 or 11. Or
            a pytree of booleans that is a prefix of params, as `optax.masked` takes, such as
            `{"layers": {0: False, 1: True}}`. The other parameters are constants, and nothing is computed backward
            through layers that come before the first chosen one.
        ensemble: True where every leaf of params has a leading axis of K ≥ 2 members, networks of one shape that were
            trained from different starts. covariance and select are then those of each member.
        batch_size: number of inputs that are scored at a time, which bounds the memory; by default as many as take
            about 256 MiB by a bound from their shapes, and under `jax.jit` or for inputs on several devices all. It
            changes no number beyond rounding. 1 maps one by one without `jax.vmap`, for a predict with a primitive that
            cannot be batched, such as `jax.lax.ragged_dot`.
        max_bytes: memory that scoring may take beside params, xs and the result, in bytes. About the largest
            batch_size whose compiled program keeps to it is used, mostly after two compilations for each shape, of
            which the second is used. It cannot be given under `jax.jit`, nor together with batch_size.
        engine: "jaxpr" reads the norms off a backward pass (see `isouq.grad_sq_norm`); "vmap" forms every
            gradient, as a check.
        devices: a list of devices that share the inputs, such as `jax.local_devices()`. Each gets a copy of params,
            and batch_size and max_bytes apply to each. By default the arrays stay where they are: on one device, or
            where `isouq.sharding` put them. The cores of one CPU device share the work without this.

    Returns:
        `Uncertainty(epistemic, aleatoric, probability, target, log_epistemic)`, each `[n]`; float32 for bfloat16
        parameters, else the dtype of the outputs. With ensemble=True
        `EnsembleUncertainty(epistemic, between, within, aleatoric, probability, target)`, each `[n]`, with

            between = (1/K) Σ_k (p_k − p̄)²,    within = (1/K) Σ_k g_kᵀΣg_k,    p̄ = (1/K) Σ_k p_k,

        and epistemic = between / mean(between) + within / mean(within), which is relative to the inputs of the call.
        In the leaderboard of docs/when-to-trust.md epistemic of ten members, each trained under a prior with a mean of
        its own, ranks the inputs significantly better than ‖g‖² of one network; `between` of members that were trained
        without a prior ranks them significantly worse.

    Raises:
        ValueError: a wrong shape, NaN in params or xs, an unknown kind or label, a max_bytes that is too small for one
            input, a select that does not fit params or chooses nothing, or an ensemble with fewer than two members or
            with different numbers of members in two leaves. The message is one line that says what to do. An input
            whose outputs are NaN is no error: its uncertainties are NaN.

    Cost: one forward and one backward pass for each input, mostly less than a training step, and the memory of
    batch_size × activations (`isouq.explain` shows more). With "vmap", with a `Dense` covariance or with one of your
    own: batch_size × (chosen parameters + activations). An ensemble takes K times these passes, and K forward passes
    more unless target is given. Its members come one after the other, so that the memory grows by one copy of a member
    and by two numbers for each member and input of a batch.

    The program is compiled once for a shape, select and what predict computes: a function that computes the same, such
    as a new lambda around the same code, uses it again, with other arrays too; another Python number makes another
    program. Numbers of inputs share programs, eight between a power of two and the next: copies of the first input, at
    most an eighth of all, fill a program up. Each call also traces predict, in less than 2 ms for a small MLP and about
    20 µs for each operation, unless predict is a function of `jax.jit`. In a loop compile the call, which takes 0.1 ms
    a call:

    >>> score = jax.jit(functools.partial(isouq.uncertainty, predict, kind="multiclass"))  # doctest: +SKIP
    >>> score(params, xs)  # doctest: +SKIP

    Source: arXiv 2603.29466; regression replaces p by the mean. Ensembles: Lakshminarayanan et al. (2017),
    arXiv 1612.01474, with the law of total variance.
    """
    _checks.one_of("kind", kind, _checks.KINDS)
    layout = lay_out(xs, batch_size, devices, (params, target))
    _checks.inexact_leaves("params", params)
    _checks.finite("params", params)
    _checks.finite("xs", xs)
    _checks.one_of("engine", engine, ENGINES)
    _checks.boolean("ensemble", ensemble)
    member = first_member(params) if ensemble else params
    selection = Selection.of(select, member)
    check_covariance(covariance, selection.choose(member))
    predict, num_classes = check_predict(predict, member, xs, kind, "params of member 0" if ensemble else "params")
    engine = engine if predict.traceable else "vmap"
    if target is not None:
        target = check_target(target, layout.size, kind, num_classes)
    estimate = _estimate_members if ensemble else _estimate

    def bytes_of_row() -> int:
        leaves, treedef = jax.tree.flatten(jax.tree.map(jax.typeof, covariance))
        return _bytes_of_row(predict.program, tuple(leaves), treedef, target is None, kind, engine, selection)

    if max_bytes is not None:
        if batch_size is not None:
            raise ValueError("batch_size and max_bytes were both given; max_bytes chooses the batch size, so give one")
        rows, labels = (xs, target) if devices is None else _memory.shapes_of_rows((xs, target), layout.share)
        args = (predict, params, rows, labels, covariance, kind)
        chosen = _memory.batch_size(estimate, args, engine, max_bytes, bytes_of_row(), selection)
        layout = layout._replace(batch_size=chosen)
    layout = share_program(layout, xs, bytes_of_row)
    options = (kind, layout.batch_size, engine, selection)
    result = estimate_rows(estimate, (predict, params, xs, target, covariance), options, layout)
    return add_relative(result) if ensemble else result


@jax.jit(static_argnames=("kind", "batch_size", "engine", "selection"))
def _estimate(
    predict: Callable,
    params: Any,
    xs: Any,
    target: Array | None,
    covariance: Covariance | None,
    kind: str,
    batch_size: int | None,
    engine: str,
    selection: Selection = EVERYTHING,
) -> Uncertainty:
    """Return the uncertainty of every row of xs; the compiled part of `uncertainty`."""

    def one(x: Any, label: Array | None) -> Uncertainty:
        value, quadratic, c = _differentiate(predict, params, x, label, covariance, kind, engine, selection)
        log_quadratic = jnp.log(jnp.maximum(quadratic, 0))
        if kind == "regression":
            return Uncertainty(quadratic, None, value, None, log_quadratic)
        aleatoric = jax.nn.sigmoid(value) * jax.nn.sigmoid(-value)
        log_aleatoric = -jnp.abs(value) - 2 * jnp.log1p(jnp.exp(-jnp.abs(value)))
        epistemic = aleatoric * (aleatoric * quadratic)
        return Uncertainty(epistemic, aleatoric, jax.nn.sigmoid(value), c, 2 * log_aleatoric + log_quadratic)

    return map_rows(one, (xs, target), batch_size)


@jax.jit(static_argnames=("kind", "batch_size", "engine", "selection"))
def _estimate_members(
    predict: Callable,
    members: Any,
    xs: Any,
    target: Array | None,
    covariance: Covariance | None,
    kind: str,
    batch_size: int | None,
    engine: str,
    selection: Selection = EVERYTHING,
) -> Parts:
    """Return the parts of the ensemble's uncertainty of every row of xs; one member after the other."""

    def one(x: Any, label: Array | None) -> Parts:
        c = class_of_mean(predict, members, x, kind) if label is None else label

        def differentiate(member: Any) -> tuple[Array, Array]:
            return _differentiate(predict, member, x, c, covariance, kind, engine, selection)[:2]

        values, quadratics = jax.lax.map(differentiate, members)
        return combine(values, quadratics, c, kind)

    return map_rows(one, (xs, target), batch_size)


def _differentiate(
    predict: Callable,
    params: Any,
    x: Any,
    label: Array | None,
    covariance: Covariance | None,
    kind: str,
    engine: str,
    selection: Selection,
) -> tuple[Array, Array, Array | None]:
    """Return the margin m of ONE input, ∇mᵀΣ∇m and the class, the predicted one where label is None."""

    def scalar(theta: Any) -> tuple[Array, Array | None]:
        outputs = predict(selection.replace(params, theta), x)
        c = predicted_class(outputs, kind) if label is None else label
        return margin(outputs, c, kind), c

    (value, c), quadratic = value_and_quadratic(scalar, selection.choose(params), covariance, engine)
    return value.astype(quadratic.dtype), quadratic, c


@functools.lru_cache(maxsize=256)
def _bytes_of_row(
    program: Program,
    leaves: tuple[Any, ...],
    treedef: Any,
    without_label: bool,
    kind: str,
    engine: str,
    selection: Selection,
) -> int:
    """Return a bound on the bytes that one input takes; leaves and treedef are those of an abstract covariance."""
    frozen, (params, x) = program.abstract()
    label = None if without_label else jax.ShapeDtypeStruct((), jnp.int32)

    def one(fixed: Any, x: Any, label: Any) -> Any:
        predict, params, covariance = fixed
        return _differentiate(predict, params, x, label, covariance, kind, engine, selection)

    return bytes_of_one(one, (frozen, params, jax.tree.unflatten(treedef, leaves)), x, label)


def value_and_quadratic(scalar: Callable, params: Any, covariance: Covariance | None, engine: str) -> tuple[Any, Array]:
    """Return `((value, aux), gᵀΣg)` of a scalar with aux; no gradient is formed where engine and covariance allow."""
    if engine == "jaxpr" and covariance is None:
        return value_and_grad_sq_norm(scalar, has_aux=True)(params)
    if engine == "jaxpr" and isinstance(covariance, StructuredCovariance):
        return value_and_grad_quadratic(scalar, covariance.forms(params), has_aux=True)(params)
    value, grad = jax.value_and_grad(scalar, has_aux=True)(params)
    if covariance is None:
        return value, tree_sq_norm(grad)
    return value, covariance.quadratic(jax.tree.map(lambda g: g[None], grad))[0]


def check_covariance(covariance: Any, params: Any) -> None:
    """Raise unless the covariance fits the parameters."""
    if covariance is None:
        return
    if isinstance(covariance, type) or not hasattr(covariance, "quadratic"):
        name = getattr(covariance, "__name__", type(covariance).__name__)
        expected = "an instance, e.g. of isouq.laplace or isouq.Dense.from_covariance(matrix)"
        if hasattr(covariance, "covariance"):  # what choose_prior and fit_scale return
            expected = "its field .covariance"
        raise ValueError(f"covariance is {name}; expected {expected}")
    if isinstance(covariance, (StructuredCovariance, Dense)) and not isinstance(covariance, Identity):
        _checks.real_leaves("params", params, " with a covariance other than Identity")
    if isinstance(covariance, StructuredCovariance):
        covariance.forms(params)
