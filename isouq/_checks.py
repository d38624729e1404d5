"""Check arguments before anything is traced: each check raises one line that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isouq.gradnorm._leaves import describe, is_array_like, is_foreign, is_inexact, is_sparse

KINDS = ("binary", "multiclass", "regression")


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise a ValueError that lists the allowed values, and names the nearest, unless `value` is one of them."""
    allowed = tuple(allowed)
    if value not in allowed:
        near = "".join(f"; did you mean {one!r}?" for one in difflib.get_close_matches(str(value), allowed, 1))
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}{near}")


def positive_int(name: str, value: Any, minimum: int = 1) -> None:
    """Raise unless `value` is a whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < minimum:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {minimum}")


def boolean(name: str, value: Any) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is {value!r:.60}; expected True or False")


def positive(name: str, value: Any) -> None:
    """Raise unless `value` is a finite positive number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise ValueError(f"{name} is {value!r}; expected a positive number")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}; expected a finite number above 0")


def key(name: str, value: Any) -> None:
    """Raise unless `value` is one random key."""
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    if (typed and shape == ()) or (dtype == np.uint32 and shape == (2,)):
        return
    given = f"an array {dtype}{list(shape)}" if shape else f"of type {type(value).__name__}"
    raise ValueError(f"{name} is {given}; expected one random key, such as jax.random.key(0)")


def noise(kind: str, value: Any) -> None:
    """Raise unless `value` is a standard deviation of y given x for regression, and None for the other kinds."""
    if kind != "regression":
        if value is not None:
            raise ValueError(f"noise is {value}; it belongs to regression, not to {kind}")
    elif value is None:
        raise ValueError("noise is missing; regression needs noise=, the known standard deviation of y given x")
    else:
        positive("noise", value)


def is_traced(tree: Any) -> bool:
    """Return whether a leaf is traced by jit, vmap or grad, so that its values cannot be read."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def finite(name: str, tree: Any) -> None:
    """Raise if any floating leaf holds NaN or infinity; under a trace nothing is checked."""
    if is_traced(tree) or all(map(_is_finite, jax.tree.leaves(tree))):
        return
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not _is_finite(leaf):
            count = sum(int(np.sum(~np.isfinite(part))) for part in _parts(leaf))
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} holds {count} NaN or infinite values "
                f"among {np.size(leaf)}; remove or replace them first"
            )


def _is_finite(leaf: Any) -> bool:
    """Return whether all values of a leaf are finite, as whole numbers always are."""
    if not jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.inexact):
        return True
    return all(np.isfinite(part).all() for part in _parts(leaf))


def is_spread(leaf: Any) -> bool:
    """Return whether a leaf is an array that lies on several devices."""
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def _parts(leaf: Any) -> list[np.ndarray]:
    """Return the parts of the leaf on this process, each once, as NumPy arrays, which no enclosing jit traces."""
    if is_spread(leaf):
        return [np.asarray(data) for data in {str(s.index): s.data for s in leaf.addressable_shards}.values()]
    return [np.asarray(leaf)]


def positive_like(name: str, values: Any, inits: Any) -> None:
    """Raise unless `values` has the structure of `inits` and holds positive numbers that fit to one row of each leaf.

    The numbers of traced values are not checked.
    """
    if jax.tree.structure(values) != jax.tree.structure(inits):  # type: ignore[operator]
        raise ValueError(f"{name} is not a pytree like inits; expected a scalar or an array for each of its leaves")
    finite(name, values)
    for (path, value), leaf in zip(jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(inits), strict=True):
        where, shape, expected = f"{name}{jax.tree_util.keystr(path)}", jnp.shape(value), jnp.shape(leaf)[1:]
        pairs = zip(shape[::-1], expected[::-1], strict=False)
        if len(shape) > len(expected) or any(size not in (1, whole) for size, whole in pairs):
            raise ValueError(
                f"{where} has shape {shape}; expected a scalar or shape {expected}, that of one row of inits"
            )
        if not is_traced(value) and not np.all(np.asarray(value) > 0):
            raise ValueError(f"{where} holds {np.min(value)}; expected numbers above 0")


_ADAPTERS = {
    "flax.nnx.": "from_nnx(module)",
    "flax.linen.": "from_linen(module, variables)",
    "equinox.": "from_equinox(module)",
}


def adapter_of(module: Any) -> str | None:
    """Return the call of `isouq.models` that converts a module of Flax or Equinox; None for anything else."""
    origins = [f"{base.__module__}." for base in type(module).__mro__]
    calls = (call for package, call in _ADAPTERS.items() if any(origin.startswith(package) for origin in origins))
    return next(calls, None)


def inexact_leaves(name: str, params: Any) -> None:
    """Raise unless `params` is a non-empty pytree of real or complex floating arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_sparse)
    if not leaves:
        raise ValueError(f"{name} is an empty pytree; expected the model's parameters")
    for path, leaf in leaves:
        if not is_inexact(leaf):
            hint = "pass only trainable parameters, bind the rest inside predict"
            if is_sparse(leaf):
                hint = "pass its data as a parameter, put the matrix together inside predict"
            elif callable(leaf):
                hint += "; of an Equinox model: params, static = eqx.partition(model, eqx.is_inexact_array)"
            elif adapter := adapter_of(params):
                hint += f"; of a module: predict, params = isouq.models.{adapter}"
            elif not is_array_like(leaf) or is_foreign(leaf):
                hint = "of JAX, or of NumPy in native byte order, such as numpy.asarray(leaf, float)"
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{where} is {describe(leaf)}; expected a floating array ({hint})")


def real_leaves(name: str, params: Any, where: str = "") -> None:
    """Raise if a leaf is complex; the message adds `where`, the situation in which that is wrong."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jax.dtypes.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} is {dtype}; expected a real array{where} (pass the real and the "
                "imaginary part as two leaves, put them together by jax.lax.complex inside predict)"
            )


def float_leaves(name: str, params: Any) -> None:
    """Raise unless `params` is a non-empty pytree of real floating arrays of 16 bits or more."""
    inexact_leaves(name, params)
    real_leaves(name, params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jax.dtypes.result_type(leaf)
        if jnp.finfo(dtype).bits < 16:
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(f"{where} is {dtype}; expected 16 bits or more: astype(jax.numpy.float32)")


def count_rows(xs: Any, name: str = "xs", axis: str = "batch") -> int:
    """Return the number of rows; raise unless every leaf of `xs` has the same, non-zero leading axis."""
    leaves = jax.tree_util.tree_leaves_with_path(xs, is_leaf=is_sparse)
    if not leaves:
        raise ValueError(f"{name} is empty; expected an array with a leading {axis} axis")
    if isinstance(xs, (list, tuple)) and any(isinstance(leaf, (bool, int, float)) for _, leaf in leaves):
        raise ValueError(f"{name} is a {type(xs).__name__} of numbers; expected an array: numpy.asarray({name})")
    sizes = set()
    for path, leaf in leaves:
        where = f"{name}{jax.tree_util.keystr(path)}"
        _numeric(where, leaf)
        if not jnp.shape(leaf):
            shared = "; a value that all rows share belongs inside predict" if path else ""
            raise ValueError(f"{where} is a scalar; expected a leading {axis} axis (for one row {where}[None]{shared})")
        sizes.add(jnp.shape(leaf)[0])
    if len(sizes) > 1:
        one = f"; for one {axis}, jax.tree.map(lambda leaf: leaf[None], {name})" if axis == "start" else ""
        raise ValueError(
            f"the leaves of {name} have different leading axes {sorted(sizes)}; expected one {axis} axis{one}"
        )
    size = sizes.pop()
    if size == 0:
        raise ValueError(f"{name} has no rows; expected at least one")
    return size


def shape_or_type(value: Any) -> str:
    """Return the shape of an array or the type of anything else, for a message."""
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" if shape is None else f"shape {tuple(shape)}"


def _numeric(name: str, leaf: Any) -> None:
    """Raise for text, objects, sparse matrices and arrays of another library."""
    if is_sparse(leaf):
        raise ValueError(f"{name} is {describe(leaf)}; expected a dense array: {name}.todense()")
    if isinstance(leaf, jax.Array):  # traced ones too
        return
    if not is_array_like(leaf) or is_foreign(leaf):
        kind = describe(leaf) if is_foreign(leaf) else f"a {type(leaf).__name__}"
        raise ValueError(
            f"{name} holds {kind}; expected JAX or NumPy arrays of numbers, such as numpy.asarray({name}, float)"
        )


def as_arrays(tree: Any) -> Any:
    """Return the tree with arrays of NumPy as leaves; a list of numbers, also nested, is one array."""
    return jax.tree.map(np.asarray, tree, is_leaf=_is_list_of_numbers)


def _is_list_of_numbers(node: Any) -> bool:
    """Return whether a node is a list that holds nothing but numbers, at any depth of lists."""
    numbers = (bool, int, float, np.number)
    return isinstance(node, list) and all(isinstance(one, numbers) or _is_list_of_numbers(one) for one in node)


def batches(value: Any, items: str) -> None:
    """Raise unless the value is an iterable that is no array and no text; items: what it should hold."""
    if not isinstance(value, Iterable) or isinstance(value, (np.ndarray, jax.Array, str, bytes)):
        raise ValueError(f"batches is {shape_or_type(value)}; expected an iterable of {items}")


def dataset(xs: Any, ys: Any, kind: str, num_classes: int | None = None) -> None:
    """Raise unless xs and ys are finite, have one length and, for classes, hold labels in range of at least two."""
    labels(xs, ys, kind, num_classes)
    if kind != "regression" and np.unique(np.asarray(ys)).size < 2:
        raise ValueError(f"ys holds one class only ({int(np.ravel(ys)[0])}); a {kind} problem needs at least two")


def labels(xs: Any, ys: Any, kind: str, num_classes: int | None = None) -> None:
    """Raise unless xs and ys are finite, have one length and, for classes, hold labels in range."""
    one_of("kind", kind, KINDS)
    size = count_rows(xs)
    given_dtype = ys.dtype if hasattr(ys, "dtype") else np.asarray(ys).dtype
    if not (jnp.issubdtype(given_dtype, jnp.number) or jnp.issubdtype(given_dtype, jnp.bool_)):
        hint = "numpy.asarray(ys, float)"
        if kind != "regression":
            hint = "numpy.unique(ys, return_inverse=True)[1] turns names of classes into labels 0, 1, …"
        raise ValueError(f"ys is {given_dtype}; expected numbers: {hint}")
    if jnp.shape(ys) != (size,):
        one_hot = kind != "regression" and jnp.ndim(ys) == 2 and jnp.shape(ys)[1] > 1
        hint = "; for one-hot labels, ys.argmax(axis=1)" if one_hot else ""
        hint = "; without its second axis, ys[:, 0]" if jnp.shape(ys) == (size, 1) else hint
        raise ValueError(
            f"ys has shape {jnp.shape(ys)}; expected ({size},): one label for each of the {size} rows of xs{hint}"
        )
    finite("xs", xs)
    finite("ys", ys)
    if kind == "regression":
        return
    given = np.asarray(ys)
    if not np.all(given == np.round(given)):
        fraction = given[given != np.round(given)][0]
        raise ValueError(f"ys holds {fraction}, which is not whole; {kind} expects class labels 0, 1, …")
    top = 2 if kind == "binary" else num_classes
    if given.min() < 0 or (top is not None and given.max() >= top):
        raise ValueError(
            f"ys holds labels from {int(given.min())} to {int(given.max())}; {kind} expects 0 to {(top or 2) - 1}, "
            "counted from 0"
        )
