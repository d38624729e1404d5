"""GGUF files of the models of `twins_text`, written by llama.cpp's rules of conversion: our own words, own tables."""

import json

import gguf
import numpy as np
from safetensors.numpy import load_file

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo2",
    "Phi3ForCausalLM": "phi3",
    "SmolLM3ForCausalLM": "smollm3",
    "GraniteForCausalLM": "granite",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "GPT2LMHeadModel": "gpt2",
    "GPTNeoXForCausalLM": "gptneox",
}
SIDE_BY_SIDE = ("llama", "smollm3", "granite")  # architectures that turn neighbouring coordinates


def write_gguf(folder, path, change=lambda writer: None, kind="F32"):
    """The model of a folder as a GGUF file, its matrices quantised; change(writer) adds the tokenizer.

    Returns the folder's tensors as the file rounds them.
    """
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    architecture = ARCHITECTURES[config["architectures"][0]]
    writer = gguf.GGUFWriter(path, architecture)
    _write_metadata(writer, architecture, config)
    change(writer)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, layers)
    kind = gguf.GGMLQuantizationType[kind]
    stacks = {}
    for name, value in tensors.items():
        stored = _as_stored(architecture, config, name, value)
        whole = stored.ndim == 2 and stored.shape[1] % 32 == 0  # 40 columns do not make whole blocks of 32
        own = kind if whole else gguf.GGMLQuantizationType.F32
        turned = _is_turned(architecture, name)  # rows are rounded one by one, so that their order does not matter
        rounded = gguf.quants.dequantize(gguf.quants.quantize(value.T if turned else value, own), own)
        tensors[name] = np.ascontiguousarray(rounded.T if turned else rounded)
        if ".experts." in name:
            before, after = name.split(".experts.")
            expert, rest = after.split(".", 1)
            stacks.setdefault(f"{before}.experts.{rest}", {})[int(expert)] = (stored, own)
        else:
            new = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(new, gguf.quants.quantize(stored, own), raw_dtype=own)
    for name, experts in stacks.items():
        stored, own = np.stack([experts[i][0] for i in range(len(experts))]), experts[0][1]
        new = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(new, gguf.quants.quantize(stored, own), raw_dtype=own)
    _write_factors(writer, architecture, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def permute(value, heads):
    """llama.cpp's order of the rows of q and k, as its converter writes it."""
    return value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


def add_tokenizer(writer, folder):
    """The tokenizer of `twins_text.write_tokenizer`: its letters stand for themselves."""
    held = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = held["model"]["vocab"]
    special = {added["id"] for added in held["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_token_list([token.replace(" ", "Ġ") for token in tokens])  # byte-level BPE writes a space so
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
    writer.add_token_merges(["a b", "Ġ c"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)


def _is_turned(architecture, name):
    return architecture == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


def _as_stored(architecture, config, name, value):
    part = name.split(".")[-2]
    heads = config.get("num_attention_heads")
    if architecture in SIDE_BY_SIDE and part in ("q_proj", "k_proj"):
        return permute(value, heads if part == "q_proj" else config["num_key_value_heads"])
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    if _is_turned(architecture, name):
        return np.ascontiguousarray(value.T)
    if part == "query_key_value":  # [head, q k v, coordinate] becomes [q k v, head, coordinate]
        per_head = np.split(value, heads)
        return np.concatenate([np.concatenate([np.split(rows, 3)[i] for rows in per_head]) for i in range(3)])
    return value


def _write_metadata(writer, architecture, config):
    if architecture == "gpt2":
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(config["n_inner"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_context_length(config["n_positions"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(heads)
    writer.add_context_length(config["max_position_embeddings"])
    if architecture == "gptneox":
        writer.add_layer_norm_eps(config["layer_norm_eps"])
        writer.add_parallel_residual(config["use_parallel_residual"])
        settings = config["rope_parameters"]
        writer.add_rope_dimension_count(int(settings["partial_rotary_factor"] * (hidden // heads)))
        writer.add_rope_freq_base(settings["rope_theta"])
        return
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if (head := config.get("head_dim")) is not None:
        writer.add_key_length(head)
        writer.add_value_length(head)
    _write_rope(writer, architecture, config)
    windowed = architecture in ("gemma2", "gemma3", "phi3") or config["architectures"] == ["Olmo3ForCausalLM"]
    if windowed and config["sliding_window"] is not None:
        writer.add_sliding_window(config["sliding_window"])
    if config["architectures"] == ["Olmo3ForCausalLM"]:
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config["layer_types"]])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if architecture == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if (experts := config.get("num_local_experts", config.get("num_experts"))) is not None:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if (wide := config.get("moe_intermediate_size")) is not None:
        writer.add_expert_feed_forward_length(wide)


def _write_rope(writer, architecture, config):
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    settings = config.get("rope_parameters") or {"rope_theta": config.get("rope_theta", 10000.0)}
    if "full_attention" in settings:  # the file describes the layers with full attention; the others follow from it
        if architecture == "gemma3":
            writer.add_rope_freq_base_swa(settings["sliding_attention"]["rope_theta"])
        settings = settings["full_attention"]
    writer.add_rope_freq_base(settings["rope_theta"])
    if "partial_rotary_factor" in settings:
        writer.add_rope_dimension_count(int(settings["partial_rotary_factor"] * (hidden // heads)))
    if settings.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(settings["rope_type"]))
        writer.add_rope_scaling_factor(settings["factor"])
    if settings.get("rope_type") == "yarn":
        writer.add_rope_scaling_orig_ctx_len(settings["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(settings["attention_factor"])  # as OLMo 3 is converted
    if settings.get("rope_type") == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])


def _write_factors(writer, architecture, config):
    """What the converter works out for each frequency: Phi-3's two lists, and the divisors of Llama 3."""
    settings = config.get("rope_parameters") or {}
    if settings.get("rope_type") == "longrope":
        stretched, original = config["max_position_embeddings"], config["original_max_position_embeddings"]
        writer.add_rope_scaling_attn_factors(
            float(np.sqrt(1 + np.log(stretched / original) / np.log(original))) if stretched > original else 1.0
        )
        writer.add_tensor("rope_factors_long.weight", np.float32(settings["long_factor"]))
        writer.add_tensor("rope_factors_short.weight", np.float32(settings["short_factor"]))
    if settings.get("rope_type") == "llama3":
        dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        factor, low, high = (settings[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
        waves = 2 * np.pi * settings["rope_theta"] ** (np.arange(0, dim, 2) / dim)
        original = settings["original_max_position_embeddings"]
        smooth = np.clip((original / waves - low) / (high - low), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / factor + smooth)).astype(np.float32))
