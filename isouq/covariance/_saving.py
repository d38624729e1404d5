"""Covariances in files: `isouq.covariance.save` and `load`, without pickle."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _files
from isouq.covariance._dense import Dense
from isouq.covariance._family import Diagonal, Identity, Kronecker, LowRank, is_number
from isouq.covariance._limits import num_params
from isouq.gradnorm._factors import at_least_float32

# What a field is: an array or number; a pytree like the parameters; or such a pytree of pairs.
_FIELDS: dict[type, dict[str, str]] = {
    Identity: {"scale": "array"},
    Diagonal: {"variances": "tree", "clipped": "array"},
    Kronecker: {"factors": "pairs", "variances": "tree"},
    LowRank: {"directions": "tree", "scale": "tree", "weights": "array"},
    Dense: {"factor": "array", "clipped": "array"},
}
_CLASSES = {cls.__name__: cls for cls in _FIELDS}
_FORMAT = 1
Saveable = Identity | Diagonal | Kronecker | LowRank | Dense


def save(path: Path | str, covariance: Any) -> None:
    """Write a covariance to a file, an npz that holds arrays and a line of JSON and no code.

    The file is whole or, if writing fails, what it was before.

    Raises:
        ValueError: a covariance of your own class, whose fields are unknown here.
        OSError: the file cannot be written.
    """
    if type(covariance) not in _FIELDS:
        raise ValueError(f"covariance is a {type(covariance).__name__}; expected one of {', '.join(_CLASSES)}")
    arrays: dict[str, np.ndarray] = {}
    kinds: dict[str, str] = {}
    for field, kind in _FIELDS[type(covariance)].items():
        value = getattr(covariance, field)
        kinds[field] = "none" if value is None else "array" if is_number(value) else kind
        for number, leaf in enumerate(jax.tree.leaves(value)):
            arrays[f"{field}.{number}"] = np.asarray(leaf, at_least_float32(jnp.result_type(leaf)))
    header = json.dumps({"format": _FORMAT, "class": type(covariance).__name__, "kinds": kinds})
    _files.replace(Path(path), lambda file: np.savez(file, allow_pickle=False, header=np.array(header), **arrays))


def load(path: Path | str, params: Any) -> Saveable:
    """Return the covariance that `save` wrote for a model.

    params: parameters of the same model, of which only structure and shapes matter.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or no covariance of this model.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            arrays = {name: stored[name] for name in stored.files if name != "header"}
        version, name, kinds = header["format"], header["class"], header["kinds"]
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can raise almost anything
        raise ValueError(f"{path} is damaged, or no file of isouq.covariance.save ({type(error).__name__})") from error
    if version != _FORMAT or name not in _CLASSES:
        raise ValueError(
            f"{path} holds {name} in format {version}; this isouq reads {', '.join(_CLASSES)} in format "
            f"{_FORMAT}: save it again"
        )
    cls = _CLASSES[name]
    try:
        fields = {field: _as_field(kinds[field], field, arrays, params) for field in _FIELDS[cls]}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} does not fit params: another number of arrays; load it for the same model") from error
    covariance = cls(**fields)
    if isinstance(covariance, Dense):
        size = num_params(params)
        if covariance.factor.shape != (size, size):
            raise ValueError(f"{path} is for {len(covariance.factor)} parameters, and params has {size}")
    else:
        try:
            covariance.forms(params)
        except ValueError as error:
            raise ValueError(f"{path} does not fit params: {error}") from error
    return covariance


def _as_field(kind: str, field: str, arrays: dict[str, np.ndarray], params: Any) -> Any:
    """Return a field from its arrays."""
    if kind == "none":
        return None
    count = sum(name.startswith(f"{field}.") for name in arrays)
    leaves = [jnp.asarray(arrays[f"{field}.{number}"]) for number in range(count)]
    if kind == "array":
        (leaf,) = leaves
        return leaf
    treedef = jax.tree.structure(params)
    if kind == "pairs":
        return jax.tree.unflatten(treedef, list(zip(leaves[::2], leaves[1::2], strict=True)))
    return jax.tree.unflatten(treedef, leaves)
