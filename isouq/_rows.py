"""Rows of inputs: how a function of one input is mapped over them, in batches and on several devices."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from isouq import _checks, sharding
from isouq._errors import first_line


class Layout(NamedTuple):
    """How the rows are divided into batches and among devices.

    size: number of rows. batch_size: rows that are computed at a time, None for all. mesh: the devices that share the
    rows; None leaves the arrays where they are. share: number of rows of one device.
    """

    size: int
    batch_size: int | None
    mesh: Mesh | None
    share: int


def lay_out(xs: Any, batch_size: Any, devices: Any, others: Any = None) -> Layout:
    """Return the layout of the rows of xs; raise for a wrong batch_size or devices.

    others: arguments that, like xs, must not be traced where devices are given.
    """
    size = _checks.count_rows(xs)
    if batch_size is not None:
        _checks.positive_int("batch_size", batch_size)
        batch_size = min(batch_size, size)
    if devices is None:
        return Layout(size, batch_size, None, size)
    if _checks.is_traced((xs, others)):
        raise ValueError("devices was given under jax.jit; place the inputs first, by isouq.sharding.shard_inputs")
    mesh = sharding.input_mesh(devices)
    share = -(-size // mesh.shape[mesh.axis_names[0]])
    if batch_size is not None and 1 < share <= batch_size:
        batch_size = None
    return Layout(size, batch_size, mesh, share)


def map_rows(f: Callable, rows: tuple[Any, ...], batch_size: int | None) -> Any:
    """Return `f(*row)` of every row, batch_size rows at a time, or all at once where it is None."""
    if batch_size is None:
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
        if layout.mesh is None:
            return estimate(*arrays, *options)
        predict, params, xs, target, shared = arrays
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
