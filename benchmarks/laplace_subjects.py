"""Small trained classifiers with real data, the same for every library, and what a library makes of them."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from sklearn.datasets import load_breast_cancer, load_digits

DIGITS, CANCER = "digits, CNN 8/16", "breast cancer, MLP 30-32-2"
STRIDES = (1, 2)  # of the convolutions, 3 × 3 with padding 1
_CHANNELS = (1, 8, 16)
_TEST_SHARE = 0.3
_BATCH_SIZE, _LEARNING_RATE = 64, 3e-3


class Subject(NamedTuple):
    """A network with its data.

    params: θ*, `{"convs": [...], "layers": [...]}` with w and b each; kernels are [3, 3, in, out], matrices [in, out].
    xs, ys: the training data. test_xs, test_ys: held-out data.
    """

    predict: Callable
    params: Any
    xs: np.ndarray
    ys: np.ndarray
    test_xs: np.ndarray
    test_ys: np.ndarray


class Posterior(NamedTuple):
    """A fitted posterior.

    sigma: standard deviation of the chosen prior. evidence: its log marginal likelihood. probabilities: function that
    computes the predictive probabilities of the test set, `[n, classes]`, and waits for them.
    """

    sigma: float | None
    evidence: float | None
    probabilities: Callable[[], np.ndarray]


def subject(data: str, seed: int, epochs: int, size: int | None = None) -> Subject:
    """Return the network of a data set, trained for so many epochs on a random split of `size` rows, or of all."""
    xs, ys = _digits() if data == DIGITS else _cancer()
    order = np.random.default_rng(seed).permutation(len(ys))[:size]
    num_test = round(_TEST_SHARE * len(order))
    test, train = order[:num_test], order[num_test:]
    if data == CANCER:
        xs = (xs - xs[train].mean(axis=0)) / xs[train].std(axis=0)
    init_key, key = jax.random.split(jax.random.key(seed))
    params = _init(init_key, _CHANNELS, (256, 10)) if data == DIGITS else _init(init_key, (), (30, 32, 2))
    if epochs:
        params = _train(params, xs[train], ys[train], key, epochs)
    return Subject(predict, params, xs[train], ys[train], xs[test], ys[test])


def _digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    return (data.images / 16).astype(np.float32)[..., None], data.target.astype(np.int32)


def _cancer() -> tuple[np.ndarray, np.ndarray]:
    data = load_breast_cancer()
    return data.data.astype(np.float32), data.target.astype(np.int32)


def _init(key: Array, channels: tuple[int, ...], sizes: tuple[int, ...]) -> dict[str, Any]:
    """Return initial weights of He's size; biases are 0."""
    shapes: dict[str, list[tuple[int, ...]]] = {
        "convs": [(3, 3, a, b) for a, b in itertools.pairwise(channels)],
        "layers": list(itertools.pairwise(sizes)),
    }

    def part(shape: tuple[int, ...], number: int) -> dict[str, Array]:
        scale = np.sqrt(2 / np.prod(shape[:-1]))
        w = scale * jax.random.normal(jax.random.fold_in(key, number), shape)
        return {"w": w, "b": jnp.zeros(shape[-1])}

    numbers = itertools.count()
    return {name: [part(shape, next(numbers)) for shape in group] for name, group in shapes.items()}


def predict(params: Any, x: Array) -> Array:
    """Return the logits of one input: convolutions with ReLU, then fully connected layers with tanh between them."""
    h = x
    for p, stride in zip(params["convs"], STRIDES, strict=False):
        h = jax.lax.conv_general_dilated(
            h[None], p["w"], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        h = jax.nn.relu(h + p["b"])
    *hidden, last = params["layers"]
    h = h.reshape(-1)
    for p in hidden:
        h = jnp.tanh(h @ p["w"] + p["b"])
    return h @ last["w"] + last["b"]


@partial(jax.jit, static_argnames="epochs")
def _train(params: Any, xs: Any, ys: Any, key: Array, epochs: int) -> Any:
    """Return a maximum of the log posterior under a standard normal prior, by Adam with a cosine schedule."""
    size, batch = ys.shape[0], min(_BATCH_SIZE, ys.shape[0])
    steps = size // batch
    optimizer = optax.adam(optax.cosine_decay_schedule(_LEARNING_RATE, epochs * steps))

    def loss(params: Any, rows: Array) -> Array:
        logits = jax.vmap(predict, (None, 0))(params, xs[rows])
        misfit = optax.softmax_cross_entropy_with_integer_labels(logits, ys[rows]).mean()
        return misfit + optax.tree.norm(params, squared=True) / (2 * size)

    def step(state: Any, rows: Array) -> tuple[Any, None]:
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, rows), moments)
        return (optax.apply_updates(params, updates), moments), None

    def epoch(state: Any, key: Array) -> tuple[Any, None]:
        order = jax.random.permutation(key, size)[: steps * batch].reshape(steps, batch)
        return jax.lax.scan(step, state, order)[0], None

    state = params, optimizer.init(params)
    return jax.lax.scan(epoch, state, jax.random.split(key, epochs))[0][0]
