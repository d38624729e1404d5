"""Dense layers with a low-rank term beside their weights (LoRA; Hu et al. 2021, arXiv 2106.09685).

The term is (x A) diag(s) B, with A `[D, R]`, B `[R, F]` and a fixed scale s for each of the R ranks. Layers that lie
stacked have one R and one s; a layer whose adapter has fewer ranks, another scale or is missing has zeros in both A and
B at the ranks of the others, where the term and its gradient vanish.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from isouq.text.models.decoder_config import DecoderConfig


class LowRank(nnx.Module):
    """The term alone, for a layer that several projections share."""

    def __init__(self, inputs: int, outputs: int, scales: tuple[float, ...], rngs: nnx.Rngs) -> None:
        self.lora_a = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (inputs, len(scales))))
        self.lora_b = nnx.Param(jnp.zeros((len(scales), outputs)))
        self.scales = scales

    def __call__(self, inputs: Float[Array, "T D"]) -> Float[Array, "T F"]:
        """Return (x A) diag(s) B."""
        return (inputs @ self.lora_a[...] * jnp.asarray(self.scales, inputs.dtype)[None]) @ self.lora_b[...]


class AdaptedLinear(nnx.Linear, LowRank):
    """x W + b and the low-rank term."""

    def __init__(self, inputs: int, outputs: int, scales: tuple[float, ...], *, use_bias: bool, rngs: nnx.Rngs) -> None:
        nnx.Linear.__init__(self, inputs, outputs, use_bias=use_bias, rngs=rngs)
        LowRank.__init__(self, inputs, outputs, scales, rngs)

    def __call__(self, inputs: Float[Array, "T D"], out_sharding: Any = None) -> Float[Array, "T F"]:
        """Map `[T, D]` to `[T, F]`."""
        return nnx.Linear.__call__(self, inputs, out_sharding) + LowRank.__call__(self, inputs)


def linear(
    config: DecoderConfig, path: str, inputs: int, outputs: int, *, use_bias: bool, rngs: nnx.Rngs
) -> nnx.Linear:
    """Return a new dense layer, with a low-rank term where the configuration has one at `path`."""
    scales = config.scales(path)
    if scales:
        return AdaptedLinear(inputs, outputs, scales, use_bias=use_bias, rngs=rngs)
    return nnx.Linear(inputs, outputs, use_bias=use_bias, rngs=rngs)
