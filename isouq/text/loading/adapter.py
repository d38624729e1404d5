"""A folder as PEFT saves an adapter: adapter_config.json beside adapter_model.safetensors."""

from pathlib import Path
from typing import Any

import numpy as np

from isouq.text.loading._reading import read_json
from isouq.text.loading._safetensors import ADAPTER_CONFIG, INDEX, WEIGHTS, open_tensors

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # before the names of the base's modules


class AdapterFiles:
    """The configuration and tensors of an adapter; only the header is read before `read`.

    path: the folder. config: adapter_config.json. shapes: the shape of every tensor, by its name without PREFIX.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        if not (folder / ADAPTER_CONFIG).is_file():
            raise FileNotFoundError(f"{folder} has no {ADAPTER_CONFIG}; expected a folder as PEFT saves an adapter")
        self.config: dict[str, Any] = read_json(folder / ADAPTER_CONFIG)
        weights = folder / ADAPTER_WEIGHTS
        if not weights.is_file():
            if (folder / "adapter_model.bin").is_file():
                raise ValueError(
                    f"{folder} holds a pickled adapter (adapter_model.bin), and isouq never unpickles; save it again "
                    "with PEFT's save_pretrained(FOLDER, safe_serialization=True)"
                )
            raise FileNotFoundError(f"{folder} has no {ADAPTER_WEIGHTS}; expected it beside {ADAPTER_CONFIG}")
        self._files = open_tensors(weights, None)
        self._stored = {name.removeprefix(PREFIX): name for name in self._files}
        self.shapes: dict[str, tuple[int, ...]] = {
            name: tuple(self._files[stored].get_slice(stored).get_shape()) for name, stored in self._stored.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in float32; raise a ValueError where it holds NaN or infinity."""
        array = self._files[self._stored[name]].get_tensor(self._stored[name]).astype(np.float32)
        if not np.all(np.isfinite(array)):
            raise ValueError(f"{self.path / ADAPTER_WEIGHTS}: {name} holds NaN or infinity; the file is damaged")
        return array

    def base(self) -> tuple[str, str | None]:
        """Return the name of the base model and its revision, or raise a ValueError where the adapter names none."""
        name, revision = (self.config.get(key) for key in ("base_model_name_or_path", "revision"))
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"{self.path} names no base model; give the base as the model and this as its adapter")
        on_the_hub = isinstance(revision, str) and not Path(name).expanduser().exists()
        return name, revision if on_the_hub else None


def is_adapter(path: Path) -> bool:
    """Return whether a path is the folder of an adapter alone, without a model beside it."""
    return (path / ADAPTER_CONFIG).is_file() and not any((path / file).exists() for file in (WEIGHTS, INDEX))
