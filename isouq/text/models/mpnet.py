"""MPNet: BERT without segments, and a bias on the scores by the distance of two tokens, shared by all layers.

Song et al. 2020, arXiv 2004.09297.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from isouq.text.models import bert
from isouq.text.models.bert import Head
from isouq.text.models.embed import Embed
from isouq.text.models.encoder_config import EncoderConfig
from isouq.text.models.parameters import Table, Tensor
from isouq.text.models.roberta import head_table

__all__ = ["LEFT_OVER", "PREFIX", "Encoder", "Head", "head_table", "table"]


class Encoder(bert.Encoder):
    """BERT's encoder with a table of biases: one row for each bucket of distances, one entry for each head."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs)
        self.distance_bias = Embed(config.num_buckets, config.num_heads, rngs)

    def relative(self, count: int) -> tuple[Array, ...]:
        """Return the bias of every head, query and key, `[H, T, T]`."""
        rows = self.distance_bias(jnp.asarray(buckets(count).ravel()))
        return (jnp.moveaxis(rows.reshape(count, count, -1), -1, 0),)


def buckets(count: int) -> Int[np.ndarray, "T T"]:
    """Return the bucket of every query and key of `count` tokens: 16 for keys up to the query, 16 for those after it.

    Distances below 8 have a bucket each, longer ones share buckets that are equally wide in ln of the distance, in
    float32 as transformers computes it, and those from 128 on share the last.
    """
    distance = np.arange(count)[:, None] - np.arange(count)[None, :]
    ratio = np.maximum(np.abs(distance), 8).astype(np.float32) / np.float32(8)
    far = 8 + (np.log(ratio) / np.float32(math.log(128 / 8)) * np.float32(8)).astype(int)
    return 16 * (distance < 0) + np.where(np.abs(distance) < 8, np.abs(distance), np.minimum(far, 15))


# Names in Hugging Face's checkpoints

PREFIX = "mpnet."
LEFT_OVER = ("lm_head.", "pooler.")
LAYER_NAMES = bert.LAYER_NAMES | {
    "attention.q": "attention.attn.q",
    "attention.k": "attention.attn.k",
    "attention.v": "attention.attn.v",
    "attention.out": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
}


def table(prefix: str, norm: tuple[str, str]) -> Table:
    """Return where each parameter of the encoder stands; see `bert.table`."""
    return {
        **bert.embeddings_table(f"{prefix}embeddings.", norm),
        **bert.dense_and_norms("layers.", LAYER_NAMES, f"{prefix}encoder.layer.{{}}.", norm),
        "distance_bias.embedding": Tensor(f"{prefix}encoder.relative_attention_bias.weight"),
    }
