"""A long computation on disk: enough to go on as if nothing had happened."""

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
    """blocks: steps that are done. state: after them. kept: what they have gathered; None if nothing yet.

    Of chains: blocks of transitions, the state of every chain, a `Trace` of the draws so far.
    """

    blocks: int
    state: Any
    kept: Any


def fingerprint(settings: dict[str, Any], arrays: Any) -> str:
    """SHA-256 of settings (JSON), JAX's version and device, and bytes, shapes and dtypes of all leaves of arrays."""
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
    """One file, written at most every `seconds`, read once at the start.

    An npz without pickle: mark, number of finished blocks, the leaves of state and of what was kept. A file that
    cannot be used or written costs a warning of one line, never the run. One that is damaged or of another mark is
    put aside under the name NAME.unused.
    """

    def __init__(self, path: Path, seconds: float, mark: str) -> None:
        self.path, self.seconds, self.mark = path, seconds, mark
        self.last = time.monotonic()
        self.warned = False

    def load(self, state: Any, kept: Any) -> Saved | None:
        """What was saved, in the structure and dtypes of `state` and `kept`; None if there is nothing to go on from."""
        try:
            with open(self.path, "rb") as file, np.load(file, allow_pickle=False) as stored:
                if str(stored["mark"]) == self.mark:
                    kept = _unpack(stored, "kept", kept) if "kept.0" in stored else None
                    return Saved(int(stored["blocks"]), _unpack(stored, "state", state), kept)
                reason = "belongs to another run"
        except FileNotFoundError:
            return None
        except OSError as error:
            reason = f"cannot be read ({error.strerror or error})"
        except Exception as error:  # damage shows in many ways
            reason = f"is damaged ({type(error).__name__})"
        warnings.warn(f"the checkpoint {self.path} {reason}; {self._put_aside()}starting anew", stacklevel=4)
        return None

    def _put_aside(self) -> str:
        aside = self.path.with_name(f"{self.path.name}.unused")
        try:
            if self.path.is_file():
                self.path.replace(aside)
                return f"it is now {aside.name}; "
        except OSError:
            pass  # then it cannot be written over either
        return ""

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self.last >= self.seconds

    def save(self, saved: Saved) -> None:
        """Replaces the file."""
        blocks, state, kept = saved
        arrays = {"mark": np.array(self.mark), "blocks": np.array(blocks), **_pack("state", state)}
        if kept is not None:
            arrays |= _pack("kept", kept)
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
    return jax.tree.unflatten(treedef, typed)  # bfloat16 comes back as bytes without a type
