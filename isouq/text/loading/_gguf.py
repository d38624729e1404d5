"""A GGUF file under Hugging Face's names: configuration, tensor names and the order of rotary rows."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from isouq.text.loading import _extras
from isouq.text.loading._gguf_header import Header, Tensor

ARCHITECTURES = {  # the file's name: (Hugging Face's model_type, its class)
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "olmo2": ("olmo2", "Olmo2ForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SIZES = {  # config key: metadata key after the architecture's name
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
}
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class GGUFCheckpoint:
    """See `checkpoint.Checkpoint`. The file is memory-mapped; a tensor is dequantised when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = Header(path)
        architecture = self._header.value("general.architecture")
        if architecture not in ARCHITECTURES:
            raise ValueError(
                f"{path} holds a model of the architecture {architecture!r}; expected one of {', '.join(ARCHITECTURES)}"
            )
        self._architecture: str = architecture
        parts = self._header.value("split.count", 1)
        if parts != 1:
            raise ValueError(f"{path} is one of {parts} parts; join them with `llama-gguf-split --merge` first")
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in self._header.tensors.items():
            if name not in ROPE_TENSORS:
                ours = self._translate(name)
                if ours in self._tensors:
                    raise ValueError(f"{path} holds two tensors for {ours!r}; expected one, as the {architecture} has")
                self._tensors[ours] = tensor
        self.shapes: Mapping[str, tuple[int, ...]] = {name: tensor.shape for name, tensor in self._tensors.items()}
        self.config: dict[str, Any] = self._read_config()

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as float32, whatever its quantisation."""
        weights = self._dequantise(name, self._tensors[name])
        if self._architecture != "llama" or not (".q_proj." in name or ".k_proj." in name):
            return weights
        heads = self.config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        if weights.shape[0] % (2 * heads):
            raise ValueError(
                f"{self.path} has {weights.shape[0]} rows in {name!r}; expected {heads} heads of even size"
            )
        return _unpermute(weights, heads)

    def tokenizer_parts(self) -> dict[str, Any]:
        """Return the metadata about the tokenizer and the model's name, as Python values."""
        keys = [key for key in self._header.keys if key.startswith(("general.", "tokenizer."))]
        return {"metadata": {key: self._header.value(key) for key in keys}}

    def _dequantise(self, name: str, tensor: Tensor) -> np.ndarray:
        quants = _extras.require("gguf.quants")
        rows = self._header.bytes_of(tensor).reshape((*tensor.shape[:-1], -1))
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return quants.dequantize(rows, tensor.kind)
        except NotImplementedError as error:
            raise ValueError(
                f"{self.path} stores {name!r} as {tensor.kind.name}, which gguf cannot read; "
                "take another quantisation of the model, such as Q8_0"
            ) from error

    def _translate(self, name: str) -> str:
        """Return Hugging Face's name of a tensor of this file."""
        stem, _, suffix = name.rpartition(".")
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if block is None:
            known = OUTER_NAMES.get(stem)
        elif self._architecture == "phi3" and block[2] == "ffn_up":
            known = f"model.layers.{block[1]}.mlp.gate_up_proj"  # gate and up in one, as in Hugging Face's
        else:
            inner = BLOCK_NAMES.get(block[2])
            known = inner and f"model.layers.{block[1]}.{inner}"
        if known is None or suffix not in ("weight", "bias"):
            raise ValueError(
                f"{self.path} holds the tensor {name!r}, unknown for the architecture {self._architecture}; "
                "expected a dense decoder (no mixture of experts, no adapter)"
            )
        return f"{known}.{suffix}"

    def _metadata(self, key: str, default: Any = None) -> Any:
        return self._header.value(f"{self._architecture}.{key}", default)

    def _read_config(self) -> dict[str, Any]:
        model_type, name = ARCHITECTURES[self._architecture]
        config: dict[str, Any] = {"architectures": [name], "model_type": model_type}
        for ours, theirs in SIZES.items():
            default = config.get("num_attention_heads") if ours == "num_key_value_heads" else None
            config[ours] = self._whole(theirs, self._metadata(theirs, default))
        heads = config["num_attention_heads"]
        config["head_dim"] = self._whole(
            "attention.key_length", self._metadata("attention.key_length", config["hidden_size"] // heads)
        )
        epsilon = self._metadata("attention.layer_norm_rms_epsilon")
        if not isinstance(epsilon, float):
            raise ValueError(f"{self.path} gives the epsilon of its norms as {epsilon!r}; expected a number")
        embedding = self.shapes.get("model.embed_tokens.weight", ())
        if len(embedding) != 2:
            raise ValueError(f"{self.path} has no token_embd.weight of two axes; expected a language model")
        config |= {
            "rms_norm_eps": epsilon,
            "rope_theta": self._metadata("rope.freq_base", 10000.0),
            "vocab_size": embedding[0],
            "hidden_act": "silu",
            "tie_word_embeddings": self._is_tied(),
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.shapes,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self.shapes,
            "sliding_window": self._metadata("attention.sliding_window") or None,
        }
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
        return config

    def _is_tied(self) -> bool:
        """Return whether the output layer is the embedding: the file has none, or one of the same bytes."""
        embedding, head = (self._tensors.get(f"{name}.weight") for name in ("model.embed_tokens", "lm_head"))
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
        if "rope_factors_long.weight" in self._header.tensors:
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
                scaling["attention_factor"] = attention * scaling.get("attention_factor", usual)
        return scaling


def _unpermute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a rotary projection from GGUF's order (pairs side by side) to Hugging Face's (halves).

    weights: `[heads * head_dim, ...]`. llama.cpp stores row `2 i + half` of a head where Hugging Face
    has row `half * head_dim / 2 + i`.
    """
    pairs = weights.reshape(heads, -1, 2, *weights.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weights.shape)
