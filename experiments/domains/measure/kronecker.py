"""A Kronecker-factored covariance (KFAC) over all parameters of a text encoder.

`isouq.text` stacks the layers and runs them by `lax.scan`: one leaf then holds a weight of every layer, which has no
Kronecker factors of its own. Here every layer has leaves of its own. The factor of a table of embeddings would have
vocabulary² entries and that of a vector features²: both keep the diagonal.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from isouq.covariance import StructuredCovariance, laplace
from isouq.gradnorm import Form
from isouq.text.encoder import FAMILIES, Predict, pool
from isouq.text.models import bert
from isouq.text.models.encoder_config import EncoderConfig


def separate_layers(params: Any) -> Any:
    """Return the parameters of a `TextEncoder` with a list of layers in place of stacked ones."""
    encoder = params["encoder"]
    count = jax.tree.leaves(encoder["layers"])[0].shape[0]
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], encoder["layers"]) for i in range(count)]
    return params | {"encoder": encoder | {"layers": layers}}


@jax.tree_util.register_static
@dataclass(frozen=True)
class PredictByLayer:
    """`predict` of an encoder with a linear head, for the parameters that `separate_layers` gives."""

    predict: Predict

    def __call__(self, params: Any, x: dict[str, Any]) -> Float[Array, " classes"]:
        """Return the logits `[classes]` of ONE text."""
        config, encoder = self.predict.config, params["encoder"]
        if FAMILIES[config.family].Encoder is not bert.Encoder:
            raise ValueError(f"the encoder is of the family {config.family}; expected one whose layers are BERT's")
        ids, length = jnp.asarray(x["ids"]), jnp.asarray(x["length"])
        hidden = nnx.merge(_graph(bert.Embeddings, config), encoder["embeddings"])(ids, None)
        for layer in encoder["layers"]:
            hidden = nnx.merge(_graph(bert.Block, config), layer)(hidden, jnp.arange(ids.shape[0]) < length)
        return nnx.merge(_graph(bert.Head, config), params["head"])(pool(hidden, length, self.predict.pooling))


@lru_cache(maxsize=32)
def _graph(part: Callable, config: EncoderConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: part(config, nnx.Rngs(0))), nnx.Param)[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerLeaf(StructuredCovariance):
    """Block-diagonal Σ, each leaf with a form of its own: `leaf_forms` in the order of `jax.tree.leaves(params)`."""

    leaf_forms: list[Form]

    def forms(self, params: Any) -> list[Form]:
        """Return the forms, one a leaf."""
        return self.leaf_forms


def kronecker(log_density: Any, params: Any, curvature: str, batch_size: int) -> PerLeaf:
    """Return KFAC of every matrix of the layers and of the head, and the diagonal of everything else.

    log_density: of a `PredictByLayer`. params: from `separate_layers`. Both structures are those of `isouq.laplace`.
    """
    leaves, tree = jax.tree.flatten(params)
    is_diagonal = keep_diagonal(params)
    forms: dict[int, Form] = {}
    for structure, wanted in (("kronecker", False), ("diagonal", True)):
        chosen = [i for i, diagonal in enumerate(is_diagonal) if diagonal == wanted]
        rest = {i: leaf for i, leaf in enumerate(leaves) if i not in chosen}
        part = replace(
            log_density,
            predict=jax.tree_util.Partial(_Rest(log_density.predict, tree, tuple(chosen)), rest),
            scales=[jax.tree.leaves(log_density.scales)[i] for i in chosen],
        )
        some = [leaves[i] for i in chosen]
        covariance: Any = laplace(part, some, curvature, structure, batch_size=batch_size)
        forms |= dict(zip(chosen, covariance.forms(some), strict=True))
    return PerLeaf([forms[i] for i in range(len(leaves))])


def keep_diagonal(params: Any) -> list[bool]:
    """Return of each leaf whether `kronecker` keeps its diagonal: tables of embeddings and vectors do."""
    others = jax.tree.map(lambda leaf: jnp.ndim(leaf) < 2, params)
    others["encoder"]["embeddings"] = jax.tree.map(lambda _: True, others["encoder"]["embeddings"])
    return jax.tree.leaves(others)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Rest:
    """`predict` as a function of some of its leaves; the others are given first."""

    predict: Any
    tree: Any
    chosen: tuple[int, ...]

    def __call__(self, rest: dict[int, Any], some: list[Any], x: Any) -> Any:
        leaves = rest | dict(zip(self.chosen, some, strict=True))
        return self.predict(jax.tree.unflatten(self.tree, [leaves[i] for i in range(len(leaves))]), x)
