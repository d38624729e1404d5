"""Where each parameter of a decoder stands in a checkpoint with Hugging Face's names."""

from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.models.parameters import Interleaved, Table, Tensor

LEFT_OVER = (  # endings of tensors that go unused: buffers, and lm_head where it repeats a tied embedding
    "rotary_emb.inv_freq",
    "lm_head.weight",
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
)


def table(config: DecoderConfig) -> Table:
    """Return the table of a family's tensors."""
    if config.family == "gpt2":
        return _gpt2(config)
    if config.family == "gpt_neox":
        return _gpt_neox(config)
    return _llama(config)


def embedding_and_head(config: DecoderConfig) -> tuple[str, str]:
    """Return the names of the embedding's tensor and of the output layer's."""
    outer = table(config)
    return outer["embed.embedding"].name, outer["head.kernel"].name


def _llama(config: DecoderConfig) -> Table:
    """Return the table of Llama, whose names most families use."""
    layer = "model.layers.{}."
    tensors = {
        "embed.embedding": Tensor("model.embed_tokens.weight"),
        "norm.scale": Tensor("model.norm.weight"),
        "head.kernel": Tensor("lm_head.weight", transpose=True),
    }
    for ours, theirs in _NORMS[config.norm_places].items():
        tensors[f"layers.{ours}.scale"] = Tensor(f"{layer}{theirs}.weight")
    for ours, theirs in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "o_proj")):
        _linear(tensors, f"layers.attention.{ours}", f"{layer}self_attn.{theirs}")
        tensors[f"layers.attention.{ours}_norm.scale"] = Tensor(f"{layer}self_attn.{ours}_norm.weight")
    for name in ("gate", "up", "down"):
        _linear(tensors, f"layers.mlp.{name}", f"{layer}mlp.{name}_proj")
        expert = _MIXTRAL[name] if config.family == "mixtral" else f"mlp.experts.{{}}.{name}_proj"
        _linear(tensors, f"layers.mlp.experts.{name}", f"{layer}{expert}")
    router = "block_sparse_moe.gate" if config.family == "mixtral" else "mlp.gate"
    _linear(tensors, "layers.mlp.router", f"{layer}{router}")
    if config.fused:
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        wide = config.intermediate_size
        for name, rows in (("q", slice(0, q)), ("k", slice(q, q + kv)), ("v", slice(q + kv, q + 2 * kv))):
            tensors[f"layers.attention.{name}.kernel"] = Tensor(f"{layer}self_attn.qkv_proj.weight", True, rows)
        for name, rows in (("gate", slice(0, wide)), ("up", slice(wide, 2 * wide))):
            tensors[f"layers.mlp.{name}.kernel"] = Tensor(f"{layer}mlp.gate_up_proj.weight", True, rows)
    return tensors


_MIXTRAL = {name: f"block_sparse_moe.experts.{{}}.{w}" for name, w in (("gate", "w1"), ("down", "w2"), ("up", "w3"))}
_NORMS = {
    "before": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "after": {"attention_norm": "post_attention_layernorm", "mlp_norm": "post_feedforward_layernorm"},
    "both": {
        "attention_norm": "input_layernorm",
        "attention_out_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_out_norm": "post_feedforward_layernorm",
    },
}


def _gpt2(config: DecoderConfig) -> Table:
    """Return the table of GPT-2, whose kernels lie as they are used, [in, out], with q, k and v side by side."""
    layer, size = "transformer.h.{}.", config.hidden_size
    tensors = {
        "embed.embedding": Tensor("transformer.wte.weight"),
        "position.embedding": Tensor("transformer.wpe.weight"),
        "head.kernel": Tensor("lm_head.weight", transpose=True),
    }
    norms = {"norm": "transformer.ln_f", "layers.attention_norm": f"{layer}ln_1", "layers.mlp_norm": f"{layer}ln_2"}
    for ours, theirs in norms.items():
        _norm(tensors, ours, theirs)
    for i, name in enumerate(("q", "k", "v")):
        columns = slice(i * size, (i + 1) * size)
        kernel = Tensor(f"{layer}attn.c_attn.weight", rows=columns, axis=1)
        tensors[f"layers.attention.{name}.kernel"] = kernel
        tensors[f"layers.attention.{name}.bias"] = Tensor(f"{layer}attn.c_attn.bias", rows=columns)
    for ours, theirs in (("attention.out", "attn.c_proj"), ("mlp.up", "mlp.c_fc"), ("mlp.down", "mlp.c_proj")):
        _linear(tensors, f"layers.{ours}", f"{layer}{theirs}", transpose=False)
    return tensors


def _gpt_neox(config: DecoderConfig) -> Table:
    """Return the table of GPT-NeoX, whose q, k and v of a head stand next to each other."""
    layer = "gpt_neox.layers.{}."
    tensors = {
        "embed.embedding": Tensor("gpt_neox.embed_in.weight"),
        "head.kernel": Tensor("embed_out.weight", transpose=True),
    }
    norms = {
        "norm": "gpt_neox.final_layer_norm",
        "layers.attention_norm": f"{layer}input_layernorm",
        "layers.mlp_norm": f"{layer}post_attention_layernorm",
    }
    for ours, theirs in norms.items():
        _norm(tensors, ours, theirs)
    for i, name in enumerate(("q", "k", "v")):
        rows = Interleaved(i, 3, config.head_dim, config.num_heads)
        fused = f"{layer}attention.query_key_value"
        tensors[f"layers.attention.{name}.kernel"] = Tensor(f"{fused}.weight", True, rows)
        tensors[f"layers.attention.{name}.bias"] = Tensor(f"{fused}.bias", rows=rows)
    names = ("attention.out", "attention.dense"), ("mlp.up", "mlp.dense_h_to_4h"), ("mlp.down", "mlp.dense_4h_to_h")
    for ours, theirs in names:
        _linear(tensors, f"layers.{ours}", f"{layer}{theirs}")
    return tensors


def _linear(tensors: dict[str, Tensor], ours: str, theirs: str, transpose: bool = True) -> None:
    """Add kernel and bias of a dense layer."""
    tensors[f"{ours}.kernel"] = Tensor(f"{theirs}.weight", transpose)
    tensors[f"{ours}.bias"] = Tensor(f"{theirs}.bias")


def _norm(tensors: dict[str, Tensor], ours: str, theirs: str) -> None:
    """Add scale and bias of a norm."""
    tensors[f"{ours}.scale"] = Tensor(f"{theirs}.weight")
    tensors[f"{ours}.bias"] = Tensor(f"{theirs}.bias")
