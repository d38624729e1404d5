"""Fine-tuning with optax: AdamW with a warm-up, early stopping on the validation loss. One logit, two classes."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from isouq._checkpoint import Checkpoint, Saved, fingerprint

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
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 60.0,
) -> Fit:
    """Minimise the mean cross-entropy of `predict(params, x) -> logit [1]`; stop `patience` epochs after the best.

    rate: the learning rate of AdamW, reached after a tenth of all steps. Each step takes 32 texts, in an order drawn
    from the seed; the texts that are left over at the end of an epoch are dropped.

    checkpoint: a file from which a killed run goes on, with the numbers of a run that was not killed. It is written
    after a step, at most every `checkpoint_seconds`. A file of other settings or data is ignored. The caller removes
    the file once the result is stored.
    """
    (xs, ys), rng = train, np.random.default_rng(seed)
    batch = min(BATCH, len(ys))
    steps = len(ys) // batch
    warmup = max(1, epochs * steps // 10)
    file = None
    if checkpoint is not None:
        settings = {"seed": seed, "rate": rate, "epochs": epochs, "patience": patience, "batch": batch}
        file = Checkpoint(checkpoint, checkpoint_seconds, fingerprint(settings, (params, train, validation)))
    so_far = _Progress(params, _optimiser(rate, warmup).init(params), params, jnp.zeros(steps), np.zeros(epochs),
                       np.full(epochs + 1, np.inf))  # fmt: skip
    saved = None if file is None else file.load(so_far, None)
    first_step = 0
    if saved is None:
        so_far.validation[0] = _loss(predict, params, *validation)
    else:
        first_step, so_far = saved.blocks, saved.state._replace(seen=jnp.asarray(saved.state.seen))
    for epoch in range(epochs):
        order = rng.permutation(len(ys))
        for step in range(steps):
            if epoch * steps + step < first_step:
                continue
            rows = order[step * batch : (step + 1) * batch]
            params, state, loss = _step(predict, so_far.params, so_far.state, _rows(xs, rows), ys[rows], rate, warmup)
            so_far = so_far._replace(params=params, state=state, seen=so_far.seen.at[step].set(loss))  # does not wait
            if step == steps - 1:
                so_far = _end_of_epoch(so_far, epoch, _loss(predict, params, *validation))
            if file is not None and file.due():
                file.save(Saved(epoch * steps + step + 1, so_far, None))
            if progress is not None:
                progress((epoch + (step + 1) / steps) / epochs)
        averages = so_far.validation[: epoch + 2]
        if (epoch + 1) * steps >= first_step and len(averages) - 1 - int(np.argmin(averages)) >= patience:
            break
    return Fit(so_far.best, int(np.argmin(averages)), so_far.train[: epoch + 1].tolist(), averages.tolist())


class _Progress(NamedTuple):
    """seen: losses of the epoch's steps. train, validation: as in `Fit`; zero and infinite where not yet known."""

    params: Any
    state: Any
    best: Any
    seen: Array
    train: np.ndarray
    validation: np.ndarray


def _end_of_epoch(so_far: _Progress, epoch: int, validation: float) -> _Progress:
    so_far.train[epoch] = np.mean(np.asarray(so_far.seen))
    so_far.validation[epoch + 1] = validation
    return so_far._replace(best=so_far.params) if validation == so_far.validation.min() else so_far


def logits(predict: Callable, params: Any, xs: Any) -> Float[np.ndarray, " n"]:
    """Return the logit of every text, 16 at a time."""
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
        logit = jax.vmap(predict, (None, 0))(theta, xs)[:, 0]
        return jnp.mean(optax.sigmoid_binary_cross_entropy(logit, ys.astype(logit.dtype)))

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = _optimiser(rate, warmup).update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def _rows(xs: Any, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], xs)
