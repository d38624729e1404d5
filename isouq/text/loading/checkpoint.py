"""Opens a checkpoint, whatever its file format, under Hugging Face's names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from isouq.text.loading._gguf import GGUFCheckpoint
from isouq.text.loading._safetensors import PICKLED, SafetensorsCheckpoint

T = TypeVar("T")


@runtime_checkable
class Checkpoint(Protocol):
    """A configuration and named tensors.

    path: the folder or the GGUF file. config: as in `config.json`. shapes: the shape of every tensor
    by its name in Hugging Face's checkpoints, `[out, in]` for a matrix; made without reading a weight.
    """

    path: Path
    config: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """One tensor `shapes[name]`, read from the disk now; raises a KeyError for another name.

        Safetensors keep their stored type (bfloat16 as `ml_dtypes.bfloat16`); GGUF gives float32.
        The array may be a read-only view of the file.
        """
        ...

    def tokenizer_parts(self) -> dict[str, Any]:
        """`{"folder": path}` or, for a GGUF file, `{"metadata": its general.* and tokenizer.* entries}`."""
        ...


def open_checkpoint(path: str | Path) -> Checkpoint:
    """The checkpoint at `path`: a folder with config.json and safetensors, or one `.gguf` file.

    Only headers are read. Raises FileNotFoundError where something is absent and ValueError where a
    file is damaged, pickled, quantised in a way that is not supported, or of an unknown architecture.
    """
    path = Path(path)
    if path.is_dir():
        return SafetensorsCheckpoint(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a folder with safetensors or a .gguf file")
    if path.suffix in PICKLED:
        raise ValueError(f"{path} is pickled, and isouq never unpickles; convert it to safetensors")
    if path.suffix == ".safetensors":
        raise ValueError(f"{path} is weights alone; give the folder that holds it beside its config.json")
    return GGUFCheckpoint(path)


def read_config(checkpoint: Checkpoint, read: Callable[[dict[str, Any]], T]) -> T:
    """`read(checkpoint.config)`; its ValueError names the file."""
    try:
        return read(checkpoint.config)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from None
