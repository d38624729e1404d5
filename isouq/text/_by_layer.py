"""Decoding on a CPU by one compiled program a layer, which reads the layer's weights where they lie.

`lax.scan` over stacked layers copies each layer's weights before it multiplies by them, which on a CPU takes longer
than the products of a token. Here every layer is a program of its own, called with a view of its part of the stack:
nothing is copied, and one compiled program serves all layers. It computes what `Decoder.extend` does for one token.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from isouq.text.models import decoder, parameters
from isouq.text.models.decoder_config import DecoderConfig


class Layer(NamedTuple):
    """One layer's parameters, window and entry in `rope_index`."""

    params: Any
    window: Any
    turn: Any


def layer_views(config: DecoderConfig, params: Any) -> list[Layer] | None:
    """Return the layers with their parameters as views of the stacked ones, or None where these are not on one CPU.

    Cost: no memory, except for leaves whose layers do not begin at multiples of 64 bytes: these are copied.
    """
    leaves, structure = jax.tree.flatten(params["layers"])
    if not all(isinstance(leaf, jax.Array) and leaf.is_fully_addressable for leaf in leaves):
        return None
    devices = {device for leaf in leaves for device in leaf.devices()}
    if len(devices) != 1 or (device := devices.pop()).platform != "cpu":
        return None
    # The views are committed to the device where the parameters are: else `_run_layer` would be compiled a second time.
    place = device if any(leaf.committed for leaf in leaves) else None
    stacks = [np.asarray(leaf) for leaf in leaves]
    windows, turns = np.asarray(config.windows, np.int32), np.asarray(config.rope_index, np.int32)
    layers = []
    for i in range(config.num_layers):
        own = jax.device_put([stack[i] for stack in stacks], place, may_alias=True)
        layers.append(Layer(jax.tree.unflatten(structure, own), windows[i], turns[i]))
    return layers


def next_hidden(
    config: DecoderConfig, layers: Sequence[Layer], x: Float[Array, "B D"], caches: list[Any], position: Array
) -> Array:
    """Return the output `[B, D]` of the last layer for a token at `position` of each row, and write it to the caches.

    caches: (keys, values) of each layer, each `[B, G, S, K]`; the list's entries are replaced, and the old donated.
    """
    for i, layer in enumerate(layers):
        x, caches[i] = _run_layer(config, layer, x, caches[i], position)
    return x


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _run_layer(
    config: DecoderConfig, layer: Layer, x: Float[Array, "B D"], cache: tuple[Array, Array], position: Int[Array, " B"]
) -> tuple[Float[Array, "B D"], tuple[Array, Array]]:
    """Return the layer's output, and its cache with the keys and values of the token in it."""
    graph = parameters.structure(decoder.Block, config)[0]
    places = jnp.arange(cache[0].shape[2])

    def one(x: Array, cache: tuple[Array, Array], position: Array) -> tuple[Array, tuple[Array, Array]]:
        angles = decoder.layer_angles(config, position[None], position + 1)(layer.turn)
        mask = decoder.causal(position[None], places, layer.window)
        output, cache = nnx.merge(graph, layer.params)(x[None], angles, mask, cache, position)
        return output[0], cache

    return jax.vmap(one)(x, cache, position)


@jax.jit
def unstack(cache: decoder.Cache) -> list[tuple[Array, Array]]:
    """Return (keys, values) of each layer, each `[B, G, S, K]`, of a cache whose leaves are `[B, L, G, S, K]`."""
    return [(cache.keys[:, i], cache.values[:, i]) for i in range(cache.keys.shape[1])]


@functools.partial(jax.jit, static_argnums=1)
def widen(caches: list[tuple[Array, Array]], places: int) -> list[tuple[Array, Array]]:
    """Return the caches with room for so many tokens."""
    room = places - caches[0][0].shape[2]
    return jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 0), (0, 0), (0, room), (0, 0))), caches)
