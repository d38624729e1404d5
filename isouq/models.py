"""The Flax MLPs of the experiments, and adapters that give `predict(params, x)` of ONE example for a Flax module.

A plain function is already a `predict`. Those of this module are functions of `jax.jit`: what the model's code reads
from outside, such as a global, counts as it was when `predict` first met arguments of a shape, and a call of
`isouq.uncertainty` need not trace the model again.
"""

import functools
import sys
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


# The activations that `mlp` knows by name.
ACTIVATIONS: dict[str, Callable] = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


class MLP(nnx.Module):
    """A fully connected network from `[in_features]` to `[out_features]`.

    hidden: widths of the hidden layers; without any the model is linear. activation: a function between the layers.
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
        """Return logits or a mean, `[out_features]`."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.layers[-1](x)


def mlp(
    in_features: int, hidden: tuple[int, ...], out_features: int, activation: str | Callable = "tanh"
) -> tuple[Callable, Callable]:
    """Return `(predict, init)` of an `MLP`, whose arguments are the same.

    The activation may also be a name of `ACTIVATIONS`: "tanh", "relu" or "sigmoid".

    `init(key)` gives parameters and can be mapped over keys by `jax.vmap`. `predict(params, x)` takes one x
    `[in_features]` and returns `[out_features]`, or `[]` where out_features is 1. Two MLPs with the same activation
    and depth have one `predict`, and with the same sizes equal `init`, so that they share compiled programs.
    """
    if isinstance(activation, str):
        _checks.one_of("activation", activation, ACTIVATIONS)
        activation = ACTIVATIONS[activation]
    init = _InitMLP(in_features, tuple(hidden), out_features, activation)
    jax.eval_shape(init, jax.random.key(0))  # raises for a wrong width
    return _predict_mlp(activation, len(hidden) + 1, out_features == 1), init


@dataclass(frozen=True)
class _InitMLP:
    """The initial parameters of an `MLP` as a function of a key."""

    in_features: int
    hidden: tuple[int, ...]
    out_features: int
    activation: Callable

    def __call__(self, key: Array) -> Any:
        sizes = self.in_features, self.hidden, self.out_features
        return nnx.to_pure_dict(nnx.state(MLP(*sizes, activation=self.activation, rngs=nnx.Rngs(key)), nnx.Param))


@functools.cache
def _predict_mlp(activation: Callable, depth: int, squeeze: bool) -> Callable:
    """Return `MLP.__call__` on plain parameters, which builds no module."""

    @jax.jit
    def predict(params: Any, x: Any) -> Array:
        for i in range(depth):
            layer = params["layers"][i]
            x = activation(x) if i else x
            x, kernel, bias = dtypes.promote_dtype((x, layer["kernel"], layer["bias"]))
            x = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
            x = x + jnp.reshape(bias, (1,) * (x.ndim - 1) + (-1,))
        return x[..., 0] if squeeze else x

    return jax.tree_util.Partial(predict)  # a pytree, so that it can be an argument of a compiled function


def from_nnx(module: Any, **kwargs: Any) -> tuple[Callable, Any]:
    """Return `(predict, params)` of an NNX module that maps one example to its outputs.

    `predict(params, x)` is `module(x, **kwargs)` with `params` in place of the module's own. `params` holds every
    `nnx.Param`, and every variable of a type derived from it, as a plain nested dictionary.

    Everything else in the module keeps the value that it has now: running statistics, random streams, counters, arrays,
    numbers and switches. To see a later change of the module, call `from_nnx` again. An object of your own that the
    module refers to, such as a configuration, is not copied, and counts as it was at the first call. What the module
    writes while it is called, such as a counter, the carry of `nnx.RNN` or the position in a random stream, is
    discarded: every example starts from the same state and draws the same random numbers.

    Raises:
        ValueError: module is no NNX module, or has no parameters. `predict` raises it where dropout, batch
            normalisation or a similar layer is in training mode: call `module.eval()` first, or pass
            `deterministic=True` or `use_running_average=True` in the module's own call.
    """
    if module is None:
        raise ValueError("module is None, which module.eval() returns; call module.eval() first, then pass the module")
    if not isinstance(module, nnx.Module):
        raise ValueError(f"module is {_name(module)}; {_NNX}")
    graphdef, params, state = nnx.split(_guard_switches(module), nnx.Param, ...)  # type: ignore[misc]
    params, state = nnx.to_pure_dict(params), _copy_numpy(nnx.to_pure_dict(state))
    if not jax.tree.leaves(params):
        raise ValueError(f"module is {_name(module)} and holds no nnx.Param; {_NNX}")

    @jax.jit
    def predict(params: Any, x: Any) -> Any:
        arguments = {k: nnx.clone(v) if isinstance(v, (nnx.Module, nnx.Rngs)) else v for k, v in kwargs.items()}
        return nnx.merge(graphdef, params, _copy_numpy(state), copy=True)(x, **arguments)

    return predict, params


def from_linen(module: Any, variables: Any, **kwargs: Any) -> tuple[Callable, Any]:
    """Return `(predict, params)` of a Linen module and its variables `{"params": ..., ...}`.

    `predict(params, x)` is `module.apply({**variables, "params": params}, x, **kwargs)`. The other collections keep the
    values that they have now. Keywords may be those of the module (`train=False`, an array) or of `apply` (`rngs`,
    `method`, `mutable`). With `mutable` or `capture_intermediates` only the outputs are returned, and the state is
    discarded. Batch normalisation in training mode, which `mutable` permits, uses the statistics of ONE example.

    Raises:
        ValueError: variables has no collection "params".
    """
    if "params" not in variables:
        raise ValueError(
            f"variables has collections {sorted(variables)}; expected one named 'params': "
            "pass what module.init returned"
        )
    state = _copy_numpy({name: value for name, value in variables.items() if name != "params"})
    with_state = kwargs.get("mutable", False) is not False or bool(kwargs.get("capture_intermediates"))

    @jax.jit
    def predict(params: Any, x: Any) -> Any:
        outputs = module.apply({"params": params, **_copy_numpy(state)}, x, **kwargs)
        return outputs[0] if with_state else outputs

    return predict, variables["params"]


def from_equinox(module: Any, **kwargs: Any) -> tuple[Callable, Any]:
    """Return `(predict, params)` of an Equinox module that maps one example to its outputs.

    `predict(params, x)` is `module(x, **kwargs)` in inference mode with `params` in place of the module's floating
    arrays. `params` is the module with None in place of everything else, as `equinox.partition` gives it. Dropout is
    off, whatever the module's own mode is.

    Raises:
        ValueError: module is no Equinox module that can be called, or has no floating arrays.
    """
    equinox = sys.modules.get("equinox")  # whoever has a module of it has imported it
    if equinox is None or not (isinstance(module, equinox.Module) and callable(module)):
        raise ValueError(f"module is {_name(module)}; expected an Equinox module that was built and can be called")
    params, static = equinox.partition(equinox.nn.inference_mode(module), equinox.is_inexact_array)
    if not jax.tree.leaves(params):
        raise ValueError(f"module is {_name(module)} and holds no floating arrays; pass a module with parameters")

    @jax.jit
    def predict(params: Any, x: Any) -> Any:
        return equinox.combine(params, static)(x, **kwargs)

    return predict, params


_NNX = "expected an NNX module that was built, such as Net(rngs=nnx.Rngs(0)); for Linen from_linen(module, variables)"
_SWITCHES = ("deterministic", "use_running_average")


class _Training:
    """The value of a switch that is set to training; it raises where the call of the module reads it."""

    def __init__(self, layer: str) -> None:
        self.layer = layer

    def __bool__(self) -> NoReturn:
        raise ValueError(f"module has {self.layer} in training mode; call module.eval(), then from_nnx(module)")


def _guard_switches(module: nnx.Module) -> nnx.Module:
    """Return a copy of the module that raises where a layer would drop units or use the statistics of ONE example."""
    copy = nnx.merge(*nnx.split(module))
    if any(getattr(part, "hijax", False) or getattr(part, "ref", False) for part in _variables(copy)):
        copy = nnx.with_vars(copy, hijax=False, ref=False, allow_duplicates=True)
    for _, part in nnx.iter_graph(copy):
        if isinstance(part, nnx.Module) and getattr(part, "rate", getattr(part, "dropout_rate", None)) != 0:
            for switch in _SWITCHES:
                if getattr(part, switch, None) is False:
                    setattr(part, switch, _Training(type(part).__name__))
    return copy


def _variables(module: nnx.Module) -> list[nnx.Variable]:
    return [part for _, part in nnx.iter_graph(module) if isinstance(part, nnx.Variable)]


def _copy_numpy(tree: Any) -> Any:
    """Return the tree with copies of its NumPy arrays, because a module may write into them."""
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, tree)


def _name(module: Any) -> str:
    return module.__name__ if isinstance(module, type) else type(module).__name__
