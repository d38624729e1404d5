"""Small networks whose gradients cancel over positions: inputs on which squared norms lose digits most easily.

`p(params, x)` is a probability of one example x `[POSITIONS, FEATURES]`. Inputs on a level of 10⁴ with a spread of 1
leave float32 four digits. The tests of the engine and `python -m benchmarks device` use them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

POSITIONS, FEATURES, WIDTH = 6, 24, 24
LEVELS = (1.0, 10.0, 100.0, 1e3, 1e4)


def weights() -> dict[str, np.ndarray]:
    """Return the parameters that all the networks share, in float64."""
    rng = np.random.default_rng(0)
    shapes = {"w": (FEATURES, WIDTH), "v": (WIDTH, 3), "table": (40, WIDTH), "kernel": (2, FEATURES, WIDTH)}
    return {name: rng.normal(size=shape) / np.sqrt(FEATURES) for name, shape in shapes.items()}


def inputs(level: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return examples around a level with a spread of 1, in float64."""
    return level + rng.normal(size=(count, POSITIONS, FEATURES))


def probability(f: Callable[[Any, Array], Array]) -> Callable[[Any, Array], Array]:
    """Return the probability of the predicted class of a network."""

    def p(w: Any, x: Array) -> Array:
        outputs = f(w, x)
        return jax.nn.softmax(outputs)[jnp.argmax(outputs)]

    return p


def _read_out(h: Array, p: Any) -> Array:
    return jnp.tanh(h * jnp.arange(1.0, len(h) + 1)[:, None] / len(h)).mean(0) @ p["v"]


def centred(p: Any, x: Array) -> Array:
    """Return the outputs of a layer whose positions are centred and scaled."""
    h = x @ p["w"]
    return _read_out((h - h.mean(0, keepdims=True)) / (h.std(0, keepdims=True) + 1e-3), p)


def differences(p: Any, x: Array) -> Array:
    """Return the outputs of a layer whose neighbouring positions are subtracted."""
    h = x @ p["w"]
    return _read_out(h[1:] - h[:-1], p)


def two_levels(p: Any, x: Array) -> Array:
    """Return outputs of two groups of positions, each centred on a level of its own: one mean is not enough."""
    h = jnp.concatenate([x[:3], -3 * x[3:]]) @ p["w"]
    return _read_out(jnp.concatenate([h[:3] - h[:3].mean(0, keepdims=True), h[3:] - h[3:].mean(0, keepdims=True)]), p)


def siamese(p: Any, x: Array) -> Array:
    """Return outputs of one weight at two sites whose cotangents have opposite signs."""
    return _read_out(x[:3] @ p["w"] - x[3:] @ p["w"], p)


def attention_over_positions(p: Any, x: Array) -> Array:
    """Return outputs of keys under a softmax: a shift of all keys changes nothing."""
    scores = jax.nn.softmax((x @ p["w"]) @ jnp.ones(WIDTH) / 10)
    return jnp.tanh(scores @ (x - x.mean(0, keepdims=True)) @ jnp.ones((FEATURES, 3)) / 5) * jnp.arange(1.0, 4.0)


def in_a_scan(p: Any, x: Array) -> Array:
    """Return outputs of a weight that every step of a scan uses; the carry takes differences."""

    def step(last: Array, row: Array) -> tuple[Array, Array]:
        return row @ p["w"], row @ p["w"] - last

    return _read_out(lax.scan(step, x[0] @ p["w"], x)[1], p)


def convolved(p: Any, x: Array) -> Array:
    """Return the outputs of a convolution over positions, centred."""
    h = lax.conv_general_dilated(x[None], p["kernel"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"))[0]
    return _read_out(h - h.mean(0, keepdims=True), p)


def looked_up(p: Any, x: Array) -> Array:
    """Return outputs of rows looked up twice, with opposite signs, and used as a tied output layer."""
    ids = jnp.array([3, 7, 3, 7, 5, 3])
    h = p["table"][ids] + x[:, :WIDTH]
    h = h - p["table"][ids[::-1]]
    return _read_out(h, p) + (jnp.tanh(h - h.mean(0, keepdims=True)) @ p["table"].T).mean(0)[:3]


NETWORKS = (centred, differences, two_levels, siamese, attention_over_positions, in_a_scan, convolved, looked_up)
