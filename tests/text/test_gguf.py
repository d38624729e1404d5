"""GGUF files: a written file is read back under Hugging Face's names, in Hugging Face's order of rows."""

import struct

import gguf
import numpy as np
import pytest
from damage import one_line, opens_or_says_why
from twins_gguf import permute

from isouq.text.loading.checkpoint import open_checkpoint

HIDDEN, HEADS, KV, INNER, VOCAB = 32, 4, 2, 64, 48


def llama_tensors(rng):
    """{file's name: (Hugging Face's name, value as Hugging Face has it)}."""
    head = HIDDEN // HEADS
    shapes = {
        "token_embd": ("model.embed_tokens", (VOCAB, HIDDEN)),
        "output_norm": ("model.norm", (HIDDEN,)),
        "blk.0.attn_norm": ("model.layers.0.input_layernorm", (HIDDEN,)),
        "blk.0.attn_q": ("model.layers.0.self_attn.q_proj", (HIDDEN, HIDDEN)),
        "blk.0.attn_k": ("model.layers.0.self_attn.k_proj", (KV * head, HIDDEN)),
        "blk.0.attn_v": ("model.layers.0.self_attn.v_proj", (KV * head, HIDDEN)),
        "blk.0.attn_output": ("model.layers.0.self_attn.o_proj", (HIDDEN, HIDDEN)),
        "blk.0.ffn_norm": ("model.layers.0.post_attention_layernorm", (HIDDEN,)),
        "blk.0.ffn_gate": ("model.layers.0.mlp.gate_proj", (INNER, HIDDEN)),
        "blk.0.ffn_up": ("model.layers.0.mlp.up_proj", (INNER, HIDDEN)),
        "blk.0.ffn_down": ("model.layers.0.mlp.down_proj", (HIDDEN, INNER)),
    }
    return {
        f"{theirs}.weight": (f"{ours}.weight", rng.normal(size=shape).astype(np.float32))
        for theirs, (ours, shape) in shapes.items()
    }


def write_gguf(path, tensors, architecture="llama", kind=None, change=None):
    """tensors: {file's name: value as the file has it}. change(writer): further metadata."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(1)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_token_list([f"token {i}" for i in range(VOCAB)])
    writer.add_token_scores([float(i) for i in range(VOCAB)])
    writer.add_eos_token_id(2)
    if change:
        change(writer)
    for name, value in tensors.items():
        if kind is None or value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_stored(tensors):
    """The values of `llama_tensors` as a llama file holds them."""
    heads = {"blk.0.attn_q.weight": HEADS, "blk.0.attn_k.weight": KV, "blk.0.attn_q.bias": HEADS}
    return {name: permute(value, heads[name]) if name in heads else value for name, (_, value) in tensors.items()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tensors = llama_tensors(np.random.default_rng(2))
    tensors["blk.0.attn_q.bias"] = (
        "model.layers.0.self_attn.q_proj.bias",
        np.arange(HIDDEN, dtype=np.float32),
    )
    write_gguf(path, as_stored(tensors))
    return path, {ours: value for ours, value in tensors.values()}


def test_a_llama_file_speaks_hugging_face(llama):
    path, tensors = llama
    checkpoint = open_checkpoint(path)
    assert checkpoint.shapes == {name: value.shape for name, value in tensors.items()}
    for name, value in tensors.items():
        np.testing.assert_array_equal(checkpoint.read(name), value)
    assert checkpoint.config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "max_position_embeddings": 128,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5000.0,
        "vocab_size": VOCAB,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "attention_bias": True,
        "mlp_bias": False,
        "sliding_window": None,
        "eos_token_id": 2,
    }
    metadata = checkpoint.tokenizer_parts()["metadata"]
    assert metadata["tokenizer.ggml.tokens"][7] == "token 7"
    assert metadata["tokenizer.ggml.scores"][7] == 7.0
    assert metadata["general.architecture"] == "llama"


def test_transformers_reads_the_same_tensors(llama):
    utils = pytest.importorskip("transformers.modeling_gguf_pytorch_utils")
    transformers = pytest.importorskip("transformers")
    checkpoint = open_checkpoint(llama[0])
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**checkpoint.config))
    theirs = utils.load_gguf_checkpoint(str(llama[0]), return_tensors=True, model_to_load=model)
    compared = 0
    for name, value in theirs["tensors"].items():
        np.testing.assert_array_equal(checkpoint.read(name), value.numpy())
        compared += 1
    assert compared >= len(checkpoint.shapes) - 1


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_rows_are_the_files_own_values(tmp_path, kind):
    tensors = llama_tensors(np.random.default_rng(3))
    kind = gguf.GGMLQuantizationType[kind]
    write_gguf(tmp_path / "q.gguf", as_stored(tensors), kind=kind)
    checkpoint = open_checkpoint(tmp_path / "q.gguf")
    for ours, value in tensors.values():
        # rows are quantised one by one, so that their order does not matter
        expected = value if value.ndim == 1 else gguf.quants.dequantize(gguf.quants.quantize(value, kind), kind)
        assert checkpoint.read(ours).dtype == np.float32
        np.testing.assert_array_equal(checkpoint.read(ours), expected)


def scaled(kind):
    def change(writer):
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)
        writer.add_key_length(16)
        writer.add_rope_dimension_count(8)
        writer.add_sliding_window(64)

    return change


def test_positions_scaled_and_other_metadata(tmp_path):
    stored = as_stored(llama_tensors(np.random.default_rng(5)))
    path = tmp_path / "m.gguf"
    write_gguf(path, stored, change=scaled(gguf.RopeScalingType.YARN))
    config = open_checkpoint(path).config
    assert config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert config["head_dim"] == 16
    assert config["partial_rotary_factor"] == 0.5
    assert config["sliding_window"] == 64
    write_gguf(path, stored, change=scaled(gguf.RopeScalingType.LINEAR))
    assert open_checkpoint(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    write_gguf(path, stored, change=lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0))  # an old file
    assert open_checkpoint(path).config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}

    def attentive(writer):
        scaled(gguf.RopeScalingType.YARN)(writer)
        writer.add_rope_scaling_attn_factors(0.5)

    write_gguf(path, stored, change=attentive)  # times what YaRN prescribes, as in llama.cpp
    found = open_checkpoint(path).config["rope_scaling"]["attention_factor"]
    np.testing.assert_allclose(found, 0.5 * (1 + 0.1 * np.log(4)))
    factors = np.array([1, 1.1, 2, 8], np.float32)
    write_gguf(path, stored | {"rope_freqs.weight": factors})
    checkpoint = open_checkpoint(path)
    assert checkpoint.config["rope_scaling"] == {"rope_type": "frequencies", "factors": [1, 1.1, 2, 8]}
    assert "rope_freqs.weight" not in checkpoint.shapes
    long = {f"rope_factors_{k}.weight": factors * i for i, k in enumerate(("long", "short"), 1)}
    write_gguf(path, stored | long, change=lambda writer: writer.add_rope_scaling_attn_factors(1.5))
    assert open_checkpoint(path).config["rope_scaling"] == {
        "rope_type": "longrope",
        "long_factor": [1, 1.1, 2, 8],
        "short_factor": [2, 2.2, 4, 16],
        "attention_factor": 1.5,
    }


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("architecture", "edit", "change", "said"),
    [
        ("mistral3", None, None, "architecture 'mistral3'; expected one of llama"),
        (
            "qwen2",
            None,
            lambda w: w.add_clamp_kqv(8.0),
            "qwen2.attention.clamp_kqv = 8.0, which isouq does",
        ),
        ("llama", None, lambda w: w.add_logit_scale(0.5), "not build into a LlamaForCausalLM; load the model's folder"),
        ("granite", None, lambda w: w.add_attention_scale(0.5), "lacks granite.logit_scale, without which a Granite"),
        ("gemma3", None, None, "lacks gemma3.attention.sliding_window, without which a Gemma3ForCausalLM"),
        ("llama", {"blk.0.ffn_gate_exps.weight": np.eye(2, dtype=np.float32)}, None, "unknown for a LlamaForCausalLM"),
        ("llama", {"blk.0.post_attention_norm.weight": np.ones(2, np.float32)}, None, "unknown for a LlamaForCausalLM"),
        ("llama", {"blk.0.ffn_up.scale": np.ones(2, np.float32)}, None, "expected a decoder alone"),
        ("llama", "token_embd.weight", None, "no token_embd.weight"),
        ("llama", None, lambda w: w.add_array("llama.attention.key_length", [8, 8]), "the same in every layer"),
        ("llama", None, lambda w: w.add_uint16("split.count", 3), "one of 3 parts"),
        ("llama", None, scaled(gguf.RopeScalingType.LONGROPE), "scales positions by 'longrope'"),
        ("llama", None, lambda w: w.add_rope_scaling_attn_factors(1.5), "by 'none' and attention by 1.5"),
    ],
)
def test_a_gguf_file_that_is_not_supported(tmp_path, architecture, edit, change, said):
    stored = as_stored(llama_tensors(np.random.default_rng(6)))
    stored = without(stored, edit) if isinstance(edit, str) else stored | (edit or {})
    write_gguf(tmp_path / "m.gguf", stored, architecture, change=change)
    with pytest.raises(ValueError, match=r"m\.gguf") as error:
        open_checkpoint(tmp_path / "m.gguf")
    assert said in one_line(error)


def test_a_quantisation_that_gguf_cannot_read(tmp_path):
    stored = as_stored(llama_tensors(np.random.default_rng(7)))
    stored["output.weight"] = np.ones((VOCAB, HIDDEN), np.int8)
    write_gguf(tmp_path / "m.gguf", stored)
    with pytest.raises(ValueError, match="as I8, which gguf cannot read") as error:
        open_checkpoint(tmp_path / "m.gguf").read("lm_head.weight")
    one_line(error)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: b"", "0 bytes"),
        (lambda raw: b"GGML" + raw[4:], "begins with b'GGML'"),
        (lambda raw: raw[:4] + struct.pack("<I", 1) + raw[8:], "GGUF version 1"),
        (lambda raw: raw[:4] + struct.pack(">I", 3) + raw[8:], "little-endian"),
        (lambda raw: raw[:-200], "cut short (tensor"),
        (lambda raw: raw[:300], "cut short"),
        (lambda raw: raw[:8] + struct.pack("<QQ", 1 << 60, 1 << 60) + raw[24:], "damaged"),
        (lambda raw: raw[:24] + struct.pack("<Q", 1 << 63) + raw[32:], "a text of"),
        (lambda raw: long_array(raw, b"tokenizer.ggml.scores"), "an array of"),
        (lambda raw: long_array(raw, b"tokenizer.ggml.tokens"), "damaged"),
    ],
)
def test_a_damaged_gguf_file(llama, tmp_path, spoil, said):
    path = tmp_path / "m.gguf"
    path.write_bytes(spoil(llama[0].read_bytes()))
    with pytest.raises(ValueError, match=r"m\.gguf") as error:
        open_checkpoint(path)
    assert said in one_line(error)


def long_array(raw, key):
    at = raw.index(key) + len(key) + 8
    return raw[:at] + struct.pack("<Q", 1 << 59) + raw[at + 8 :]


def test_any_damage_of_the_header_is_a_value_error_or_harmless(llama, tmp_path):
    opens_or_says_why(tmp_path / "m.gguf", tmp_path / "m.gguf", llama[0].read_bytes(), 2000)
