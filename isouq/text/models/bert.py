"""BERT, and with it the blocks of its whole family: embeddings, layers that see all tokens, a classification head.

Modules see ONE text. Shapes: T tokens, D hidden, H heads, L layers. All layers have one shape, so their parameters are
stacked `[L, ...]` and one `lax.scan` runs them: a model of any depth compiles once. Padding stands on the right
and is masked: no real token sees it.

Devlin et al. 2018, arXiv 1810.04805. MiniLM is a small BERT.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from isouq.text.models.activations import ACTIVATIONS
from isouq.text.models.embed import Embed
from isouq.text.models.encoder_config import EncoderConfig
from isouq.text.models.parameters import Table, Tensor


class Embeddings(nnx.Module):
    """The sum of a token's, its position's and its segment's vectors, normalised, and projected to the hidden size."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        c = config
        self.token = Embed(c.vocab_size, c.embedding_size, rngs)
        if c.has_position_table:
            self.position = Embed(c.num_positions, c.embedding_size, rngs)
        if c.type_vocab_size:
            self.segment = Embed(c.type_vocab_size, c.embedding_size, rngs)
        self.norm = layer_norm(c.embedding_size, c, rngs)
        if c.embedding_size != c.hidden_size:
            self.project = nnx.Linear(c.embedding_size, c.hidden_size, rngs=rngs)
        self.config = c

    def __call__(self, ids: Int[Array, " T"], token_types: Int[Array, " T"] | None) -> Float[Array, "T D"]:
        """token_types: the segment of each token, 0 by default."""
        x = self.token(ids)
        if self.config.has_position_table:
            x = x + self.position(self.config.position_offset + jnp.arange(ids.shape[0]))
        if self.config.type_vocab_size:
            x = x + self.segment(jnp.zeros_like(ids) if token_types is None else token_types)
        x = self.norm(x)
        return x if self.config.embedding_size == self.config.hidden_size else self.project(x)


class Attention(nnx.Module):
    """Every token looks at all real tokens; the softmax is taken in float32."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        size = config.hidden_size
        self.q = nnx.Linear(size, size, rngs=rngs)
        self.k = nnx.Linear(size, size, rngs=rngs)
        self.v = nnx.Linear(size, size, rngs=rngs)
        self.out = nnx.Linear(size, size, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(
        self, x: Float[Array, "T D"], real: Bool[Array, " T"], bias: Float[Array, "H T T"] | None = None
    ) -> Float[Array, "T D"]:
        """real: False at the padding. bias: what is added to the scores of every head, query and key."""
        q, k, v = (layer(x).reshape(x.shape[0], self.num_heads, -1) for layer in (self.q, self.k, self.v))
        scores = jnp.einsum("thk,shk->hts", q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
        scores = scores if bias is None else scores + bias
        scores = jnp.where(real[None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return self.out(jnp.einsum("hts,shk->thk", weights, v).reshape(x.shape))


class Block(nnx.Module):
    """Attention and two dense layers, each added to its input and then normalised."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, attention: Callable = Attention) -> None:
        self.attention = attention(config, rngs)
        self.attention_norm = layer_norm(config.hidden_size, config, rngs)
        self.up = nnx.Linear(config.hidden_size, config.intermediate_size, rngs=rngs)
        self.down = nnx.Linear(config.intermediate_size, config.hidden_size, rngs=rngs)
        self.norm = layer_norm(config.hidden_size, config, rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "T D"], real: Bool[Array, " T"], *relative: Array) -> Float[Array, "T D"]:
        """real: False at the padding. relative: what the attention reads of relative positions."""
        x = self.attention_norm(x + self.attention(x, real, *relative))
        return self.norm(x + self.down(ACTIVATIONS[self.activation](self.up(x))))


class Encoder(nnx.Module):
    """Token ids `[T]` to hidden states `[T, D]`."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs, attention: Callable = Attention) -> None:
        self.embeddings = Embeddings(config, rngs)
        self.layers = stack(lambda rngs: Block(config, rngs, attention), config.num_layers, rngs)
        self.config = config

    def relative(self, count: int) -> tuple[Array, ...]:
        """Return what every layer's attention reads of the relative positions of `count` tokens: nothing in BERT."""
        return ()

    def __call__(
        self,
        ids: Int[Array, " T"],
        length: Int[Array, ""] | int | None = None,
        token_types: Int[Array, " T"] | None = None,
        remat: bool = False,
    ) -> Float[Array, "T D"]:
        """Return the hidden states after the last layer; those of padding mean nothing.

        length: number of real tokens, which come first; T by default. token_types: segment of each token, 0 by
        default. remat: recompute a layer's activations in the backward pass rather than keep them.
        """
        real = real_tokens(ids, length, self.config)
        relative = self.relative(ids.shape[0])
        graph, params = nnx.split(self.layers)

        def step(x: Array, layer: Any) -> tuple[Array, None]:
            return nnx.merge(graph, layer)(x, real, *relative), None

        x = self.embeddings(ids, token_types)
        return jax.lax.scan(jax.checkpoint(step) if remat else step, x, params)[0]


class Head(nnx.Module):
    """Logits `[classes]` from one vector `[D]`: dense, activation, dense; the last alone where `head` is "linear"."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        if config.head != "linear":
            size = config.hidden_size
            self.dense = nnx.Linear(size, size, use_bias="head" in config.biases, rngs=rngs)
        self.out = nnx.Linear(config.hidden_size, config.num_classes, rngs=rngs)
        self.kind = config.head

    def __call__(self, x: Float[Array, " D"]) -> Float[Array, " classes"]:
        """Map `[D]` to `[classes]`."""
        return self.out(x if self.kind == "linear" else ACTIVATIONS[self.kind](self.dense(x)))


def stack(build: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> nnx.Module:
    """Return the module `build(rngs)` with parameters `[count, ...]`, those of `count` layers."""
    return nnx.split_rngs(splits=count)(nnx.vmap(build))(rngs)


def real_tokens(ids: Int[Array, " T"], length: Int[Array, ""] | int | None, config: EncoderConfig) -> Bool[Array, " T"]:
    """Return which tokens are no padding; raise a ValueError where there are more than the context."""
    count, context = ids.shape[0], config.context_length
    if count > context:
        raise ValueError(f"the text has {count} tokens; expected at most {context}, the context of this model")
    return jnp.arange(count) < (count if length is None else length)


def layer_norm(size: int, config: EncoderConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Return a norm of vectors of `size` entries."""
    # The fast variance E x² − (E x)² loses digits where a mean is far from 0.
    use_bias = "norm" in config.biases
    return nnx.LayerNorm(size, epsilon=config.norm_eps, use_bias=use_bias, use_fast_variance=False, rngs=rngs)


# Names in Hugging Face's checkpoints

PREFIX = "bert."  # before the names of the encoder, in a checkpoint that holds more than the encoder
LEFT_OVER = ("cls.", "pooler.")  # beginnings of tensors that go unused
LAYER_NAMES = {
    "attention.q": "attention.self.query",
    "attention.k": "attention.self.key",
    "attention.v": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm": "output.LayerNorm",
}


def table(prefix: str, norm: tuple[str, str]) -> Table:
    """Where each parameter of the encoder stands. norm: what the checkpoint calls a norm's scale and bias."""
    layer = f"{prefix}encoder.layer.{{}}."
    return {
        **embeddings_table(f"{prefix}embeddings.", norm),
        "embeddings.segment.embedding": Tensor(f"{prefix}embeddings.token_type_embeddings.weight"),
        **dense_and_norms("layers.", LAYER_NAMES, layer, norm),
    }


def head_table(prefix: str) -> Table:
    """Return the head of BertForSequenceClassification: the pooler and the classifier."""
    return dense_and_norms("", {"dense": f"{prefix}pooler.dense", "out": "classifier"}, "", ("", ""))


def embeddings_table(prefix: str, norm: tuple[str, str]) -> dict[str, Tensor]:
    """Return the embeddings' parameters, but for the segments that DistilBERT lacks."""
    return {
        "embeddings.token.embedding": Tensor(f"{prefix}word_embeddings.weight"),
        "embeddings.position.embedding": Tensor(f"{prefix}position_embeddings.weight"),
        **dense_and_norms("embeddings.", {"norm": "LayerNorm"}, prefix, norm),
    }


def dense_and_norms(ours: str, names: dict[str, str], prefix: str, norm: tuple[str, str]) -> dict[str, Tensor]:
    """Kernel and bias of every dense layer, scale and bias of every norm (the names that end in "norm")."""
    tensors = {}
    for name, theirs in names.items():
        path, tensor = ours + name, prefix + theirs
        if name.endswith("norm"):
            tensors[f"{path}.scale"] = Tensor(f"{tensor}.{norm[0]}")
            tensors[f"{path}.bias"] = Tensor(f"{tensor}.{norm[1]}")
        else:
            tensors[f"{path}.kernel"] = Tensor(f"{tensor}.weight", transpose=True)
            tensors[f"{path}.bias"] = Tensor(f"{tensor}.bias")
    return tensors
