"""ModernBERT: layers that normalise before they compute, rotary positions, gated GELU, and windows of attention.

A layer sees either the whole text or the tokens within a window, and either kind has a base of its own for the
rotation. Windows and bases are arrays over the layers, so that one `lax.scan` runs both kinds.

Warner et al. 2024, arXiv 2412.13663.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from isouq.text.models import bert
from isouq.text.models.activations import ACTIVATIONS
from isouq.text.models.encoder_config import EncoderConfig
from isouq.text.models.parameters import Table, Tensor
from isouq.text.models.rope import turn


class Block(nnx.Module):
    """Attention and a gated dense layer, each added to its input.

    Every norm stands at the end of what it follows: `next_norm` is the one before the next layer's attention, and
    the encoder's last norm in the last layer. The first layer's attention has none.
    """

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        size, width = config.hidden_size, config.intermediate_size
        attention_bias, mlp_bias = "attention" in config.biases, "mlp" in config.biases
        self.qkv = nnx.Linear(size, 3 * size, use_bias=attention_bias, rngs=rngs)
        self.out = nnx.Linear(size, size, use_bias=attention_bias, rngs=rngs)
        self.norm = bert.layer_norm(size, config, rngs)
        self.up = nnx.Linear(size, 2 * width, use_bias=mlp_bias, rngs=rngs)
        self.down = nnx.Linear(width, size, use_bias=mlp_bias, rngs=rngs)
        self.next_norm = bert.layer_norm(size, config, rngs)
        self.num_heads = config.num_heads
        self.activation = config.activation

    def __call__(
        self,
        x: Float[Array, "T D"],
        normed: Float[Array, "T D"],
        seen: Bool[Array, "T T"],
        frequencies: Float[Array, " half"],
    ) -> tuple[Float[Array, "T D"], Float[Array, "T D"]]:
        """Return the layer's output and, normalised for the next layer, the same.

        normed: x as the attention reads it. seen: which keys a query sees. frequencies: angles per position.
        """
        x = x + self._attention(normed, seen, frequencies)
        value, gate = jnp.split(self.up(self.norm(x)), 2, axis=-1)
        x = x + self.down(ACTIVATIONS[self.activation](value) * gate)
        return x, self.next_norm(x)

    def _attention(self, x: Array, seen: Array, frequencies: Array) -> Float[Array, "T D"]:
        """Return what every token reads of those that it sees; the softmax is taken in float32."""
        count = x.shape[0]
        angles = jnp.arange(count, dtype=jnp.float32)[:, None] * frequencies[None, :]
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(count, 3, self.num_heads, -1), 1, 0)
        q, k = (turn(part, jnp.cos(angles), jnp.sin(angles)) for part in (q, k))
        scores = jnp.einsum("thk,shk->hts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        scores = jnp.where(seen[None], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return self.out(jnp.einsum("hts,shk->thk", weights, v).reshape(x.shape))


class Encoder(nnx.Module):
    """Token ids `[T]` to hidden states `[T, D]`."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        self.embeddings = bert.Embeddings(config, rngs)
        self.layers = bert.stack(lambda rngs: Block(config, rngs), config.num_layers, rngs)
        self.config = config

    def __call__(
        self,
        ids: Int[Array, " T"],
        length: Int[Array, ""] | int | None = None,
        token_types: Int[Array, " T"] | None = None,
        remat: bool = False,
    ) -> Float[Array, "T D"]:
        """Return the hidden states after the last norm; see `bert.Encoder`. There are no segments."""
        real = bert.real_tokens(ids, length, self.config)
        positions = jnp.arange(ids.shape[0])
        distance = jnp.abs(positions[:, None] - positions[None, :])
        graph, params = nnx.split(self.layers)

        def step(carry: tuple[Array, Array], layer: Any) -> tuple[tuple[Array, Array], None]:
            params, reach, frequencies = layer
            seen = real[None, :] & (distance <= reach)
            return nnx.merge(graph, params)(*carry, seen, frequencies), None

        x = self.embeddings(ids, None)
        layers = (params, jnp.asarray(self.config.reaches), _frequencies(self.config))
        return jax.lax.scan(jax.checkpoint(step) if remat else step, (x, x), layers)[0][1]


class Head(bert.Head):
    """Logits `[classes]` from one vector `[D]`: dense, activation, norm, dense; the last alone for "linear"."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs)
        if config.head != "linear":
            self.norm = bert.layer_norm(config.hidden_size, config, rngs)

    def __call__(self, x: Float[Array, " D"]) -> Float[Array, " classes"]:
        """Map `[D]` to `[classes]`."""
        return self.out(x if self.kind == "linear" else self.norm(ACTIVATIONS[self.kind](self.dense(x))))


def _frequencies(config: EncoderConfig) -> Float[Array, "L half"]:
    """Return the angles per position of every layer and pair of coordinates, in float32 as transformers has them."""
    size = config.hidden_size // config.num_heads
    powers = np.arange(0, size, 2, dtype=np.float32) / np.float32(size)
    return jnp.asarray(1 / np.asarray(config.thetas, np.float32)[:, None] ** powers[None, :])


# Names in Hugging Face's checkpoints

PREFIX = "model."
LEFT_OVER = ("head.", "decoder.")
LAYER_NAMES = {
    "qkv": "attn.Wqkv",
    "out": "attn.Wo",
    "norm": "mlp_norm",
    "up": "mlp.Wi",
    "down": "mlp.Wo",
}


def table(prefix: str, norm: tuple[str, str]) -> Table:
    """Return where each parameter of the encoder stands; see `bert.table`."""
    layer, last = f"{prefix}layers.{{}}.", f"{prefix}final_norm"
    next_norms = zip(("scale", "bias"), norm, strict=True)
    return {
        "embeddings.token.embedding": Tensor(f"{prefix}embeddings.tok_embeddings.weight"),
        **bert.dense_and_norms("embeddings.", {"norm": "norm"}, f"{prefix}embeddings.", norm),
        **bert.dense_and_norms("layers.", LAYER_NAMES, layer, norm),
        **{
            f"layers.next_norm.{ours}": Tensor(f"{layer}attn_norm.{theirs}", last=f"{last}.{theirs}")
            for ours, theirs in next_norms
        },
    }


def head_table(prefix: str) -> Table:
    """Return the head of ModernBertForSequenceClassification."""
    names = {"dense": "head.dense", "norm": "head.norm", "out": "classifier"}
    return bert.dense_and_norms("", names, "", ("weight", "bias"))
