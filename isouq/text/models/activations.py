"""Activation functions, by the names that a config.json gives them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

_GELU = partial(jax.nn.gelu, approximate=False)
_TANH = partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": _GELU,
    "gelu_python": _GELU,
    "gelu_new": _TANH,
    "gelu_pytorch_tanh": _TANH,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
}


def activation(config: Mapping[str, Any], key: str, default: str) -> str:
    """Return the name of the activation under a key, or the default where there is none or null; raise ValueError."""
    name = config.get(key) or default
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ValueError(f"{key} is {name!r:.60}; expected one of {', '.join(ACTIVATIONS)}")
    return name
