"""What `predict` returns: margins, differences of probabilities, the predicted class, and checks that it fits."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isouq import _checks
from isouq._errors import first_line
from isouq._frozen import Frozen, first_row, freeze


def margin(outputs: Array, target: Any, kind: str) -> Float[Array, ""]:
    """Return the scalar of ONE prediction that is differentiated.

    Binary (`outputs` a logit `[]` or `[1]` of class 1) and multiclass (`[classes]`): the log-odds
    log p_c − log(1 − p_c) of class c = `target`. Regression (`[]` or `[1]`): the predicted mean.
    """
    if kind == "multiclass":
        others = jnp.where(jnp.arange(outputs.shape[-1]) == target, -jnp.inf, outputs)
        is_class = (target >= 0) & (target < outputs.shape[-1])  # under jit a wrong label cannot raise, and gives NaN
        certain = jnp.all(others == -jnp.inf)  # all other classes are masked: a constant with gradient 0, not NaN
        odds = outputs[target] - jax.nn.logsumexp(jnp.where(certain, 0, others))
        return jnp.where(is_class, jnp.where(certain, jnp.where(jnp.isnan(odds), odds, jnp.inf), odds), jnp.nan)
    scalar = outputs.reshape(())
    if kind == "regression":
        return scalar
    return jnp.where(target == 1, scalar, -scalar)


def probability_difference(a: Array, b: Array) -> Array:
    """Return σ(a) − σ(b) of margins a and b, right to rounding also where both probabilities are nearly 0 or 1.

    For a > b it is σ(a) σ(−b) (1 − e^(b − a)), whose factors have no cancellation.
    """
    high, low = jnp.maximum(a, b), jnp.minimum(a, b)
    size = jax.nn.sigmoid(high) * jax.nn.sigmoid(-low) * -jnp.expm1(low - high)
    return jnp.where(a == b, 0, jnp.where(a > b, size, -size))  # equal infinite margins have the difference 0, not NaN


def predicted_class(outputs: Array, kind: str) -> Int[Array, ""] | None:
    """Return the most probable class of ONE prediction (a binary tie at logit 0 is class 0); None for regression."""
    if kind == "multiclass":
        return jnp.argmax(outputs, axis=-1).astype(jnp.int32)
    if kind == "binary":
        return (outputs.reshape(()) > 0).astype(jnp.int32)
    return None


def check_predict(
    predict: Callable, params: Any, xs: Any, kind: str, name: str = "params"
) -> tuple[Frozen, int | None]:
    """Return `predict` frozen for one row of xs, and its number of classes; raise unless it fits the kind.

    name: what a message calls params.
    """
    example = first_row(xs)
    try:
        frozen = freeze(predict, params, example)
    except Exception as error:
        if not callable(predict):
            raise
        shapes = jax.tree.map(lambda e: e.shape, example)
        reason = first_line(error)
        hint = "; for one input, give xs a leading axis: xs[None]" if () in jax.tree.leaves(shapes, _is_shape) else ""
        if type(error).__name__ in ("ModifyScopeVariableError", "InvalidRngError"):  # errors of Flax
            hint = (
                "; dropout and batch normalisation must be off: from_linen(module, variables, train=False) or alike; "
                "a collection of your own that the call writes: mutable=[its name]"
            )
        if reason.startswith(("No `deterministic`", "No `use_running_average`")):  # errors of Flax NNX
            hint = "; call module.eval() before models.from_nnx(module)"
        if adapter := _checks.adapter_of(predict):
            hint = f"; predict is a module: predict, params = isouq.models.{adapter}"
        raise ValueError(f"predict({name}, x) failed on one example of shape {shapes}: {reason}{hint}") from error
    return frozen, _num_classes(frozen.outputs, kind)


def _num_classes(outputs: Any, kind: str) -> int | None:
    """Return the number of classes of the outputs of one example; raise unless they fit the kind."""
    shape, dtype = getattr(outputs, "shape", None), getattr(outputs, "dtype", jnp.float32)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"predict returned {dtype}{list(outputs.shape)} for one example; expected floating outputs "
            "(logits or a mean, no label and no argmax)"
        )
    if kind == "multiclass":
        if shape is None or len(shape) != 1 or shape[0] < 2:
            raise ValueError(
                f"predict returned {_checks.shape_or_type(outputs)} for one example; multiclass expects logits "
                "[classes] with at least two classes (predict takes ONE example, without a batch axis)"
            )
        return int(shape[0])
    if shape not in ((), (1,)):
        hint = "; for two logits use kind='multiclass'" if kind == "binary" else ""
        raise ValueError(
            f"predict returned {_checks.shape_or_type(outputs)} for one example; {kind} expects a scalar [] "
            f"(predict takes ONE example, without a batch axis){hint}"
        )
    return 2 if kind == "binary" else None


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def check_target(target: Any, size: int, kind: str, num_classes: int | None) -> Array | np.ndarray:
    """Return the class labels `[size]` of the user's target; raise unless it holds labels of the kind."""
    if kind == "regression":
        raise ValueError("target was given for regression; it names a class, so leave it out")
    module: Any = jnp if isinstance(target, jax.Array) else np  # JAX compiles a program to read an array of NumPy
    target = module.asarray(target)
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
    return module.broadcast_to(target, (size,)).astype(np.int32)
