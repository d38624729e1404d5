"""A text encoder with one parameter a weight and layer, and KFAC of the whole of it.

`isouq.text` stacks the layers and runs them by `lax.scan`: one leaf then holds a weight of every layer, which has no
Kronecker factors of its own. Here the layers stand one by one. Tables of embeddings would have a factor of
vocabulary² and vectors one of features²: both keep the diagonal.
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
from isouq.text import bert
from isouq.text.encoder import Predict, pool
from isouq.text.encoder_config import EncoderConfig


def one_by_one(params: Any) -> Any:
    """The parameters of a `TextEncoder` with a list of layers in place of stacked ones."""
    encoder = params["encoder"]
    count = jax.tree.leaves(encoder["layers"])[0].shape[0]
    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], encoder["layers"]) for i in range(count)]
    return params | {"encoder": encoder | {"layers": layers}}


@jax.tree_util.register_static
@dataclass(frozen=True)
class PredictOneByOne:
    """`predict` of an encoder with a linear head, for the parameters that `one_by_one` gives."""

    of: Predict

    def __call__(self, params: Any, x: dict[str, Any]) -> Float[Array, " classes"]:
        """Logits `[classes]` of ONE text."""
        config, encoder = self.of.config, params["encoder"]
        ids, length = jnp.asarray(x["ids"]), jnp.asarray(x["length"])
        hidden = nnx.merge(_graph(bert.Embeddings, config), encoder["embeddings"])(ids, None)
        for layer in encoder["layers"]:
            hidden = nnx.merge(_graph(bert.Block, config), layer)(hidden, jnp.arange(ids.shape[0]) < length)
        return nnx.merge(_graph(bert.Head, config), params["head"])(pool(hidden, length, self.of.pooling))


@lru_cache(maxsize=32)
def _graph(part: Callable, config: EncoderConfig) -> Any:
    return nnx.split(nnx.eval_shape(lambda: part(config, nnx.Rngs(0))), nnx.Param)[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerLeaf(StructuredCovariance):
    """Block-diagonal Σ, each leaf with a form of its own: `forms_of` in the order of `jax.tree.leaves(params)`."""

    forms_of: list[Form]

    def forms(self, params: Any) -> list[Form]:
        """The forms as they are."""
        return self.forms_of


def kronecker(log_density: Any, params: Any, curvature: str, batch_size: int) -> PerLeaf:
    """KFAC of every matrix of the layers and of the head, the diagonal of everything else.

    log_density: of a `PredictOneByOne`. params: from `one_by_one`. Source: `isouq.laplace`, called twice.
    """
    leaves, tree = jax.tree.flatten(params)
    is_other = keep_diagonal(params)
    found: dict[int, Form] = {}
    for structure, wanted in (("kronecker", False), ("diagonal", True)):
        chosen = [i for i, other in enumerate(is_other) if other == wanted]
        rest = {i: leaf for i, leaf in enumerate(leaves) if i not in chosen}
        part = replace(
            log_density,
            predict=jax.tree_util.Partial(_Rest(log_density.predict, tree, tuple(chosen)), rest),
            scales=[jax.tree.leaves(log_density.scales)[i] for i in chosen],
        )
        mine = [leaves[i] for i in chosen]
        covariance: Any = laplace(part, mine, curvature, structure, batch_size=batch_size)
        found |= dict(zip(chosen, covariance.forms(mine), strict=True))
    return PerLeaf([found[i] for i in range(len(leaves))])


def keep_diagonal(params: Any) -> list[bool]:
    """Of each leaf, whether `kronecker` keeps its diagonal: tables of embeddings and vectors."""
    others = jax.tree.map(lambda leaf: jnp.ndim(leaf) < 2, params)
    others["encoder"]["embeddings"] = jax.tree.map(lambda _: True, others["encoder"]["embeddings"])
    return jax.tree.leaves(others)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Rest:
    """`predict` as a function of some of its leaves, the others given first."""

    predict: Any
    tree: Any
    chosen: tuple[int, ...]

    def __call__(self, rest: dict[int, Any], mine: list[Any], x: Any) -> Any:
        leaves = rest | dict(zip(self.chosen, mine, strict=True))
        return self.predict(jax.tree.unflatten(self.tree, [leaves[i] for i in range(len(leaves))]), x)
