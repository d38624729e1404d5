"""LoRA adapters: against PEFT and torch, against W + s B A and jax.grad, and what cannot be applied."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_entailment
from safetensors.numpy import load_file, save_file
from twins_text import (
    build,
    copy,
    edit,
    random_ids,
    rewrite,
    torch_greedy,
    torch_log_p,
    torch_logits,
    write_model,
)

from isouq.cli import main
from isouq.text import generate, language_model, load, load_encoder, parameter_names, score
from isouq.text.models import parameters

LORA = ".*lora_"
TIED = "ignore:Model has `tie_word_embeddings=True` and a tied layer is part of the adapter:UserWarning"
SAVED = "ignore:Setting `save_embedding_layers` to `True`:UserWarning"
says = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning", TIED, SAVED)
Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.2.mlp.down_proj"
CASES = {
    "llama": ("llama2", dict(lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])),
    "patterns, by the root of the rank": (
        "llama with biases and wide heads",
        dict(
            use_rslora=True,
            rank_pattern={r"layers\.1\.self_attn\.q_proj": 6},
            alpha_pattern={"v_proj": 3},
            layers_to_transform=[1, 2],
            target_modules=["q_proj", "v_proj", "gate_proj"],
        ),
    ),
    "gpt2": ("gpt2", dict(lora_alpha=12, fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])),
    "phi3": ("phi3", dict(target_modules=["qkv_proj", "gate_up_proj", "o_proj"])),
    "pythia": ("pythia", dict(target_modules=["query_key_value", "dense_h_to_4h", "dense"])),
    "gemma2": ("gemma2", dict(target_modules=["k_proj", "up_proj"])),
    "saved whole": ("qwen2", dict(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])),
    "biases": ("qwen2", dict(target_modules=["k_proj"], bias="lora_only")),
}
MERGED_ALONE = {
    "ends": ("llama2", dict(target_modules=["lm_head", "embed_tokens"])),
    "a tied output layer": ("gpt2", dict(target_modules=["lm_head"])),
    "a tied embedding": ("gpt2", dict(target_modules=["wte", "wpe"])),
    "a tied embedding, saved too": ("llama3", dict(target_modules=["embed_tokens"])),
}


def adapt(folder, family, changes):
    """A random model of transformers with a random adapter of PEFT, and the folders of the two."""
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    theirs = build(base, family)
    theirs.name_or_path = str(base)
    theirs = peft.get_peft_model(theirs, peft.LoraConfig(r=4, task_type="CAUSAL_LM", **changes)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    theirs.save_pretrained(adapter)
    return theirs, base, adapter


def compare(theirs, ours):
    ids, prompt = random_ids(23), "the quick ab cab"
    np.testing.assert_allclose(ours.logits(ids), torch_logits(theirs, ids), atol=1e-4)
    row = ours.tokenizer.encode(prompt)
    answer = generate(ours, [prompt], max_new_tokens=9)[0]
    assert answer.ids + [2] * answer.ended == torch_greedy(theirs, row, 9)


@says
@pytest.mark.parametrize("case", CASES | MERGED_ALONE)
def test_a_merged_adapter_equals_peft(tmp_path, case):
    theirs, base, adapter = adapt(tmp_path, *(CASES | MERGED_ALONE)[case])
    compare(theirs, load(str(base), adapter=str(adapter)))


@says
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_apart_equals_peft(tmp_path, case):
    theirs, base, adapter = adapt(tmp_path, *CASES[case])
    ours = load(str(base), adapter=str(adapter), merge=False)
    compare(theirs, ours)
    row, answer = ours.tokenizer.encode("abcd"), random_ids(5).tolist()
    theirs.zero_grad()
    torch_log_p(theirs, row + answer, len(row)).sum().backward()
    wanted = sum(float((p.grad.double() ** 2).sum()) for name, p in theirs.named_parameters() if "lora_" in name)
    scores = score(ours, [("abcd", answer)], "answer", select=LORA)
    np.testing.assert_allclose(np.exp(scores.log_grad_sq_norm[0]), wanted, rtol=1e-4)


@says
@pytest.mark.parametrize("case", MERGED_ALONE)
def test_what_can_only_be_merged(tmp_path, case):
    _, base, adapter = adapt(tmp_path, *MERGED_ALONE[case])
    with pytest.raises(ValueError, match="cannot be kept apart from its weights; leave out merge=False"):
        load(str(base), adapter=str(adapter), merge=False)


# Without PEFT


def write_adapter(folder, base, scale=0.2, **changes):
    """An adapter of rank 2 on two modules, of rank 3 and another scale on a third."""
    folder.mkdir(exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 8}
    config |= {"rank_pattern": {"layers.2.self_attn.q_proj": 3}, "init_lora_weights": True, "use_dora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    rng, tensors = np.random.default_rng(5), {}
    for module, (out, width), rank in ((Q, (32, 32), 2), (Q.replace("1", "2"), (32, 32), 3), (DOWN, (32, 40), 2)):
        for letter, shape in (("A", (rank, width)), ("B", (out, rank))):
            values = (scale * rng.normal(size=shape)).astype(np.float32)
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = values
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A random Llama of three layers."""
    return write_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.fixture(scope="module")
def apart(base, adapter):
    return load(str(base), adapter=str(adapter), merge=False)


def test_merged_weights_are_w_plus_s_b_a(base, adapter, tmp_path):
    copy(base, tmp_path)
    update = load_file(adapter / "adapter_model.safetensors")
    tensors = load_file(base / "model.safetensors")
    for module, scale in ((Q, 8 / 2), (Q.replace("1", "2"), 8 / 3), (DOWN, 8 / 2)):
        a, b = (update[f"base_model.model.{module}.lora_{letter}.weight"] for letter in "AB")
        edit(tmp_path, **{f"{module}.weight".replace(".", "/"): tensors[f"{module}.weight"] + scale * b @ a})
    wanted, merged = load(str(tmp_path)), load(str(base), adapter=str(adapter))
    assert merged.config == wanted.config
    for one, other in zip(jax.tree.leaves(merged.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_apart_is_the_gradient_through_w_plus_s_b_a(base, adapter, apart):
    """The slow twin: jax.grad of the base, as a function of A and B of every layer through its whole weights."""
    plain, merged = load(str(base)), load(str(base), adapter=str(adapter))
    row, answer = apart.tokenizer.encode("the quick ab cab"), random_ids(5).tolist()
    ids = np.array(row + answer, np.int32)
    np.testing.assert_allclose(apart.logits(ids), merged.logits(ids), atol=1e-4)
    weights = dict(parameters.flatten(plain.params))
    pairs = {path: leaf for path, leaf in parameters.flatten(apart.params) if "lora_" in path}
    assert pairs["layers.attention.q.lora_a"].shape == (3, 32, 2 + 3)
    assert not np.any(pairs["layers.attention.q.lora_a"][0])  # the first layer has no adapter

    def log_p(pairs):
        full = dict(weights)
        for name in ("attention.q", "mlp.down"):
            a, b = (pairs[f"layers.{name}.lora_{letter}"] for letter in "ab")
            scales = jnp.asarray(apart.config.scales(name))[None, :, None]
            full[f"layers.{name}.kernel"] += jnp.einsum("ldr,lrf->ldf", a, scales * b)
        decoder = language_model.module(plain.config, parameters.unflatten(full))
        log_p = jax.nn.log_softmax(decoder(jnp.asarray(ids[:-1])))
        return jnp.sum(log_p[jnp.arange(len(row) - 1, len(ids) - 1), ids[len(row) :]])

    wanted = sum(float(jnp.vdot(leaf, leaf)) for leaf in jax.tree.leaves(jax.grad(log_p)(pairs)))
    scores = score(apart, [("the quick ab cab", answer)], "answer", select=LORA)
    np.testing.assert_allclose(np.exp(scores.log_grad_sq_norm[0]), wanted, rtol=1e-4)


def test_an_adapter_names_its_base(base, adapter, apart):
    model = load(str(adapter))
    assert model.name == f"{base} + {adapter}"
    assert apart.name == f"{base} + {adapter} (apart)"
    ids = random_ids(7)
    np.testing.assert_allclose(model.logits(ids), apart.logits(ids), atol=1e-4)
    assert "layers.2.attention.q.lora_b" in parameter_names(apart.config)
    assert not any("lora" in name for name in parameter_names(model.config))


def test_an_adapter_apart_in_half_precision(base, adapter, apart):
    half = load(str(base), adapter=str(adapter), merge=False, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    one, other = (score(model, [("abc", [5, 6, 7])], select=LORA) for model in (half, apart))
    np.testing.assert_allclose(one.log_epistemic, other.log_epistemic, atol=0.2)


def test_experts_are_merged_and_not_kept_apart(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    build(base, "mixtral")
    name = "model.layers.1.block_sparse_moe.experts.2.w1"
    weights = load_file(base / "model.safetensors")
    out, width = weights[f"{name}.weight"].shape
    a, b = np.ones((2, width), np.float32), np.ones((out, 2), np.float32)
    adapter = write_adapter(tmp_path / "adapter", base)
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, adapter / "adapter_model.safetensors")
    before, after = (load(str(base), adapter=one).params["layers"]["mlp"]["experts"] for one in (None, str(adapter)))
    change = np.asarray(after["gate"]["kernel"] - before["gate"]["kernel"])
    np.testing.assert_allclose(change[1, 2], 8.0, atol=1e-5)  # s B A = 4 · 2
    assert np.count_nonzero(change) == width * out
    with pytest.raises(ValueError, match=r"experts\.2\.w1 cannot be kept apart from its weights; leave out"):
        load(str(base), adapter=str(adapter), merge=False)


def configure(folder, **changes):
    config = json.loads((folder / "adapter_config.json").read_text()) | changes
    (folder / "adapter_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change(folder, **tensors):
    """Tensors put in, their names with "/" for "."; None takes one out."""
    file = folder / "adapter_model.safetensors"
    held = load_file(file) | {f"base_model.model.{k.replace('/', '.')}": v for k, v in tensors.items()}
    save_file({k: v for k, v in held.items() if v is not None}, file)


def pickled(folder):
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def cut(folder, name, size):
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


SLASHED = Q.replace(".", "/")
ZEROS = partial(np.zeros, dtype=np.float32)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (partial(configure, peft_type="IA3"), "the adapter is of type 'IA3'; expected LORA; merge it with PEFT's"),
        (partial(configure, peft_type=None), "of type None; expected LORA"),
        (partial(configure, use_dora=True), "has use_dora=True; expected a plain LoRA; merge it with PEFT's"),
        (partial(configure, lora_bias=True), "has lora_bias=True; expected a plain LoRA"),
        (partial(configure, target_parameters=["w"]), r"has target_parameters=\['w'\]; expected a plain LoRA"),
        (partial(configure, trainable_token_indices=[1]), r"has trainable_token_indices=\[1\]; expected"),
        (partial(configure, init_lora_weights="pissa"), "init_lora_weights='pissa', which changes the base's weights"),
        (partial(configure, r=None), "adapter_config.json lacks 'r'; expected one as PEFT saves it"),
        (partial(configure, r="two"), "r is 'two'; expected a whole number of at least 1"),
        (partial(configure, lora_alpha=-1), "lora_alpha is -1; expected a finite number above 0"),
        (partial(configure, lora_alpha=10**400), "lora_alpha is 1000.*; expected a finite number above 0"),
        (
            partial(configure, lora_alpha=1e39),
            r"the scale of model.* is 5e\+38; expected one that float32 holds",
        ),
        (partial(configure, lora_alpha=1e-60), "is 5e-61; expected one that float32 holds; mend lora_alpha"),
        (partial(configure, r=4), r"q_proj.lora_A.weight is \[2, 32\]; expected \[4, in\] for rank 4"),
        (partial(configure, rank_pattern={"(": 2}), r"rank_pattern holds '\(', which is not a regular expression"),
        (partial(configure, rank_pattern=[2]), r"rank_pattern is \[2\]; expected an object of patterns"),
        (partial(configure, alpha_pattern={"q_proj": "a"}), "alpha is 'a'; expected a finite number above 0"),
        (pickled, r"a pickled adapter \(adapter_model.bin\), and isouq never unpickles; save it again"),
        (partial(change, **{f"{SLASHED}/lora_A/weight": None}), "lacks lora_A of model.layers.1.self_attn.q_proj"),
        (partial(change, **{f"{SLASHED}/lora_B/weight": None}), "lacks lora_B of model.layers.1.self_attn.q_proj"),
        (
            partial(change, **{f"{SLASHED}/lora_A/weight": ZEROS((2, 48))}),
            r"q_proj.lora_A.weight is \[2, 48\], expected \[2, 32\] for the base .*; give its own base model",
        ),
        (
            partial(change, **{f"{SLASHED}/lora_B/weight": ZEROS((64, 2))}),
            r"q_proj.lora_B.weight is \[64, 2\], expected \[32, 2\] for the base",
        ),
        (partial(change, **{f"{SLASHED}/lora_A/weight": ZEROS(2)}), r"is \[2\]; expected \[2, in\] for rank 2"),
        (
            partial(change, **{"a/lora_A/weight": ZEROS((2, 32)), "a/lora_B/weight": ZEROS((32, 2))}),
            "adapts a, which the base .* does not have; give its own base model",
        ),
        (partial(change, **{f"{SLASHED}/lora_magnitude_vector": ZEROS(32)}), "which is no part of a plain LoRA"),
        (partial(change, score=ZEROS((2, 32))), "replaces score, which the base .* does not have"),
        (partial(change, **{"lm_head/weight": ZEROS((50, 32))}), r"lm_head.weight is \[50, 32\], expected \[48, 32\]"),
        (
            partial(change, **{f"{SLASHED}/lora_A/weight": np.full((2, 32), np.nan, np.float32)}),
            "q_proj.lora_A.weight holds NaN or infinity; the file is damaged",
        ),
        (partial(cut, name="adapter_model.safetensors", size=900), "is damaged or cut short"),
        (partial(cut, name="adapter_config.json", size=20), "is not JSON"),
    ],
)
def test_adapters_that_cannot_be_applied(base, adapter, tmp_path, break_it, message, merge):
    copy(adapter, tmp_path)
    break_it(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        load(str(base), adapter=str(tmp_path), merge=merge)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_an_update_beyond_float32_is_the_adapters_fault(base, adapter, tmp_path):
    copy(adapter, tmp_path)
    configure(tmp_path, lora_alpha=3e38)
    change(tmp_path, **{f"{SLASHED}/lora_B/weight": np.full((32, 2), 1e30, np.float32)})
    with pytest.raises(ValueError, match=r"s B A of .*q_proj.weight is beyond float32; the adapter") as error:
        load(str(base), adapter=str(tmp_path))
    assert str(error.value).startswith(str(tmp_path))


def test_an_adapter_without_tensors_or_files(base, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config.json; expected a folder as PEFT saves"):
        load(str(base), adapter=str(tmp_path))
    copy(adapter, tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="holds no tensor"):
        load(str(base), adapter=str(tmp_path))
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model.safetensors; expected it beside"):
        load(str(base), adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (None, "names no base model; give the base as the model and this as its adapter"),
        ("gone/away/from/here", "the base of the adapter .*gone/away/from/here does not exist.*give the base as the"),
    ],
)
def test_a_base_that_is_not_there(adapter, tmp_path, named, message):
    copy(adapter, tmp_path)
    configure(tmp_path, base_model_name_or_path=named)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


def test_what_is_no_base(base, adapter):
    with pytest.raises(ValueError, match=r"adapter \(--adapter\) is ''; expected a folder"):
        load(str(base), adapter="")
    with pytest.raises(ValueError, match="is an adapter of PEFT; expected a model"):
        load(str(adapter), adapter=str(adapter))
    with pytest.raises(ValueError, match=r"is an adapter of PEFT; expected a model.* for an encoder merge it"):
        load_encoder(str(adapter))
    with pytest.raises(ValueError, match="has no adapter to keep apart; give one as adapter="):
        load(str(base), merge=False)


def test_an_embedding_saved_whole_where_the_base_ties_it(base, adapter, tmp_path):
    tied, whole = tmp_path / "tied", tmp_path / "whole"
    tied.mkdir()
    whole.mkdir()
    copy(base, tied)
    rewrite(tied, tie_word_embeddings=True)
    edit(tied, **{"lm_head/weight": None})
    copy(adapter, whole)
    change(whole, **{"model/embed_tokens/weight": ZEROS((48, 32))})
    with pytest.raises(ValueError, match=r"to which the base .* ties its output layer; merge it with PEFT's"):
        load(str(tied), adapter=str(whole))
    change(whole, **{"lm_head/weight": ZEROS((48, 32))})
    assert not np.any(load(str(tied), adapter=str(whole)).params["embed"]["embedding"])


def test_the_command_line_takes_an_adapter(base, adapter, apart, tmp_path, capsys):
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "abcd", "answer": "ef"}\n')
    run = ["score", "--model", str(base), "--adapter", str(adapter), "--input", str(source), "--output", str(out)]
    assert main([*run, "--adapter-apart", "--select", LORA, "--quiet"]) == 0
    row = json.loads(out.read_text())
    assert row["model"] == apart.name
    np.testing.assert_allclose(row["log_epistemic"], score(apart, [("abcd", "ef")], select=LORA).log_epistemic[0])
    assert main([*run, "--select", LORA]) == 2
    assert f"was written with the model {apart.name}, and this is {base} + {adapter};" in capsys.readouterr().err
    short = ["--prompt-tokens", "9", "--answer-tokens", "7"]
    assert main(["explain", str(adapter), "--adapter-apart", "--json", "--no-remat", *short]) == 0
    names = {row["name"]: row["shape"] for row in json.loads(capsys.readouterr().out)["parameters"]}
    assert names["layers.*.attention.q.lora_a"] == [32, 5]
    assert main(["explain", str(base), "--adapter-apart"]) == 2
    assert "has no adapter" in capsys.readouterr().err


def test_an_encoder_has_no_adapter_to_explain_apart(tmp_path, capsys):
    test_entailment.write(tmp_path)
    assert main(["explain", str(tmp_path), "--adapter-apart"]) == 2
    assert f"--adapter-apart is given and {tmp_path} is an encoder" in capsys.readouterr().err
    assert main(["explain", str(tmp_path)]) == 0
