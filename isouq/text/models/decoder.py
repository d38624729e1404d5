"""The causal language models by one configurable decoder; `architectures.DECODERS` lists the families.

Modules see ONE sequence. Shapes: T tokens, D hidden, H heads of size K, G groups of keys and values, L layers, V
vocabulary, S places in a cache. All layers have one shape, so their parameters are stacked `[L, ...]` and one
`lax.scan` runs them: a model of any depth compiles once, and with `jax.checkpoint` on a step the backward pass holds
one layer's activations and L hidden states.

Causality makes padding on the right exact: no position looks at a later one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from isouq.text.models import rope
from isouq.text.models.activations import ACTIVATIONS
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.models.embed import Embed
from isouq.text.models.low_rank import LowRank, linear
from isouq.text.models.norms import norm


class Cache(NamedTuple):
    """Keys and values already computed, and how many of the S places are filled is the caller's to know."""

    keys: Float[Array, "L G S K"]
    values: Float[Array, "L G S K"]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; every head of query group g shares the keys and values of g."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        c, k = config, config.head_dim
        size, q, kv = c.hidden_size, c.num_heads * k, c.num_kv_heads * k
        self.q = linear(c, "attention.q", size, q, use_bias=c.qkv_bias, rngs=rngs)
        self.k = linear(c, "attention.k", size, kv, use_bias=c.qkv_bias, rngs=rngs)
        self.v = linear(c, "attention.v", size, kv, use_bias=c.qkv_bias, rngs=rngs)
        self.out = linear(c, "attention.out", q, size, use_bias=c.out_bias, rngs=rngs)
        if scales := c.scales("attention.qkv"):
            self.qkv = LowRank(size, q + 2 * kv, scales, rngs)
        if c.qk_norm:
            wide = c.qk_norm == "all"
            self.q_norm = norm(c.norm_kind, c.num_heads * k if wide else k, c.norm_eps, rngs)
            self.k_norm = norm(c.norm_kind, c.num_kv_heads * k if wide else k, c.norm_eps, rngs)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "T D"],
        angles: tuple[Array, Array],
        mask: Array,
        cache: tuple[Array, Array] | None = None,
        start: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "T D"], tuple[Array, Array]]:
        """Return the output and the keys and values `[G, S, K]` it was computed from.

        angles: (cos, sin) `[T, K / 2]`. mask: `[T, S]`, True where a query sees a key. cache: this layer's keys and
        values, into which those of x are written from place `start` on; without one S is T.
        """
        c = self.config
        q, k, v = self.q(x), self.k(x), self.v(x)
        if c.scales("attention.qkv"):
            borders = (q.shape[-1], q.shape[-1] + k.shape[-1])
            q, k, v = (dense + term for dense, term in zip((q, k, v), jnp.split(self.qkv(x), borders, -1), strict=True))
        if c.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.reshape(-1, c.num_heads, c.head_dim)
        k = k.reshape(-1, c.num_kv_heads, c.head_dim)
        v = v.reshape(-1, c.num_kv_heads, c.head_dim)
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope.turn(q, *angles), rope.turn(k, *angles)
        k, v = k.swapaxes(0, 1), v.swapaxes(0, 1)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k.astype(cache[0].dtype), start, axis=1)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v.astype(cache[1].dtype), start, axis=1)
        grouped = q.reshape(-1, c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
        scores = _cap(jnp.einsum("tgnk,gsk->gnts", grouped, k).astype(jnp.float32) * c.attention_scale, c.attention_cap)
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(v.dtype)
        self.weights = nnx.Intermediate(weights)  # for `collect` of `Decoder.run`
        mixed = jnp.einsum("gnts,gsk->tgnk", weights, v)
        return self.out(mixed.reshape(-1, c.num_heads * c.head_dim)), (k, v)


class MLP(nnx.Module):
    """down(a(gate x) · up x) (Shazeer 2020, arXiv 2002.05202), or down(a(up x)) where it is not gated."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        size, wide = config.hidden_size, config.intermediate_size
        if config.gated:
            self.gate = linear(config, "mlp.gate", size, wide, use_bias=config.mlp_bias, rngs=rngs)
        self.up = linear(config, "mlp.up", size, wide, use_bias=config.mlp_bias, rngs=rngs)
        self.down = linear(config, "mlp.down", wide, size, use_bias=config.mlp_bias, rngs=rngs)
        if scales := config.scales("mlp.gate_up"):
            self.gate_up = LowRank(size, 2 * wide, scales, rngs)
        self.config = config

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Map `[T, D]` to `[T, D]`."""
        c, activation, up = self.config, ACTIVATIONS[self.config.activation], self.up(x)
        if not c.gated:
            return self.down(activation(up))
        gate = self.gate(x)
        if c.scales("mlp.gate_up"):
            low_gate, low_up = jnp.split(self.gate_up(x), 2, -1)
            gate, up = gate + low_gate, up + low_up
        return self.down(activation(gate) * up)


class Experts(nnx.Module):
    """A gated MLP for each expert; a token takes the sum of a few of them, weighted by a router's probabilities.

    All experts see all tokens, one expert after the other, and those that a token did not choose count 0. That is E / k
    times the work of the chosen k of E, and it can be mapped over a batch and differentiated.

    Fedus et al. 2021, arXiv 2101.03961; Jiang et al. 2024, arXiv 2401.04088.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=config.num_experts)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> MLP:
            return MLP(config, rngs)

        self.router = linear(config, "mlp.router", config.hidden_size, config.num_experts, use_bias=False, rngs=rngs)
        self.experts = stacked(rngs)
        self.config = config

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Map `[T, D]` to `[T, D]`."""
        c = self.config
        chosen_p, chosen = jax.lax.top_k(jax.nn.softmax(self.router(x).astype(jnp.float32)), c.experts_per_token)
        if c.normalise_experts:
            chosen_p = chosen_p / jnp.sum(chosen_p, axis=-1, keepdims=True)
        weights = jnp.sum(jax.nn.one_hot(chosen, c.num_experts) * chosen_p[..., None], axis=1).astype(x.dtype)
        graph, params = nnx.split(self.experts)

        def add(total: Array, expert: tuple[Any, Array]) -> tuple[Array, None]:
            own, weight = expert
            return total + weight[:, None] * nnx.merge(graph, own)(x), None

        return jax.lax.scan(add, jnp.zeros_like(x), (params, weights.T))[0]


class Block(nnx.Module):
    """Attention and MLP, each added to its input; `DecoderConfig.norms` says where the norms stand."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        def new_norm() -> nnx.Module:
            return norm(config.norm_kind, config.hidden_size, config.norm_eps, rngs)

        self.attention = Attention(config, rngs)
        self.attention_norm = new_norm()
        self.mlp = Experts(config, rngs) if config.num_experts else MLP(config, rngs)
        self.mlp_norm = new_norm()
        if config.norm_places == "both":
            self.attention_out_norm, self.mlp_out_norm = new_norm(), new_norm()
        self.config = config

    def __call__(self, x: Float[Array, "T D"], *attention: Any) -> tuple[Float[Array, "T D"], tuple[Array, Array]]:
        """Map `[T, D]` to `[T, D]`; arguments and results are those of `Attention`."""
        norms, scale = self.config.norm_places, self.config.residual_scale
        if norms == "after":
            mixed, cache = self.attention(x, *attention)
            x = x + self.attention_norm(mixed)
            return x + self.mlp_norm(self.mlp(x)), cache
        mixed, cache = self.attention(self.attention_norm(x), *attention)
        if norms == "parallel":
            return x + mixed + self.mlp(self.mlp_norm(x)), cache
        if norms == "both":
            x = x + self.attention_out_norm(mixed)
            return x + self.mlp_out_norm(self.mlp(self.mlp_norm(x))), cache
        x = x + _times(mixed, scale)
        return x + _times(self.mlp(self.mlp_norm(x)), scale), cache


class Decoder(nnx.Module):
    """Token ids `[T]` to next-token logits `[T, V]`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        self.embed = Embed(config.vocab_size, config.hidden_size, rngs)
        if config.learned_positions:
            self.position = Embed(config.context_length, config.hidden_size, rngs)
        self.layers = stacked(rngs)
        self.norm = norm(config.norm_kind, config.hidden_size, config.norm_eps, rngs)
        if not config.tied:
            self.head = nnx.Linear(config.hidden_size, config.vocab_size, use_bias=False, rngs=rngs)
        self.config = config

    def __call__(self, ids: Int[Array, " T"]) -> Float[Array, "T V"]:
        """Return the logits of the token after each position."""
        return self.logits(self.hidden(ids))

    def hidden(
        self, ids: Int[Array, " T"], length: Int[Array, ""] | int | None = None, remat: bool = True
    ) -> Float[Array, "T D"]:
        """Return the hidden states before the output layer.

        length: real tokens, where ids are padded on the right; only rotary variants that depend on the length
        ask for it. remat: recompute a layer's activations in the backward pass rather than keep them.
        """
        layers = slice(0, self.config.num_layers), nnx.split(self.layers)[1]
        return self.norm(self.run(self.embed_tokens(ids), *layers, length, remat))

    def embed_tokens(self, ids: Int[Array, " T"], start: Int[Array, ""] | int = 0) -> Float[Array, "T D"]:
        """Return what enters the first layer, for tokens at positions start, start + 1, …"""
        x = _times(self.embed(ids), self.config.embed_scale)
        return x + self.position(start + jnp.arange(ids.shape[0])) if self.config.learned_positions else x

    def run(
        self,
        x: Float[Array, "T D"],
        layers: slice,
        params: Any,
        length: Int[Array, ""] | int | None = None,
        remat: bool = True,
        collect: Callable[[Block, Array], Any] | None = None,
    ) -> Any:
        """Return x after some of the layers, whose stacked parameters are given; `length` and `remat` as in `hidden`.

        collect: a function of a layer's block and output. With it the result is (x, its values stacked); the weights
        of the block's attention are `block.attention.weights[...]`, `[G, H / G, T, T]`.
        """
        graph = nnx.split(self.layers)[0]
        count = x.shape[0]
        positions = jnp.arange(count)
        angles = layer_angles(self.config, positions, jnp.asarray(count if length is None else length))

        def step(x: Array, layer: tuple[Any, Array, Array]) -> tuple[Array, Any]:
            weights, window, turn = layer
            block = nnx.merge(graph, weights)
            x = block(x, angles(turn), causal(positions, positions, window))[0]
            return x, collect(block, x) if collect else None

        windows, rope_index = (jnp.asarray(each[layers]) for each in (self.config.windows, self.config.rope_index))
        x, collected = jax.lax.scan(jax.checkpoint(step) if remat else step, x, (params, windows, rope_index))
        return (x, collected) if collect else x

    def logits(self, hidden: Float[Array, "*T D"], kernel: Float[Array, "D V"] | None = None) -> Float[Array, "*T V"]:
        """Apply the output layer, or another `kernel`, in float32 whatever the dtype of the parameters."""
        if kernel is None:
            kernel = self.embed.embedding[...].T if self.config.tied else self.head.kernel[...]
        logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
        return _cap(_times(logits, self.config.logits_scale), self.config.logits_cap)

    def extend(
        self, ids: Int[Array, " T"], cache: Cache, start: Int[Array, ""] | int, length: Int[Array, ""] | int
    ) -> tuple[Float[Array, "T D"], Cache]:
        """Return the hidden states of T further tokens at positions start, start + 1, …, and the cache with them in it.

        Places beyond the tokens in use may hold anything: they are masked until they are written.
        """
        graph, params = nnx.split(self.layers)
        count = ids.shape[0]
        positions = start + jnp.arange(count)
        angles = layer_angles(self.config, positions, jnp.asarray(length))
        places = jnp.arange(cache.keys.shape[2])

        # The cache is carried, and only the new places are written: as an input and output of `scan` it would be
        # copied for every token.
        def step(carry: tuple[Array, Cache], layer: tuple[Any, ...]) -> tuple[tuple[Array, Cache], None]:
            (x, cache), (weights, window, turn, i) = carry, layer
            mask, kept = causal(positions, places, window), (cache.keys[i], cache.values[i])
            x, filled = nnx.merge(graph, weights)(x, angles(turn), mask, kept, start)
            new = (jax.lax.dynamic_slice_in_dim(leaf, start, count, axis=1)[None] for leaf in filled)
            at = tuple(map(jnp.int32, (i, 0, start, 0)))  # of one type, also where JAX counts in int64
            written = (jax.lax.dynamic_update_slice(leaf, one, at) for leaf, one in zip(cache, new, strict=True))
            return (x, Cache(*written)), None

        c = self.config
        layers = params, jnp.asarray(c.windows), jnp.asarray(c.rope_index), jnp.arange(c.num_layers)
        (x, cache), _ = jax.lax.scan(step, (self.embed_tokens(ids, start), cache), layers)
        return self.norm(x), cache


def empty_cache(config: DecoderConfig, places: int, dtype: Any) -> Cache:
    """Return a cache of one sequence with room for so many tokens; 2 · L · S · G · K numbers."""
    shape = (config.num_layers, config.num_kv_heads, places, config.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def layer_angles(
    config: DecoderConfig, positions: Int[Array, " T"], length: Int[Array, ""]
) -> Callable[[Array], tuple[Array, Array]]:
    """Return the function from a layer's entry in `rope_index` to (cos, sin) of its rotations."""
    cos, sin = config.rope.tables(positions, length)
    if not any(config.rope_index):
        return lambda turn: (cos, sin)
    other_cos, other_sin = jnp.ones_like(cos), jnp.zeros_like(sin)
    if config.other_rope is not None:
        other_cos, other_sin = config.other_rope.tables(positions, length)
    return lambda turn: (jnp.where(turn, other_cos, cos), jnp.where(turn, other_sin, sin))


def _times(x: Array, factor: float) -> Array:
    """Return x · factor."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


def _cap(scores: Array, cap: float) -> Array:
    """Return cap · tanh(scores / cap), which lies within ± cap; the scores themselves for a cap of 0."""
    return cap * jnp.tanh(scores / cap) if cap else scores


def causal(queries: Int[Array, " T"], keys: Int[Array, " S"], window: Int[Array, ""]) -> Array:
    """Return a mask `[T, S]` in which a query sees itself and up to window − 1 positions before it."""
    back = queries[:, None] - keys[None, :]
    return (back >= 0) & (back < window)
