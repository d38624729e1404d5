"""A random BERT with a WordPiece tokenizer of the sample's words: an encoder for tests, no network."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.domains.texts import load_texts
from isouq.text import encoder
from isouq.text.models import encoder_config, parameters

TINY = "tiny"  # the name of the encoder
CONFIG = {
    "architectures": ["BertModel"],
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_act": "gelu",
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tiny_encoder() -> encoder.TextEncoder:
    """Return the encoder, written to a temporary folder and read back by `load_encoder` as any other."""
    with tempfile.TemporaryDirectory() as folder:
        write_tiny(Path(folder))
        return encoder.load_encoder(folder)


def write_tiny(folder: Path, changes: dict[str, Any] | None = None, seed: int = 0) -> None:
    """Write config.json, with `changes`, tokenizer.json and model.safetensors of random weights."""
    import tokenizers
    from safetensors.numpy import save_file

    words = sorted({word for text in load_texts(None).texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    pieces = [*SPECIAL, *words, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    )
    backend.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **special}))

    config = CONFIG | {"vocab_size": len(vocabulary)} | (changes or {})
    (folder / "config.json").write_text(json.dumps(config))
    read = encoder_config.from_config(config)
    family = encoder.FAMILIES[read.family]
    table = {f"encoder.{path}": tensor for path, tensor in family.table("", ("weight", "bias")).items()}
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for path, leaf in parameters.flatten(encoder.abstract(read)):
        tensor = table[path]
        stacked = "{}" in tensor.name
        shape = leaf.shape[1:] if stacked else leaf.shape
        for i in range(leaf.shape[0] if stacked else 1):
            value = 0.3 * rng.normal(size=shape[::-1] if tensor.transpose else shape) + path.endswith("scale")
            tensors[tensor.name.format(i)] = value.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
