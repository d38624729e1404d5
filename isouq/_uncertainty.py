"""Epistemic and aleatoric uncertainty of a prediction: what a user calls.

The equation. With the margin m = log p_c − log(1 − p_c) (the log-odds of class c) and
a = p_c(1 − p_c), the chain rule gives ∇p_c = a ∇m, hence

    aleatoric = a,    epistemic = gᵀΣg = a² · ∇mᵀ Σ ∇m,    g = ∇_θ p_c.

Differentiating m and not p_c is exact and keeps the digits where a probability saturates: in
float32 σ(20) is 1 and its automatic derivative 0, while a = σ(m)σ(−m) ≈ 2·10⁻⁹ is right. The product is taken as
a · (a · ∇mᵀΣ∇m), for a² leaves float32 where the product does not, and its logarithm from
log a = −|m| − 2 log(1 + e^−|m|), which never does.

Source: "An Isotropic Approach to Efficient Uncertainty Quantification with Gradient Norms",
arXiv 2603.29466; the factorisation through the margin is ours.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from isouq import _checks, _memory, sharding
from isouq._frozen import Frozen, first_row, freeze
from isouq.covariance import Covariance, Dense, Identity, StructuredCovariance
from isouq.gradnorm import value_and_grad_quadratic, value_and_grad_sq_norm
from isouq.gradnorm._plain import tree_sq_norm

ENGINES = ("jaxpr", "vmap")


class Uncertainty(NamedTuple):
    """The two uncertainties of n predictions; every field has shape `[n]`.

    epistemic: gᵀΣg, ‖g‖² without a covariance (units: probability² per parameter²; for regression
        output² per parameter²). Ranks inputs of one model; has no scale across models.
    aleatoric: p_c(1 − p_c), between 0 and ¼. None for regression, where a predicted mean says
        nothing of the noise.
    probability: p_c; for regression the predicted mean.
    target: the class c that was differentiated; None for regression.
    log_epistemic: the natural logarithm of epistemic, right where epistemic itself underflows to 0 (in float32 from
        a margin of about 50 on), so that a ranking by it has no such ties; −inf where ∇m = 0 (or, in float32, where
        ‖∇m‖² < 10⁻³⁸), and where p_c is exactly 0 or 1 because all other logits, or that of c, are −inf.
    """

    epistemic: Float[Array, " n"]
    aleatoric: Float[Array, " n"] | None
    probability: Float[Array, " n"]
    target: Int[Array, " n"] | None
    log_epistemic: Float[Array, " n"]


def margin(outputs: Array, target: Any, kind: str) -> Float[Array, ""]:
    """The scalar of ONE prediction that is differentiated.

    Binary (`outputs` a logit `[]` or `[1]` of class 1) and multiclass (`[classes]`): the log-odds
    log p_c − log(1 − p_c) of class c = `target`. Regression (`[]` or `[1]`): the predicted mean.
    """
    if kind == "multiclass":
        others = jnp.where(jnp.arange(outputs.shape[-1]) == target, -jnp.inf, outputs)
        known = (target >= 0) & (target < outputs.shape[-1])  # under jit a label cannot be checked: NaN, not a guess
        certain = jnp.all(others == -jnp.inf)  # all other classes are masked: a constant, whose gradient is 0, not NaN
        odds = outputs[target] - jax.nn.logsumexp(jnp.where(certain, 0, others))
        return jnp.where(known, jnp.where(certain, jnp.where(jnp.isnan(odds), odds, jnp.inf), odds), jnp.nan)
    scalar = outputs.reshape(())
    if kind == "regression":
        return scalar
    return jnp.where(target == 1, scalar, -scalar)


def predicted_class(outputs: Array, kind: str) -> Int[Array, ""] | None:
    """Argmax of the class probabilities of ONE prediction (a binary tie at logit 0 is class 0)."""
    if kind == "multiclass":
        return jnp.argmax(outputs, axis=-1).astype(jnp.int32)
    if kind == "binary":
        return (outputs.reshape(()) > 0).astype(jnp.int32)
    return None


def uncertainty(
    predict: Callable,
    params: Any,
    xs: Any,
    kind: str,
    target: Any = None,
    covariance: Any = None,
    batch_size: int | None = None,
    max_bytes: int | None = None,
    engine: str = "jaxpr",
    devices: Any = None,
) -> Uncertainty:
    """Epistemic gᵀΣg and aleatoric p(1 − p) uncertainty of every prediction, exactly.

    Args:
        predict: `predict(params, x) -> outputs` of ONE example: logits `[classes]` (multiclass),
            a logit `[]` of class 1 (binary), a mean `[]` (regression). Any callable of JAX code, traced anew at every
            call: whatever it reads from outside is what it is now.
        params: any pytree of floating arrays; the gradient is taken with respect to all of it. A complex one counts as
            its real and imaginary parts (without a covariance, or with `Identity`).
        xs: inputs with a leading axis n (an array or a pytree of arrays).
        kind: "binary", "multiclass" or "regression".
        target: class labels `[n]`, or one label for all; by default the predicted class of each.
        covariance: Σ of the parameters (see `isouq.covariance`); None is the identity, the paper's
            isotropic choice.
        batch_size: inputs scored at a time; bounds memory to that of batch_size inputs. By default all
            at once. Changes no number beyond rounding. 1 maps one by one without `jax.vmap`, for a predict
            with a primitive that cannot be batched, such as `jax.lax.ragged_dot`.
        max_bytes: memory that scoring may take beside params, xs and the result, in bytes; the largest
            batch_size that the compiled program says it can keep to is found (a few compilations, once per
            shape) and used. Not under `jax.jit`, and not together with batch_size.
        engine: "jaxpr" reads the norms off a backward pass (see `isouq.grad_sq_norm`); "vmap" forms every
            gradient, as a check.
        devices: a list of devices that share the inputs, such as `jax.local_devices()`; each gets a copy of params,
            and batch_size and max_bytes hold for each. By default the arrays stay where they are: one device, or
            those of `isouq.sharding`. Several GPUs share the time; the cores of one CPU device do so by themselves.

    Returns:
        `Uncertainty(epistemic, aleatoric, probability, target, log_epistemic)`, each `[n]`; float32 for bfloat16
        parameters, else the dtype of the outputs.

    Raises:
        ValueError: a wrong shape, NaN in params or xs, an unknown kind or label; one line that says what to do.
            An input whose outputs are NaN gets NaN and stops nothing. A max_bytes that not even one
            input fits in: the message says what is needed and what would fit.

    Cost: one forward and one backward pass an input, mostly less than a training step; memory batch_size ×
    activations (`isouq.explain` shows more). With "vmap", a `Dense` covariance or one of your own:
    batch_size × (parameters + activations). Compiles once for a shape and for what predict computes: an equal
    function, such as a new lambda around the same code, uses the program again, with other arrays too; another
    Python number is another program. Beside that a call traces predict, below 2 ms for a small MLP and about 20 µs
    an operation. In a hot loop compile the call, which freezes predict as `jax.jit` does; 0.1 ms a call remain:

    >>> score = jax.jit(functools.partial(isouq.uncertainty, predict, kind="multiclass"))  # doctest: +SKIP
    >>> score(params, xs)  # doctest: +SKIP

    Source: arXiv 2603.29466; regression replaces p by the mean.
    """
    _checks.one_of("kind", kind, _checks.KINDS)
    size = _checks.inputs(xs)
    _checks.inexact_leaves("params", params)
    _checks.finite("params", params)
    _checks.finite("xs", xs)
    _checks.one_of("engine", engine, ENGINES)
    _check_covariance(covariance, params)
    if batch_size is not None:
        _checks.positive_int("batch_size", batch_size)
        batch_size = min(batch_size, size)
    if devices is not None:
        if _checks.is_traced((params, xs, target)):
            raise ValueError("devices was given under jax.jit; place the inputs first, by isouq.sharding.shard_inputs")
        mesh = sharding.input_mesh(devices)
        share = -(-size // mesh.shape[mesh.axis_names[0]])
        if batch_size is not None and 1 < share <= batch_size:
            batch_size = None
    predict, num_classes = check_predict(predict, params, xs, kind)
    engine = engine if predict.traceable else "vmap"
    if target is not None:
        target = _check_target(target, size, kind, num_classes)
    if max_bytes is not None:
        if batch_size is not None:
            raise ValueError("batch_size and max_bytes were both given; max_bytes chooses the batch size, so give one")
        mine, labels = (xs, target) if devices is None else _share((xs, target), share)
        args = (predict, params, mine, labels, covariance, kind)
        batch_size = _memory.batch_size(_estimate, args, engine, max_bytes)
    try:
        if devices is None:
            return _estimate(predict, params, xs, target, covariance, kind, batch_size, engine)
        xs, target = sharding.shard_inputs((xs, target), mesh)
        predict, params, covariance = sharding.replicate((predict, params, covariance), mesh)
        padded = _estimate_over(predict, params, xs, target, covariance, kind, batch_size, engine, mesh)
        return jax.tree.map(lambda leaf: leaf[:size], padded)
    except NotImplementedError as error:
        if batch_size == 1:
            raise
        raise NotImplementedError(
            f"predict cannot be batched ({_checks.first_line(error)}); pass batch_size=1, which scores one input at a "
            "time without vmap"
        ) from error


@jax.jit(static_argnames=("kind", "batch_size", "engine", "mesh"))
def _estimate_over(
    predict: Callable,
    params: Any,
    xs: Any,
    target: Array | None,
    covariance: Covariance | None,
    kind: str,
    batch_size: int | None,
    engine: str,
    mesh: jax.sharding.Mesh,
) -> Uncertainty:
    """`_estimate` of each device's inputs by itself, so that a batch never crosses devices."""
    rows, whole = PartitionSpec(mesh.axis_names[0]), PartitionSpec()
    estimate = partial(_estimate, kind=kind, batch_size=batch_size, engine=engine)
    specs = (whole, whole, rows, rows, whole)
    spread = jax.shard_map(estimate, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
    return spread(predict, params, xs, target, covariance)


@jax.jit(static_argnames=("kind", "batch_size", "engine"))
def _estimate(
    predict: Callable,
    params: Any,
    xs: Any,
    target: Array | None,
    covariance: Covariance | None,
    kind: str,
    batch_size: int | None,
    engine: str,
) -> Uncertainty:
    def one(x: Any, label: Array | None) -> Uncertainty:
        def scalar(theta: Any) -> tuple[Array, Array | None]:
            outputs = predict(theta, x)
            c = predicted_class(outputs, kind) if label is None else label
            return margin(outputs, c, kind), c

        (value, c), quadratic = _value_and_quadratic(scalar, params, covariance, engine)
        value = value.astype(quadratic.dtype)
        log_quadratic = jnp.log(jnp.maximum(quadratic, 0))
        if kind == "regression":
            return Uncertainty(quadratic, None, value, None, log_quadratic)
        aleatoric = jax.nn.sigmoid(value) * jax.nn.sigmoid(-value)
        log_aleatoric = -jnp.abs(value) - 2 * jnp.log1p(jnp.exp(-jnp.abs(value)))
        epistemic = aleatoric * (aleatoric * quadratic)
        return Uncertainty(epistemic, aleatoric, jax.nn.sigmoid(value), c, 2 * log_aleatoric + log_quadratic)

    if batch_size is None:
        return jax.vmap(one)(xs, target)
    vmapped = None if batch_size == 1 else batch_size  # no vmap of single inputs: some primitives have no rule for it
    return jax.lax.map(lambda row: one(*row), (xs, target), batch_size=vmapped)


def _value_and_quadratic(
    scalar: Callable, params: Any, covariance: Covariance | None, engine: str
) -> tuple[Any, Array]:
    """`((value, aux), gᵀΣg)` of a scalar with aux; without the gradient where engine and covariance allow."""
    if engine == "jaxpr" and covariance is None:
        return value_and_grad_sq_norm(scalar, has_aux=True)(params)
    if engine == "jaxpr" and isinstance(covariance, StructuredCovariance):
        return value_and_grad_quadratic(scalar, covariance.forms(params), has_aux=True)(params)
    value, grad = jax.value_and_grad(scalar, has_aux=True)(params)
    if covariance is None:
        return value, tree_sq_norm(grad)
    return value, covariance.quadratic(jax.tree.map(lambda g: g[None], grad))[0]


def _share(tree: Any, rows: int) -> Any:
    """Shapes of the rows that one device gets."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((rows, *jnp.shape(leaf)[1:]), jax.dtypes.result_type(leaf)), tree
    )


def _check_covariance(covariance: Any, params: Any) -> None:
    if covariance is None:
        return
    if isinstance(covariance, type) or not hasattr(covariance, "quadratic"):
        name = getattr(covariance, "__name__", type(covariance).__name__)
        raise ValueError(
            f"covariance is {name}; expected an instance, e.g. of isouq.laplace or isouq.Dense.from_covariance(matrix)"
        )
    if isinstance(covariance, (StructuredCovariance, Dense)) and not isinstance(covariance, Identity):
        _checks.real_leaves("params", params, " with a covariance other than Identity")
    if isinstance(covariance, StructuredCovariance):
        covariance.forms(params)


def check_predict(predict: Callable, params: Any, xs: Any, kind: str) -> tuple[Frozen, int | None]:
    """`predict` of one row of xs, frozen, and its number of classes; raises unless it fits the kind."""
    example = first_row(xs)
    try:
        frozen = freeze(predict, params, example)
    except Exception as error:
        if not callable(predict):
            raise
        shapes = jax.tree.map(lambda e: e.shape, example)
        reason = _checks.first_line(error)
        hint = "; for one input, give xs a leading axis: xs[None]" if () in jax.tree.leaves(shapes, _is_shape) else ""
        if type(error).__name__ in ("ModifyScopeVariableError", "InvalidRngError"):  # Flax, whose reasons these are
            hint = (
                "; dropout and batch normalisation must be off: from_linen(module, variables, train=False) or alike; "
                "a collection of your own that the call writes: mutable=[its name]"
            )
        if reason.startswith(("No `deterministic`", "No `use_running_average`")):  # of Flax's NNX
            hint = "; call module.eval() before models.from_nnx(module)"
        raise ValueError(f"predict(params, x) failed on one example of shape {shapes}: {reason}{hint}") from error
    return frozen, _num_classes(frozen.outputs, kind)


def _num_classes(outputs: Any, kind: str) -> int | None:
    shape, dtype = getattr(outputs, "shape", None), getattr(outputs, "dtype", jnp.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"predict returned {dtype}{list(outputs.shape)} for one example; expected floating outputs "
            "(logits or a mean, no label and no argmax)"
        )
    if kind == "multiclass":
        if shape is None or len(shape) != 1 or shape[0] < 2:
            raise ValueError(
                f"predict returned {_describe(outputs)} for one example; multiclass expects logits "
                "[classes] with at least two classes (predict takes ONE example, without a batch axis)"
            )
        return int(shape[0])
    if shape not in ((), (1,)):
        hint = "; for two logits use kind='multiclass'" if kind == "binary" else ""
        raise ValueError(
            f"predict returned {_describe(outputs)} for one example; {kind} expects a scalar [] "
            f"(predict takes ONE example, without a batch axis){hint}"
        )
    return 2 if kind == "binary" else None


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def _describe(outputs: Any) -> str:
    shape = getattr(outputs, "shape", None)
    return f"a {type(outputs).__name__}" if shape is None else f"shape {tuple(shape)}"


def _check_target(target: Any, size: int, kind: str, num_classes: int | None) -> Array:
    if kind == "regression":
        raise ValueError("target was given for regression; it names a class, so leave it out")
    target = jnp.asarray(target)
    if not jnp.issubdtype(target.dtype, jnp.integer):
        raise ValueError(f"target is {target.dtype}; expected integer class labels")
    if target.shape not in ((), (size,)):
        raise ValueError(f"target has shape {target.shape}; expected [] or ({size},), one label an input")
    if not _checks.is_traced(target):
        labels = np.asarray(target)
        if labels.min() < 0 or labels.max() >= (num_classes or 2):
            raise ValueError(
                f"target holds labels from {labels.min()} to {labels.max()}; expected 0 to {(num_classes or 2) - 1}, "
                "counted from 0"
            )
    return jnp.broadcast_to(target, (size,)).astype(jnp.int32)
