"""Small and middling models for `python -m benchmarks engine`: linear, convolutional, recurrent, attention, look-ups.

Each is `predict(params, x) -> logits [classes]` of ONE example. Those with running statistics or a recurrent cell are
Flax NNX modules; the others are plain JAX.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax

from isouq import models

CLASSES = 3
BATCHES = (1, 16, 256, 2000)
_SMALL_BATCHES = BATCHES[:3]  # of models whose activations fill the memory bandwidth long before
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


class Model(NamedTuple):
    """A model with its parameters. inputs: a function from the number of examples to a batch of them."""

    predict: Callable[[Any, Array], Array]
    params: Any
    inputs: Callable[[int], np.ndarray]
    batches: tuple[int, ...] = BATCHES


def _weights(*shapes: tuple[int, ...]) -> list[Array]:
    """Return random weights scaled by the square root of their inputs, and small random vectors for biases."""
    rng = np.random.default_rng(0)
    draws = (rng.standard_normal(shape, np.float32) for shape in shapes)
    return [jnp.asarray(d / math.sqrt(math.prod(d.shape[:-1]) if d.ndim > 1 else 100)) for d in draws]


def _normal(*shape: int) -> Callable[[int], np.ndarray]:
    return lambda count: np.random.default_rng(1).standard_normal((count, *shape), np.float32)


def _ids(length: int, vocabulary: int) -> Callable[[int], np.ndarray]:
    return lambda count: np.random.default_rng(1).integers(0, vocabulary, (count, length)).astype(np.int32)


def _mlp(*sizes: int) -> Model:
    """Return an MLP with these sizes, from features to classes; with two sizes a linear head."""
    predict, init = models.mlp(sizes[0], sizes[1:-1], sizes[-1])
    return Model(predict, init(jax.random.key(0)), _normal(sizes[0]))


def _conv(x: Array, kernel: Array, bias: Array, stride: int = 1) -> Array:
    """Return a padded convolution of an image [H, W, C]."""
    y = lax.conv_general_dilated(x[None], kernel, (stride, stride), "SAME", dimension_numbers=_DIMENSIONS)
    return y[0] + bias[None, None]


def _cnn(image: tuple[int, int, int], channels: tuple[int, ...], classes: int) -> Model:
    """Return convolutions 3 × 3, all but the first with stride 2, and a dense layer."""
    sizes = list(zip((image[2], *channels[:-1]), channels, strict=True))
    pixels = math.prod(math.ceil(side / 2 ** (len(channels) - 1)) for side in image[:2])
    shapes = [shape for c, f in sizes for shape in ((3, 3, c, f), (f,))]
    params = _weights(*shapes, (pixels * channels[-1], classes), (classes,))

    def predict(params: Any, x: Array) -> Array:
        for i in range(len(channels)):
            x = jax.nn.relu(_conv(x, params[2 * i], params[2 * i + 1], 2 if i else 1))
        return x.reshape(-1) @ params[-2] + params[-1]

    return Model(predict, params, _normal(*image), _SMALL_BATCHES if max(channels) > 16 else BATCHES)


def _residual_cnn() -> Model:
    """Return two residual blocks of two convolutions with 16 channels, on images of 16 × 16 × 3."""
    shapes = [shape for c in (3, 16, 16, 16, 16) for shape in ((3, 3, c, 16), (16,))]
    params = _weights(*shapes, (16, 10), (10,))

    def predict(params: Any, x: Array) -> Array:
        x = _conv(x, *params[:2])
        for i in (2, 6):
            inner = jax.nn.relu(_conv(jax.nn.relu(x), *params[i : i + 2]))
            x = x + _conv(inner, *params[i + 2 : i + 4])
        return jnp.mean(jax.nn.relu(x), axis=(0, 1)) @ params[-2] + params[-1]

    return Model(predict, params, _normal(16, 16, 3), _SMALL_BATCHES)


class _BatchNormNet(nnx.Module):
    """Two dense layers or convolutions, each with a BatchNorm, and a dense layer to the classes."""

    def __init__(self, layers: list[nnx.Module], widths: tuple[int, int], flat: int) -> None:
        rngs = nnx.Rngs(0)
        self.layers = nnx.List(layers)
        self.norms = nnx.List([nnx.BatchNorm(width, rngs=rngs) for width in widths])
        self.head = nnx.Linear(flat, CLASSES, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = jax.nn.relu(norm(layer(x)))
        return self.head(x.reshape(-1))


def _batch_norm(convolutional: bool) -> Model:
    """Return a network with BatchNorm in evaluation mode, on images of 8 × 8 or on 16 features."""
    rngs = nnx.Rngs(0)
    if convolutional:
        layers: list[Any] = [nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)]
        net, inputs = _BatchNormNet(layers, (8, 16), 256), _normal(8, 8, 1)
    else:
        layers = [nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 32, rngs=rngs)]
        net, inputs = _BatchNormNet(layers, (32, 32), 32), _normal(16)
    net.eval()
    return Model(*models.from_nnx(net), inputs)


def _layer_norm(h: Array, scale: Array, bias: Array) -> Array:
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    row = (1,) * (h.ndim - 1) + (-1,)
    scaled = centred * lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
    return scale.reshape(row) * scaled + bias.reshape(row)


def _layer_norm_mlp() -> Model:
    """Return an MLP of widths 16, 64, 64 with a LayerNorm after each hidden layer."""
    params = _weights((16, 64), (64,), (64,), (64,), (64, 64), (64,), (64,), (64,), (64, CLASSES), (CLASSES,))

    def predict(params: Any, x: Array) -> Array:
        for i in (0, 4):
            w, b, scale, shift = params[i : i + 4]
            x = jnp.tanh(_layer_norm(x @ w + b, 1 + scale, shift))
        return x @ params[8] + params[9]

    return Model(predict, params, _normal(16))


class _Recurrent(nnx.Module):
    """A recurrent cell over 20 steps of 8 features, and a dense layer on its last output."""

    def __init__(self, cell: type, hidden: int) -> None:
        rngs = nnx.Rngs(0)
        self.rnn, self.head = nnx.RNN(cell(8, hidden, rngs=rngs)), nnx.Linear(hidden, CLASSES, rngs=rngs)
        self.hidden = hidden

    def __call__(self, x: Array) -> Array:
        zeros = jnp.zeros(self.hidden)
        carry = (zeros, zeros) if isinstance(self.rnn.cell, nnx.LSTMCell) else zeros
        return self.head(self.rnn(x, initial_carry=carry)[-1])


def _recurrent(cell: type, hidden: int) -> Model:
    return Model(*models.from_nnx(_Recurrent(cell, hidden)), _normal(20, 8))


def _attention(length: int, width: int, vocabulary: int = 500, heads: int = 4) -> Model:
    """Return an encoder of one block with token embeddings, pooled by the mean."""
    norm = [(width,), (width,)]
    block = [*norm, (width, 3 * width), (width, width), *norm, (width, 4 * width), (4 * width, width)]
    params = _weights((vocabulary, width), (length, width), *block, (width, CLASSES))

    def predict(params: Any, ids: Array) -> Array:
        tokens, places, s1, b1, qkv, out, s2, b2, up, down, head = params
        h = tokens[ids] * 10 + places
        q, k, v = (part.reshape(length, heads, -1) for part in jnp.split(_layer_norm(h, 1 + s1, b1) @ qkv, 3, -1))
        scores = jax.nn.softmax(jnp.einsum("qhc,khc->hqk", q, k) / math.sqrt(width / heads))
        h = h + jnp.einsum("hqk,khc->qhc", scores, v).reshape(length, width) @ out
        h = h + jax.nn.gelu(_layer_norm(h, 1 + s2, b2) @ up) @ down
        return jnp.mean(h, axis=0) @ head

    return Model(predict, params, _ids(length, vocabulary), _SMALL_BATCHES)


def _embedding_bag() -> Model:
    """Return the mean of 20 rows of a table of 1,000 × 32, and an MLP on it."""
    params = _weights((1000, 32), (32, 32), (32,), (32, CLASSES))

    def predict(params: Any, ids: Array) -> Array:
        table, w, b, head = params
        return jnp.tanh(jnp.mean(table[ids], axis=0) @ w + b) @ head

    return Model(predict, params, _ids(20, 1000))


def _mixer() -> Model:
    """Return an MLP-mixer of two blocks: 16 patches of 12 values, 32 channels."""
    patches, channels, hidden = 16, 32, 64
    block = [(patches, hidden), (hidden, patches), (channels, hidden), (hidden, channels)]
    params = _weights((12, channels), *block, *block, (channels, CLASSES))

    def predict(params: Any, x: Array) -> Array:
        h = x @ params[0]
        ones, zeros = jnp.ones(channels), jnp.zeros(channels)
        for i in (1, 5):
            t1, t2, c1, c2 = params[i : i + 4]
            h = h + (jax.nn.gelu(_layer_norm(h, ones, zeros).T @ t1) @ t2).T
            h = h + jax.nn.gelu(_layer_norm(h, ones, zeros) @ c1) @ c2
        return jnp.mean(h, axis=0) @ params[-1]

    return Model(predict, params, _normal(patches, 12))


MODELS: dict[str, Callable[[], Model]] = {
    "linear head, 384 features": lambda: _mlp(384, CLASSES),
    "linear head, 2,048 features": lambda: _mlp(2048, CLASSES),
    "MLP, width 4": lambda: _mlp(16, 4, CLASSES),
    "MLP, width 32": lambda: _mlp(16, 32, CLASSES),
    "MLP, width 256": lambda: _mlp(16, 256, 256, CLASSES),
    "LayerNorm MLP, width 64": _layer_norm_mlp,
    "BatchNorm MLP, width 32": lambda: _batch_norm(convolutional=False),
    "BatchNorm CNN 8/16, 8 × 8": lambda: _batch_norm(convolutional=True),
    "CNN 8/16, 8 × 8": lambda: _cnn((8, 8, 1), (8, 16), 10),
    "CNN 16/32/64, 28 × 28": lambda: _cnn((28, 28, 1), (16, 32, 64), 10),
    "CNN 16/32/64, 32 × 32 × 3": lambda: _cnn((32, 32, 3), (16, 32, 64), 10),
    "residual CNN 16, 16 × 16": _residual_cnn,
    "GRU, 16 units": lambda: _recurrent(nnx.GRUCell, 16),
    "GRU, 64 units": lambda: _recurrent(nnx.GRUCell, 64),
    "LSTM, 16 units": lambda: _recurrent(nnx.LSTMCell, 16),
    "LSTM, 64 units": lambda: _recurrent(nnx.LSTMCell, 64),
    "encoder block 16 × 32": lambda: _attention(16, 32),
    "encoder block 32 × 128": lambda: _attention(32, 128),
    "embedding bag, 1,000 × 32": _embedding_bag,
    "MLP-mixer, 2 blocks of 32": _mixer,
}
