"""A table of vectors, one per token."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


class Embed(nnx.Module):
    """A table of vectors; a number beyond its rows gives NaN.

    Unlike `nnx.Embed` it answers in the type that its table has when it is called.
    """

    def __init__(self, rows: int, features: int, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Param(0.02 * jax.random.normal(rngs.params(), (rows, features)))

    def __call__(self, numbers: Int[Array, " T"]) -> Float[Array, "T D"]:
        """The rows of these numbers."""
        return jnp.take(self.embedding[...], numbers, axis=0)
