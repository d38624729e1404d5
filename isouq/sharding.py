"""Inputs and parameters over several devices, of one process or of several hosts.

mesh = jax.make_mesh((2, 4), ("inputs", "model"))
params = isouq.sharding.shard_params(params, [(r"kernel$", P(None, "model"))], mesh)
u = isouq.uncertainty(predict, params, isouq.sharding.shard_inputs(xs, mesh), kind="multiclass")
epistemic = isouq.sharding.gather(u.epistemic)[: len(xs)]

Every function of isouq computes where its arrays are, so that placing them is all there is to do; for whole
copies of the model on several devices `isouq.uncertainty(..., devices=jax.local_devices())` does it too. With several
hosts every process runs the same lines on the same arrays and keeps its own part; call `jax.distributed.initialize`
before isouq.posterior is imported, since BlackJAX uses JAX while it is imported.
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
    """Inputs `[n, ...]` with their rows spread evenly over devices.

    Args:
        xs: an array or a pytree of arrays with a leading axis n; on several hosts the same on each.
        devices: a list; or a mesh, over whose first axis the rows go; all devices of all hosts by default.

    Returns:
        xs with n rounded up to a multiple of the devices: row 0 is repeated at the end. Cut results with `[:n]`.

    Raises:
        ValueError: no rows, leaves of different lengths, no device, one device twice.
    """
    size = _checks.inputs(xs)
    mesh = input_mesh(devices)
    count = mesh.shape[mesh.axis_names[0]]
    rows = np.arange(-(-size // count) * count)
    rows[rows >= size] = 0
    padded = xs if len(rows) == size else jax.tree.map(lambda leaf: leaf[rows], _arrays(xs))
    return _put(padded, NamedSharding(mesh, PartitionSpec(mesh.axis_names[0])))


def shard_params(params: Any, rules: Sequence[tuple[str, PartitionSpec]] | None, mesh: Mesh) -> Any:
    """Parameters split over the axes of a mesh, so that each device holds a part of them.

    Args:
        params: a pytree of arrays; on several hosts the same on each.
        rules: pairs of a regular expression and a PartitionSpec. The first that is found in the path of a leaf, such
            as "layers.attention.q.kernel", says how its dimensions are split; a leaf that none finds is copied to all
            devices. None: `shard_over(mesh, "model")`.
        mesh: of devices, with named axes.

    Returns:
        The same numbers; programs that take them are partitioned by XLA, estimates differ by rounding.

    Raises:
        ValueError: rules that are no such pairs, a rule that finds no leaf, an axis the mesh lacks, more axes than a
            leaf has dimensions, a dimension that its axes do not divide.

    Memory: params / devices on each, as far as the rules split them; `isouq.text.load(place=shard_over(mesh))` reads
    a model without holding it whole anywhere.
    """
    _check_mesh(mesh)
    paths = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in jax.tree.leaves_with_path(params)]
    if rules is None:
        place = shard_over(mesh, "model")
    else:
        rules = _pairs(rules)
        for pattern, _ in rules:
            if not any(re.search(pattern, path) for path in paths):
                raise ValueError(f"rule {pattern!r} finds no parameter; the paths are {_some(paths)}")
        place = _by_rules(rules, mesh)
    leaves, treedef = jax.tree.flatten(params)
    placed = [_put(leaf, place(path, np.shape(leaf))) for path, leaf in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(treedef, placed)


def shard_over(mesh: Mesh, axis: str | None = None) -> Place:
    """A rule by size, (path, shape) -> sharding: the largest dimension that the mesh's axis divides is split over it.

    For `isouq.text.load(place=...)` and, as rules=None, for `shard_params`.
    axis: the mesh's only axis by default. Stacked layers (paths that begin with "layers.") are not split on the layer
    axis. Vectors are copied, and so are matrices with no dimension that divides.
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
    """A whole copy of every leaf on each device; devices as in `shard_inputs`."""
    return _put(tree, NamedSharding(input_mesh(devices), PartitionSpec()))


def gather(tree: Any) -> Any:
    """The whole of every leaf as a NumPy array, on every host.

    All hosts must call it together. Cost: one all-gather; memory of the whole tree on each host.
    """
    return jax.tree.map(_whole, tree)


def input_mesh(devices: Mesh | Sequence[jax.Device] | None) -> Mesh:
    """A mesh whose first axis is the one for inputs."""
    if isinstance(devices, Mesh):
        return _auto(devices)
    devices = jax.devices() if devices is None else devices
    found = list(devices) if isinstance(devices, Iterable) else []
    if not found or not all(isinstance(device, jax.Device) for device in found):
        raise ValueError(f"devices is {devices!r:.60}; expected a list of JAX devices such as jax.local_devices()")
    if len(set(found)) < len(found):
        raise ValueError(f"devices has {len(found)} entries, of which {len(set(found))} differ; give each device once")
    return Mesh(np.array(found), ("inputs",))


def _auto(mesh: Mesh) -> Mesh:
    """Axes that XLA partitions over; those of jax.make_mesh are Explicit, and would ask every model for types.

    A mesh that `jax.set_mesh` made the current one stays as it is: all arrays are asked for its types then.
    """
    if jax.sharding.get_abstract_mesh() == mesh.abstract_mesh:
        return mesh
    return Mesh(mesh.devices, mesh.axis_names)


def _check_mesh(mesh: Mesh) -> None:
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh is {mesh!r:.60}; expected one such as jax.make_mesh((2, 4), ('inputs', 'model'))")


def _pairs(rules: Any) -> list[tuple[str, PartitionSpec]]:
    """The rules as a list, each looked at."""
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


def _whole(leaf: Any) -> np.ndarray:
    if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
        return np.asarray(leaf)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))


def _put(tree: Any, where: NamedSharding) -> Any:
    if where.is_fully_addressable:
        return jax.device_put(tree, where)
    # several hosts: each holds the whole and places its own part
    return jax.tree.map(lambda leaf: _part(np.asarray(leaf), where), tree)


def _part(array: np.ndarray, where: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def _arrays(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else np.asarray(leaf), tree)


def _some(paths: list[str]) -> str:
    return ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
