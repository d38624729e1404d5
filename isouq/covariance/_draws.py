"""Draws of N(params, Σ), which every covariance of `isouq.covariance` can make."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from isouq import _checks
from isouq.gradnorm._factors import at_least_float32

DrawDeviation = Callable[[Array], Any]  # from a random key to one draw of N(0, Σ), a pytree like the parameters


class SampleMixin:
    """A covariance that can be sampled. Subclasses define `deviation` and `scaled`."""

    def deviation(self, params: Any) -> DrawDeviation:
        """Return the function from a random key to one draw of N(0, Σ); what all draws share is computed once."""
        raise NotImplementedError

    def scaled(self, factor: Any) -> Any:
        """Return factor · Σ."""
        raise NotImplementedError

    def sample(self, key: Any, params: Any, num_samples: int) -> Any:
        """Return draws of N(params, Σ): a pytree like params whose leaves have a leading axis of draws.

        The draws are float32 or better. Memory: num_samples copies of params.
        """
        _checks.key("key", key)
        _checks.positive_int("num_samples", num_samples)
        _checks.float_leaves("params", params)
        deviations = jax.lax.map(self.deviation(params), jax.random.split(key, num_samples))
        return jax.tree.map(lambda leaf, deviation: jnp.asarray(leaf)[None] + deviation, params, deviations)


def standard_normal(key: Array, params: Any) -> Any:
    """Return one draw of N(0, I), a pytree like params, float32 or better."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    draws = [
        jax.random.normal(key, jnp.shape(leaf), at_least_float32(jnp.result_type(leaf)))
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, draws)
