"""Causal language models: every family against transformers and torch on small random models, and bad folders."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from twins_gguf import write_gguf
from twins_text import (
    CHAT,
    FAMILIES,
    GPT2,
    PYTHIA,
    SMALL,
    TWO,
    VOCAB,
    build,
    copy,
    edit,
    random_ids,
    rewrite,
    torch_greedy,
    torch_log_p,
    torch_logits,
    torch_sq_norm,
    write_model,
)

from isouq.text import generate, language_model, load, score
from isouq.text.models import decoder_config

PROMPTS = ["abcd", "z", "the quick ab cab", "m" * 20]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_transformers(tmp_path, family):
    theirs = build(tmp_path, family)
    ours = load(str(tmp_path))
    rows = [ours.tokenizer.encode(prompt) for prompt in PROMPTS]
    ids = random_ids(23)
    np.testing.assert_allclose(ours.logits(ids), torch_logits(theirs, ids), atol=1e-4)

    pairs = [(prompt, answer.tolist()) for prompt, answer in zip(PROMPTS, map(random_ids, (3, 8, 4, 1)), strict=True)]
    scores = score(ours, pairs, "answer")
    for i, (row, (_, answer)) in enumerate(zip(rows, pairs, strict=True)):
        log_p = torch_log_p(theirs, row + answer, len(row))
        np.testing.assert_allclose(scores.token_log_p[i], log_p.detach(), atol=1e-4)
        wanted = torch_sq_norm(theirs, log_p.sum())
        np.testing.assert_allclose(np.exp(scores.log_grad_sq_norm[i]), wanted, rtol=1e-4)

    for answer, row in zip(generate(ours, PROMPTS, max_new_tokens=11), rows, strict=True):
        assert answer.ids + [2] * answer.ended == torch_greedy(theirs, row, 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama, made without torch."""
    return write_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))


def assert_same_params(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_shards_and_their_index(tmp_path):
    theirs = build(tmp_path, "qwen3", saved={"max_shard_size": "20KB"})
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    ids = random_ids(9)
    np.testing.assert_allclose(load(str(tmp_path)).logits(ids), torch_logits(theirs, ids), atol=1e-4)


def test_bfloat16_on_the_disk_and_in_memory(folder, tmp_path):
    half = copy(folder, tmp_path)
    tensors = {k: v.astype(ml_dtypes.bfloat16) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors")
    exact, rounded = load(str(half)), load(str(folder), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(exact.params)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {jnp.dtype(jnp.bfloat16)}
    assert_same_params(exact.params, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), rounded.params))

    ids = jnp.asarray(random_ids(17))
    decoder = language_model.module(rounded.config, rounded.params)
    assert jax.eval_shape(decoder.hidden, ids).dtype == jnp.bfloat16
    logits = rounded.logits(ids)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, exact.logits(ids), atol=0.15)
    assert np.any(np.asarray(logits) != np.asarray(logits.astype(jnp.bfloat16), np.float32))
    one, other = (score(m, [("abc", [5, 6, 7])]) for m in (rounded, exact))
    np.testing.assert_allclose(one.log_epistemic, other.log_epistemic, atol=0.1)
    assert [len(answer.ids) for answer in generate(rounded, ["abc"], max_new_tokens=3)] == [3]


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_gguf_file_gives_what_its_folder_gives(folder, model, tmp_path, kind):
    def tokenizer(writer):
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([chr(97 + i % 26) * (1 + i // 26) for i in range(VOCAB)])
        writer.add_token_types([1] * VOCAB)
        writer.add_token_merges(["a a", "b b"])
        writer.add_eos_token_id(2)
        writer.add_chat_template(CHAT)

    tensors = write_gguf(folder, tmp_path / "m.gguf", tokenizer, kind)
    save_file(tensors, copy(folder, tmp_path) / "model.safetensors")

    found, wanted = load(str(tmp_path / "m.gguf")), load(str(tmp_path))
    assert found.config == wanted.config
    assert_same_params(found.params, wanted.params)
    ids = random_ids(17)
    np.testing.assert_allclose(found.logits(ids), wanted.logits(ids), atol=1e-6)
    np.testing.assert_allclose(found.logits(ids), model.logits(ids), atol=1e-6 if kind == "F32" else 0.3)


def test_predict_is_the_last_row_and_two_loads_share_it(folder, model):
    ids = jnp.asarray(random_ids(17))
    np.testing.assert_allclose(model.predict(model.params, ids), model.logits(ids)[-1], atol=1e-5)
    again = load(str(folder))
    assert again.predict == model.predict
    before = language_model._logits._cache_size()
    again.logits(ids)
    assert language_model._logits._cache_size() == before


def test_what_a_configuration_leaves_out():
    def read(name, **changes):
        changes = {"sliding_window": 4, "architectures": [f"{name}ForCausalLM"]} | changes
        return decoder_config.from_config({k: v for k, v in (SMALL | changes).items() if v is not None})

    assert read("Qwen2").windows == (64, 64, 64)  # as Qwen 2.5 has it: a window, not in use
    assert read("Qwen2", use_sliding_window=True).windows == (64, 64, 64)  # from layer 28 on
    assert read("Qwen2", use_sliding_window=True, max_window_layers=2).windows == (64, 64, 4)
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert read("Qwen3", use_sliding_window=True, layer_types=kinds).windows == (4, 64, 4)
    assert read("Mistral").windows == (4, 4, 4)
    assert read("Mistral", sliding_window=4096).windows == (64, 64, 64)
    assert read("Llama").windows == (64, 64, 64)
    assert read("Qwen3").head_dim == 128
    assert read("Llama", num_key_value_heads=None).num_kv_heads == 4
    assert [read(name).norm_eps for name in ("Llama", "Qwen3", "Olmo2", "Phi3")] == [1e-6, 1e-6, 1e-5, 1e-5]
    assert not read("Llama", tie_word_embeddings=None).tied
    assert read("SmolLM3", tie_word_embeddings=None).tied
    assert read("SmolLM3", num_hidden_layers=5).rope_index == (0, 0, 0, 1, 0)
    assert read("Olmo3", num_hidden_layers=5).windows == (4, 4, 4, 64, 4)
    assert read("Olmo3", num_hidden_layers=5).rope_index == (1, 1, 1, 0, 1)
    assert read("Gemma2").windows == (4, 64, 4)
    assert (read("Gemma2").attention_cap, read("Gemma2").logits_cap) == (50.0, 30.0)
    assert read("Gemma2", head_dim=None).head_dim == 256
    assert read("Granite").attention_scale == 1.0


def test_configurations_as_older_files_write_them():
    old = SMALL | {"architectures": ["Gemma3ForCausalLM"], "head_dim": 16, "rope_theta": 5000.0, "num_hidden_layers": 7}
    old |= {"rope_local_base_freq": 300.0, "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "sliding_window": 4}
    new = {key: value for key, value in old.items() if not key.startswith("rope")} | {"rope_parameters": TWO}
    found = decoder_config.from_config(old)
    assert found == decoder_config.from_config(new)
    assert found.rope_index == (1, 1, 1, 1, 1, 0, 1)
    assert found.context_length == 64  # stretched already
    neox = SMALL | {"architectures": ["GPTNeoXForCausalLM"], "rotary_emb_base": 5000, "rotary_pct": 0.5}
    assert (
        decoder_config.from_config(neox).rope
        == decoder_config.from_config(SMALL | dict(architectures=["GPTNeoXForCausalLM"], rope_parameters=PYTHIA)).rope
    )
    gpt2 = GPT2 | {"architectures": ["GPT2LMHeadModel"], "vocab_size": 48, "n_inner": None}
    assert decoder_config.from_config(gpt2).intermediate_size == 128


def test_gpt2_as_it_was_first_published(tmp_path):
    """Its tensors have no prefix, and its masks are among them."""
    theirs = build(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    bare["h.0.attn.bias"] = np.tril(np.ones((1, 1, 64, 64), np.float32))
    save_file(bare, tmp_path / "model.safetensors")
    rewrite(tmp_path, architectures=["GPT2Model"])
    ids = random_ids(9)
    np.testing.assert_allclose(load(str(tmp_path)).logits(ids), torch_logits(theirs, ids), atol=1e-4)


# What users may get wrong


NAN = np.full((32, 32), np.nan, np.float32)
Q = "model/layers/1/self_attn/q_proj/weight"


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (partial(rewrite, architectures=["BertModel"]), "architecture 'BertModel' is not one of LlamaForCausalLM, "),
        (partial(rewrite, architectures=["MambaForCausalLM"]), "architecture 'MambaForCausalLM' is not one of"),
        (
            partial(rewrite, architectures=["Gemma3ForConditionalGeneration"]),
            "'Gemma3ForConditionalGeneration' is not one of .*; the nearest name is Gemma3",
        ),
        (partial(rewrite, architectures=["Gemma2ForCausalLM"], use_bidirectional_attention=True), "is set; expected a"),
        (
            partial(rewrite, architectures=["Olmo3ForCausalLM"], layer_types=["chunked"] * 3),
            "layer_types holds 'chunked'; expected sliding_attention or full_attention",
        ),
        (
            partial(rewrite, architectures=["SmolLM3ForCausalLM"], no_rope_layers=[1]),
            r"no_rope_layers is \[1\]; expected 3 numbers",
        ),
        (partial(rewrite, architectures=None), "architecture None is not one of"),
        (partial(rewrite, architectures=3), "architecture None is not one of"),
        (partial(rewrite, architectures=["X"], auto_map={"AutoModel": "x.X"}), "code of its own"),
        (partial(rewrite, hidden_size=None), "config lacks 'hidden_size'; expected the config.json of a llama model"),
        (partial(rewrite, hidden_size="wide"), "hidden_size is 'wide'; expected a whole number of at least 1"),
        (partial(rewrite, hidden_size=32.5), "hidden_size is 32.5; expected"),
        (partial(rewrite, num_attention_heads=0), "num_attention_heads is 0; expected"),
        (partial(rewrite, num_attention_heads=[4, 4, 4]), r"num_attention_heads is \[4, 4, 4\]; expected"),
        (partial(rewrite, num_key_value_heads=3), "4 heads do not divide into 3 groups"),
        (partial(rewrite, num_hidden_layers=0), "num_hidden_layers is 0; expected"),
        (partial(rewrite, num_hidden_layers=-2), "num_hidden_layers is -2; expected"),
        (partial(rewrite, vocab_size=True), "vocab_size is True; expected"),
        (partial(rewrite, head_dim=7), "of a head of 7 is 7; expected an even number"),
        (partial(rewrite, rms_norm_eps="small"), "rms_norm_eps is 'small'; expected a finite number above 0"),
        (partial(rewrite, max_position_embeddings=0), "max_position_embeddings is 0; expected"),
        (partial(rewrite, hidden_act="sine"), "hidden_act is 'sine'; expected one of gelu, "),
        (partial(rewrite, rope_scaling={"rope_type": "spiral"}), "rope_type is 'spiral'; expected one of"),
        (
            partial(rewrite, architectures=["MistralForCausalLM"], sliding_window="all"),
            "sliding_window is 'all'; expected",
        ),
        (
            partial(rewrite, architectures=["MistralForCausalLM"], sliding_window=4, layer_types=["full_attention"]),
            "expected a list of 3, one for each layer",
        ),
        (partial(rewrite, num_hidden_layers=4), "and 6 more missing; config and weights do not belong together"),
        (partial(rewrite, num_hidden_layers=2), "not part of this architecture as built here"),
        (partial(rewrite, attention_bias=True), "k_proj.bias and 9 more missing; config and weights"),
        (partial(rewrite, intermediate_size=48), r"is \[32, 40\], expected \[32, 48\]"),
        (partial(edit, **{Q: None}), "model.layers.1.self_attn.q_proj.weight missing"),
        (partial(edit, extra=NAN), "extra not part of this architecture as built here; not loaded"),
        (partial(edit, **{Q: NAN[:8]}), r"q_proj.weight is \[8, 32\], expected \[32, 32\]"),
        (partial(edit, **{Q: NAN}), "q_proj.weight holds NaN or infinity as float32; the file is damaged"),
        (partial(edit, **{Q: NAN[:, :0]}), r"q_proj.weight is \[32, 0\], expected \[32, 32\]"),
    ],
)
def test_folders_that_cannot_be_loaded(folder, tmp_path, break_it, message):
    copy(folder, tmp_path)
    break_it(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_tokenizer_of_another_model_is_refused(folder, tmp_path):
    copy(folder, tmp_path)
    rewrite(tmp_path, vocab_size=20)
    short = load_file(folder / "model.safetensors")
    edit(tmp_path, **{n.replace(".", "/"): short[n][:20] for n in ("lm_head.weight", "model.embed_tokens.weight")})
    with pytest.raises(ValueError, match="has a token of id 33 and the model 20 rows of vectors; take") as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("ids", [[3, VOCAB], [-1, 3], []])
def test_tokens_that_the_model_does_not_have(model, ids):
    with pytest.raises(ValueError, match="expected token ids from 0 to 47"):
        model.logits(np.array(ids, np.int32))


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(jnp.int32, "int32"), (jnp.float8_e4m3fn, "float8_e4m3fn"), (np.dtype("int8"), "int8"), ("f32", "f32")],
)
def test_a_dtype_that_parameters_cannot_have(folder, dtype, name):
    with pytest.raises(ValueError, match=f"dtype is {name}; expected a floating one: float32 or bfloat16"):
        load(str(folder), dtype=dtype)


def test_float16_weights_too_large_for_it(folder, tmp_path):
    copy(folder, tmp_path)
    edit(tmp_path, **{Q: np.full((32, 32), 1e5, np.float32)})
    with pytest.raises(ValueError, match="holds NaN or infinity as float16"):
        load(str(tmp_path), dtype=jnp.float16)
