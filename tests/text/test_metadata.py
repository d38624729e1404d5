"""What the files of a folder, or the keys of a GGUF file, say about one model: reconciled into one value each."""

import inspect
import json

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file
from twins_gguf import write_gguf
from twins_text import build, copy, edit, random_ids, rewrite, torch_logits, write_model, write_tokenizer

from isouq.text import generate, language_model, load, prompts, read, score, trace
from isouq.text.loading.checkpoint import open_checkpoint
from isouq.text.loading.tokenizer import Tokenizer
from isouq.text.models import encoder_config
from isouq.text.models.architectures import DECODERS
from isouq.text.models.decoder_config import from_config

SWITCH = (
    "{{ bos_token }}{% for m in messages %}<u>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<a>"
    "{% if enable_thinking is defined and not enable_thinking %}zz{% endif %}{% endif %}"
)
TALK = [{"role": "user", "content": "cde"}]
OFF = {"enable_thinking": False}
ORIGINAL = "original_max_position_embeddings"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of one layer; its tokenizer writes BOS, and so does its chat template."""
    path = write_model(tmp_path_factory.mktemp("llama"), bos=True, num_hidden_layers=1)
    write_tokenizer(path, True, SWITCH)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return load(str(folder))


# One model, twice


NAMES = ["<s>", "</s>", "<|eot_id|>", "<u>", "<a>"]
SCALINGS = {
    "none": None,
    "linear": {"type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, ORIGINAL: 32},
    "yarn, of the stretched length": {"rope_type": "yarn", "factor": 2.0, ORIGINAL: 16},
}


def write_twice(folder, scaling, bos, eos=False):
    """A folder and a GGUF file of one model with a byte-level tokenizer, which adds BOS and EOS as asked."""
    parts = tokenizers.pre_tokenizers
    vocabulary = [*NAMES, *sorted(parts.ByteLevel.alphabet()), "ab", "Ġc"]
    changes = dict(vocab_size=len(vocabulary), num_hidden_layers=1, max_position_embeddings=32, rope_theta=5000.0)
    write_model(folder, bos_token_id=0, eos_token_id=1, rope_scaling=scaling, **changes)
    model = tokenizers.models.BPE({token: i for i, token in enumerate(vocabulary)}, [("a", "b"), ("Ġ", "c")])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer, backend.decoder = parts.ByteLevel(add_prefix_space=False), tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(NAMES)
    if bos or eos:
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single=bos * "<s>:0 " + "$A:0" + eos * " </s>:0", special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    backend.save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template": SWITCH, "add_bos_token": bos}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2], "pad_token_id": None}))

    def change(writer):
        writer.add_rope_freq_base(5000.0)
        if scaling is not None:
            writer.add_string("llama.rope.scaling.type", scaling.get("type", scaling.get("rope_type")))
            writer.add_rope_scaling_factor(scaling["factor"])
        if scaling is not None and ORIGINAL in scaling:
            writer.add_rope_scaling_orig_ctx_len(scaling[ORIGINAL])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list(vocabulary)
        writer.add_token_types([3 if token in NAMES else 1 for token in vocabulary])
        writer.add_token_merges(["a b", "Ġ c"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
        writer.add_eot_token_id(2)
        writer.add_add_bos_token(bos)
        writer.add_add_eos_token(eos)
        writer.add_chat_template(SWITCH)

    write_gguf(folder, folder / "model.gguf", change)
    return load(str(folder)), load(str(folder / "model.gguf"))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_folder_and_its_gguf_file_say_the_same(tmp_path, scaling, bos):
    one, other = write_twice(tmp_path, SCALINGS[scaling], bos)
    assert one.config == other.config
    assert one.config.context_length == (128 if scaling in ("linear", "yarn") else 32)
    for name in ("bos_id", "eos_ids", "pad_id", "chat_template"):
        assert getattr(one.tokenizer, name) == getattr(other.tokenizer, name)
    assert one.tokenizer.eos_ids == (1, 2)
    for text in ("ab c", "<s>ab c", "", "é <u>"):
        assert one.tokenizer.encode(text) == other.tokenizer.encode(text)
        assert one.tokenizer.encode(text).count(0) == (bos or text.startswith("<s>"))
    for variables in ({}, OFF):
        assert one.tokenizer.encode_chat(TALK, **variables) == other.tokenizer.encode_chat(TALK, **variables)
    if bos and scaling in ("linear", "yarn"):
        pairs = [("ab c" * 12, " c"), (TALK, [7, 9])]  # the first beyond the length before stretching
        scores = [score(model, pairs, chat_template_kwargs=OFF) for model in (one, other)]
        np.testing.assert_allclose(scores[0].log_epistemic, scores[1].log_epistemic, rtol=1e-5)
        answers = [generate(model, ["ab c", TALK], 9, chat_template_kwargs=OFF) for model in (one, other)]
        assert [answer.ids for answer in answers[0]] == [answer.ids for answer in answers[1]]


# Ends


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "ends"),
    [
        (None, None, "</s>", (2,)),
        (None, None, None, ()),
        (4, None, "</s>", (2, 4)),
        ([4, 3], None, None, (3, 4)),
        (4, [3, 2], "</s>", (2, 3, 4)),
        ([2, None], 3, {"content": "</s>"}, (2, 3)),
        (-1, 2, None, (2,)),
    ],
)
def test_ends_of_all_files_together(folder, tmp_path, config, generation, tokenizer, ends):
    copy(folder, tmp_path)
    rewrite(tmp_path, eos_token_id=config)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": tokenizer}))
    assert Tokenizer.from_folder(tmp_path).eos_ids == ends


@pytest.mark.parametrize("name", ["<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>"])
def test_tokens_that_end_a_turn_by_their_name(folder, tmp_path, name):
    copy(folder, tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text().replace("<u>", name))
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    assert Tokenizer.from_folder(tmp_path).eos_ids == (2, 3)


@pytest.mark.parametrize("use", ["bos_token", "pad_token", None])
def test_an_end_of_text_that_begins_or_pads_texts(folder, tmp_path, use):
    """As in Qwen, whose generation_config.json names the token and whose GGUF files do not."""
    copy(folder, tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text().replace("<u>", "<|endoftext|>"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({use or "unk_token": "<|endoftext|>"}))
    assert Tokenizer.from_folder(tmp_path).eos_ids == ((2, 3) if use else (2,))


def test_generation_stops_at_any_of_them(folder, tmp_path):
    copy(folder, tmp_path)
    rewrite(tmp_path, eos_token_id=None)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    whole = generate(load(str(tmp_path)), ["cde"], 8)[0].ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [whole[5]]}))
    rewrite(tmp_path, eos_token_id=whole[3])
    answer = generate(load(str(tmp_path)), ["cde"], 8)[0]
    assert answer.ended
    assert answer.ids == whole[: min(whole.index(whole[3]), whole.index(whole[5]))]


def test_an_end_that_is_no_id(folder, tmp_path):
    copy(folder, tmp_path)
    rewrite(tmp_path, eos_token_id="</s>")
    with pytest.raises(ValueError, match=r"config.json has eos_token_id = '</s>'; expected a token's id"):
        Tokenizer.from_folder(tmp_path)


ADDED = "added_tokens_decoder"


@pytest.mark.parametrize(
    ("key", "tokens"),
    [(ADDED, ["<u>"]), (ADDED, {"x": {"content": "y"}}), (ADDED, {"5": "z"}), ("extra_special_tokens", 3)],
)
def test_added_tokens_that_cannot_be_read(folder, tmp_path, key, tokens):
    copy(folder, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: tokens}))
    with pytest.raises(ValueError, match=r"tokenizer_config.json has an added token that cannot be read \(.+\); fetch"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({key: None}))
    assert Tokenizer.from_folder(tmp_path).encode("cde") == [1, 7, 8, 9]


def test_a_chat_template_that_is_not_text(folder, tmp_path):
    copy(folder, tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"{{ messages }}\xff")
    with pytest.raises(ValueError, match=r"chat_template.jinja is not UTF-8 \(.+\); fetch it again"):
        Tokenizer.from_folder(tmp_path)


# BOS


def test_a_text_that_has_bos_gets_no_second_one(model):
    tokenizer = model.tokenizer
    assert tokenizer.encode("cde").count(1) == 1
    assert tokenizer.encode("<s>cde") == tokenizer.encode("cde")
    assert tokenizer.encode("<s><s>cde").count(1) == 2  # what the text itself writes stays
    rendered = tokenizer.chat(TALK)
    assert tokenizer.encode(rendered) == tokenizer.encode_chat(TALK)
    by_hand, by_us = score(model, [(rendered, "fg")]), score(model, [(TALK, "fg")])
    np.testing.assert_array_equal(by_hand.log_epistemic, by_us.log_epistemic)


@pytest.mark.parametrize("named", [True, False])
def test_a_bos_that_no_file_names_is_not_added_twice(folder, tmp_path, named):
    copy(folder, tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    rewrite(tmp_path, bos_token_id=4 if named else None)  # 4 is not what tokenizer.json adds
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.encode("<s>cde") == tokenizer.encode("cde")
    assert tokenizer.encode("cde").count(1) == 1


def test_an_eos_that_the_tokenizer_adds_ends_neither_prompt_nor_answer(tmp_path):
    one, other = write_twice(tmp_path, None, bos=True, eos=True)
    for model in (one, other):
        assert model.tokenizer.encode("ab")[-1:] == [1]
        assert prompts.encode_prompt(model, "") == [0]
        row, plain = prompts.encode_pair(model, "ab", " c"), prompts.encode_prompt(model, "ab")
        assert 1 not in row.ids
        assert row.ids.tolist() == prompts.encode_pair(model, "ab", row.ids[row.first :]).ids.tolist()
        assert (plain, row.first) == (row.ids[:2].tolist(), 2)


# Chat templates


def test_variables_reach_the_template_everywhere(model):
    text = "<s><u>cde<a>zz"
    assert model.tokenizer.chat(TALK) == "<s><u>cde<a>"
    assert model.tokenizer.chat(TALK, **OFF) == text
    assert model.tokenizer.encode_chat(TALK, **OFF) == model.tokenizer.encode(text)
    pair, plain = [(TALK, "fg")], [(text, "fg")]
    one, other = score(model, pair, chat_template_kwargs=OFF), score(model, plain)
    np.testing.assert_array_equal(one.log_epistemic, other.log_epistemic)
    assert one.log_epistemic != score(model, pair).log_epistemic
    np.testing.assert_array_equal(read(model, pair, chat_template_kwargs=OFF)[0].log_p, read(model, plain)[0].log_p)
    assert generate(model, [TALK], 3, chat_template_kwargs=OFF)[0].ids == generate(model, [text], 3)[0].ids
    traces = trace(model, TALK, "fg", chat_template_kwargs=OFF), trace(model, text, "fg")
    np.testing.assert_array_equal(traces[0].log_p, traces[1].log_p)


@pytest.mark.parametrize("given", [{"messages": []}, [1], {1: 2}, "enable_thinking"])
def test_variables_are_checked(model, given):
    encode_prompt = inspect.unwrap(prompts.encode_prompt)  # without the tests' own check of types
    with pytest.raises(ValueError, match=r"chat_template_kwargs is .*; expected a dictionary such as"):
        encode_prompt(model, TALK, given)
    with pytest.raises(
        ValueError, match=r"chat_template is \['a'\]; expected the name of a chat template, or its text"
    ):
        encode_prompt(model, TALK, {"chat_template": ["a"]})
    assert encode_prompt(model, TALK, {"self": 1}) == encode_prompt(model, TALK)
    with pytest.raises(ValueError, match="variable 'tools' holds a object; expected text, numbers"):
        model.tokenizer.chat(TALK, tools=[object()])


@pytest.mark.parametrize("place", ["list", "files"])
def test_named_templates_equal_transformers(folder, tmp_path, place):
    transformers = pytest.importorskip("transformers")
    copy(folder, tmp_path)
    named = {"default": SWITCH, "tool_use": "{{ tools | tojson }}", "rag": "{{ documents[0].text }}{{ date }}"}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": {"__type": "AddedToken", "content": "<s>"}}
    if place == "list":
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
    else:
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "chat_template.jinja").write_text(named["default"])
        for name in ("tool_use", "rag"):
            (tmp_path / "additional_chat_templates" / f"{name}.jinja").write_text(named[name])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.from_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    documents = [{"title": "t", "text": "<b>é"}]
    for variables in (
        OFF,
        {"tools": [tool]},
        {"chat_template": "rag", "documents": documents, "date": 3},
        {"chat_template": "{{ messages[0].content }}{{ date }}", "date": None},
    ):
        wanted = theirs.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False, **variables)
        assert ours.chat(TALK, **variables) == wanted
    with pytest.raises(ValueError, match=r"no chat template 'other'; give chat_template as one of .*rag"):
        ours.chat(TALK, chat_template="other")


# Configurations and names of tensors


@pytest.mark.parametrize("family", sorted(set(DECODERS.values())))
@pytest.mark.parametrize("names", [None, []])
def test_a_model_type_without_architectures(family, names):
    config = dict(
        vocab_size=9, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=None, head_dim=None, pad_token_id=None, model_type=family, architectures=names,
        n_embd=32, n_head=4, n_layer=1,
    )  # fmt: skip
    name = next(name for name, known in DECODERS.items() if known == family)
    found = from_config(config)
    assert found == from_config(config | {"architectures": [name]}) == from_config(config | {"architectures": name})
    assert (found.family, found.num_kv_heads, found.head_dim) == (family, 4, 8)
    with pytest.raises(ValueError, match="is not one of"):
        from_config(config | {"model_type": "mamba"})
    with pytest.raises(ValueError, match="code of its own"):
        from_config(config | {"auto_map": {"AutoModel": "x.X"}})


@pytest.mark.parametrize(
    ("kind", "more", "family", "head"),
    [
        ("bert", {}, "bert", ""),
        ("bert", {"id2label": {"0": "no", "1": "yes"}}, "bert", "tanh"),
        ("xlm-roberta", {}, "roberta", ""),
        ("roberta", {"num_labels": 3}, "roberta", "tanh"),
        ("camembert", {}, "roberta", ""),
        ("electra", {"num_labels": 3}, "electra", "gelu"),
        ("deberta-v2", {"id2label": {"0": "no", "1": "yes"}}, "deberta", "gelu"),
        ("modernbert", {"num_labels": 2}, "modernbert", "gelu"),
        ("mpnet", {"num_labels": 2}, "mpnet", "tanh"),
    ],
)
def test_an_encoders_model_type_without_architectures(kind, more, family, head):
    config = dict(
        vocab_size=9, hidden_size=32, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=16, model_type=kind,
    )  # fmt: skip
    found = encoder_config.from_config(config | more)
    assert (found.family, found.head) == (family, head)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("body", ["", "transformer.", "language_model.model.", "model.language_model."])
def test_what_stands_before_the_names_of_tensors(folder, model, tmp_path, body, tied):
    copy(folder, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    rewrite(tmp_path, tie_word_embeddings=tied, architectures=["LlamaModel"] if tied else ["LlamaForCausalLM"])
    wanted = model
    if tied:
        del tensors["lm_head.weight"]
        save_file(tensors, tmp_path / "model.safetensors")
        wanted = load(str(tmp_path))
    head = "language_model." if body.startswith("language_model") else ""
    renamed = {
        body + name.removeprefix("model.") if name.startswith("model.") else head + name: value
        for name, value in tensors.items()
    }
    save_file(renamed, tmp_path / "model.safetensors")
    ids = random_ids(9)
    np.testing.assert_array_equal(load(str(tmp_path)).logits(ids), wanted.logits(ids))


def test_tied_embeddings_of_which_the_file_has_the_output_layer(tmp_path):
    transformers = pytest.importorskip("transformers")
    build(tmp_path, "Llama", num_hidden_layers=1, tie_word_embeddings=True)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path), load(str(tmp_path))
    np.testing.assert_allclose(ours.logits(random_ids(9)), torch_logits(theirs, random_ids(9)), atol=1e-4)


@pytest.mark.parametrize("alike", [True, False])
def test_a_gguf_file_that_repeats_its_embedding_as_its_output_layer(tmp_path, alike):
    write_model(tmp_path, num_hidden_layers=1, tie_word_embeddings=True)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    edit(tmp_path, **{"lm_head/weight": embedding if alike else embedding[::-1].copy()})
    write_gguf(tmp_path, tmp_path / "model.gguf", lambda writer: None)
    one, other = (language_model.read_config(open_checkpoint(path)) for path in (tmp_path, tmp_path / "model.gguf"))
    assert one == other
    assert one.tied is alike


@pytest.mark.parametrize("alike", [True, False])
def test_an_output_layer_beside_tied_embeddings(tmp_path, alike):
    transformers = pytest.importorskip("transformers")
    build(tmp_path, "Llama", num_hidden_layers=1, tie_word_embeddings=True)
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    edit(tmp_path, **{"lm_head/weight": embedding if alike else embedding[::-1].copy()})
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(tmp_path), load(str(tmp_path))
    assert ours.config.tied is alike
    np.testing.assert_allclose(ours.logits(random_ids(9)), torch_logits(theirs, random_ids(9)), atol=1e-4)
