"""Fine-tuning with optax: AdamW with a warm-up, early stopping on the validation loss. One logit, two classes."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

WEIGHT_DECAY = 0.01
BATCH = 32


class Fit(NamedTuple):
    """params: of the epoch with the smallest validation loss, `best` (0 is before any step).

    train: mean loss over each epoch's batches; validation: loss before any step and after each epoch.
    """

    params: Any
    best: int
    train: list[float]
    validation: list[float]


def fit(
    predict: Callable,
    params: Any,
    train: tuple[Any, np.ndarray],
    validation: tuple[Any, np.ndarray],
    seed: int,
    *,
    rate: float,
    epochs: int,
    patience: int,
    progress: Callable[[float], None] | None = None,
) -> Fit:
    """Minimises the mean cross-entropy of `predict(params, x) -> logit [1]`; stops `patience` epochs after the best.

    rate: of AdamW, reached after a tenth of all steps. Batches of 32 texts in an order drawn from the seed; what is
    left over at the end of an epoch is dropped.
    """
    (xs, ys), rng = train, np.random.default_rng(seed)
    batch = min(BATCH, len(ys))
    steps = len(ys) // batch
    warmup = max(1, epochs * steps // 10)
    state = _optimiser(rate, warmup).init(params)
    best, losses, averages = params, [], [_loss(predict, params, *validation)]
    for epoch in range(epochs):
        order, seen = rng.permutation(len(ys)), []
        for step in range(steps):
            rows = order[step * batch : (step + 1) * batch]
            params, state, loss = _step(predict, params, state, _rows(xs, rows), ys[rows], rate, warmup)
            seen.append(loss)
            if progress is not None:
                progress((epoch + (step + 1) / steps) / epochs)
        losses.append(float(np.mean(seen)))
        averages.append(_loss(predict, params, *validation))
        if averages[-1] == min(averages):
            best = params
        if len(averages) - 1 - int(np.argmin(averages)) >= patience:
            break
    return Fit(best, int(np.argmin(averages)), losses, averages)


def logits(predict: Callable, params: Any, xs: Any) -> Float[np.ndarray, " n"]:
    """The logit of every text, 16 at a time."""
    return np.asarray(_logits(predict, params, xs))


@jax.jit
def _logits(predict: Callable, params: Any, xs: Any) -> Array:
    return jax.lax.map(lambda x: predict(params, x).reshape(()), xs, batch_size=16)


def _loss(predict: Callable, params: Any, xs: Any, ys: np.ndarray) -> float:
    return float(np.mean(optax.sigmoid_binary_cross_entropy(jnp.asarray(logits(predict, params, xs)), jnp.asarray(ys))))


def _optimiser(rate: float, warmup: int) -> optax.GradientTransformation:
    return optax.adamw(optax.linear_schedule(rate / warmup, rate, warmup), weight_decay=WEIGHT_DECAY)


@functools.partial(jax.jit, static_argnames=("rate", "warmup"))
def _step(
    predict: Callable, params: Any, state: Any, xs: Any, ys: Array, rate: float, warmup: int
) -> tuple[Any, Any, Array]:
    def loss(theta: Any) -> Array:
        found = jax.vmap(predict, (None, 0))(theta, xs)[:, 0]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(found, ys.astype(found.dtype)))

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = _optimiser(rate, warmup).update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def _rows(xs: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], xs)
