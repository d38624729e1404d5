"""Spread inputs and parameters over several devices, of one process or of several hosts.

mesh = jax.make_mesh((2, 4), ("inputs", "model"))
params = isouq.sharding.shard_params(params, [(r"kernel$", P(None, "model"))], mesh)
u = isouq.uncertainty(predict, params, isouq.sharding.shard_inputs(xs, mesh), kind="multiclass")
epistemic = isouq.sharding.gather(u.epistemic)[: len(xs)]

Every function of isouq computes where its arrays are, so that nothing but their place has to change. Where each device
can hold the whole model, `isouq.uncertainty(..., devices=jax.local_devices())` is enough. With several hosts every
process runs the same lines on the same arrays and holds its own part of them. Call `jax.distributed.initialize` before
isouq.posterior is imported, because BlackJAX uses JAX while it is imported.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from isouq import _checks

Place = Callable[[str, tuple[int, ...]], NamedSharding]


def shard_inputs(xs: Any, devices: Mesh | Sequence[jax.Device] | None = None) -> Any:
    """Return inputs `[n, ...]` with their rows spread evenly over devices.

    Args:
        xs: an array or a pytree of arrays with a leading axis n; on several hosts the same on each.
        devices: a list of devices, or a mesh over whose first axis the rows are spread; by default all devices of all
            hosts.

    Returns:
        xs with n rounded up to a multiple of the number of devices, by repeating row 0 at the end. Cut results with
        `[:n]`.

    Raises:
        ValueError: xs has no rows or leaves of different lengths, or devices names none or one of them twice.
    """
    size = _checks.count_rows(xs)
    mesh = input_mesh(devices)
    count = mesh.shape[mesh.axis_names[0]]
    rows = np.arange(-(-size // count) * count)
    rows[rows >= size] = 0
    padded = xs if len(rows) == size else jax.tree.map(lambda leaf: leaf[rows], _as_arrays(xs))
    return _put(padded, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))


def shard_params(params: Any, rules: Sequence[tuple[str, PartitionSpec]] | None, mesh: Mesh) -> Any:
    """Return parameters split over the axes of a mesh, so that each device holds a part of them.

    Args:
        params: a pytree of arrays; on several hosts the same on each.
        rules: pairs of a regular expression and a PartitionSpec. The first pair whose expression occurs in the path of
            a leaf, such as "layers.attention.q.kernel", says how its dimensions are split. A leaf without such a pair
            is copied to all devices. None stands for the rule `shard_over(mesh, "model")`.
        mesh: a mesh of devices with named axes.

    Returns:
        The same numbers. XLA partitions the programs that take them, and estimates differ by rounding.

    Raises:
        ValueError: rules are no such pairs, an expression occurs in no path, the mesh has no such axis, a rule names
            more dimensions than a leaf has, or the devices along an axis do not divide a dimension.

    Memory: params / devices on each device, as far as the rules split them. `isouq.text.load(place=shard_over(mesh))`
    reads a model without holding the whole of it anywhere.
    """
    _check_mesh(mesh)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(params)]
    if rules is None:
        place = shard_over(mesh, "model")
    else:
        rules = _check_rules(rules)
        for pattern, _ in rules:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(f"rule {pattern!r} finds no parameter; the paths are {_list_first(paths)}")
        place = _by_rules(rules, mesh)
    leaves, treedef = jax.tree.flatten(params)
    leaves = [_put(leaf, place(path, np.shape(leaf))) for path, leaf in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(treedef, leaves)


def shard_over(mesh: Mesh, axis: str | None = None) -> Place:
    """Return the rule (path, shape) -> sharding that splits the largest dimension which the axis of the mesh divides.

    It is meant for `isouq.text.load(place=...)`, and `shard_params` uses it where rules is None. The axis of stacked
    layers, whose paths begin with "layers.", is not split. Vectors, and matrices without a dimension that the axis
    divides, are copied to all devices.

    axis: the name of an axis of the mesh; by default the first.
    """
    _check_mesh(mesh)
    axis = axis or mesh.axis_names[0]
    if axis not in mesh.axis_names:
        raise ValueError(f"axis is {axis!r}; the mesh has {', '.join(map(repr, mesh.axis_names))}")
    mesh = _auto(mesh)
    size = mesh.shape[axis]

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        spec: list[str | None] = [None] * len(shape)
        first = 1 if path.startswith("layers.") else 0
        candidates = [i for i in range(first, len(shape)) if shape[i] % size == 0]
        if len(shape) - first > 1 and candidates:
            spec[max(candidates, key=lambda i: shape[i])] = axis
        return NamedSharding(mesh, PartitionSpec(*spec))

    return place


def replicate(tree: Any, devices: Mesh | Sequence[jax.Device] | None = None) -> Any:
    """Return the tree with a whole copy of every leaf on each device; devices are those of `shard_inputs`."""
    return _put(tree, NamedSharding(input_mesh(devices), PartitionSpec()))


def gather(tree: Any) -> Any:
    """Return the tree with the whole of every leaf as a NumPy array, on every host. All hosts must call it together.

    Cost: one all-gather for each leaf, and the memory of the whole tree on each host.
    """
    return jax.tree.map(_gather_leaf, tree)


def input_mesh(devices: Mesh | Sequence[jax.Device] | None) -> Mesh:
    """Return a mesh whose first axis is the one for inputs."""
    if isinstance(devices, Mesh):
        return _auto(devices)
    devices = jax.devices() if devices is None else devices
    listed = list(devices) if isinstance(devices, Iterable) else []
    if not listed or not all(isinstance(device, jax.Device) for device in listed):
        raise ValueError(f"devices is {devices!r:.60}; expected a list of JAX devices such as jax.local_devices()")
    if len(set(listed)) < len(listed):
        raise ValueError(
            f"devices has {len(listed)} entries, of which {len(set(listed))} differ; give each device once"
        )
    return Mesh(np.array(listed), ("inputs",))


def _auto(mesh: Mesh) -> Mesh:
    """Return the mesh with axes that XLA partitions over, of type Auto.

    The axes of `jax.make_mesh` are of type Explicit, which asks every operation of a model for the sharding of its
    result. The mesh of `jax.set_mesh` is returned as it is, because it asks that of all arrays anyway.
    """
    if jax.sharding.get_abstract_mesh() == mesh.abstract_mesh:
        return mesh
    return Mesh(mesh.devices, mesh.axis_names)


def _check_mesh(mesh: Mesh) -> None:
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {mesh!r:.60}; expected one such as jax.make_mesh((2, 4), ('inputs', 'model'))")


def _check_rules(rules: Any) -> list[tuple[str, PartitionSpec]]:
    """Return the rules as a list; raise unless each is a pair of a regular expression and a PartitionSpec."""
    rules = list(rules) if isinstance(rules, Iterable) else [rules]
    for rule in rules:
        pair = isinstance(rule, (tuple, list)) and len(rule) == 2
        if not pair or not isinstance(rule[0], str) or not isinstance(rule[1], PartitionSpec):
            raise ValueError(
                f"a rule is {rule!r:.60}; expected a pair such as ('kernel$', PartitionSpec(None, 'model'))"
            )
        try:
            re.compile(rule[0])
        except re.error as error:
            raise ValueError(f"rule {rule[0]!r} is no regular expression: {error}") from None
    return rules


def _by_rules(rules: Sequence[tuple[str, PartitionSpec]], mesh: Mesh) -> Place:
    mesh = _auto(mesh)

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        spec = next((spec for pattern, spec in rules if re.search(pattern, path)), PartitionSpec())
        if len(spec) > len(shape):
            raise ValueError(f"{path} has shape {shape}, but its rule splits {len(spec)} dimensions: {spec}")
        for size, axes in zip(shape, spec, strict=False):
            names = (axes,) if isinstance(axes, str) else tuple(axes or ())
            for name in names:
                if name not in mesh.axis_names:
                    raise ValueError(f"{path}: its rule names the axis {name!r}; the mesh has {mesh.axis_names}")
            count = int(np.prod([mesh.shape[name] for name in names]))
            if size % count:
                raise ValueError(
                    f"{path} has shape {shape}; its dimension of {size} is not a multiple of the {count} devices along "
                    f"{', '.join(map(repr, names))} (leave it whole, or use another mesh)"
                )
        return NamedSharding(mesh, spec)

    return place


def _gather_leaf(leaf: Any) -> np.ndarray:
    if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _put(tree: Any, where: NamedSharding) -> Any:
    if where.is_fully_addressable:
        return jax.device_put(tree, where)
    # on several hosts each holds the whole and places its own part
    return jax.tree.map(lambda leaf: _make_global(np.asarray(leaf), where), tree)


def _make_global(array: np.ndarray, where: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def _as_arrays(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), tree)


def _list_first(paths: list[str]) -> str:
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
