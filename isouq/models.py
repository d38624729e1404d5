"""The Flax MLPs of the study, and adapters: whatever the library, `predict(params, x)` of ONE example.

A plain function is already `predict`; Equinox users pass `lambda params, x: eqx.combine(params, static)(x)`.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from isouq import _checks
from isouq._static import Static


class MLP(nnx.Module):
    """A fully connected network `[in_features] -> [out_features]`, any width and depth.

    hidden: widths of the hidden layers; empty is a linear model. activation: tanh by default.
    """

    def __init__(
        self,
        in_features: int,
        hidden: tuple[int, ...],
        out_features: int,
        *,
        activation: Callable = jnp.tanh,
        rngs: nnx.Rngs,
    ) -> None:
        _checks.positive_int("in_features", in_features)
        _checks.positive_int("out_features", out_features)
        for width in hidden:
            _checks.positive_int("width", width)
        sizes = (in_features, *hidden, out_features)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairwise(sizes)])
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch in_features"]) -> Float[Array, "*batch out_features"]:
        """Logits or mean `[out_features]`."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def mlp(
    in_features: int, hidden: tuple[int, ...], out_features: int, activation: Callable = jnp.tanh
) -> tuple[Callable, Callable]:
    """`(predict, init)` of an `MLP`; `init(key)` gives parameters and may be vmapped over keys.

    predict(params, x `[in_features]`) returns `[out_features]`, or `[]` when out_features is 1.
    Two MLPs of one shape share one `predict`, so a compiled program is used again.
    """

    def init(key: Array) -> Any:
        return _split(MLP(in_features, hidden, out_features, activation=activation, rngs=nnx.Rngs(key)))[1]

    module = nnx.eval_shape(lambda: MLP(in_features, hidden, out_features, activation=activation, rngs=nnx.Rngs(0)))
    graphdef = _split(module)[0]
    apply = _apply_to_scalar if out_features == 1 else _apply
    return jax.tree_util.Partial(apply, nnx.State({}), graphdef=Static(graphdef)), init


def from_nnx(module: nnx.Module) -> tuple[Callable, Any]:
    """`(predict, params)` of an NNX module that maps one example to its outputs.

    params holds every `nnx.Param` as a plain nested dictionary. Other state (running statistics,
    random streams) is bound as it stands.

    Raises:
        ValueError: no module with parameters, or one with dropout or batch normalisation in training mode:
            call `module.eval()` first.
    """
    graphdef, params, rest = _split(module)
    if not jax.tree.leaves(params):
        name = module.__name__ if isinstance(module, type) else type(module).__name__
        raise ValueError(
            f"module is {name} and holds no nnx.Param; expected an NNX module that was built, such as "
            "Net(rngs=nnx.Rngs(0)); for Linen from_linen(module, variables)"
        )
    if on := _in_training(module):
        raise ValueError(f"module has {', '.join(on)} in training mode; call module.eval() first")
    return jax.tree_util.Partial(_apply, rest, graphdef=Static(graphdef)), params


def from_linen(module: Any, variables: Any, **kwargs: Any) -> tuple[Callable, Any]:
    """`(predict, params)` of a Linen module and its variables `{"params": ..., ...}`.

    Other collections and `kwargs` (such as `train=False`) are bound; the module sees one example.
    """
    if "params" not in variables:
        raise ValueError(
            f"variables has collections {sorted(variables)}; expected one named 'params': "
            "pass what module.init returned"
        )
    rest = {name: value for name, value in variables.items() if name != "params"}
    bound = tuple(sorted(kwargs.items()))
    return jax.tree_util.Partial(_apply_linen, rest, module=Static((module, bound))), variables["params"]


def _in_training(module: nnx.Module) -> list[str]:
    """Its layers that would drop units at random, or take the statistics of ONE example for those of a batch."""
    switches = ("deterministic", "use_running_average")
    parts = [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Module)]
    parts = [part for part in parts if getattr(part, "rate", getattr(part, "dropout_rate", None)) != 0]
    return sorted({type(p).__name__ for p in parts if any(getattr(p, switch, None) is False for switch in switches)})


def _split(module: nnx.Module) -> tuple[Any, Any, Any]:
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, nnx.to_pure_dict(params), rest


def _apply(rest: Any, params: Any, x: Any, graphdef: Static) -> Array:
    return nnx.merge(graphdef.value, params, rest)(x)


def _apply_to_scalar(rest: Any, params: Any, x: Any, graphdef: Static) -> Array:
    return _apply(rest, params, x, graphdef)[..., 0]


def _apply_linen(rest: Any, params: Any, x: Any, module: Static) -> Array:
    linen, kwargs = module.value
    return linen.apply({"params": params, **rest}, x, **dict(kwargs))
