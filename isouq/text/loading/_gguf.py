"""A GGUF file under Hugging Face's names: configuration, tensor names and the order of rotary rows."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isouq.text.loading import _extras
from isouq.text.loading._gguf_families import FAMILIES, NEUTRAL, Family
from isouq.text.loading._gguf_header import Header, Tensor

SIZES = {  # config key: metadata key after the architecture's name
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
ROWS_TOGETHER = 64
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class GGUFCheckpoint:
    """See `checkpoint.Checkpoint`. The file is memory-mapped; a tensor is dequantised when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = Header(path)
        self._architecture: str = self._header.value("general.architecture")
        if not isinstance(self._architecture, str) or self._architecture not in FAMILIES:
            raise ValueError(
                f"{path} holds a model of the architecture {self._architecture!r:.60}; expected one of "
                f"{', '.join(FAMILIES)}; of another, load the folder with safetensors if isouq has its family"
            )
        parts = self._header.value("split.count", 1)
        if parts != 1:
            raise ValueError(f"{path} is one of {parts} parts; join them with `llama-gguf-split --merge` first")
        self._family = self._which_family()
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in self._header.tensors.items():
            if name not in ROPE_TENSORS:
                self._tensors |= self._translate(name, tensor)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tensor.shape[::-1] if self._is_transposed(name) else tensor.shape
            for name, tensor in self._tensors.items()
        }
        self.config: dict[str, Any] = self._read_config()

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as float32, whatever its quantisation."""
        weights, family = self._dequantise(name, self._tensors[name]), self._family
        if family.paired and (".q_proj." in name or ".k_proj." in name):
            heads = self.config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
            self._check_rows(name, weights, heads, 2)
            return _unpermute(weights, heads)
        if family.grouped and ".query_key_value." in name:
            heads = self.config["num_attention_heads"]
            self._check_rows(name, weights, heads, 3)
            return weights.reshape(3, heads, -1).swapaxes(0, 1).reshape(weights.shape)
        if family.norm_offset and name.endswith("norm.weight"):
            return weights - np.float32(family.norm_offset)
        return weights.T if self._is_transposed(name) else weights

    def tokenizer_parts(self) -> dict[str, Any]:
        """Return the metadata about the tokenizer and the model's name, as Python values."""
        keys = [key for key in self._header.keys if key.startswith(("general.", "tokenizer."))]
        return {"metadata": {key: self._header.value(key) for key in keys}}

    def _dequantise(self, name: str, tensor: Tensor) -> np.ndarray:
        quants = _extras.require("gguf.quants")
        # gguf converts 16 rows at a time, so that longer rows take fewer steps. No quantised block crosses a row's end.
        num_rows = math.prod(tensor.shape[:-1])
        together = math.gcd(num_rows, ROWS_TOGETHER)
        rows = self._header.bytes_of(tensor).reshape((num_rows // together, -1))
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return quants.dequantize(rows, tensor.kind).reshape(tensor.shape)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path} stores {name!r} as {tensor.kind.name}, which gguf cannot read; "
                "take another quantisation of the model, such as Q8_0"
            ) from error

    def _which_family(self) -> Family:
        """Return the family of the file's architecture; raise for metadata that change its numbers and go unread."""
        candidates = FAMILIES[self._architecture]
        family = next(each for each in candidates if not each.marked_by or self._metadata(each.marked_by))
        read = {family.marked_by, *(key for key, _ in family.optional.values())}
        for key, neutral in NEUTRAL.items():
            if key not in read and (value := self._metadata(key, neutral[0])) not in neutral:
                raise ValueError(
                    f"{self.path} has {self._architecture}.{key} = {value!r:.60}, which isouq does not build into "
                    f"a {family.name}; load the model's folder with safetensors if isouq has its family"
                )
        return family

    def _translate(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """Return the tensor by Hugging Face's name; a stack of experts as one for each."""
        stem, _, suffix = name.rpartition(".")
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        known = self._family.outer.get(stem) if block is None else self._family.block.get(block[2])
        if known is None or suffix not in ("weight", "bias"):
            raise ValueError(
                f"{self.path} holds the tensor {name!r:.60}, unknown for a {self._family.name}; expected a decoder "
                "alone, with nothing added; load the model's folder with safetensors instead"
            )
        if block is None:
            return {f"{known}.{suffix}": tensor}
        known = f"{self._family.layer.format(block[1])}{known}.{suffix}"
        if "{}" not in known:
            return {known: tensor}
        if len(tensor.shape) < 2 or not tensor.size:
            raise ValueError(f"{self.path} has {name!r} of shape {list(tensor.shape)}; expected a matrix an expert")
        count, *shape = tensor.shape
        size = tensor.size // count
        return {
            known.format(i): tensor._replace(shape=tuple(shape), start=tensor.start + i * size, size=size)
            for i in range(count)
        }

    def _is_transposed(self, name: str) -> bool:
        of_layers = name.startswith(self._family.layer.partition("{}")[0])
        return self._family.transposed and of_layers and len(self._tensors[name].shape) == 2

    def _check_rows(self, name: str, weights: np.ndarray, heads: int, parts: int) -> None:
        if weights.shape[0] % (parts * heads):
            raise ValueError(
                f"{self.path} has {weights.shape[0]} rows in {name!r}; expected {heads} heads of {parts} equal parts"
            )

    def _metadata(self, key: str, default: Any = None) -> Any:
        return self._header.value(f"{self._architecture}.{key}", default)

    def _read_config(self) -> dict[str, Any]:
        family = self._family
        config: dict[str, Any] = {"architectures": [family.name], "model_type": family.model_type}
        for ours, theirs in SIZES.items():
            default = config.get("num_attention_heads") if ours == "num_key_value_heads" else None
            config[ours] = self._whole(theirs, self._metadata(theirs, default))
        per_head = config["hidden_size"] // config["num_attention_heads"]
        config["head_dim"] = self._whole("attention.key_length", self._metadata("attention.key_length", per_head))
        epsilon = self._metadata(family.epsilon)
        if not isinstance(epsilon, float):
            raise ValueError(f"{self.path} gives the epsilon of its norms as {epsilon!r:.60}; expected a number")
        embedding = self.shapes.get(self._outer("token_embd"), ())
        if len(embedding) != 2:
            raise ValueError(f"{self.path} has no token_embd.weight of two axes; expected a language model")
        config |= {
            "rms_norm_eps": epsilon,
            "rope_theta": self._metadata("rope.freq_base", 10000.0),
            "vocab_size": embedding[0],
            "tie_word_embeddings": self._is_tied(),
            "attention_bias": bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & self._header.tensors.keys()),
            "mlp_bias": "blk.0.ffn_up.bias" in self._header.tensors,
            **family.fixed,
            **self._optional(),
        }
        if family.wide_attention:
            wide = config["num_hidden_layers"] == family.wide_attention
            config["query_pre_attn_scalar"] = per_head if wide else config["head_dim"]
        pattern = self._metadata("attention.sliding_window_pattern")
        if isinstance(pattern, int) and pattern > 0:
            pattern = [(i + 1) % pattern != 0 for i in range(config["num_hidden_layers"])]
        if isinstance(pattern, list):
            config["layer_types"] = ["sliding_attention" if slides else "full_attention" for slides in pattern]
        rotated = self._whole("rope.dimension_count", self._metadata("rope.dimension_count", config["head_dim"]))
        if rotated != config["head_dim"]:
            config["partial_rotary_factor"] = rotated / config["head_dim"]
        if (scaling := self._rope_scaling()) is not None:
            config["rope_scaling"] = scaling
        if (original := self._metadata("rope.scaling.original_context_length")) is not None:
            config["original_max_position_embeddings"] = original
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
            if (token := self._header.value(f"tokenizer.ggml.{theirs}_token_id")) is not None:
                config[f"{ours}_token_id"] = token
        return {family.renamed.get(key, key): value for key, value in config.items()}

    def _optional(self) -> dict[str, Any]:
        """Return the entries of config.json that some families have, from the metadata that hold them."""
        entries = {}
        for ours, (theirs, default) in self._family.optional.items():
            entries[ours] = self._metadata(theirs, default)
            if default is None:
                entries[ours] = entries[ours] or None  # 0 stands for none
            if entries[ours] is ...:
                raise ValueError(
                    f"{self.path} lacks {self._architecture}.{theirs}, without which a {self._family.name} is not "
                    "determined; load the model's folder with safetensors instead"
                )
        return entries

    def _outer(self, name: str) -> str:
        return f"{self._family.outer[name]}.weight"

    def _is_tied(self) -> bool:
        """Return whether the output layer is the embedding: the file has none, or one of the same bytes."""
        embedding, head = (self._tensors.get(self._outer(name)) for name in ("token_embd", "output"))
        if embedding is None or head is None:
            return head is None
        same_form = (embedding.kind, embedding.shape) == (head.kind, head.shape)
        return same_form and np.array_equal(self._header.bytes_of(embedding), self._header.bytes_of(head))

    def _whole(self, key: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(
                f"{self.path} has {self._architecture}.{key} = {value!r:.60}; "
                "expected one whole number of at least 1, the same in every layer"
            )
        return value

    def _factors(self, name: str) -> list[float]:
        factors = self._dequantise(name, self._header.tensors[name])
        return [float(str(factor)) for factor in factors]  # the shortest decimals, 1.1 and not 1.100000023841858

    def _rope_scaling(self) -> dict[str, Any] | None:
        """Return how positions are scaled, in the words of Hugging Face; None where they are not.

        A factor for each frequency (Llama 3, worked out when the file was made) has no words there:
        `{"rope_type": "frequencies", "factors": [...]}`, of which each divides its frequency.
        """
        if "rope_freqs.weight" in self._header.tensors:
            return {"rope_type": "frequencies", "factors": self._factors("rope_freqs.weight")}
        attention = self._metadata("rope.scaling.attn_factor")
        factors = {"rope_factors_long.weight", "rope_factors_short.weight"}
        if lacking := factors - self._header.tensors.keys():
            if len(lacking) == 1:
                raise ValueError(f"{self.path} lacks {lacking.pop()!r} beside the other of the two; fetch it again")
        else:
            scaling: dict[str, Any] = {
                "rope_type": "longrope",
                "long_factor": self._factors("rope_factors_long.weight"),
                "short_factor": self._factors("rope_factors_short.weight"),
            }
            return scaling if attention is None else scaling | {"attention_factor": attention}
        factor = self._metadata("rope.scaling.factor") or self._metadata("rope.scale_linear")  # the latter in old files
        kind = self._metadata("rope.scaling.type", "linear" if factor else "none")  # llama.cpp's default
        if kind not in ("none", "linear", "yarn") or (attention not in (None, 1.0) and kind != "yarn"):
            also = "" if attention is None else f" and attention by {attention}"
            raise ValueError(f"{self.path} scales positions by {kind!r}{also}; expected none, linear or yarn")
        if kind == "none":
            return None
        scaling = {"rope_type": kind, "factor": factor or 1.0}
        if kind == "yarn":
            keys = {
                "original_max_position_embeddings": "original_context_length",
                "attention_factor": "yarn_attn_factor",
                "beta_fast": "yarn_beta_fast",
                "beta_slow": "yarn_beta_slow",
            }
            values = {ours: self._metadata(f"rope.scaling.{theirs}") for ours, theirs in keys.items()}
            scaling |= {ours: value for ours, value in values.items() if value is not None}
            if attention is not None:  # llama.cpp multiplies by it what YaRN itself prescribes
                usual = 1 + 0.1 * math.log(max(scaling["factor"], 1.0))
                usual = 1.0 if self._architecture == "olmo2" else usual  # whose files hold Hugging Face's whole factor
                scaling["attention_factor"] = attention * scaling.get("attention_factor", usual)
        return scaling


def _unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a rotary projection from GGUF's order (pairs side by side) to Hugging Face's (halves).

    weights: `[heads * head_dim, ...]`. llama.cpp stores row `2 i + half` of a head where Hugging Face
    has row `half * head_dim / 2 + i`.
    """
    pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)
