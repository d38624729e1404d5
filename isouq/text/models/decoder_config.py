"""What distinguishes the causal language models of the Llama family: one configuration, read from config.json."""

from dataclasses import dataclass, replace
from typing import Any

from isouq.text.models import rope
from isouq.text.models._numbers import number, whole
from isouq.text.models.architectures import DECODERS, architecture


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a decoder; hashable.

    qkv_bias, out_bias, mlp_bias: biases of the projections. qk_norm: "" for none, "head" over each head (Qwen3),
    "all" over all heads before they are split (OLMo 2). post_norm: a sub-layer's output is normalised and not its
    input (OLMo 2). tied: the output layer is the transposed token embedding. windows: how many positions back each
    layer looks, itself included; the context length where nothing bounds it. fused: the checkpoint holds q, k, v and
    gate, up in one tensor each (Phi-3).
    """

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    rope: rope.Rope
    windows: tuple[int, ...]
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = ""
    post_norm: bool = False
    fused: bool = False

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens."""
        return self.rope.context


def from_config(config: dict[str, Any]) -> DecoderConfig:
    """The DecoderConfig of a Hugging Face config.json (a dict). Raises ValueError of one line."""
    _, family = architecture(config, DECODERS)
    try:
        common = _common(family, config)
    except KeyError as error:
        raise ValueError(f"config lacks {error}; expected the config.json of a {family} model") from None
    if common.num_heads % common.num_kv_heads:
        raise ValueError(f"{common.num_heads} heads do not divide into {common.num_kv_heads} groups of keys")
    if (config.get("hidden_act") or "silu") not in ("silu", "swish"):
        raise ValueError(f"hidden_act is {config['hidden_act']!r}; expected 'silu'")
    bias = bool(config.get("attention_bias", False))
    if family == "qwen2":
        return replace(common, qkv_bias=True)
    if family == "qwen3":
        return replace(common, qkv_bias=bias, out_bias=bias, qk_norm="head")
    if family == "olmo2":
        return replace(common, qkv_bias=bias, out_bias=bias, qk_norm="all", post_norm=True)
    if family == "phi3":
        return replace(common, fused=True)
    if family == "mistral":
        return common
    return replace(common, qkv_bias=bias, out_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))


def _common(family: str, config: dict[str, Any]) -> DecoderConfig:
    num_heads, num_layers = whole(config, "num_attention_heads"), whole(config, "num_hidden_layers")
    hidden_size = whole(config, "hidden_size")
    # What a config.json leaves out has its family's default; null stands for what the other numbers give.
    head_dim, groups = hidden_size // num_heads, num_heads
    if family == "qwen3" and "head_dim" not in config:
        head_dim = 128
    if family == "mistral" and "num_key_value_heads" not in config:
        groups = 8
    head_dim = whole(config, "head_dim", head_dim, least=2)
    turned = rope.from_config(config, head_dim, family)
    return DecoderConfig(
        family=family,
        vocab_size=whole(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=whole(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=whole(config, "num_key_value_heads", groups),
        head_dim=head_dim,
        norm_eps=number(config, "rms_norm_eps", 1e-5 if family in ("olmo2", "phi3") else 1e-6),
        rope=turned,
        windows=_windows(family, config, num_layers, turned.context),
        tied=bool(config.get("tie_word_embeddings", False)),
    )


def _windows(family: str, config: dict[str, Any], num_layers: int, context: int) -> tuple[int, ...]:
    config = {"sliding_window": 4096, **config} if family == "mistral" else config  # Hugging Face's default
    if config.get("sliding_window") is None or (
        family.startswith("qwen") and not config.get("use_sliding_window", False)
    ):
        return (context,) * num_layers
    if family not in ("mistral", "phi3", "qwen2", "qwen3"):
        return (context,) * num_layers
    window = whole(config, "sliding_window")
    kinds = config.get("layer_types")
    if family.startswith("qwen") and kinds is None:
        first = whole(config, "max_window_layers", 28, least=0)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    kinds = kinds or ["sliding_attention"] * num_layers
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise ValueError(f"layer_types is {kinds!r:.60}; expected a list of {num_layers}, one for each layer")
    return tuple(min(window, context) if kind == "sliding_attention" else context for kind in kinds)
