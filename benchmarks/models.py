"""The models: weights and inputs as numpy arrays made from a seed, and the JAX functions of one example.

f(params, x) is the probability of class 0, for a language model the log-probability of the token sequence.
`nudge`, where given, is added to the first layer's output (the embeddings of a transformer): the gradient with
respect to it needs every layer's activation gradients and no weight gradient.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import text_models
from benchmarks.cases import Case

CONVOLUTIONS = ((1, 16, 1), (16, 32, 2), (32, 64, 2))  # channels in, channels out, stride; 3 × 3, padding 1
IMAGE = 28
LN_EPS = 1e-5


@functools.lru_cache(maxsize=1)
def weights(case: Case) -> dict[str, Any]:
    """Return the weights as float32 arrays; matrices are [in, out], kernels [3, 3, in, out]."""
    rng = np.random.default_rng(case.seed)

    def matrix(*shape: int, fan_in: int = 0) -> np.ndarray:
        scale = np.float32(1 / math.sqrt(fan_in or math.prod(shape[:-1])))
        return rng.standard_normal(shape, dtype=np.float32) * scale

    def linear(n_in: int, n_out: int) -> dict[str, np.ndarray]:
        return {"w": matrix(n_in, n_out), "b": 0.1 * matrix(n_out, fan_in=1)}

    def norm() -> dict[str, np.ndarray]:
        return {"scale": 1 + 0.1 * matrix(case.width, fan_in=1), "bias": 0.1 * matrix(case.width, fan_in=1)}

    if case.kind == "mlp":
        sizes = [case.features, *[case.width] * case.layers, case.classes]
        return {"layers": [linear(a, b) for a, b in itertools.pairwise(sizes)]}
    if case.kind == "cnn":
        convs = [{"w": matrix(3, 3, a, b), "b": 0.1 * matrix(b, fan_in=1)} for a, b, _ in CONVOLUTIONS]
        pixels = (IMAGE // math.prod(stride for *_, stride in CONVOLUTIONS)) ** 2
        return {"convs": convs, "dense": linear(pixels * CONVOLUTIONS[-1][1], case.classes)}
    d = case.width
    params: dict[str, Any] = {
        "tokens": matrix(case.vocab, d, fan_in=d),
        "positions": matrix(case.length, d, fan_in=d),
        "blocks": [
            {"ln1": norm(), "qkv": linear(d, 3 * d), "out": linear(d, d)}
            | {"ln2": norm(), "up": linear(d, 4 * d), "down": linear(4 * d, d)}
            for _ in range(case.layers)
        ],
        "ln": norm(),
    }
    if case.kind == "encoder":
        params["head"] = linear(d, case.classes)
    elif not case.tied:
        params["head"] = {"w": matrix(d, case.vocab)}
    return params


def count(case: Case) -> int:
    """Return the number of parameters."""
    if case.kind == "text":
        return text_models.count(case)
    return sum(leaf.size for leaf in jax.tree.leaves(weights(case)))


def inputs(case: Case) -> np.ndarray:
    """Return the batch: [B, features], [B, 28, 28, 1], token ids [B, T]; for a language model [B, T + 1]."""
    if case.kind == "text":
        return text_models.inputs(case)
    rng = np.random.default_rng(case.seed + 1)
    if case.kind == "mlp":
        return rng.standard_normal((case.batch, case.features), dtype=np.float32)
    if case.kind == "cnn":
        return rng.standard_normal((case.batch, IMAGE, IMAGE, 1), dtype=np.float32)
    length = case.length + (case.kind == "lm")
    return rng.integers(0, case.vocab, (case.batch, length)).astype(np.int32)


def nudge_shape(case: Case) -> tuple[int, ...]:
    """Return the shape of the first layer's output for one example."""
    shapes = {"mlp": (case.width,), "cnn": (IMAGE, IMAGE, CONVOLUTIONS[0][1])}
    return shapes.get(case.kind, (case.length, case.width))


def jax_function(case: Case, remat: bool = False) -> Callable[..., Array]:
    """Return f(params, x, nudge=None), a scalar function of one example."""
    if case.kind == "lm":
        return lambda params, x, nudge=None: jnp.sum(token_log_probs(case, params, x, nudge, remat))
    logits = {"mlp": _mlp, "cnn": _cnn, "encoder": _encoder}[case.kind]
    return lambda params, x, nudge=None: jax.nn.softmax(logits(case, params, x, nudge))[0]


def token_log_probs(case: Case, params: Any, x: Array, nudge: Array | None = None, remat: bool = False) -> Array:
    """Return log p of each next token, [T]."""
    h = _transformer(case, params, x[:-1], nudge, causal=True, remat=remat)
    logits = h @ (params["tokens"].T if case.tied else params["head"]["w"])
    return jnp.take_along_axis(jax.nn.log_softmax(logits), x[1:, None], axis=-1)[:, 0]


def _mlp(case: Case, params: Any, x: Array, nudge: Array | None) -> Array:
    first, *hidden, last = params["layers"]
    h = jnp.tanh(_nudged(_linear(first, x), nudge))
    for layer in hidden:
        h = jnp.tanh(_linear(layer, h))
    return _linear(last, h)


def _cnn(case: Case, params: Any, x: Array, nudge: Array | None) -> Array:
    h = x
    for i, (conv, (*_, stride)) in enumerate(zip(params["convs"], CONVOLUTIONS, strict=True)):
        h = jax.lax.conv_general_dilated(
            h[None], conv["w"], (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        h = jax.nn.relu(_nudged(h + conv["b"], nudge if i == 0 else None))
    return _linear(params["dense"], h.reshape(-1))


def _encoder(case: Case, params: Any, x: Array, nudge: Array | None) -> Array:
    return _linear(params["head"], jnp.mean(_transformer(case, params, x, nudge, causal=False), axis=0))


def _transformer(case: Case, params: Any, ids: Array, nudge: Array | None, causal: bool, remat: bool = False) -> Array:
    def block(p: Any, h: Array) -> Array:
        h = h + _linear(p["out"], _attention(case, _linear(p["qkv"], _layer_norm(p["ln1"], h)), causal))
        return h + _linear(p["down"], jax.nn.gelu(_linear(p["up"], _layer_norm(p["ln2"], h)), approximate=True))

    h = _nudged(params["tokens"][ids] + params["positions"], nudge)
    step = jax.checkpoint(block) if remat else block
    for p in params["blocks"]:
        h = step(p, h)
    return _layer_norm(params["ln"], h)


def _attention(case: Case, qkv: Array, causal: bool) -> Array:
    t, d = qkv.shape[0], case.width
    q, k, v = (part.reshape(t, case.heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    scores = jnp.einsum("qhc,khc->hqk", q, k) / math.sqrt(d // case.heads)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
    return jnp.einsum("hqk,khc->qhc", jax.nn.softmax(scores), v).reshape(t, d)


def _layer_norm(p: Any, h: Array) -> Array:
    centred = h - jnp.mean(h, axis=-1, keepdims=True)
    return p["scale"] * centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + LN_EPS) + p["bias"]


def _linear(p: Any, h: Array) -> Array:
    return h @ p["w"] + p["b"]


def _nudged(h: Array, nudge: Array | None) -> Array:
    return h if nudge is None else h + nudge
