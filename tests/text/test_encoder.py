"""Encoders: against transformers and torch on small random models, MiniLM for real, and what users may get wrong."""

import importlib
import json
import string
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file
from twins_encoder import CONFIGS, write_tokenizer
from twins_text import copy, rewrite

import isouq
from isouq.text import encoder as encoder_module
from isouq.text._batches import round_up
from isouq.text.encoder import load_encoder, pool
from isouq.text.models import encoder_config


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A three-class BERT, without transformers' model: `(encoder, folder)`."""
    folder = tmp_path_factory.mktemp("classifier")
    rng = np.random.default_rng(0)
    config = CONFIGS["Bert"] | {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}
    config["id2label"] = {"0": "no", "1": "perhaps", "2": "yes"}
    (folder / "config.json").write_text(json.dumps(config))
    read = encoder_config.from_config(config)
    paths = dict(encoder_module.parameters.flatten(encoder_module.abstract(read)))
    table = {f"encoder.{k}": v for k, v in encoder_module.bert.table("bert.", ("weight", "bias")).items()}
    table |= {f"head.{k}": v for k, v in encoder_module.bert.head_table("bert.").items()}
    tensors = {}
    for path, leaf in paths.items():
        at = table[path]
        shape = leaf.shape[1:] if "{}" in at.name else leaf.shape
        for i in range(leaf.shape[0] if "{}" in at.name else 1):
            value = 0.25 * rng.normal(size=shape[::-1] if at.transpose else shape) + path.endswith("scale")
            tensors[at.name.format(i)] = value.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    write_tokenizer(folder)
    return load_encoder(str(folder)), folder


@pytest.mark.slow
def test_minilm_embeds_as_transformers_does(minilm_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    texts = [
        "The cat sat on the mat.",
        "",
        " \t\n ",
        "A",
        "Ünïcode, 漢字 かな и кириллица: ﬁ ligature e\u0301",
        "emoji 🙂👩‍👩‍👧‍👦 and zero\u200bwidth \u0000 control \ufffd",
        "x" * 300,
        "[CLS] special [SEP] tokens [MASK] in the text [PAD]",
        "antidisestablishmentarianism " * 30,
        "word, " * 700,
        "3.14159 1e-5 https://example.org/a?b=c&d <html> $\\alpha$",
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path)
    model = transformers.AutoModel.from_pretrained(minilm_path).eval()
    inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][..., None]
    wanted = ((hidden * mask).sum(1) / mask.sum(1)).numpy()

    encoder = load_encoder(str(minilm_path))
    assert encoder.pooling == "mean"
    xs = encoder.encode_texts(texts)
    np.testing.assert_array_equal(xs["ids"], inputs["input_ids"].numpy())
    np.testing.assert_array_equal(xs["length"], inputs["attention_mask"].sum(1).numpy())
    np.testing.assert_allclose(encoder.embed(texts, batch_size=4, normalize=False), wanted, atol=1e-4)
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(encoder.embed(texts[:4], batch_size=4), unit[:4], atol=1e-5)


@pytest.mark.parametrize("max_length", [8, 13, 24, 25])
def test_texts_and_pairs_are_cut_as_by_transformers(minilm_path, max_length):
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm_path)
    encoder = load_encoder(str(minilm_path))
    a, b = "one two three four five six seven eight nine", "ten eleven twelve " * 6
    pairs = [(a, b), (b, a), ("one", b), (b, "one"), (a, a), ("", b), (a, "")]
    inputs = tokenizer(*map(list, zip(*pairs, strict=True)), truncation=True, max_length=max_length, padding=True)
    xs = encoder.encode_texts(pairs, max_length=max_length)
    np.testing.assert_array_equal(xs["ids"], inputs["input_ids"])
    np.testing.assert_array_equal(xs["token_types"], inputs["token_type_ids"])
    single = tokenizer([a, b], truncation=True, max_length=max_length, padding="max_length")
    xs = encoder.encode_texts([a, b], max_length=max_length, pad_to=max_length)
    np.testing.assert_array_equal(xs["ids"], single["input_ids"])
    assert set(xs) == {"ids", "length"}


@pytest.mark.parametrize("how", ["mean", "cls", "max"])
def test_pooling_sees_real_tokens_only(how):
    hidden = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    real = hidden[:4]
    wanted = {"mean": real.mean(0), "cls": real[0], "max": real.max(0)}[how]
    np.testing.assert_allclose(pool(jnp.asarray(hidden), 4, how), wanted, rtol=1e-6)
    np.testing.assert_allclose(pool(jnp.asarray(real), None, how), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("described", "wanted"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_the_folder_says_how_to_pool(classifier, tmp_path, described, wanted):
    folder = copy(classifier[1], tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(described))
    assert load_encoder(str(folder)).pooling == wanted
    assert load_encoder(str(folder), pooling="max").pooling == "max"


def test_pooling_that_is_not_built_here_is_refused(classifier, tmp_path):
    folder = copy(classifier[1], tmp_path)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_lasttoken": True}))
    with pytest.raises(ValueError, match="asks for lasttoken; expected one of mean, cls, max"):
        load_encoder(str(folder))
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ValueError, match="has a module Dense, which is not built here"):
        load_encoder(str(folder))
    assert load_encoder(str(folder), pooling="cls").pooling == "cls"


def test_embedding_compiles_once_a_width_and_keeps_the_order(classifier):
    encoder, _ = classifier
    rng = np.random.default_rng(3)
    texts = ["".join(rng.choice(list(string.ascii_letters), size=n)) for n in rng.integers(0, 60, 100)]
    before = encoder_module._vectors._cache_size()
    vectors = encoder.embed(texts, batch_size=16)
    assert encoder_module._vectors._cache_size() - before <= 4  # 16, 24, 32 and the context, 40
    assert vectors.shape == (100, 32)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    for i in (0, 41, 99):
        np.testing.assert_allclose(encoder.embed([texts[i]])[0], vectors[i], atol=1e-5)
    encoder.embed(texts[::-1], batch_size=16)
    load_encoder(encoder.name).embed(texts, batch_size=16)  # another load of one model shares the programs
    assert encoder_module._vectors._cache_size() - before <= 7  # and those of three single texts


def test_a_rising_length_meets_few_widths():
    widths = {length: round_up(length, 2, 16) for length in range(1, 513)}
    assert all(width >= length for length, width in widths.items())
    assert sorted(set(widths.values())) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]


def score(encoder, xs, **kwargs):
    return jax.jit(lambda params, xs: isouq.uncertainty(encoder.predict, params, xs, "multiclass", **kwargs))(
        encoder.params, xs
    )


def test_uncertainty_of_a_classifier_and_no_second_compilation(classifier):
    encoder, folder = classifier
    assert encoder.config.labels == ("no", "perhaps", "yes")
    xs = encoder.encode_texts(["abc", "a longer text", "", ("a question", "an answer")])
    u = isouq.uncertainty(encoder.predict, encoder.params, xs, "multiclass")
    np.testing.assert_allclose(u.epistemic, score(encoder, xs, engine="vmap").epistemic, rtol=1e-4)
    logits = jax.jit(jax.vmap(encoder.predict, (None, 0)))(encoder.params, xs)
    np.testing.assert_allclose(u.probability, jax.nn.softmax(logits).max(1), rtol=1e-5)

    estimate = importlib.import_module("isouq._uncertainty")._estimate
    before = estimate._cache_size()
    again = load_encoder(str(folder))
    assert again.predict == encoder.predict
    assert hash(again.predict) == hash(encoder.predict)
    isouq.uncertainty(again.predict, again.params, xs, "multiclass")
    assert estimate._cache_size() == before


def test_no_large_matrix_is_differentiated_plainly(classifier):
    encoder, _ = classifier
    x = jax.tree.map(lambda leaf: leaf[0], encoder.encode_texts(["a text"]))

    def logit(params):
        return encoder.predict(params, x)[0]

    for row in isouq.explain(logit)(encoder.params):
        if "kernel" in row.leaf or "token" in row.leaf or "position" in row.leaf:
            is_small = row.route == "direct: cheaper (at most 128 entries)"  # the head of this tiny encoder
            assert is_small or not row.route.startswith("direct"), row


def test_recomputing_activations_changes_nothing(classifier):
    encoder, folder = classifier
    xs = encoder.encode_texts(["abc", "some text"])
    lean = load_encoder(str(folder), remat=True)
    assert "remat" in str(
        jax.make_jaxpr(jax.grad(lambda p: lean.predict(p, jax.tree.map(lambda x: x[0], xs))[0]))(lean.params)
    )
    np.testing.assert_allclose(score(encoder, xs).epistemic, score(lean, xs).epistemic, rtol=1e-5)


def test_bfloat16_is_kept_and_close(classifier):
    encoder, folder = classifier
    half = load_encoder(str(folder), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    ids = encoder.encode_texts(["a text"])["ids"][0]
    hidden = jax.jit(half.hidden)(half.params, ids)
    assert hidden.dtype == jnp.bfloat16
    wanted = jax.jit(encoder.hidden)(encoder.params, ids)
    np.testing.assert_allclose(hidden.astype(jnp.float32), wanted, atol=0.2)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_fresh_head_learns(classifier, pooling):
    folder = classifier[1]
    encoder = load_encoder(str(folder), pooling=pooling).with_head(2, jax.random.key(0))
    assert set(encoder.params) == {"encoder", "head"}
    assert encoder.config.labels == ()
    xs, ys = encoder.encode_texts(["aaaa", "bb", "aa", "bbbbbb"]), jnp.array([0, 1, 0, 1])

    def loss(params):
        logits = jax.vmap(encoder.predict, (None, 0))(params, xs)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, ys))

    step = jax.jit(jax.value_and_grad(loss))
    params, optimizer = encoder.params, optax.adam(1e-2)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    first, _ = step(params)
    for _ in range(10):
        _, grads = step(params)
        updates, state = update(grads, state)
        params = optax.apply_updates(params, updates)
    assert step(params)[0] < 0.5 * first


@pytest.mark.parametrize("ending", [("gamma", "beta"), ("weight", "bias")])
def test_old_names_and_left_over_tensors(classifier, tmp_path, ending):
    encoder, folder = classifier[0], copy(classifier[1], tmp_path)
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        old = name.replace("LayerNorm.weight", f"LayerNorm.{ending[0]}").replace(
            "LayerNorm.bias", f"LayerNorm.{ending[1]}"
        )
        tensors[old] = tensor
    tensors["bert.embeddings.position_ids"] = np.arange(40)[None]
    tensors["cls.predictions.bias"] = np.zeros(60, np.float32)
    save_file(tensors, folder / "model.safetensors")
    for one, other in zip(*map(jax.tree.leaves, (encoder.params, load_encoder(str(folder)).params)), strict=True):
        np.testing.assert_array_equal(one, other)


# What users may get wrong


def test_bad_texts(classifier):
    encoder, _ = classifier
    for call in (encoder.encode_texts, encoder.embed):
        with pytest.raises(ValueError, match="texts is empty; expected at least one text"):
            call([])
        with pytest.raises(ValueError, match="texts is a str; expected a list of strings"):
            call("a text")
        with pytest.raises(ValueError, match=r"texts\[1\] is a int; expected a string"):
            call(["a", 3])
        with pytest.raises(ValueError, match=r"texts\[0\] is a tuple; expected a string, or a tuple of two strings"):
            call([("a", "b", "c")])
        with pytest.raises(ValueError, match=r"texts\[0\] holds half of a surrogate pair"):
            call(["\ud83d"])
        with pytest.raises(ValueError, match="max_length is 41; expected at most 40, the context"):
            call(["a"], max_length=41)
        with pytest.raises(ValueError, match="max_length is 2; expected more than the 2 special tokens"):
            call(["a"], max_length=2)
    with pytest.raises(ValueError, match="a text has 7 tokens and pad_to is 4; pass max_length=4"):
        encoder.encode_texts(["a", "abcde"], pad_to=4)
    with pytest.raises(ValueError, match="batch_size is 0"):
        encoder.embed(["a"], batch_size=0)


def test_a_text_beyond_the_context_is_cut_and_raw_ids_are_refused(classifier):
    encoder, _ = classifier
    xs = encoder.encode_texts(["a" * 100])
    assert xs["ids"].shape == (1, 40)
    assert xs["ids"][0, -1] == encoder.tokenizer.token_id("[SEP]")
    with pytest.raises(ValueError, match="the text has 41 tokens; expected at most 40"):
        encoder.hidden(encoder.params, np.ones(41, np.int32))


def test_an_encoder_without_a_head_says_so(classifier, tmp_path):
    folder = copy(classifier[1], tmp_path)
    rewrite(folder, architectures=["BertModel"])
    drop(folder, "classifier")
    encoder = load_encoder(str(folder))
    xs = encoder.encode_texts(["abc"])
    with pytest.raises(ValueError, match=r"no classification head; with_head\(num_classes, key\)"):
        isouq.uncertainty(encoder.predict, encoder.params, xs, "multiclass")
    with pytest.raises(ValueError, match="num_classes is 0"):
        encoder.with_head(0, jax.random.key(0))


def add_a_token(folder):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["beyond"] = max(vocabulary.values()) + 100
    path.write_text(json.dumps(tokenizer))


def drop(folder, *beginnings):
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith(beginnings)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (partial(rewrite, architectures=["CpmModel"]), "architecture 'CpmModel' is not one of BertModel, .*ation$"),
        (
            partial(rewrite, architectures=["BertForTokenClassification"]),
            "; the nearest name is BertForSequenceClassification, which is another model",
        ),
        (
            partial(rewrite, architectures=["LlamaForCausalLM"]),
            r"ForSequenceClassification; load it with isouq.text.load$",
        ),
        (partial(rewrite, hidden_size="32"), "hidden_size is '32'; expected a whole number of at least 1"),
        (partial(rewrite, num_hidden_layers=[3]), r"num_hidden_layers is \[3\]; expected a whole number"),
        (partial(rewrite, layer_norm_eps="small"), "layer_norm_eps is 'small'; expected a finite number above 0"),
        (partial(rewrite, hidden_act=["gelu"]), "hidden_act is .'gelu'.; expected one of gelu, "),
        (partial(rewrite, id2label=["a", "b"]), "id2label is .*; expected a dictionary from the numbers of classes"),
        (
            partial(rewrite, architectures=["RobertaModel"], pad_token_id=39),
            "max_position_embeddings is 40; expected more than the 40 rows",
        ),
        (
            partial(rewrite, architectures=["NewModel"], auto_map={"AutoModel": "x.NewModel"}),
            "wants to run code of its",
        ),
        (partial(rewrite, hidden_size=None), "config lacks 'hidden_size'; expected the config.json of a bert model"),
        (partial(rewrite, hidden_act="mish"), "hidden_act is 'mish'; expected one of gelu, "),
        (add_a_token, "the tokenizer has a token of id [0-9]+ and the model [0-9]+ rows of vectors"),
        (partial(rewrite, num_attention_heads=5), "hidden size 32 does not divide into 5 heads"),
        (partial(rewrite, position_embedding_type="relative_key"), "is 'relative_key'; expected 'absolute'"),
        (partial(rewrite, is_decoder=True), "is_decoder is set; expected an encoder"),
        (partial(rewrite, num_hidden_layers=4), "missing; config and weights do not belong together"),
        (partial(rewrite, num_hidden_layers=2), "not part of this architecture as built here"),
        (partial(rewrite, id2label={"0": "a", "1": "b"}), r"classifier.weight is \[3, 32\], expected \[2, 32\]"),
        (lambda folder: drop(folder, "bert.pooler"), "bert.pooler.dense.bias, bert.pooler.dense.weight missing"),
    ],
)
def test_folders_that_cannot_be_loaded(classifier, tmp_path, break_it, message):
    folder = copy(classifier[1], tmp_path)
    break_it(folder)
    with pytest.raises(ValueError, match=message) as error:
        load_encoder(str(folder))
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)


def test_an_unknown_pooling(classifier):
    with pytest.raises(ValueError, match="pooling is 'sum'; expected one of 'mean', 'cls', 'max'"):
        load_encoder(str(classifier[1]), pooling="sum")
