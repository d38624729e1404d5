"""Align draws of a network's posterior to one of its symmetric copies.

The hidden units of an MLP can be permuted, and with an odd activation (tanh) the sign of all weights into and out of a
unit can be flipped, without any change of the function. Draws visit the symmetric copies at random, which makes their
covariance look more isotropic than the posterior is around one θ*.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

_SIMILARITIES_AT_A_TIME = 2**23  # numbers: 64 MB in float64


class _Layer(NamedTuple):
    """The positions of a layer's parameters in the flat vector."""

    kernel: Int[np.ndarray, "inputs outputs"]
    bias: Int[np.ndarray, " outputs"]


def align_hidden_units(draws: Any, target: Any, *, odd: bool = True) -> Float[np.ndarray, "*batch P"]:
    """Return every draw with its hidden units permuted and their signs flipped so that they match those of `target`.

    A unit is the vector of its incoming weights, its bias and its outgoing weights. For the units u_j of a draw and v_i
    of the target, the permutation π and the signs s_i = ±1 minimise Σ_i ‖s_i u_π(i) − v_i‖². This is the same as
    maximising Σ_i |u_π(i) · v_i|, because Σ_i ‖u_π(i)‖² does not depend on π. The function of the network does not
    change if the activation is odd, as tanh is; for another, such as ReLU, pass odd=False.
    That the activation is odd is not checked.

    With one hidden layer the match is the best of all. Deeper networks are matched once, layer by layer from the input.
    A unit of a layer that feeds another hidden layer is then matched by incoming weights and bias alone, because its
    outgoing weights lead to units that are not matched yet.

    Args:
        draws: `[*batch, P]`, each draw flat in the order of `jax.flatten_util.ravel_pytree(target)`.
        target: the parameters to match, `{"layers": {0: {"kernel": [in, out], "bias": [out]}, ...}}`. The last layer is
            the output layer. Without a hidden layer the draws are returned unchanged.
        odd: whether the activation is odd. False permutes units and flips no sign: all s_i are 1.

    Returns:
        The aligned draws, a new array of the shape and dtype of `draws`.

    Raises:
        ValueError: target is not a tree of an MLP, draws have another length, or a value is not finite.

    Cost: draws × width² × (fan-in + fan-out) multiplications, and one assignment problem for each draw and layer
    (width³ at worst; 0.04 ms at width 32, 10 ms at 256, 0.4 s at 1024 on one core). Memory: a copy of the draws.

    Source: the symmetries are those of Sussmann (1992); matching units by an assignment problem, e.g.
    Ainsworth et al. (2023), "Git Re-Basin", arXiv 2209.04836.
    """
    layers = _layers(target)
    aligned = np.array(draws, order="C")  # so that the reshape below is a view
    size = sum(layer.kernel.size + layer.bias.size for layer in layers)
    if aligned.ndim < 1 or aligned.shape[-1] != size:
        raise ValueError(f"draws have shape {aligned.shape}; expected [..., {size}], flat as ravel_pytree(target)")
    goal = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(target)])
    if not (np.isfinite(aligned).all() and np.isfinite(goal).all()):
        raise ValueError("draws or target hold NaN or infinity; remove those draws first")
    flat = aligned.reshape(-1, size)
    for depth, (layer, following) in enumerate(pairwise(layers)):
        ends_in_outputs = depth == len(layers) - 2
        entering = np.concatenate([layer.kernel.T, layer.bias[:, None]], axis=1)
        units = np.concatenate([entering, following.kernel], axis=1)
        _match(flat, goal, units, units if ends_in_outputs else entering, odd)
    return aligned


def _match(flat: np.ndarray, goal: np.ndarray, units: np.ndarray, compared: np.ndarray, odd: bool) -> None:
    """Permute the units of every draw in place, and flip them where the activation is odd.

    units: positions of the parameters of each unit, `[width, parameters]`. compared: those that are matched.
    """
    width = len(units)
    block = max(1, _SIMILARITIES_AT_A_TIME // width**2)
    # in float64, because the products square what the units have in common, which must not hide their differences
    aims = goal[compared].astype(np.float64)
    for start in range(0, len(flat), block):
        rows = flat[start : start + block]
        similar = np.einsum("if,bjf->bij", aims, rows[:, compared].astype(np.float64), optimize=True)  # v_i · u_j
        gains = np.abs(similar) if odd else similar
        order = np.stack([linear_sum_assignment(matrix, maximize=True)[1] for matrix in gains])[:, :, None]
        flips = odd & (np.take_along_axis(similar, order, axis=2) < 0)
        signs = np.where(flips, -1, 1).astype(flat.dtype)
        rows[:, units] = signs * np.take_along_axis(rows[:, units], order, axis=1)


def _layers(target: Any) -> list[_Layer]:
    """Return the layers of an MLP in order; raise unless target is the tree of one."""
    expected = 'expected {"layers": {0: {"kernel": [in, out], "bias": [out]}, ...}} as isouq.models.mlp makes it'
    if not isinstance(target, Mapping) or set(target) != {"layers"} or not isinstance(target["layers"], Mapping):
        names = sorted(map(str, target)) if isinstance(target, Mapping) else type(target).__name__
        raise ValueError(f"target is {names}; {expected}")
    leaves = jax.tree.leaves(target)
    ends = np.cumsum([np.size(leaf) for leaf in leaves])
    where = [
        np.arange(end - np.size(leaf), end).reshape(np.shape(leaf)) for end, leaf in zip(ends, leaves, strict=True)
    ]
    layers = jax.tree.unflatten(jax.tree.structure(target), where)["layers"]
    if sorted(layers) != list(range(len(layers))) or not layers:
        raise ValueError(f"target has layers {sorted(map(str, layers))}; {expected}")
    positions: list[_Layer] = []
    for depth in range(len(layers)):
        layer = layers[depth]
        if not isinstance(layer, Mapping) or set(layer) != {"kernel", "bias"}:
            names = sorted(map(str, layer)) if isinstance(layer, Mapping) else type(layer).__name__
            raise ValueError(f"layer {depth} of target holds {names}; {expected}")
        kernel, bias = layer["kernel"], layer["bias"]
        if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
            raise ValueError(f"layer {depth} has kernel {kernel.shape} and bias {bias.shape}; {expected}")
        if positions and positions[-1].bias.size != kernel.shape[0]:
            raise ValueError(f"layer {depth} takes {kernel.shape[0]} inputs after {positions[-1].bias.size} units")
        positions.append(_Layer(kernel, bias))
    return positions
