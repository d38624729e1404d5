"""Every family of GGUF files: a converted model gives what the folder of safetensors gives that it was made from."""

import gguf
import numpy as np
import pytest
from damage import one_line, opens_or_says_why
from safetensors.numpy import save_file
from twins_gguf import ARCHITECTURES, add_tokenizer, write_gguf
from twins_text import FAMILIES, build, copy, random_ids

from isouq.text import generate, load, score
from isouq.text.loading import _gguf_families
from isouq.text.loading.checkpoint import open_checkpoint

SCALED = dict(rope_type="linear", rope_theta=5000.0, factor=4.0)
GEMMA3_ROPE = dict(full_attention=SCALED, sliding_attention=dict(rope_type="default", rope_theta=300.0))
YARN = dict(rope_type="yarn", rope_theta=5000.0, factor=4.0, original_max_position_embeddings=16, attention_factor=1.3)
OLMO3_ROPE = dict(full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=5000.0))
HEAD = dict(query_pre_attn_scalar=16)  # of Gemma, unless it is the largest of its line
SAME = ("llama2", "llama3", "olmo2", "phi3", "phi4 mini", "olmo3", "granite", "mixtral", "gpt2", "pythia")
CASES = {name: {} for name in SAME} | {  # a name of FAMILIES: what a GGUF file cannot say, or says in another way
    "mistral": dict(sliding_window=None),
    "qwen2": dict(use_sliding_window=False),
    "qwen3": dict(attention_bias=False),
    "qwen3 moe, normalised": dict(tie_word_embeddings=True),
    "smollm3": dict(no_rope_layer_interval=4, num_hidden_layers=5),
    "gemma2": HEAD,
    "gemma3": HEAD | dict(num_hidden_layers=7, layer_types=None),
    "gemma3, longer": HEAD | dict(num_hidden_layers=7, layer_types=None, rope_parameters=GEMMA3_ROPE),
    "olmo3, longer": dict(rope_parameters=OLMO3_ROPE),
    "neox in sequence": dict(hidden_act="gelu"),
    "llama with biases and wide heads": {},
}
PROMPTS = ["abcd", "z", "the quick ab cab"]


def assert_same(found, wanted):
    ids = random_ids(23)
    np.testing.assert_allclose(found.logits(ids), wanted.logits(ids), atol=1e-4)
    pairs = [(prompt, random_ids(n).tolist()) for prompt, n in zip(PROMPTS, (3, 8, 4), strict=True)]
    ours, theirs = (score(model, pairs, "answer") for model in (found, wanted))
    np.testing.assert_allclose(ours.log_grad_sq_norm, theirs.log_grad_sq_norm, atol=1e-4)
    ours, theirs = (generate(model, PROMPTS, max_new_tokens=11) for model in (found, wanted))
    assert [answer.ids for answer in ours] == [answer.ids for answer in theirs]


def converted(folder, name, kind="F32", **changes):
    """The folder of a random model, and a GGUF file of it; returns the tensors as the file rounds them."""
    build(folder, name, **(CASES.get(name, {}) | changes))
    return write_gguf(folder, folder / "m.gguf", lambda writer: add_tokenizer(writer, folder), kind)


@pytest.mark.parametrize("name", CASES)
def test_a_gguf_file_gives_what_its_folder_gives(tmp_path, name):
    converted(tmp_path, name)
    assert_same(load(str(tmp_path / "m.gguf")), load(str(tmp_path)))


def test_every_family_of_gguf_files_is_compared():
    compared = {FAMILIES[name][0] for name in CASES}
    written = {name.removesuffix("ForCausalLM").removesuffix("LMHeadModel") for name in ARCHITECTURES}
    assert compared == written
    built = {(family.name, arch) for arch, families in _gguf_families.FAMILIES.items() for family in families}
    assert built | {("MistralForCausalLM", "llama")} == set(ARCHITECTURES.items())


@pytest.mark.parametrize(("name", "layers"), [("gemma2", 46), ("gemma3", 62)])
def test_attention_of_the_largest_gemma_is_scaled_by_the_hidden_size_per_head(tmp_path, name, layers):
    converted(tmp_path, name, num_hidden_layers=layers, layer_types=None, query_pre_attn_scalar=8)
    found, wanted = load(str(tmp_path / "m.gguf")), load(str(tmp_path))
    assert found.config == wanted.config
    assert found.config.attention_scale == 8**-0.5


@pytest.mark.parametrize("name", ["mixtral", "qwen3 moe, normalised", "gpt2", "gemma2"])
def test_a_quantised_file_gives_its_own_rounded_values(tmp_path, name):
    """Experts are cut out of the file's stack, and rows are put in order, after the blocks of a row are undone."""
    folder, rounded = tmp_path / "exact", tmp_path / "rounded"
    folder.mkdir()
    rounded.mkdir()
    tensors = converted(folder, name, "Q8_0", **({"n_inner": 64} if name == "gpt2" else {}))
    save_file(tensors, copy(folder, rounded) / "model.safetensors")
    found = load(str(folder / "m.gguf"))
    assert_same(found, load(str(rounded)))
    ids = random_ids(9)
    assert np.max(np.abs(found.logits(ids) - load(str(folder)).logits(ids))) > 1e-4


def test_every_sixth_layer_of_a_gemma_3_sees_all(tmp_path):
    converted(tmp_path, "gemma3")
    assert load(str(tmp_path / "m.gguf")).config.windows == (5, 5, 5, 5, 5, 64, 5)


def test_a_pattern_of_windows_may_be_a_length(tmp_path):
    build(tmp_path, "gemma3", **CASES["gemma3"])

    def change(writer):
        add_tokenizer(writer, tmp_path)
        writer.add_sliding_window_pattern(3)

    write_gguf(tmp_path, tmp_path / "m.gguf", change)
    assert load(str(tmp_path / "m.gguf")).config.windows == (5, 5, 64, 5, 5, 64, 5)


def spoilt(folder, **tensors):
    """m.gguf again, with tensors in place of those of the same names; None takes one out."""
    reader = gguf.GGUFReader(folder / "m.gguf")
    held = {tensor.name: tensor.data.reshape(tensor.shape[::-1].tolist()) for tensor in reader.tensors}
    changed = {name.replace("/", "."): value for name, value in tensors.items()}
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / "bad.gguf", architecture)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            sub_type = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type)
    for name, value in (held | changed).items():
        if value is not None:
            writer.add_tensor(name, np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "bad.gguf"


@pytest.fixture(scope="module", params=["mixtral", "pythia", "gpt2"])
def file(tmp_path_factory, request):
    folder = tmp_path_factory.mktemp("gguf")
    converted(folder, request.param)
    return folder, request.param


def test_any_damage_of_the_header_is_a_value_error_or_harmless(file, tmp_path):
    raw = (file[0] / "m.gguf").read_bytes()
    opens_or_says_why(tmp_path / "m.gguf", tmp_path / "m.gguf", raw, 4000)


DAMAGE = {
    "mixtral": [
        (
            {"blk/1/ffn_up_exps/weight": np.ones((3, 40, 32), np.float32)},
            "moe.experts.3.w3.weight missing",
        ),
        ({"blk/1/ffn_up_exps/weight": np.ones((4, 32, 40), np.float32)}, "expected [40, 32]"),
        ({"blk/1/ffn_up_exps/weight": np.ones(4, np.float32)}, "of shape [4]; expected a matrix an expert"),
        ({"blk/1/ffn_gate/weight": np.ones((40, 32), np.float32)}, "unknown for a MixtralForCausalLM"),
        ({"blk/1/ffn_gate_inp/weight": None}, "block_sparse_moe.gate.weight missing"),
    ],
    "pythia": [
        ({"blk/1/attn_qkv/weight": np.ones((95, 32), np.float32)}, "query_key_value.weight is [95, 32], expected [96"),
        ({"blk/1/attn_qkv/bias": None}, "query_key_value.bias missing"),
    ],
    "gpt2": [
        ({"blk/1/ffn_up/weight": np.ones((32, 40), np.float32)}, "c_fc.weight is [40, 32], expected [32, 40]"),
        ({"position_embd/weight": np.ones((9, 32), np.float32)}, "wpe.weight is [9, 32], expected [64, 32]"),
    ],
}


def test_tensors_that_do_not_fit(file):
    folder, name = file
    load(str(spoilt(folder)))  # written again without a change
    for tensors, said in DAMAGE[name]:
        with pytest.raises(ValueError, match=r"bad\.gguf") as error:
            load(str(spoilt(folder, **tensors)))
        assert said in one_line(error)


def test_rows_that_do_not_make_heads(tmp_path):
    converted(tmp_path, "pythia")
    path = spoilt(tmp_path, **{"blk/1/attn_qkv/weight": np.ones((95, 32), np.float32)})
    with pytest.raises(ValueError, match=r"has 95 rows .* expected 4 heads of 3 equal parts") as error:
        open_checkpoint(path).read("gpt_neox.layers.1.attention.query_key_value.weight")
    one_line(error)


@pytest.mark.parametrize("name", ["rope_factors_long.weight", "rope_factors_short.weight"])
def test_one_list_of_factors_without_the_other_is_said(tmp_path, monkeypatch, name):
    converted(tmp_path, "phi3")
    add_tensor = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_tensor",
        lambda self, own, *more, **named: own == name or add_tensor(self, own, *more, **named),
    )
    write_gguf(tmp_path, tmp_path / "half.gguf", lambda writer: add_tokenizer(writer, tmp_path))
    with pytest.raises(ValueError, match=f"lacks '{name}' beside the other of the two; fetch it again"):
        load(str(tmp_path / "half.gguf"))
