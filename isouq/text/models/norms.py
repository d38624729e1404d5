"""Normalisations of a vector: by its root mean square, with a scale or with 1 + a scale, or by mean and variance."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

KINDS = ("rms", "rms_one", "layer")


class RMSNormOne(nnx.Module):
    """x / √(mean x² + ε) · (1 + scale), in float32 until the end (Gemma).

    The scale is stored near 0, where bfloat16 is finer than near 1.
    """

    def __init__(self, size: int, epsilon: float, rngs: nnx.Rngs) -> None:
        self.scale = nnx.Param(jnp.zeros(size))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*T D"]) -> Float[Array, "*T D"]:
        """Normalise the last axis."""
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.expand_dims(1 + self.scale[...].astype(jnp.float32), tuple(range(x.ndim - 1)))
        return (normed * scale).astype(x.dtype)


def norm(kind: str, size: int, epsilon: float, rngs: nnx.Rngs) -> nnx.Module:
    """Return a new normalisation of one of KINDS over vectors of this size."""
    if kind == "rms_one":
        return RMSNormOne(size, epsilon, rngs)
    if kind == "layer":  # the fast variance E x² − (E x)² loses digits where a mean is far from 0
        return nnx.LayerNorm(size, epsilon=epsilon, use_fast_variance=False, rngs=rngs)
    if kind != "rms":
        raise ValueError(f"the kind of a norm is {kind!r}; expected one of {', '.join(KINDS)}")
    return nnx.RMSNorm(size, epsilon=epsilon, rngs=rngs)
