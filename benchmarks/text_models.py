"""The pretrained language model: its files, and the answers that are scored.

The answers are T tokens of isouq's README each, after one token of prompt. A case that names no model gets a random one
of its shape, written to a folder.
"""

import atexit
import functools
import json
import math
import os
import string
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.cases import Case

SCRATCH = "ISOUQ_BENCHMARKS_SCRATCH"
README = Path(__file__).parents[1] / "README.md"


@functools.cache
def scratch() -> Path:
    """Return a temporary folder of this run; its child processes find the folder through the environment."""
    if SCRATCH not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="isouq-benchmarks-")
        atexit.register(folder.cleanup)
        os.environ[SCRATCH] = folder.name
    return Path(os.environ[SCRATCH])


def path(case: Case) -> Path:
    """Return the path of the model's files: a folder, or one GGUF file."""
    from isouq.text.loading import sources

    if case.model:
        return sources.resolve(case.model).path
    folder = scratch() / f"random-{case.width}"
    if not folder.exists():
        folder.mkdir()
        _write_random(case, folder)
    return folder


@functools.lru_cache(maxsize=2)
def load(path: Path, dtype: str) -> Any:
    """Return the LanguageModel of isouq; the models of both dtypes are cached for all cases."""
    from isouq import text

    return text.load(str(path), dtype=jnp.dtype(dtype))


@functools.lru_cache(maxsize=8)
def count(case: Case) -> int:
    """Return the number of parameters; reads headers only."""
    from isouq.text import language_model
    from isouq.text.loading import checkpoint

    config = language_model.read_config(checkpoint.open_checkpoint(path(case)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(language_model.abstract(config)))


@functools.lru_cache(maxsize=8)
def inputs(case: Case) -> np.ndarray:
    """Return token ids [B, T + 1]: passages that begin at equal distances in the text, repeated if it is short."""
    from isouq.text import language_model
    from isouq.text.loading import checkpoint

    tokenizer = language_model.read_tokenizer(checkpoint.open_checkpoint(path(case)))
    ids = np.asarray(tokenizer.encode(README.read_text(encoding="utf-8")), np.int32)
    starts = np.arange(case.batch) * len(ids) // case.batch
    return np.take(ids, starts[:, None] + np.arange(case.length + 1), mode="wrap")


def _write_random(case: Case, folder: Path) -> None:
    """Write a small Llama with a token for every printable letter, without torch."""
    import tokenizers
    from safetensors.numpy import save_file

    from isouq.text import language_model
    from isouq.text.models import decoder_config, decoder_tensors, parameters

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": case.vocab,
        "hidden_size": case.width,
        "intermediate_size": 2 * case.width,
        "num_hidden_layers": case.layers,
        "num_attention_heads": case.heads,
        "num_key_value_heads": case.heads // 2,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    decoder_configuration = decoder_config.from_config(config)
    rng, tensors = np.random.default_rng(case.seed), {}
    for name, leaf in parameters.flatten(language_model.abstract(decoder_configuration)):
        at = decoder_tensors.table(decoder_configuration)[name]
        stacked = "{}" in at.name
        shape = leaf.shape[1:] if stacked else leaf.shape
        for i in range(leaf.shape[0] if stacked else 1):
            value = 0.2 * rng.standard_normal(shape[::-1] if at.transpose else shape, np.float32)
            tensors[at.name.format(i)] = value + np.float32(name.endswith("scale"))
    save_file(tensors, folder / "model.safetensors")
    vocabulary = {token: i for i, token in enumerate(("<unk>", "</s>", *string.printable))}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    backend.decoder = tokenizers.decoders.Fuse()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
