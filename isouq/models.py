"""The Flax MLPs of the study, and adapters: whatever the library, `predict(params, x)` of ONE example.

A plain function is already `predict`; Equinox users pass `lambda params, x: eqx.combine(params, static)(x)`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from isouq import _checks
from isouq._extras import extra

with extra("models"):
    from flax import nnx
    from flax.nnx.nn import dtypes


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
        module = MLP(in_features, hidden, out_features, activation=activation, rngs=nnx.Rngs(key))
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    jax.eval_shape(init, jax.random.key(0))  # a wrong width is said now
    return _PredictMLP(activation, len(hidden) + 1, out_features == 1), init


@jax.tree_util.register_static
@dataclass(frozen=True)
class _PredictMLP:
    """`MLP.__call__` on plain parameters: a module is not rebuilt at every trace."""

    activation: Callable
    depth: int
    squeeze: bool

    def __call__(self, params: Any, x: Any) -> Array:
        for i in range(self.depth):
            layer = params["layers"][i]
            x = self.activation(x) if i else x
            x, kernel, bias = dtypes.promote_dtype((x, layer["kernel"], layer["bias"]))
            x = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
            x = x + jnp.reshape(bias, (1,) * (x.ndim - 1) + (-1,))
        return x[..., 0] if self.squeeze else x


def from_nnx(module: nnx.Module, **kwargs: Any) -> tuple[Callable, Any]:
    """`(predict, params)` of an NNX module that maps one example to its outputs.

    predict(params, x) is `module(x, **kwargs)` with params in the place of the module's. params holds every
    `nnx.Param` (and every Variable whose type is derived from it) as a plain nested dictionary.

    The rest of the module is bound as it stands now: running statistics, random streams, counters, arrays, numbers
    and switches. A later change to the module is seen by a new `from_nnx` only; an object of your own that the module
    refers to (a configuration) is not copied. What the module writes in its call, such as a counter, the carry of
    `nnx.RNN` or the place of a random stream, is discarded: every example starts from the same state and draws the
    same random numbers.

    Raises:
        ValueError: no module with parameters. From predict: dropout, batch normalisation or the like that is used in
            training mode; call `module.eval()` first (or switch it off in the module's own call, by
            `deterministic=True` or `use_running_average=True`).
    """
    if not isinstance(module, nnx.Module):
        raise ValueError(f"module is {_name(module)}; {_NNX}")
    graphdef, params, rest = nnx.split(_guarded(module), nnx.Param, ...)  # type: ignore[misc]
    params, rest = nnx.to_pure_dict(params), _copy_numpy(nnx.to_pure_dict(rest))
    if not jax.tree.leaves(params):
        raise ValueError(f"module is {_name(module)} and holds no nnx.Param; {_NNX}")

    def predict(params: Any, x: Any) -> Any:
        arguments = {k: nnx.clone(v) if isinstance(v, (nnx.Module, nnx.Rngs)) else v for k, v in kwargs.items()}
        return nnx.merge(graphdef, params, _copy_numpy(rest), copy=True)(x, **arguments)

    return predict, params


def from_linen(module: Any, variables: Any, **kwargs: Any) -> tuple[Callable, Any]:
    """`(predict, params)` of a Linen module and its variables `{"params": ..., ...}`.

    predict(params, x) is `module.apply({**variables, "params": params}, x, **kwargs)`: other collections are bound,
    and so are keywords, of the module (`train=False`, an array) or of `apply` (`rngs`, `method`, `mutable`). Of what
    `mutable` and `capture_intermediates` return only the outputs are kept; state written in the call is discarded.
    Batch normalisation in training mode, which `mutable` lets pass, takes the statistics of ONE example.
    """
    if "params" not in variables:
        raise ValueError(
            f"variables has collections {sorted(variables)}; expected one named 'params': "
            "pass what module.init returned"
        )
    rest = _copy_numpy({name: value for name, value in variables.items() if name != "params"})
    with_state = kwargs.get("mutable", False) is not False or bool(kwargs.get("capture_intermediates"))

    def predict(params: Any, x: Any) -> Any:
        outputs = module.apply({"params": params, **_copy_numpy(rest)}, x, **kwargs)
        return outputs[0] if with_state else outputs

    return predict, variables["params"]


_NNX = "expected an NNX module that was built, such as Net(rngs=nnx.Rngs(0)); for Linen from_linen(module, variables)"
_SWITCHES = ("deterministic", "use_running_average")


class _Training:
    """The value of a switch that says training: an error where the module's call reads it."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __bool__(self) -> NoReturn:
        raise ValueError(f"module has {self.layer} in training mode; call module.eval() first")


def _guarded(module: nnx.Module) -> nnx.Module:
    """The module with its variables, in which no layer can drop units or take ONE example's statistics unnoticed."""
    guarded = nnx.merge(*nnx.split(module))
    if any(getattr(part, "hijax", False) or getattr(part, "ref", False) for part in _variables(guarded)):
        guarded = nnx.with_vars(guarded, hijax=False, ref=False, allow_duplicates=True)
    for _, part in nnx.iter_graph(guarded):
        if isinstance(part, nnx.Module) and getattr(part, "rate", getattr(part, "dropout_rate", None)) != 0:
            for switch in _SWITCHES:
                if getattr(part, switch, None) is False:
                    setattr(part, switch, _Training(type(part).__name__))
    return guarded


def _variables(module: nnx.Module) -> list[nnx.Variable]:
    return [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Variable)]


def _copy_numpy(tree: Any) -> Any:
    """The tree with NumPy arrays of its own: a module may write into them."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)


def _name(module: Any) -> str:
    return module.__name__ if isinstance(module, type) else type(module).__name__
