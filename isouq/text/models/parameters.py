"""From a checkpoint's tensors to the parameters of a Flax module: one table per family, one way to read it.

A table maps the path of a parameter here (`layers.attention.q.kernel`) to the tensor that holds it in a
checkpoint. Layers are stacked on a leading axis, because one `lax.scan` runs them all; everything is read tensor by
tensor from a memory-mapped file, so that the peak is the parameters plus one stacked leaf.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isouq.text.loading.checkpoint import Checkpoint

Sharding = jax.sharding.Sharding
Place = Sharding | Callable[[str, tuple[int, ...]], Sharding]


class Interleaved(NamedTuple):
    """Every `parts`-th block of `size` rows, from block `first` on: part of a tensor of size · parts · blocks rows."""

    first: int
    parts: int
    size: int
    blocks: int

    @property
    def stop(self) -> int:
        """The number of rows of the whole tensor."""
        return self.parts * self.size * self.blocks


class Tensor(NamedTuple):
    """Where a parameter stands in a checkpoint.

    name: the tensor; "{}" in it stands for the layer, and makes the parameter a stack over layers; a second "{}" for
        the expert of a layer.
    transpose: True for a matrix, which checkpoints hold as [out, in] and Flax as [in, out].
    rows: the part of a fused tensor, as a slice of its first axis or of another `axis`.
    last: the name of the tensor of a stack's last row. Its rows 0, 1, … are then those of the layers 1, 2, …
        (ModernBERT, whose norm before a layer is kept with the layer before it).
    """

    name: str
    transpose: bool = False
    rows: slice | Interleaved | None = None
    axis: int = 0
    last: str = ""


Table = Mapping[str, Tensor]


def assemble(
    abstract: Any,
    table: Table,
    checkpoint: Checkpoint,
    dtype: Any,
    place: Place | None,
    ignore: tuple[str, ...],
) -> Any:
    """Return the parameters `abstract` describes (a nested dict of ShapeDtypeStruct), read from the checkpoint.

    dtype: of every parameter. place: a sharding for all, or a function of (path, shape) that gives one for each;
    None for the first device. ignore: endings of tensor names that a checkpoint may hold without need.

    Raises ValueError, before anything is read, where dtype is no floating one and where tensors are missing, have
    another shape or are left over (a model with a part that is not built here would give other numbers); then where
    a tensor holds NaN or infinity.
    """
    try:
        usable = jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize > 1  # no products of 8-bit floats
    except TypeError:  # dtype is no dtype
        usable = False
    if not usable:
        name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", dtype)
        raise ValueError(f"dtype is {name}; expected a floating one: float32 or bfloat16")
    paths = dict(flatten(abstract))
    _check(paths, table, checkpoint, ignore)
    leaves = {}
    for path, leaf in paths.items():
        array = _read(table[path], leaf.shape, checkpoint, jnp.dtype(dtype))
        target = place(path, leaf.shape) if callable(place) else place
        leaves[path] = jax.device_put(array, target)
    return unflatten(leaves)


@functools.lru_cache(maxsize=64)
def structure(build: Callable[[Any, nnx.Rngs], nnx.Module], config: Any) -> tuple[Any, Any]:
    """Return (graph, shapes) of the module `build(config, rngs)`: shapes is a nested dict of ShapeDtypeStruct."""
    graph, params = nnx.split(nnx.eval_shape(lambda: build(config, nnx.Rngs(0))), nnx.Param)
    return graph, nnx.to_pure_dict(params)


def flatten(tree: Any) -> Iterator[tuple[str, Any]]:
    """Return `("layers.attention.q.kernel", leaf)` of every leaf of a nested dict, in jax's order."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield ".".join(str(key.key) for key in path), leaf


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict that `flatten` took apart."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _check(paths: Mapping[str, Any], table: Table, checkpoint: Checkpoint, ignore: tuple[str, ...]) -> None:
    shapes, used = checkpoint.shapes, set()
    missing, wrong = [], []
    fused: dict[str, int] = {}  # rows of a fused tensor: as many as its last part ends at
    for tensor in table.values():
        if tensor.rows is not None:
            fused[tensor.name] = max(fused.get(tensor.name, 0), tensor.rows.stop)
    for path, leaf in paths.items():
        tensor = table[path]
        expected = leaf.shape[tensor.name.count("{}") :]
        expected = expected[::-1] if tensor.transpose else expected
        for name in _names(tensor, leaf.shape):
            used.add(name)
            if name not in shapes:
                missing.append(name)
                continue
            shape = tuple(expected)
            if tensor.rows is not None:
                shape = (*shape[: tensor.axis], fused[tensor.name], *shape[tensor.axis + 1 :])
            if tuple(shapes[name]) != shape:
                wrong.append(f"{name} is {list(shapes[name])}, expected {list(shape)}")
    unused = sorted(name for name in shapes if name not in used and not name.endswith(ignore))
    wrong = list(dict.fromkeys(wrong))
    together = "config and weights do not belong together"
    if missing:
        raise ValueError(f"{checkpoint.path}: {_some(list(dict.fromkeys(missing)))} missing; {together}")
    if wrong:
        raise ValueError(f"{checkpoint.path}: {_some(wrong)}; {together}")
    if unused:
        raise ValueError(f"{checkpoint.path}: {_some(unused)} not part of this architecture as built here; not loaded")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _names(tensor: Tensor, shape: tuple[int, ...]) -> list[str]:
    names = [tensor.name.format(*at) for at in np.ndindex(*shape[: tensor.name.count("{}")])]
    return [*names[1:], tensor.last] if tensor.last else names


def _read(tensor: Tensor, shape: tuple[int, ...], checkpoint: Checkpoint, dtype: np.dtype) -> np.ndarray:
    names = _names(tensor, shape)
    out = np.empty(shape, dtype)
    rows = out.reshape(len(names), *shape[tensor.name.count("{}") :])
    for name, row in zip(names, rows, strict=True):
        array = checkpoint.read(name)
        array = part_of(array, tensor)
        with np.errstate(over="ignore"):  # the next line says it
            row[...] = array.T if tensor.transpose else array
        if not np.all(np.isfinite(row.astype(np.float32, copy=False))):
            raise ValueError(f"{checkpoint.path}: {name} holds NaN or infinity as {dtype}; the file is damaged")
    return out


def part_of(array: np.ndarray, tensor: Tensor) -> np.ndarray:
    """Return the rows of a stored array that a parameter takes."""
    if tensor.rows is None:
        return array
    if isinstance(tensor.rows, Interleaved):
        first, parts, size, _ = tensor.rows
        blocks = array.reshape(-1, parts, size, *array.shape[1:])
        return blocks[:, first].reshape(-1, *array.shape[1:])
    return array[tensor.rows] if tensor.axis == 0 else array[:, tensor.rows]
