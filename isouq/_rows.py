"""Rows of inputs: how a function of one input is mapped over them, in batches and on several devices.

A program is compiled for a number of rows. So that 62 and 63 inputs share one, the number is raised to the next
multiple of an eighth of the power of two below it, here 64. The added rows repeat the first one, and their results are
dropped. Inputs that are traced, or that lie on several devices, are left as they are.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from isouq import _checks, sharding
from isouq._errors import first_line
from isouq._room import ROOM, even


class Layout(NamedTuple):
    """How the rows are divided into batches and among devices.

    size: number of rows. batch_size: rows that are computed at a time, None for all. mesh: the devices that share the
    rows; None leaves the arrays where they are. share: number of rows of one device. padded: number of rows that the
    program is compiled for.
    """

    size: int
    batch_size: int | None
    mesh: Mesh | None
    share: int
    padded: int


def lay_out(xs: Any, batch_size: Any, devices: Any, others: Any = None) -> Layout:
    """Return the layout of the rows of xs; raise for a wrong batch_size or devices.

    others: arguments that, like xs, must not be traced where devices are given.
    """
    size = _checks.count_rows(xs)
    if batch_size is not None:
        _checks.positive_int("batch_size", batch_size)
        batch_size = min(batch_size, size)
    if devices is None:
        return Layout(size, batch_size, None, size, size)
    if _checks.is_traced((xs, others)):
        raise ValueError("devices was given under jax.jit; place the inputs first, by isouq.sharding.shard_inputs")
    mesh = sharding.input_mesh(devices)
    share = -(-size // mesh.shape[mesh.axis_names[0]])
    if batch_size is not None and 1 < share <= batch_size:
        batch_size = None
    return Layout(size, batch_size, mesh, share, size)


def share_program(layout: Layout, xs: Any, bytes_of_row: Callable[[], int]) -> Layout:
    """Return the layout with a number of rows that calls of similar size share, and with a batch size if it needs one.

    bytes_of_row: function that returns the bytes that one row takes. It is called where the layout has no batch size,
    which is then chosen so that a batch takes at most `ROOM` bytes.
    """
    if _checks.is_traced(xs) or any(map(_checks.is_spread, jax.tree.leaves(xs))):
        return layout
    size, batch_size = layout.share, layout.batch_size
    if batch_size is None:
        rows_at_once = max(1, ROOM // max(1, bytes_of_row()))
        if layout.mesh is not None:
            return layout._replace(batch_size=rows_at_once if rows_at_once < size else None)
        padded = next_shared(size)
        if padded <= rows_at_once:
            return layout._replace(padded=padded)
        batch_size = even(padded, rows_at_once)
    elif layout.mesh is not None:
        return layout
    return layout._replace(batch_size=batch_size, padded=-(-size // batch_size) * batch_size)


def next_shared(size: int) -> int:
    """Return the least of the shared numbers of rows that is `size` or more: at most an eighth more.

    >>> [next_shared(size) for size in (1, 15, 62, 63, 64, 65, 1000)]
    [1, 15, 64, 64, 64, 72, 1024]
    """
    step = 2 ** max(0, size.bit_length() - 4)
    return -(-size // step) * step


def _resize(tree: Any, rows: int) -> Any:
    """Return the first rows of the leaves `[n, ...]`, or the leaves with their first row repeated up to `rows`.

    On a CPU by NumPy, since every operation of JAX is compiled for every n.
    """

    def resize(leaf: Any) -> Any:
        size = jnp.shape(leaf)[0]
        if size == rows:
            return leaf
        module: Any = np if _is_on_host(leaf) else jnp
        array = module.asarray(leaf)
        if size > rows:
            return array[:rows]
        return module.concatenate([array, module.broadcast_to(array[:1], (rows - size, *array.shape[1:]))])

    return jax.tree.map(resize, tree)


def _is_on_host(leaf: Any) -> bool:
    """Return whether NumPy can read a leaf where it lies."""
    if not isinstance(leaf, jax.Array):
        return True
    if isinstance(leaf, jax.core.Tracer):
        return False
    return isinstance(leaf.dtype, np.dtype) and all(device.platform == "cpu" for device in leaf.devices())


def map_rows(f: Callable, rows: tuple[Any, ...], batch_size: int | None) -> Any:
    """Return `f(*row)` of every row, batch_size rows at a time, or all at once where it is None."""
    if batch_size is None or 1 < jax.tree.leaves(rows)[0].shape[0] <= batch_size:
        return jax.vmap(f)(*rows)
    vmapped = None if batch_size == 1 else batch_size  # one row is not vmapped, because some primitives have no rule
    return jax.lax.map(lambda row: f(*row), rows, batch_size=vmapped)


def estimate_rows(estimate: Callable, arrays: tuple[Any, ...], options: tuple[Any, ...], layout: Layout) -> Any:
    """Return `estimate(*arrays, *options)`, computed on the devices of the layout.

    Args:
        estimate: a jitted function of arrays and static options that returns a pytree of leaves `[n]`.
        arrays: `(predict, params, xs, target, shared)`; only xs and target have rows.
        options: hashable values, among them the batch size of the layout.
        layout: as `lay_out` gives it.

    Raises:
        NotImplementedError: a primitive of predict has no rule for vmap, and the rows are not computed one by one.
    """
    try:
        predict, params, xs, target, shared = arrays
        if layout.mesh is None:
            xs, target = _resize((xs, target), layout.padded)
            results = estimate(predict, params, xs, target, shared, *options)
            return results if layout.padded == layout.size else jax.device_put(_resize(results, layout.size))
        xs, target = sharding.shard_inputs((xs, target), layout.mesh)
        predict, params, shared = sharding.replicate((predict, params, shared), layout.mesh)
        padded = _estimate_over(estimate, (predict, params, xs, target, shared), options, layout.mesh)
        return jax.tree.map(lambda leaf: leaf[: layout.size], padded)
    except NotImplementedError as error:
        if layout.batch_size == 1:
            raise
        raise NotImplementedError(
            f"predict cannot be batched ({first_line(error)}); pass batch_size=1, which scores one input at a "
            "time without vmap"
        ) from error


@jax.jit(static_argnames=("estimate", "options", "mesh"))
def _estimate_over(estimate: Callable, arrays: tuple[Any, ...], options: tuple[Any, ...], mesh: Mesh) -> Any:
    """Return the estimate of the rows of each device by itself, so that a batch never crosses devices."""
    rows, copies = PartitionSpec(mesh.axis_names[0]), PartitionSpec()
    specs = (copies, copies, rows, rows, copies)
    spread = jax.shard_map(
        lambda *arrays: estimate(*arrays, *options), mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False
    )
    return spread(*arrays)
