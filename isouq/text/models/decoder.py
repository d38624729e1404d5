"""The causal language models: Llama 2/3, SmolLM2, Mistral, Qwen 2/2.5/3, OLMo 2, Phi-3/4 by one configurable decoder.

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
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.models.embed import Embed
from isouq.text.models.parameters import Table, Tensor


class Cache(NamedTuple):
    """Keys and values already computed, and how many of the S places are filled is the caller's to know."""

    keys: Float[Array, "L S G K"]
    values: Float[Array, "L S G K"]


class Attention(nnx.Module):
    """Grouped-query attention with rotary positions; every head of query group g shares the keys and values of g."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        c, k = config, config.head_dim
        self.q = nnx.Linear(c.hidden_size, c.num_heads * k, use_bias=c.qkv_bias, rngs=rngs)
        self.k = nnx.Linear(c.hidden_size, c.num_kv_heads * k, use_bias=c.qkv_bias, rngs=rngs)
        self.v = nnx.Linear(c.hidden_size, c.num_kv_heads * k, use_bias=c.qkv_bias, rngs=rngs)
        self.out = nnx.Linear(c.num_heads * k, c.hidden_size, use_bias=c.out_bias, rngs=rngs)
        if c.qk_norm:
            wide = c.qk_norm == "all"
            self.q_norm = nnx.RMSNorm(c.num_heads * k if wide else k, epsilon=c.norm_eps, rngs=rngs)
            self.k_norm = nnx.RMSNorm(c.num_kv_heads * k if wide else k, epsilon=c.norm_eps, rngs=rngs)
        self.config = config

    def __call__(
        self,
        x: Float[Array, "T D"],
        angles: tuple[Array, Array],
        mask: Array,
        cache: tuple[Array, Array] | None = None,
        start: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "T D"], tuple[Array, Array]]:
        """Return the output and the keys and values `[S, G, K]` it was computed from.

        angles: (cos, sin) `[T, K / 2]`. mask: `[T, S]`, True where a query sees a key. cache: this layer's keys and
        values, into which those of x are written from place `start` on; without one S is T.
        """
        c = self.config
        q, k, v = self.q(x), self.k(x), self.v(x)
        if c.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.reshape(-1, c.num_heads, c.head_dim)
        k = k.reshape(-1, c.num_kv_heads, c.head_dim)
        v = v.reshape(-1, c.num_kv_heads, c.head_dim)
        if c.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope.turn(q, *angles), rope.turn(k, *angles)
        if cache is not None:
            k = jax.lax.dynamic_update_slice_in_dim(cache[0], k.astype(cache[0].dtype), start, axis=0)
            v = jax.lax.dynamic_update_slice_in_dim(cache[1], v.astype(cache[1].dtype), start, axis=0)
        grouped = q.reshape(-1, c.num_kv_heads, c.num_heads // c.num_kv_heads, c.head_dim)
        scores = jnp.einsum("tgnk,sgk->gnts", grouped, k).astype(jnp.float32) * c.head_dim**-0.5
        weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(v.dtype)
        self.weights = nnx.Intermediate(weights)  # for `collect` of `Decoder.run`
        mixed = jnp.einsum("gnts,sgk->tgnk", weights, v)
        return self.out(mixed.reshape(-1, c.num_heads * c.head_dim)), (k, v)


class SwiGLU(nnx.Module):
    """down(silu(gate x) · up x). Shazeer 2020, arXiv 2002.05202."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        sizes = config.hidden_size, config.intermediate_size
        self.gate = nnx.Linear(*sizes, use_bias=config.mlp_bias, rngs=rngs)
        self.up = nnx.Linear(*sizes, use_bias=config.mlp_bias, rngs=rngs)
        self.down = nnx.Linear(*sizes[::-1], use_bias=config.mlp_bias, rngs=rngs)

    def __call__(self, x: Float[Array, "T D"]) -> Float[Array, "T D"]:
        """Map `[T, D]` to `[T, D]`."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention and MLP with residuals; RMS norms stand before each, or after each with `post_norm`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        self.attention = Attention(config, rngs)
        self.attention_norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, rngs=rngs)
        self.mlp = SwiGLU(config, rngs)
        self.mlp_norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, rngs=rngs)
        self.post_norm = config.post_norm

    def __call__(self, x: Float[Array, "T D"], *attention: Any) -> tuple[Float[Array, "T D"], tuple[Array, Array]]:
        """Map `[T, D]` to `[T, D]`; arguments and results are those of `Attention`."""
        if self.post_norm:
            mixed, cache = self.attention(x, *attention)
            x = x + self.attention_norm(mixed)
            return x + self.mlp_norm(self.mlp(x)), cache
        mixed, cache = self.attention(self.attention_norm(x), *attention)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache


class Decoder(nnx.Module):
    """Token ids `[T]` to next-token logits `[T, V]`."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        @nnx.split_rngs(splits=config.num_layers)
        @nnx.vmap
        def stacked(rngs: nnx.Rngs) -> Block:
            return Block(config, rngs)

        self.embed = Embed(config.vocab_size, config.hidden_size, rngs)
        self.layers = stacked(rngs)
        self.norm = nnx.RMSNorm(config.hidden_size, epsilon=config.norm_eps, rngs=rngs)
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
        return self.norm(self.run(self.embed(ids), *layers, length, remat))

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
        angles = self.config.rope.tables(positions, jnp.asarray(count if length is None else length))

        def step(x: Array, layer: tuple[Any, Array]) -> tuple[Array, Any]:
            block, window = nnx.merge(graph, layer[0]), layer[1]
            x = block(x, angles, _causal(positions, positions, window))[0]
            return x, collect(block, x) if collect else None

        windows = jnp.asarray(self.config.windows[layers])
        x, collected = jax.lax.scan(jax.checkpoint(step) if remat else step, x, (params, windows))
        return (x, collected) if collect else x

    def logits(self, hidden: Float[Array, "*T D"], kernel: Float[Array, "D V"] | None = None) -> Float[Array, "*T V"]:
        """Apply the output layer, or another `kernel`, in float32 whatever the dtype of the parameters."""
        if kernel is None:
            kernel = self.embed.embedding[...].T if self.config.tied else self.head.kernel[...]
        return jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)

    def extend(
        self, ids: Int[Array, " T"], cache: Cache, start: Int[Array, ""] | int, length: Int[Array, ""] | int
    ) -> tuple[Float[Array, "T D"], Cache]:
        """Return the hidden states of T further tokens at positions start, start + 1, …, and the cache with them in it.

        Places beyond the tokens in use may hold anything: they are masked until they are written.
        """
        graph, params = nnx.split(self.layers)
        count = ids.shape[0]
        positions = start + jnp.arange(count)
        angles = self.config.rope.tables(positions, jnp.asarray(length))
        places = jnp.arange(cache.keys.shape[1])

        # The cache is carried, and only the new places are written: as an input and output of `scan` it would be
        # copied for every token.
        def step(carry: tuple[Array, Cache], layer: tuple[Any, Array, Array]) -> tuple[tuple[Array, Cache], None]:
            (x, cache), (weights, window, i) = carry, layer
            block = nnx.merge(graph, weights)
            x, filled = block(x, angles, _causal(positions, places, window), (cache.keys[i], cache.values[i]), start)
            new = (jax.lax.dynamic_slice_in_dim(leaf, start, count)[None] for leaf in filled)
            at = (i, start, 0, 0)
            written = (jax.lax.dynamic_update_slice(leaf, one, at) for leaf, one in zip(cache, new, strict=True))
            return (x, Cache(*written)), None

        layers = params, jnp.asarray(self.config.windows), jnp.arange(len(self.config.windows))
        (x, cache), _ = jax.lax.scan(step, (self.embed(ids), cache), layers)
        return self.norm(x), cache


def empty_cache(config: DecoderConfig, places: int, dtype: Any) -> Cache:
    """Return a cache of one sequence with room for so many tokens; 2 · L · S · G · K numbers."""
    shape = (config.num_layers, places, config.num_kv_heads, config.head_dim)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def table(config: DecoderConfig) -> Table:
    """Where each parameter stands in a checkpoint with Hugging Face's names."""
    tensors = {
        "embed.embedding": Tensor("model.embed_tokens.weight"),
        "norm.scale": Tensor("model.norm.weight"),
        "head.kernel": Tensor("lm_head.weight", transpose=True),
    }
    before, after = "input_layernorm", "post_attention_layernorm"
    if config.post_norm:
        before, after = "post_attention_layernorm", "post_feedforward_layernorm"
    layer = "model.layers.{}."
    tensors["layers.attention_norm.scale"] = Tensor(f"{layer}{before}.weight")
    tensors["layers.mlp_norm.scale"] = Tensor(f"{layer}{after}.weight")
    for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
        tensors[f"layers.attention.{ours}.kernel"] = Tensor(f"{layer}self_attn.{theirs}.weight", transpose=True)
        tensors[f"layers.attention.{ours}.bias"] = Tensor(f"{layer}self_attn.{theirs}.bias")
        tensors[f"layers.attention.{ours}_norm.scale"] = Tensor(f"{layer}self_attn.{ours}_norm.weight")
    for name in ("gate", "up", "down"):
        tensors[f"layers.mlp.{name}.kernel"] = Tensor(f"{layer}mlp.{name}_proj.weight", transpose=True)
        tensors[f"layers.mlp.{name}.bias"] = Tensor(f"{layer}mlp.{name}_proj.bias")
    if config.fused:
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        wide = config.intermediate_size
        parts = (("q", slice(0, q)), ("k", slice(q, q + kv)), ("v", slice(q + kv, q + 2 * kv)))
        for name, rows in parts:
            tensors[f"layers.attention.{name}.kernel"] = Tensor(f"{layer}self_attn.qkv_proj.weight", True, rows)
        for name, rows in (("gate", slice(0, wide)), ("up", slice(wide, 2 * wide))):
            tensors[f"layers.mlp.{name}.kernel"] = Tensor(f"{layer}mlp.gate_up_proj.weight", True, rows)
    return tensors


def _causal(queries: Int[Array, " T"], keys: Int[Array, " S"], window: Int[Array, ""]) -> Array:
    """Return a mask `[T, S]` in which a query sees itself and up to window − 1 positions before it."""
    back = queries[:, None] - keys[None, :]
    return (back >= 0) & (back < window)
