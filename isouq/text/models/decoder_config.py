"""What distinguishes the causal language models: one configuration, read from config.json."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from isouq.text.models import rope
from isouq.text.models._numbers import number, whole
from isouq.text.models.activations import activation
from isouq.text.models.architectures import DECODERS, architecture

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class DecoderConfig:
    """Shapes and switches of a decoder; hashable.

    Layers. windows: how many positions back each looks, itself included; the context length where nothing bounds it.
    rope_index: 0 for a layer whose positions are turned by `rope`, 1 for one with `other_rope`, or without any where
    that is None. norm_places: where the norms stand: "before" attention and MLP, "after", "both", or "parallel", before
    both, which then read one input. norm_kind: one of `norms.KINDS`. residual_scale: the factor of what attention and
    MLP add, for norms "before" alone.

    Attention. qkv_bias, out_bias: biases of the projections. qk_norm: "" for none, "head" over each head, "all" over
    all heads before they are split. attention_scale: the factor of the scores. attention_cap: their bound by tanh, 0
    for none.

    MLP. gated: whether it is a product of two. mlp_bias: biases of its projections. num_experts: MLPs of a layer of
    which a token takes experts_per_token, 0 for one MLP. normalise_experts: whether their weights sum to 1.

    Ends. embed_scale, logits_scale: the factors of embeddings and of logits. learned_positions: a vector is added for
    each position. tied: the output layer is the transposed embedding. logits_cap: the bound of the logits by tanh, 0
    for none.

    fused: the checkpoint holds q, k, v and gate, up in one tensor each (Phi-3).

    adapters: (path in a layer, scale of every rank) of each low-rank term beside the weights; see `low_rank`.
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
    rope_index: tuple[int, ...]
    tied: bool
    attention_scale: float
    other_rope: rope.Rope | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = ""
    norm_places: str = "before"
    norm_kind: str = "rms"
    activation: str = "silu"
    gated: bool = True
    num_experts: int = 0
    experts_per_token: int = 0
    normalise_experts: bool = True
    fused: bool = False
    learned_positions: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    adapters: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def scales(self, path: str) -> tuple[float, ...]:
        """Return the scale of every rank of the low-rank term at a path; () where there is none."""
        return dict(self.adapters).get(path, ())

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens."""
        return self.rope.context


def from_config(config: dict[str, Any]) -> DecoderConfig:
    """Return the DecoderConfig of a Hugging Face config.json (a dict). Raises ValueError of one line."""
    _, family = architecture(config, DECODERS)
    for switch in ("use_bidirectional_attention", "add_cross_attention"):
        if config.get(switch):
            raise ValueError(f"{switch} is set; expected a decoder, in which a token sees those before it alone")
    try:
        if family == "gpt2":
            result = _gpt2(config)
        elif family == "gpt_neox":
            result = _gpt_neox(config)
        else:
            result = _llama(family, {**_DEFAULTS.get(family, {}), **config})
    except KeyError as error:
        raise ValueError(f"config lacks {error}; expected the config.json of a {family} model") from None
    if result.num_heads % result.num_kv_heads:
        raise ValueError(f"{result.num_heads} heads do not divide into {result.num_kv_heads} groups of keys")
    return result


# What a config.json that lacks a key means, where the family differs from Llama.
_GEMMA = {
    "head_dim": 256,
    "num_key_value_heads": 4,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
}
_MISTRAL = {"num_key_value_heads": 8, "sliding_window": 4096}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "mistral": _MISTRAL,
    "ministral": _MISTRAL,
    "olmo2": {"rms_norm_eps": 1e-5},
    "olmo3": {"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 500000.0},
    "phi3": {"rms_norm_eps": 1e-5},
    "mixtral": {
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    "qwen3_moe": {"num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8},
    "smollm3": {"num_key_value_heads": 4, "tie_word_embeddings": True, "rope_theta": 2e6},
    "gemma2": _GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": _GEMMA | {"rope_theta": 1e6},
}


def _llama(family: str, config: dict[str, Any]) -> DecoderConfig:
    """Return the configuration of a family that has Llama's keys."""
    num_heads, num_layers = whole(config, "num_attention_heads"), whole(config, "num_hidden_layers")
    hidden_size = whole(config, "hidden_size")
    head_dim = whole(config, "head_dim", hidden_size // num_heads, least=2)
    kinds = _layer_types(family, config, num_layers)
    turned, other, rope_index = _positions(family, config, head_dim, kinds)
    gemma = family.startswith("gemma")
    bias = family not in ("mistral", "ministral", "mixtral", "phi3", "qwen2") and bool(
        config.get("attention_bias", False)
    )
    common = DecoderConfig(
        family=family,
        vocab_size=whole(config, "vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=whole(config, "intermediate_size"),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=whole(config, "num_key_value_heads", num_heads),
        head_dim=head_dim,
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        rope=turned,
        windows=tuple(_window(config, turned.context) if kind == SLIDING else turned.context for kind in kinds),
        rope_index=rope_index,
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_scale=head_dim**-0.5,
        other_rope=other,
        qkv_bias=bias or family == "qwen2",
        out_bias=bias,
        activation=activation(config, "hidden_activation", "gelu_pytorch_tanh")
        if gemma
        else activation(config, "hidden_act", "silu"),
    )
    if gemma:
        return replace(
            common,
            qk_norm="head" if family == "gemma3_text" else "",
            norm_places="both",
            norm_kind="rms_one",
            attention_scale=number(config, "query_pre_attn_scalar") ** -0.5,
            embed_scale=hidden_size**0.5,
            attention_cap=_cap(config, "attn_logit_softcapping") if family == "gemma2" else 0.0,
            logits_cap=_cap(config, "final_logit_softcapping"),
        )
    if family == "granite":
        return replace(
            common,
            mlp_bias=bool(config.get("mlp_bias", False)),
            attention_scale=number(config, "attention_multiplier", 1.0),
            embed_scale=number(config, "embedding_multiplier", 1.0),
            residual_scale=number(config, "residual_multiplier", 1.0),
            logits_scale=1 / number(config, "logits_scaling", 1.0),
        )
    if family == "qwen3":
        return replace(common, qk_norm="head")
    if family == "mixtral":
        return _mixture(common, config)
    if family == "qwen3_moe":
        if config.get("mlp_only_layers") or whole(config, "decoder_sparse_step", 1) > 1:
            raise ValueError("some layers have experts and some have not; expected experts in all layers")
        wide, normalise = whole(config, "moe_intermediate_size", 768), bool(config.get("norm_topk_prob", False))
        common = replace(common, qk_norm="head", intermediate_size=wide, normalise_experts=normalise)
        return _mixture(common, config)
    if family in ("olmo2", "olmo3"):
        return replace(common, qk_norm="all", norm_places="after")
    if family == "phi3":
        return replace(common, fused=True)
    return replace(common, mlp_bias=family in ("llama", "smollm3") and bool(config.get("mlp_bias", False)))


def _mixture(config: DecoderConfig, given: dict[str, Any]) -> DecoderConfig:
    """Return a configuration with experts."""
    count = whole(given, "num_local_experts" if "num_local_experts" in given else "num_experts")
    chosen = whole(given, "num_experts_per_tok")
    if chosen > count:
        raise ValueError(f"num_experts_per_tok is {chosen}, and there are {count} experts; expected at most that many")
    return replace(config, num_experts=count, experts_per_token=chosen)


def _gpt2(config: dict[str, Any]) -> DecoderConfig:
    """Return the configuration of a GPT-2, which has keys of its own."""
    for key, expected in (("scale_attn_by_inverse_layer_idx", False), ("scale_attn_weights", True)):
        if bool(config.get(key, expected)) != expected:
            raise ValueError(f"{key} is {config[key]!r}; expected {expected}, as in GPT-2 itself")
    size, heads, layers = (whole(config, key) for key in ("n_embd", "n_head", "n_layer"))
    context = whole(config, "n_positions", 1024)
    return DecoderConfig(
        family="gpt2",
        vocab_size=whole(config, "vocab_size"),
        hidden_size=size,
        intermediate_size=whole(config, "n_inner", 4 * size),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_head_dim(size, heads),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
        rope=rope.Rope(0, context=context, original=context),
        windows=(context,) * layers,
        rope_index=(0,) * layers,
        tied=bool(config.get("tie_word_embeddings", True)),
        attention_scale=_head_dim(size, heads) ** -0.5,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        norm_kind="layer",
        activation=activation(config, "activation_function", "gelu_new"),
        gated=False,
        learned_positions=True,
    )


def _gpt_neox(config: dict[str, Any]) -> DecoderConfig:
    """Return the configuration of a GPT-NeoX, such as Pythia."""
    size, heads, layers = (whole(config, key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    head_dim = _head_dim(size, heads)
    older = {
        "rope_theta": number(config, "rotary_emb_base", 10000.0),
        "partial_rotary_factor": number(config, "rotary_pct", 0.25),
    }
    turned = rope.from_config({**older, **config}, head_dim, "gpt_neox")
    bias = bool(config.get("attention_bias", True))
    return DecoderConfig(
        family="gpt_neox",
        vocab_size=whole(config, "vocab_size"),
        hidden_size=size,
        intermediate_size=whole(config, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        norm_eps=number(config, "layer_norm_eps", 1e-5),
        rope=turned,
        windows=(turned.context,) * layers,
        rope_index=(0,) * layers,
        tied=bool(config.get("tie_word_embeddings", False)),
        attention_scale=head_dim**-0.5,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=True,
        norm_places="parallel" if config.get("use_parallel_residual", True) else "before",
        norm_kind="layer",
        activation=activation(config, "hidden_act", "gelu"),
        gated=False,
    )


def _head_dim(size: int, heads: int) -> int:
    """Return the size of a head; raise where the heads do not divide the hidden size."""
    if size % heads:
        raise ValueError(f"hidden size {size} does not divide into {heads} heads")
    return size // heads


def _cap(config: Mapping[str, Any], key: str) -> float:
    """Return the bound under a key; 0 where there is none or null."""
    return 0.0 if config.get(key) is None else number(config, key)


def _window(config: Mapping[str, Any], context: int) -> int:
    """Return how many positions a layer with a sliding window sees."""
    return context if config.get("sliding_window") is None else min(whole(config, "sliding_window"), context)


def _layer_types(family: str, config: dict[str, Any], num_layers: int) -> list[str]:
    """Return the kind of attention of each layer: SLIDING or FULL."""
    if family in ("llama", "olmo2", "granite"):
        return [FULL] * num_layers
    optional = family in ("qwen2", "qwen3", "qwen3_moe", "smollm3")
    windowed = config.get("sliding_window") is not None and (not optional or config.get("use_sliding_window", False))
    if not windowed and family not in _TWO_ROPES:  # there the kinds of the layers also say how positions are turned
        return [FULL] * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        return [SLIDING if slides else FULL for slides in _slides(family, config, num_layers)]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise ValueError(f"layer_types is {kinds!r:.60}; expected a list of {num_layers}, one for each layer")
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise ValueError(f"layer_types holds {kind!r:.60}; expected {SLIDING} or {FULL}, which are built here")
    return kinds


def _slides(family: str, config: dict[str, Any], num_layers: int) -> list[bool]:
    """Return whether each layer has a sliding window, where a config.json does not list them."""
    layers = range(num_layers)
    if family in ("qwen2", "qwen3", "qwen3_moe"):
        first = whole(config, "max_window_layers", 28, least=0)
        return [i >= first for i in layers]
    if family == "smollm3":
        return [not turned for turned in _layers_with_rope(config, num_layers)]
    if family in ("gemma2", "gemma3_text", "olmo3"):
        usual = {"gemma2": 2, "gemma3_text": whole(config, "sliding_window_pattern", 6), "olmo3": 4}
        return [(i + 1) % usual[family] != 0 for i in layers]
    return [True for _ in layers]


def _layers_with_rope(config: dict[str, Any], num_layers: int) -> list[bool]:
    """Return whether each layer of a SmolLM3 rope_index its positions."""
    interval = whole(config, "no_rope_layer_interval", 4)
    turned = config.get("no_rope_layers")
    turned = [int((i + 1) % interval != 0) for i in range(num_layers)] if turned is None else turned
    if not isinstance(turned, list) or len(turned) < num_layers or any(value not in (0, 1) for value in turned):
        raise ValueError(f"no_rope_layers is {turned!r:.60}; expected {num_layers} numbers, 1 where positions turn")
    return [bool(value) for value in turned[:num_layers]]


_TWO_ROPES = ("gemma3_text", "olmo3")  # families that turn the positions of the two kinds of layers differently


def _positions(
    family: str, config: dict[str, Any], head_dim: int, kinds: list[str]
) -> tuple[rope.Rope, rope.Rope | None, tuple[int, ...]]:
    """Return `rope`, `other_rope` and `rope_index` of a DecoderConfig."""
    if family == "smollm3":
        rope_index = tuple(int(not turned) for turned in _layers_with_rope(config, len(kinds)))
        return rope.from_config(config, head_dim, family), None, rope_index
    if family not in _TWO_ROPES:
        return rope.from_config(config, head_dim, family), None, (0,) * len(kinds)
    full, sliding = (rope.from_config(_of_kind(family, config, kind), head_dim, family) for kind in (FULL, SLIDING))
    if family == "gemma3_text":  # its max_position_embeddings is the stretched length
        full = replace(full, context=whole(config, "max_position_embeddings", rope.CONTEXTS[family]))
    return full, sliding, tuple(int(kind == SLIDING) for kind in kinds)


def _of_kind(family: str, config: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a config.json in which the positions of one kind of layers are those of all.

    A new file has a dictionary for each kind. In an older one `rope_scaling` is that of the layers with full attention.
    """
    settings = config.get("rope_parameters")
    settings = settings if isinstance(settings, dict) else {}
    of_kinds = any(isinstance(value, dict) for value in settings.values())
    if kind == FULL:
        return config | ({"rope_scaling": None, "rope_parameters": settings.get(kind)} if of_kinds else {})
    theta = config.get("rope_theta") if of_kinds else settings.get("rope_theta", config.get("rope_theta"))
    local = number(config, "rope_local_base_freq", 10000.0) if family == "gemma3_text" else theta
    own = settings.get(kind) if of_kinds else None
    return config | {"rope_theta": local, "rope_scaling": None, "rope_parameters": own}
