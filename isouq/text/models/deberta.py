"""DeBERTa v2 and v3: BERT whose attention reads the distance of two tokens beside what they are.

The score of a query and a key is the sum of three products: of the two tokens, of the query with the key of their
distance ("c2p") and of the key with the query of their distance ("p2c"). Distances are rows of one table, which all
layers share; far ones share rows, in buckets whose width grows with the distance.

He et al. 2020, arXiv 2006.03654; He et al. 2021, arXiv 2111.09543.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from isouq.text.models import bert
from isouq.text.models.bert import Head
from isouq.text.models.embed import Embed
from isouq.text.models.encoder_config import Disentangled, EncoderConfig
from isouq.text.models.parameters import Table, Tensor

__all__ = ["LEFT_OVER", "PREFIX", "Encoder", "Head", "head_table", "table"]


class Attention(nnx.Module):
    """Every token looks at all real tokens, by what they are and how far away; the softmax is taken in float32."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        size, self.distances = config.hidden_size, config.disentangled
        self.q = nnx.Linear(size, size, rngs=rngs)
        self.k = nnx.Linear(size, size, rngs=rngs)
        self.v = nnx.Linear(size, size, rngs=rngs)
        self.out = nnx.Linear(size, size, rngs=rngs)
        if self.distances.c2p and not self.distances.share_keys:
            self.distance_k = nnx.Linear(size, size, rngs=rngs)
        if self.distances.p2c and not self.distances.share_keys:
            self.distance_q = nnx.Linear(size, size, rngs=rngs)
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "T D"], real: Bool[Array, " T"], *relative: Array) -> Float[Array, "T D"]:
        """real: False at the padding. relative: what `Encoder.relative` returns."""
        q, k, v = (self._heads(layer(x)) for layer in (self.q, self.k, self.v))
        scores = jnp.einsum("thk,shk->hts", q, k)
        if self.distances.c2p:
            vectors, rows = relative
            keys = self._heads((self.k if self.distances.share_keys else self.distance_k)(vectors))
            scores += jnp.take_along_axis(jnp.einsum("thk,rhk->htr", q, keys), rows[None], axis=2)
        if self.distances.p2c:
            vectors, rows = relative
            queries = self._heads((self.q if self.distances.share_keys else self.distance_q)(vectors))
            scores += jnp.take_along_axis(jnp.einsum("shk,rhk->hrs", k, queries), rows[None], axis=1)
        scores = scores.astype(jnp.float32) * (q.shape[-1] * self.distances.num_terms) ** -0.5
        scores = jnp.where(real[None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return self.out(jnp.einsum("hts,shk->thk", weights, v).reshape(x.shape))

    def _heads(self, x: Float[Array, "N D"]) -> Float[Array, "N H k"]:
        return x.reshape(x.shape[0], self.num_heads, -1)


class Encoder(bert.Encoder):
    """BERT's encoder with the attention above and the table of distances."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        super().__init__(config, rngs, Attention)
        distances = config.disentangled
        if distances.c2p or distances.p2c:
            self.distances = Embed(2 * distances.span, config.hidden_size, rngs)
            if distances.norm:
                self.distance_norm = bert.layer_norm(config.hidden_size, config, rngs)

    def relative(self, count: int) -> tuple[Array, ...]:
        """Return the vectors of the distances that `count` tokens have, and which of them every query and key has."""
        distances = self.config.disentangled
        if not (distances.c2p or distances.p2c):
            return ()
        rows = distance_rows(count, distances)
        first, last = int(rows.min()), int(rows.max())
        vectors = self.distances(jnp.arange(first, last + 1))
        return self.distance_norm(vectors) if distances.norm else vectors, jnp.asarray(rows - first)


def distance_rows(count: int, distances: Disentangled) -> Int[np.ndarray, "T T"]:
    """Return the row of the table of distances for every query and key of `count` tokens.

    A distance is the query's position less the key's. With buckets, one up to half their number has a row of its own,
    and ln of a longer one is rounded up to the end of its bucket, in float32 as transformers computes it.
    """
    distance = np.arange(count)[:, None] - np.arange(count)[None, :]
    middle = distances.buckets // 2
    far = np.abs(distance) > middle
    if distances.buckets and far.any():
        ratio = np.abs(distance[far]).astype(np.float32) / np.float32(middle)
        share = np.log(ratio) / np.log(np.float32((distances.longest - 1) / middle))
        distance[far] = np.sign(distance[far]) * (np.ceil(share * np.float32(middle - 1)) + middle).astype(int)
    return np.clip(distance + distances.span, 0, 2 * distances.span - 1)


# Names in Hugging Face's checkpoints

PREFIX = "deberta."
LEFT_OVER = (  # the last three are left where config.json switches off what would read them
    "cls.",
    "lm_predictions.",
    "mask_predictions.",
    "pooler.",
    "embeddings.position_embeddings.",
    "encoder.rel_embeddings.",
    "encoder.LayerNorm.",
)
LAYER_NAMES = bert.LAYER_NAMES | {
    "attention.q": "attention.self.query_proj",
    "attention.k": "attention.self.key_proj",
    "attention.v": "attention.self.value_proj",
    "attention.distance_k": "attention.self.pos_key_proj",
    "attention.distance_q": "attention.self.pos_query_proj",
}


def table(prefix: str, norm: tuple[str, str]) -> Table:
    """Return where each parameter of the encoder stands; see `bert.table`."""
    return {
        **bert.table(prefix, norm),
        **bert.dense_and_norms("layers.", LAYER_NAMES, f"{prefix}encoder.layer.{{}}.", norm),
        **bert.dense_and_norms("", {"distance_norm": f"{prefix}encoder.LayerNorm"}, "", norm),
        "distances.embedding": Tensor(f"{prefix}encoder.rel_embeddings.weight"),
    }


def head_table(prefix: str) -> Table:
    """Return the head of DebertaV2ForSequenceClassification, on the first token."""
    return bert.dense_and_norms("", {"dense": "pooler.dense", "out": "classifier"}, "", ("", ""))
