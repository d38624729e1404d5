"""The model families of GGUF files: what each architecture of llama.cpp becomes under Hugging Face's names.

The rules are those of llama.cpp: its converter says how a tensor is stored and which metadata are written, and its
loader what a file means that lacks one. A window's pattern, layers without rotary positions, the scale of Gemma's
attention and whether experts' weights sum to 1 are in no file; they follow from the family.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

_LLAMA_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BEFORE = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_MIXTRAL_EXPERTS = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
_QWEN3_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{}.gate_proj",
    "ffn_down_exps": "mlp.experts.{}.down_proj",
    "ffn_up_exps": "mlp.experts.{}.up_proj",
}
_LLAMA_BLOCK = _ATTENTION | _BEFORE | _MLP
_GEMMA2_BLOCK = _ATTENTION | _MLP | _AFTER | {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm"}
_PHI3_BLOCK = _LLAMA_BLOCK | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}  # gate and up in one
_GPT2_OUTER = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_BLOCK = {
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GPT2_KEYS = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
_NEOX_OUTER = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
}
_NEOX_BLOCK = {
    **_BEFORE,
    "attn_qkv": "attention.query_key_value",
    "attn_output": "attention.dense",
    "ffn_up": "mlp.dense_h_to_4h",
    "ffn_down": "mlp.dense_4h_to_h",
}
_NEEDED: Any = ...  # in place of a default: a file without the key is refused
_WINDOW = {"sliding_window": ("attention.sliding_window", None)}


class Family(NamedTuple):
    """One of Hugging Face's families that a GGUF file may hold.

    model_type, name: of its config.json, the latter in `architectures`.
    outer: a tensor's name in the file to Hugging Face's, for those outside the layers.
    block: the same for those within a layer. A "{}" stands for the expert: the file stacks them.
    layer: what stands before a name of `block`, with "{}" for the number of the layer.
    marked_by: the metadata that a file of this family has and others of its architecture lack; "" for none.
    paired: rows of q and k lie with the two of a rotary pair side by side, and not in halves.
    grouped: rows of q, k and v lie one after the other, and not head by head.
    transposed: Hugging Face's matrices of a layer are [in, out].
    norm_offset: what the file adds to the weights of norms.
    epsilon: the metadata with the epsilon of the norms.
    optional: config key to (metadata key, default), beyond those that all files have.
    fixed: config keys whose values are in no file.
    wide_attention: the number of layers of the one size whose attention is scaled by 1 / √(hidden size / heads), where
        all others have 1 / √(size of a head); 0 for none.
    renamed: Llama's config keys to the family's own.
    """

    model_type: str
    name: str
    outer: Mapping[str, str] = _LLAMA_OUTER
    block: Mapping[str, str] = _LLAMA_BLOCK
    layer: str = "model.layers.{}."
    marked_by: str = ""
    paired: bool = False
    grouped: bool = False
    transposed: bool = False
    norm_offset: float = 0.0
    epsilon: str = "attention.layer_norm_rms_epsilon"
    optional: Mapping[str, tuple[str, Any]] = _WINDOW
    fixed: Mapping[str, Any] = {"hidden_act": "silu"}
    wide_attention: int = 0
    renamed: Mapping[str, str] = {}


_OLMO2_BLOCK = _ATTENTION | _QK_NORM | _AFTER | _MLP
_MIXTURE = {"num_experts_per_tok": ("expert_used_count", _NEEDED)}
_GEMMA2 = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    block=_GEMMA2_BLOCK,
    norm_offset=1.0,
    optional={
        "sliding_window": ("attention.sliding_window", 4096),
        "attn_logit_softcapping": ("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": ("final_logit_softcapping", 30.0),
    },
    fixed={"hidden_activation": "gelu_pytorch_tanh"},
    wide_attention=46,
)
FAMILIES: dict[str, tuple[Family, ...]] = {  # of a file's architecture; the last is the one without a mark
    "llama": (
        Family(
            "mixtral",
            "MixtralForCausalLM",
            block=_ATTENTION | _BEFORE | _MIXTRAL_EXPERTS,
            marked_by="expert_count",
            paired=True,
            optional=_WINDOW | _MIXTURE | {"num_local_experts": ("expert_count", _NEEDED)},
        ),
        Family("llama", "LlamaForCausalLM", paired=True),
    ),
    "qwen2": (Family("qwen2", "Qwen2ForCausalLM"),),
    "qwen3": (Family("qwen3", "Qwen3ForCausalLM", block=_LLAMA_BLOCK | _QK_NORM),),
    "qwen3moe": (
        Family(
            "qwen3_moe",
            "Qwen3MoeForCausalLM",
            block=_ATTENTION | _QK_NORM | _BEFORE | _QWEN3_EXPERTS,
            optional=_WINDOW
            | _MIXTURE
            | {
                "num_experts": ("expert_count", _NEEDED),
                "moe_intermediate_size": ("expert_feed_forward_length", _NEEDED),
            },
            fixed={"hidden_act": "silu", "norm_topk_prob": True},
        ),
    ),
    "olmo2": (
        Family("olmo3", "Olmo3ForCausalLM", block=_OLMO2_BLOCK, marked_by="attention.sliding_window"),
        Family("olmo2", "Olmo2ForCausalLM", block=_OLMO2_BLOCK),
    ),
    "phi3": (Family("phi3", "Phi3ForCausalLM", block=_PHI3_BLOCK),),
    "smollm3": (Family("smollm3", "SmolLM3ForCausalLM", paired=True),),
    "granite": (
        Family(
            "granite",
            "GraniteForCausalLM",
            paired=True,
            optional={
                "attention_multiplier": ("attention.scale", _NEEDED),
                "logits_scaling": ("logit_scale", _NEEDED),
                "embedding_multiplier": ("embedding_scale", 1.0),
                "residual_multiplier": ("residual_scale", 1.0),
            },
        ),
    ),
    "gemma2": (_GEMMA2,),
    "gemma3": (
        _GEMMA2._replace(
            model_type="gemma3_text",
            name="Gemma3ForCausalLM",
            block=_GEMMA2_BLOCK | _QK_NORM,
            optional={
                "sliding_window": ("attention.sliding_window", _NEEDED),
                "rope_local_base_freq": ("rope.freq_base_swa", 10000.0),
                "final_logit_softcapping": ("final_logit_softcapping", None),
            },
            wide_attention=62,
        ),
    ),
    "gpt2": (
        Family(
            "gpt2",
            "GPT2LMHeadModel",
            outer=_GPT2_OUTER,
            block=_GPT2_BLOCK,
            layer="transformer.h.{}.",
            transposed=True,
            epsilon="attention.layer_norm_epsilon",
            optional={},
            fixed={"hidden_act": "gelu_new"},
            renamed=_GPT2_KEYS,
        ),
    ),
    "gptneox": (
        Family(
            "gpt_neox",
            "GPTNeoXForCausalLM",
            outer=_NEOX_OUTER,
            block=_NEOX_BLOCK,
            layer="gpt_neox.layers.{}.",
            grouped=True,
            epsilon="attention.layer_norm_epsilon",
            optional={"use_parallel_residual": ("use_parallel_residual", True)},
            fixed={"hidden_act": "gelu"},
            renamed={"rms_norm_eps": "layer_norm_eps"},
        ),
    ),
}
NEUTRAL: dict[str, tuple[float, ...]] = {  # values that change nothing, of metadata that a family may not read
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "expert_count": (0,),
    "expert_weights_scale": (0, 1),
    "expert_gating_func": (0, 1),  # none given, or softmax
}
