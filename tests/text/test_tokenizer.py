import inspect
import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isouq.text.loading import _chat, _gguf_tokenizer
from isouq.text.loading.tokenizer import Tokenizer

tokenizers = pytest.importorskip("tokenizers")

AWKWARD = [
    "",
    " ",
    "   \t ",
    "Hello, world!",
    " leading and trailing  ",
    "Don't we'LL I'M they'Ve",
    "Ångström CAFÉ Cafe\u0301 e\u0301\u0302\u0323",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽",
    "שלום עולם \u202bمرحبا\u202c",
    "漢字かな交じり文。한국어 ไทย",
    "zero\u200bwidth\u200djoin\ufeff",
    "nul\x00 bell\x07 \x7f",
    "a\n\n\n\tb\r\n  \n c\n",
    "x  5   67 12345678 ٣٤ ½ ² Ⅷ",
    "https://example.com/a?b=c&d=%20#e",
    "def f(x):\n    return x**2  # ok",
    "ab" * 300,
    "<|im_start|>user\nhi<|im_end|> [MASK] <s>x</s> <|endoftext|>",
    "wide\u3000nbsp\xa0ﬁ 𝔘𝔫𝔦 \U0010ffff",
    "spaces , before . punctuation ! isn't",
]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{%- for message in messages %}
    {%- if loop.first %}{{ bos_token }}{% endif %}
    {{- '<|start|>' + message.role + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"""
FEATURES = """{% set ns = namespace(n=0) %}
{% for m in messages %}
    {% if m.role == 'tool' %}{% continue %}{% endif %}
    {% set ns.n = ns.n + 1 %}
    {% generation %}{{ m | tojson }} {{ ns.n }}{% endgeneration %}

{% endfor %}
{{ dict(a=1).a }}{{ undefined_name }}{{ pad_token }}{% if tools %}x{% endif %}"""
SYSTEM = """{% for message in messages %}{% if message['role'] == 'system' and not loop.first %}
{{ raise_exception('the system message\nmust come first') }}{% endif %}{{ message['content'] }}{% endfor %}"""
TALK = [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": " é & 漢\n"}]
BYTE_LEVEL = ["gpt-2", "smollm", "llama-bpe", "qwen2"]


def byte_level(pre):
    """A small byte-level BPE, cut as the original tokenizers with that `tokenizer.ggml.pre` cut."""
    parts = tokenizers.pre_tokenizers
    rules = _gguf_tokenizer.RULES[pre]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = tokenizers.normalizers.NFC()
    bytes_only = parts.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = {
        "gpt-2": parts.ByteLevel(add_prefix_space=False),
        "smollm": parts.Sequence([parts.Digits(individual_digits=True), parts.ByteLevel(add_prefix_space=False)]),
    }.get(pre) or parts.Sequence([parts.Split(tokenizers.Regex(rules.split), "isolated"), bytes_only])
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    train(backend, tokenizers.trainers.BpeTrainer, special, initial_alphabet=parts.ByteLevel.alphabet())
    if pre == "llama-bpe":
        frame(backend, "<|im_start|>:0 $A:0", ["<|im_start|>"])
    return backend


def sentencepiece():
    """A small BPE with ▁ for a space and byte fallback, like Llama 2."""
    norm, dec = tokenizers.normalizers, tokenizers.decoders
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = norm.Sequence([norm.Prepend("▁"), norm.Replace(" ", "▁")])
    backend.decoder = dec.Sequence([dec.Replace("▁", " "), dec.ByteFallback(), dec.Fuse(), dec.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    train(backend, tokenizers.trainers.BpeTrainer, special, limit_alphabet=40, vocab_size=500)
    state = json.loads(backend.to_str())
    state["added_tokens"] = state["added_tokens"][:3]  # the bytes are plain tokens
    backend = tokenizers.Tokenizer.from_str(json.dumps(state))
    frame(backend, "<s>:0 $A:0", ["<s>"])
    return backend


def word_piece():
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = tokenizers.normalizers.BertNormalizer()
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    train(backend, tokenizers.trainers.WordPieceTrainer, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    frame(backend, "[CLS]:0 $A:0 [SEP]:0", ["[CLS]", "[SEP]"])
    return backend


def train(backend, trainer, special, **options):
    options = {"vocab_size": 420, "show_progress": False, "special_tokens": special, **options}
    backend.train_from_iterator(AWKWARD * 3, trainer(**options))


def frame(backend, single, special):
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, special_tokens=[(token, backend.token_to_id(token)) for token in special]
    )


@pytest.fixture(scope="module")
def backends():
    return {pre: byte_level(pre) for pre in BYTE_LEVEL} | {"sentencepiece": sentencepiece(), "wordpiece": word_piece()}


def folder(path, backend, config=None, **files):
    path.mkdir(exist_ok=True)
    backend.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **(config or {})}
    for name, value in {"tokenizer_config": config, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return path


def gguf(backend, pre):
    """The GGUF metadata of a small tokenizer, as llama.cpp's converter writes it."""
    state = json.loads(backend.to_str())
    vocab = backend.get_vocab(with_added_tokens=True)
    tokens = sorted(vocab, key=vocab.get)
    control = {token["content"] for token in state["added_tokens"]}
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in control else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in state["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.chat_template": CHATML,
    }
    if pre == "llama":
        metadata["tokenizer.ggml.model"] = "llama"
        metadata["tokenizer.ggml.scores"] = [0.0 if t in control else float(-i) for i, t in enumerate(tokens)]
        metadata["tokenizer.ggml.token_type"][3:259] = [6] * 256
        del metadata["tokenizer.ggml.merges"], metadata["tokenizer.ggml.eot_token_id"]
    return metadata


def same(ours, theirs, texts=AWKWARD):
    for text in texts:
        ids, wanted = ours.encode(text), theirs(text).input_ids
        assert ids == (wanted[1:] if wanted[:2] == [1, 1] else wanted), text  # one BOS, where transformers writes two
        assert ours.encode(text, add_special_tokens=False) == theirs(text, add_special_tokens=False).input_ids, text
        for skip in (True, False):
            assert ours.decode(ids, skip) == theirs.decode(ids, skip_special_tokens=skip), text


@pytest.mark.parametrize("kind", [*BYTE_LEVEL, "sentencepiece", "wordpiece"])
def test_a_folder_equals_transformers(kind, backends, tmp_path):
    transformers = pytest.importorskip("transformers")
    state = json.loads(backends[kind].to_str())  # limits as MiniLM's tokenizer.json has them
    state["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    limited = tokenizers.Tokenizer.from_str(json.dumps(state))
    config = {
        "clean_up_tokenization_spaces": True,
        "add_bos_token": True,  # ignored beside a tokenizer.json
        "eos_token": {"__type": "AddedToken", "content": "<|im_end|>", "lstrip": False, "rstrip": False},
        "pad_token": "<pad>",  # in no vocabulary: added at the end
        "added_tokens_decoder": {"5": {"content": "tail", "lstrip": True, "special": False}},
    }
    path = folder(tmp_path / kind, limited, config)
    same(Tokenizer.from_folder(path), transformers.AutoTokenizer.from_pretrained(path), [*AWKWARD, "de  tail <pad>"])


def test_a_vocabulary_of_words_equals_transformers(backends, tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab = backends["wordpiece"].get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "tokenizer_class": "BertTokenizer"}')
    same(Tokenizer.from_folder(tmp_path), transformers.BertTokenizer.from_pretrained(tmp_path))


def test_the_ids_of_a_folder(backends, tmp_path):
    backend = backends["gpt-2"]
    backend.enable_padding(length=9)
    path = folder(tmp_path, backend, generation_config={"eos_token_id": [2, 7], "bos_token_id": 3})
    backend.no_padding()
    (path / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|endoftext|>"}}')
    ours = Tokenizer.from_folder(path)
    assert (ours.eos_ids, ours.bos_id, ours.pad_id) == ((0, 2, 7), 3, 0)
    assert ours.encode("") == []
    assert ours.vocab_size == backend.get_vocab_size()
    assert ours.token_id("<|im_end|>") == 2
    assert ours.token_id("no such token") is None
    assert "BPE" in repr(ours)
    assert ours.chat_template is None
    (path / "generation_config.json").unlink()
    (path / "config.json").write_text('{"eos_token_id": 1, "pad_token_id": 4}')
    ours = Tokenizer.from_folder(path)
    assert (ours.eos_ids, ours.bos_id, ours.pad_id) == ((0, 1, 2), None, 4)  # <|im_end|> by its name


@pytest.mark.parametrize("pre", BYTE_LEVEL)
def test_gguf_equals_the_tokenizer_it_came_from(pre, backends):
    backend = backends[pre]
    ours = Tokenizer.from_gguf(gguf(backend, pre))
    for text in AWKWARD:
        ids = backend.encode(text).ids
        ids = ids[1:] if ids[:2] == [1, 1] else ids  # the text begins with BOS: no second one
        assert ours.encode(text) == ids, text
        assert ours.decode(ids, False) == backend.decode(ids, skip_special_tokens=False), text
        assert "".join(ours.pieces(ids)) == ours.decode(ids, False), text
    assert (ours.bos_id, ours.eos_ids, ours.pad_id, ours.chat_template) == (1, (0, 2), 2, CHATML)
    told = Tokenizer.from_gguf(
        gguf(backend, pre) | {"tokenizer.ggml.add_bos_token": pre != "llama-bpe", "tokenizer.ggml.add_eos_token": True}
    )
    assert told.encode("x") == [1] * (pre != "llama-bpe") + ours.encode("x", add_special_tokens=False) + [2]


def test_gguf_keeps_user_defined_tokens_whole(backends):
    metadata = gguf(backends["gpt-2"], "gpt-2")
    metadata["tokenizer.ggml.tokens"] += ["<think it over>"]
    metadata["tokenizer.ggml.token_type"] += [4]
    ours = Tokenizer.from_gguf(metadata)
    ids = ours.encode("a<think it over>b")
    assert len(ids) == 3
    assert ours.decode(ids) == "a<think it over>b"


def test_gguf_finds_the_end_of_a_turn_by_name(backends):
    metadata = gguf(backends["gpt-2"], "gpt-2") | {"tokenizer.ggml.eos_token_id": 0}
    for eot in (None, 0):  # whatever the file names beside it, as in llama.cpp
        assert Tokenizer.from_gguf(metadata | {"tokenizer.ggml.eot_token_id": eot}).eos_ids == (0, 2)


@pytest.mark.parametrize("none", [-1, 2**32 - 1])
def test_gguf_without_a_token(backends, none):
    metadata = gguf(backends["gpt-2"], "gpt-2")
    absent = {f"tokenizer.ggml.{name}_token_id": none for name in ("bos", "eot", "padding")}
    ours = Tokenizer.from_gguf(metadata | absent)
    assert (ours.bos_id, ours.eos_ids, ours.pad_id) == (None, (2,), 2)


def greedy(text, metadata):
    """SentencePiece's rule, slowly: join the neighbours whose joint token has the best score, leftmost first."""
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = {t: s for t, s, k in zip(tokens, metadata["tokenizer.ggml.scores"], kinds, strict=True) if k == 1}
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joint = [scores.get(a + b, -math.inf) for a, b in itertools.pairwise(parts)]
        if not joint or max(joint) == -math.inf:
            break
        at = joint.index(max(joint))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    ids = [1]
    for part in parts:
        ids += [tokens.index(part)] if part in scores else [3 + byte for byte in part.encode()]
    return ids


def test_gguf_sentencepiece_equals_the_slow_rule(backends):
    metadata = gguf(backends["sentencepiece"], "llama")
    ours = Tokenizer.from_gguf(metadata)
    for text in AWKWARD:
        if "<s>" not in text:
            ids = ours.encode(text)
            assert ids == greedy(text, metadata), text
            assert ours.decode(ids) == text
            assert "".join(ours.pieces(ids)) == ("<s> " + text if text else "<s>")
    assert (ours.bos_id, ours.eos_ids) == (1, (2,))
    bare = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.add_space_prefix": False})
    assert bare.decode(bare.encode(" x")) == " x"
    assert len(bare.encode("a")) == 2
    merges = json.loads(backends["sentencepiece"].to_str())["model"]["merges"]
    ours = Tokenizer.from_gguf(metadata | {"tokenizer.ggml.merges": [" ".join(merge) for merge in merges]})
    assert all(ours.encode(text) == backends["sentencepiece"].encode(text).ids for text in AWKWARD)


def test_pieces_name_each_token(backends):
    ours = Tokenizer(backends["wordpiece"])
    ids = ours.encode("Hello, 漢")
    assert len(ours.pieces(ids)) == len(ids)
    assert "".join(ours.pieces(ids)) == "[CLS] hello , 漢 [SEP]"
    ours = Tokenizer(backends["gpt-2"])
    split = ours.encode("é\U000f1234")
    assert ours.pieces(split)[-4:] == ["", "", "", "\U000f1234"]
    assert ours.pieces(split[:-1])[-1] == "\ufffd"
    assert ours.pieces([]) == []
    assert ours.decode([10**6]) == ""
    assert ours.pieces([10**6]) == [""]


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=60))
def test_any_text_comes_back(backends, text):
    for pre in ("gpt-2", "smollm", "llama-bpe"):
        ours = Tokenizer(backends[pre])
        ids = ours.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == text
        assert "".join(ours.pieces(ids)) == text


@pytest.mark.parametrize("template", [CHATML, LLAMA3, FEATURES, SYSTEM])
@pytest.mark.parametrize("place", ["config", "named", "file"])
def test_a_chat_equals_transformers(template, place, backends, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = {"bos_token": "<|im_start|>", "pad_token": "<|endoftext|>"}
    if place == "config":
        config["chat_template"] = template
    if place == "named":
        config["chat_template"] = [{"name": "other", "template": "no"}, {"name": "default", "template": template}]
    path = folder(tmp_path, backends["llama-bpe"], config)
    if place == "file":
        (path / "chat_template.jinja").write_text(template)
    ours, theirs = Tokenizer.from_folder(path), transformers.AutoTokenizer.from_pretrained(path)
    for begin in (True, False):
        text = theirs.apply_chat_template(TALK, add_generation_prompt=begin, tokenize=False)
        assert ours.chat(TALK, begin) == text
        ids = theirs.apply_chat_template(TALK, add_generation_prompt=begin, return_dict=False)
        assert ours.encode_chat(TALK, begin) == ids


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (SYSTEM, "the system message must come first"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "underscore"),
        ("{% set ns = namespace() %}{% set ns._x = 1 %}", "underscore"),
        ("{{ messages[7].content }}", "no element 7"),
        ("{{ 1 / 0 }}", "division"),
        ("{% for %}", "Expected"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
    ],
)
def test_a_template_that_fails_gives_one_line(template, reason):
    talk = [*TALK, TALK[0]]
    with pytest.raises(ValueError, match=reason) as caught:
        _chat.render(template, talk, {})
    assert "\n" not in str(caught.value)
    assert "plain prompt" in str(caught.value)
    assert len(talk) == 3


@pytest.mark.parametrize("messages", ["hi", [], ["hi"], [{"content": "x"}], [{"role": "user", "content": object()}]])
def test_messages_are_checked(messages):
    with pytest.raises(ValueError, match="expected"):
        inspect.unwrap(_chat.render)(CHATML, messages, {})  # without the tests' check of types


def test_text_and_ids_are_checked(backends):
    ours = Tokenizer(backends["gpt-2"])
    for bad, reason in (("a\ud800", "surrogate pair"), (["a"], "a list; expected a string"), (b"a", "bytes")):
        with pytest.raises(ValueError, match=reason) as caught:
            inspect.unwrap(Tokenizer.encode)(ours, bad)  # without the tests' own check of types
        assert "\n" not in str(caught.value)
        assert str(caught.value).isprintable()
    with pytest.raises(ValueError, match="at least 0"):
        ours.decode([3, -1])
    with pytest.raises(ValueError, match="plain prompts"):
        ours.chat(TALK)


def test_a_folder_that_cannot_be_read(backends, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        Tokenizer.from_folder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    with pytest.raises(ValueError, match="save the fast tokenizer"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\nb")
    with pytest.raises(ValueError, match=r"no \[CLS\]"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(tmp_path)
    folder(tmp_path, backends["gpt-2"], {"added_tokens_decoder": {"1": {"text": "x"}}})
    with pytest.raises(ValueError, match="added token that cannot be read"):
        Tokenizer.from_folder(tmp_path)
    for text, reason in (("{", "not JSON"), ("[]", "holds a list")):
        folder(tmp_path, backends["gpt-2"])
        (tmp_path / "generation_config.json").write_text(text)
        with pytest.raises(ValueError, match=reason):
            Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "t5"}, "'t5'; expected 'gpt2'"),
        ({"pre": "klingon"}, "'klingon'; expected one of .*llama-bpe.*smollm"),
        ({"tokens": []}, "tokens is missing"),
        ({"token_type": [1]}, "token_type has 1"),
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000"),
        ({"eot_token_id": [1, 2]}, r"eot_token_id is \[1, 2\]; expected an id below"),
        ({"merges": ["no such"]}, "do not fit"),
        ({"model": "llama", "merges": []}, "scores has 0"),
    ],
)
def test_gguf_that_cannot_be_read(change, reason, backends):
    metadata = gguf(backends["gpt-2"], "gpt-2") | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(ValueError, match=reason) as caught:
        Tokenizer.from_gguf(metadata)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_minilm_equals_transformers(minilm_path):
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.from_folder(minilm_path)
    same(ours, transformers.AutoTokenizer.from_pretrained(minilm_path))
    assert ours.pad_id == 0
    assert ours.encode("ab" * 300)[0] == 101


@pytest.fixture(scope="module")
def smollm2_metadata(smollm2_path):
    reader = pytest.importorskip("gguf").GGUFReader(smollm2_path)
    return {key: entry.contents() for key, entry in reader.fields.items() if key.startswith("tokenizer.")}


@pytest.mark.slow
def test_smollm2_is_the_original(smollm2_metadata):
    """Ids of the published tokenizer: digits one by one, then the regex of GPT-2; nothing added."""
    ours = Tokenizer.from_gguf(smollm2_metadata)
    assert ours.encode("Hello world! 123") == [19556, 905, 17, 216, 33, 34, 35]
    assert ours.encode("Café déjà vu.") == [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]
    assert ours.encode("  multiple   spaces") == [216, 2701, 256, 5600]
    assert (ours.bos_id, ours.eos_ids, ours.pad_id, ours.vocab_size) == (1, (2,), 2, 49152)
    for text in AWKWARD:
        ids = ours.encode(text)
        assert ours.decode(ids, False) == text == "".join(ours.pieces(ids))


@pytest.mark.slow
def test_smollm2_equals_transformers(smollm2_metadata, smollm2_path):
    """transformers 5.24 forgets the digits: it joins a space to a digit where the original keeps them apart."""
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.from_gguf(smollm2_metadata)
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    same(ours, theirs, [text for text in AWKWARD if not text.startswith("x  5")])
    assert theirs("x  5").input_ids != ours.encode("x  5")
    tokenizer = theirs.backend_tokenizer
    parts = tokenizers.pre_tokenizers
    tokenizer.pre_tokenizer = parts.Sequence([parts.Digits(individual_digits=True), tokenizer.pre_tokenizer])
    same(ours, theirs)
    assert ours.chat(TALK) == theirs.apply_chat_template(TALK, add_generation_prompt=True, tokenize=False)
