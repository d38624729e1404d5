"""The header of a GGUF file: metadata and where each tensor lies.

Own code and not `gguf.GGUFReader`, which makes several NumPy views for every token and every merge
(seconds for a vocabulary) and loops without end over an array whose length is damaged. Here a
length is compared with the end of the file before it is believed, and arrays are decoded when asked for.
The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isouq.text.loading import _extras

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
FLOAT32, STRING, ARRAY = 6, 8, 9
MAX_DIMENSIONS = 4


class Tensor(NamedTuple):
    """shape: `[out, in]` order. kind: a `gguf.GGMLQuantizationType`. start, size: bytes in the file."""

    shape: tuple[int, ...]
    kind: Any
    start: int
    size: int


class Header:
    """The metadata and tensors of the GGUF file at `path`; raises a ValueError of one line for a damaged one.

    tensors: by their names in the file. keys: the names of the metadata.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size < 24:
            raise ValueError(f"{path} has {path.stat().st_size} bytes; expected a GGUF file")
        with path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version = struct.unpack_from("<4sI", self.data)
        if magic != b"GGUF":
            raise ValueError(f"{path} begins with {magic!r}; expected a GGUF file, which begins with b'GGUF'")
        if version not in (2, 3):
            raise ValueError(f"{path} is GGUF version {version}; expected 2 or 3, little-endian")
        try:
            self._parse()
        except _BROKEN as error:
            raise ValueError(f"{path} is damaged or cut short ({error}); fetch it again") from error

    @property
    def keys(self) -> list[str]:
        """The names of the metadata."""
        return list(self._fields)

    def value(self, key: str, default: Any = None) -> Any:
        """The metadata entry of that name as a Python value, or `default`."""
        if key not in self._fields:
            return default
        kind, at = self._fields[key]
        try:
            return self._array(at) if kind == ARRAY else self._scalar(kind, at)[0]
        except _BROKEN as error:
            raise ValueError(f"{self.path} is damaged at {key} ({error}); fetch it again") from error

    def bytes_of(self, tensor: Tensor) -> np.ndarray:
        """The stored bytes of a tensor, a read-only view of the file."""
        return np.frombuffer(self.data, np.uint8, tensor.size, tensor.start)

    def _parse(self) -> None:
        tensor_count, key_count = struct.unpack_from("<QQ", self.data, 8)
        at = 24
        self._fields: dict[str, tuple[int, int]] = {}
        for _ in range(key_count):
            key, at = self._string(at)
            (kind,) = struct.unpack_from("<I", self.data, at)
            if key in self._fields:
                raise _Damage(f"metadata {key!r} is there twice")
            self._fields[key] = (kind, at + 4)
            at = self._end_of_array(at + 4) if kind == ARRAY else self._scalar(kind, at + 4)[1]
        infos = []
        for _ in range(tensor_count):
            name, at = self._string(at)
            (dimensions,) = struct.unpack_from("<I", self.data, at)
            if dimensions > MAX_DIMENSIONS:
                raise _Damage(f"tensor {name!r} has {dimensions} dimensions")
            sizes = struct.unpack_from(f"<{dimensions}Q", self.data, at + 4)
            kind, offset = struct.unpack_from("<IQ", self.data, at + 4 + 8 * dimensions)
            infos.append((name, sizes[::-1], kind, offset))
            at += 4 + 8 * dimensions + 12
        alignment = self.value("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise _Damage(f"general.alignment is {alignment!r}")
        start = -(-at // alignment) * alignment
        self.tensors: dict[str, Tensor] = {}
        for name, shape, kind, offset in infos:
            if name in self.tensors:
                raise _Damage(f"tensor {name!r} is there twice")
            self.tensors[name] = self._tensor(name, shape, kind, start + offset)

    def _tensor(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
        constants = _extras.require("gguf.constants")
        try:
            known = constants.GGMLQuantizationType(kind)
            block, block_bytes = constants.GGML_QUANT_SIZES[known]
        except (ValueError, KeyError) as error:
            raise _Damage(f"tensor {name!r} has the unknown quantisation {kind}") from error
        if shape and shape[-1] % block:
            raise _Damage(f"tensor {name!r} has rows of {shape[-1]}, not a multiple of {block}")
        size = math.prod(shape) // block * block_bytes
        if start + size > len(self.data):
            raise _Damage(f"tensor {name!r} ends at byte {start + size} of {len(self.data)}")
        return Tensor(shape, known, start, size)

    def _string(self, at: int) -> tuple[str, int]:
        (length,) = struct.unpack_from("<Q", self.data, at)
        end = at + 8 + length
        if end > len(self.data):
            raise _Damage(f"a text of {length} bytes at byte {at}")
        return self.data[at + 8 : end].decode("utf-8"), end

    def _scalar(self, kind: int, at: int) -> tuple[Any, int]:
        if kind == STRING:
            return self._string(at)
        if kind not in SCALARS:
            raise _Damage(f"a value of the unknown type {kind} at byte {at}")
        code = "<" + SCALARS[kind]
        (value,) = struct.unpack_from(code, self.data, at)
        if kind == FLOAT32:
            value = float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
        return value, at + struct.calcsize(code)

    def _array_head(self, at: int) -> tuple[int, int, int]:
        """(type of the elements, their number, where they begin)."""
        kind, count = struct.unpack_from("<IQ", self.data, at)
        if kind != STRING and kind not in SCALARS:
            raise _Damage(f"an array of the unknown type {kind} at byte {at}")
        return kind, count, at + 12

    def _end_of_array(self, at: int) -> int:
        kind, count, at = self._array_head(at)
        if kind != STRING:
            at += count * struct.calcsize("<" + SCALARS[kind])
            if at > len(self.data):
                raise _Damage(f"an array of {count} values")
            return at
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):  # ends at the latest with the file, where unpack raises
            at += 8 + unpack(self.data, at)[0]
        if at > len(self.data):
            raise _Damage(f"an array of {count} texts")
        return at

    def _array(self, at: int) -> list[Any]:
        kind, count, at = self._array_head(at)
        if kind != STRING:
            values = np.frombuffer(self.data, np.dtype(SCALARS[kind]).newbyteorder("<"), count, at)
            return values.tolist()
        texts = []
        for _ in range(count):
            text, at = self._string(at)
            texts.append(text)
        return texts


class _Damage(Exception):
    """What is wrong with the bytes; becomes a ValueError that names the file."""


_BROKEN = (struct.error, UnicodeDecodeError, OverflowError, IndexError, _Damage)
