"""A folder with config.json and safetensors, in one file or in shards listed by an index."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  older safetensors find bfloat16 only after this import
import numpy as np

from isouq.text.loading import _extras
from isouq.text.loading._reading import one_line, read_json

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
READABLE = ("F64", "F32", "F16", "BF16", "I64", "I32", "BOOL")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class SafetensorsCheckpoint:
    """See `checkpoint.Checkpoint`. The files are memory-mapped and stay open while this lives."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        config_path = folder / "config.json"
        if not config_path.is_file() and (folder / ADAPTER_CONFIG).is_file():
            raise ValueError(
                f"{folder} is an adapter of PEFT; expected a model: isouq.text.load(BASE, adapter=...) takes both, "
                "and for an encoder merge it with PEFT's merge_and_unload and save the model"
            )
        if not config_path.is_file():
            raise FileNotFoundError(f"{folder} has no config.json; expected a folder as Hugging Face saves a model")
        self.config = read_json(config_path)
        method = self.config.get("quantization_config") or self.config.get("compression_config")
        if method:
            name = method.get("quant_method", "unnamed") if isinstance(method, dict) else "unnamed"
            raise ValueError(
                f"{config_path} says that the weights are quantised ({name}); "
                "expected weights in F32, F16 or BF16 (or a GGUF file): take the unquantised model"
            )
        self._files: dict[str, Any] = {}  # tensor name in the file -> that file, open
        for file, names in weight_files(folder).items():
            self._files |= open_tensors(file, names)
        self._names = usual_names(self._files)
        if duplicates := self._files.keys() - self._names.values():
            raise ValueError(f"{folder} holds {min(duplicates)!r} twice, with and without a prefix; expected it once")
        if self.config.get("tie_word_embeddings") and EMBEDDING not in self._names and HEAD in self._names:
            self._names[EMBEDDING] = self._names.pop(HEAD)  # the file stores the shared tensor under the other name
        self.shapes: Mapping[str, tuple[int, ...]] = {
            usual: tuple(self._files[name].get_slice(name).get_shape()) for usual, name in self._names.items()
        }

    def read(self, name: str) -> np.ndarray:
        """Return one tensor in its stored type; bfloat16 as `ml_dtypes.bfloat16`."""
        stored = self._names[name]
        return self._files[stored].get_tensor(stored)

    def tokenizer_parts(self) -> dict[str, Any]:
        """Return the folder of the tokenizer's files."""
        return {"folder": self.path}


_BARE = {"wte.weight": "transformer.", "embed_in.weight": "gpt_neox."}  # a tensor of a bare body: its usual prefix


def usual_names(names: Iterable[str]) -> dict[str, str]:
    """Map the names of a decoder's tensors, as a `...ForCausalLM` saves them, to the names in the file.

    A bare body has no `model.` before its tensors, and a part of a larger model has more: what stands before
    `embed_tokens.weight` becomes `model.`, and what stands before `lm_head.weight` goes. Others keep their names.
    """
    names = list(names)
    for first, prefix in _BARE.items():
        if first in names:
            return {f"{prefix}{name}": name for name in names}
    embedding, head = "embed_tokens.weight", "lm_head.weight"
    bodies = [name.removesuffix(embedding) for name in names if f".{name}".endswith(f".{embedding}")]
    if len(bodies) != 1:
        return {name: name for name in names}
    (body,) = bodies
    own = tuple(f"{body}{part}." for part in ("embed_tokens", "layers", "norm"))
    usual = {f"model.{name.removeprefix(body)}" if name.startswith(own) else name: name for name in names}
    heads = [name for name in names if f".{name}".endswith(f".{head}")]
    if len(heads) == 1:
        usual = {head if name == heads[0] else key: name for key, name in usual.items()}
    return usual


def open_tensors(file: Path, names: set[str] | None) -> dict[str, Any]:
    """Return the open file under each of the tensors `names` of it, or under all it has."""
    safetensors = _extras.require("safetensors")
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, though {INDEX} lists it; fetch the model again")
    try:
        opened = safetensors.safe_open(str(file), framework="np")
        stored = set(opened.keys())
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file} is damaged or cut short ({one_line(error)}); fetch it again") from error
    missing = sorted((names or set()) - stored)
    if missing:
        raise ValueError(
            f"{file} lacks {missing[0]!r} and {len(missing) - 1} other tensors "
            f"that {INDEX} places there; fetch the model again"
        )
    for name in sorted(names or stored):
        view = opened.get_slice(name)
        if view.get_dtype() not in READABLE:
            raise ValueError(
                f"{file} stores {name!r} as {view.get_dtype()}; expected one of {', '.join(READABLE)}: "
                "take the unquantised model"
            )
    return dict.fromkeys(sorted(names or stored), opened)


def weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Return the files that hold weights, with the tensors wanted from each (None: all)."""
    if (folder / WEIGHTS).is_file():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).is_file():
        if any(path.suffix in PICKLED for path in folder.iterdir()):
            raise ValueError(f"{folder} holds pickled weights only; isouq never unpickles: convert to safetensors")
        raise FileNotFoundError(f"{folder} has no {WEIGHTS} and no {INDEX}; expected one of them")
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX} has no weight_map; expected the file of every tensor")
    wanted: dict[Path, set[str] | None] = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.+-]+\.safetensors", file):
            raise ValueError(
                f"{folder / INDEX} places {name!r} in {file!r}; expected the name of a .safetensors file beside it"
            )
        names = wanted.setdefault(folder / file, set())
        assert names is not None
        names.add(name)
    return wanted
