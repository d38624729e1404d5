"""The state of a long computation in a file, from which it continues after an interruption."""

import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from isouq import _files


class Saved(NamedTuple):
    """The state of a computation after some of its blocks.

    For the sampler a block is one of transitions, `state` holds the state of every chain, and `results` a `Trace`.
    blocks: number of blocks that are finished. state: the state after them. results: what they have gathered, or None.
    """

    blocks: int
    state: Any
    results: Any


def fingerprint(settings: dict[str, Any], arrays: Any) -> str:
    """Return the SHA-256 of settings (as JSON), JAX's version and device, and all arrays with dtypes and shapes."""
    settings = settings | {"jax": jax.__version__, "device": jax.local_devices()[0].device_kind}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for leaf in jax.tree.leaves(arrays):
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.ascontiguousarray(leaf)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.view(np.uint8).data if array.size else b"")
    return digest.hexdigest()


class Checkpoint:
    """One file, read once at the start and written at most every `seconds`.

    It is an npz without pickle that holds the mark, the number of finished blocks, and the leaves of the state and of
    the results. The mark is the fingerprint of the run. A file that cannot be used or written gives a warning of one
    line and never stops the run. A file that is damaged or has another mark is renamed to NAME.unused.
    """

    def __init__(self, path: Path, seconds: float, mark: str) -> None:
        if not path.name:
            raise ValueError(f"the checkpoint is {str(path)!r}; expected the name of a file")
        self.path, self.seconds, self.mark = path, seconds, mark
        self.last = time.monotonic()
        self.warned = False

    def load(self, state: Any, results: Any) -> Saved | None:
        """Return what was saved, in the structure and dtypes of `state` and `results`; None without a usable file."""
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                if str(stored["mark"]) == self.mark:
                    results = _unpack(stored, "kept", results) if "kept.0" in stored else None
                    return Saved(int(stored["blocks"]), _unpack(stored, "state", state), results)
                reason = "belongs to another run"
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"cannot be read ({error.strerror or error})"
        except Exception as error:  # a damaged file can raise almost anything
            reason = f"is damaged ({type(error).__name__})"
        warnings.warn(f"the checkpoint {self.path} {reason}; {self._put_aside()}starting anew", stacklevel=4)
        return None

    def _put_aside(self) -> str:
        """Rename the file to NAME.unused, and return the words that say so."""
        aside = self.path.with_name(f"{self.path.name}.unused")
        try:
            if self.path.is_file():
                self.path.replace(aside)
                return f"it is now {aside.name}; "
        except OSError:
            pass  # saving will warn
        return ""

    def due(self) -> bool:
        """Return whether it is time to save."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, saved: Saved) -> None:
        """Replace the file."""
        blocks, state, results = saved
        arrays = {"mark": np.array(self.mark), "blocks": np.array(blocks), **_pack("state", state)}
        if results is not None:
            arrays |= _pack("kept", results)
        try:
            _files.replace(self.path, lambda file: np.savez(file, allow_pickle=False, **arrays))
        except OSError as error:
            if not self.warned:
                reason = error.strerror or error
                warnings.warn(
                    f"the checkpoint {self.path} cannot be written ({reason}); going on without", stacklevel=4
                )
            self.warned = True
        self.last = time.monotonic()


def _pack(name: str, tree: Any) -> dict[str, np.ndarray]:
    return {f"{name}.{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}


def _unpack(stored: Any, name: str, like: Any) -> Any:
    leaves, treedef = jax.tree.flatten(like)
    arrays = [stored[f"{name}.{i}"] for i in range(len(leaves))]
    typed = [a.view(like.dtype) if a.dtype.kind == "V" else a for a, like in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(treedef, typed)  # NumPy loads bfloat16 as bytes without a type


def other_batches(path: Any, skipped: int, rows: int, batches_read: int, rows_read: int) -> str:
    """Return the message for batches that are not those that a checkpoint of `skipped` batches was made from."""
    return (
        f"the checkpoint {path} has {skipped} batches of {rows} rows, and batches gave {batches_read} of "
        f"{rows_read}; remove the file or give the same batches again"
    )
