"""Entailment by small random classifiers, against transformers, and how its class is found."""

import json
import string

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from isouq.text import clusters_by_entailment, load_entailment
from isouq.text import encoder as encoder_module
from isouq.text.models import encoder_config

LABELS = {"0": "CONTRADICTION", "1": "Entailment", "2": "neutral"}
SIZES = dict(vocab_size=60, max_position_embeddings=40, pad_token_id=0)
SHAPES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48)
DISTIL = dict(dim=32, n_layers=2, n_heads=4, hidden_dim=48)
CONFIGS = {
    "Bert": SIZES | SHAPES | dict(type_vocab_size=2),
    "DistilBert": SIZES | DISTIL,
    "Roberta": SIZES | SHAPES | dict(type_vocab_size=1),
    "Electra": SIZES | SHAPES | dict(type_vocab_size=2, embedding_size=24),
    "DebertaV2": SIZES | SHAPES | dict(relative_attention=True, pos_att_type="p2c|c2p", position_buckets=8),
    "ModernBert": SIZES | SHAPES | dict(local_attention=6, classifier_pooling="mean"),
    "Camembert": SIZES | SHAPES | dict(type_vocab_size=1),
}
MODEL_TYPES = {"DebertaV2": "deberta-v2"}  # where it is not the family's name in small letters
TEXTS = ["abc", "the moon", "abc", "x", "a rather long text that is cut", "moon"]


def write(folder, family="Bert", seed=0, **changes):
    """The folder of a random classifier with a tokenizer of letters; transformers can load it too."""
    config = CONFIGS[family] | {
        "architectures": [f"{family}ForSequenceClassification"],
        "model_type": MODEL_TYPES.get(family, family.lower()),
        "id2label": LABELS,
        "label2id": {label: int(i) for i, label in LABELS.items()},
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    read = encoder_config.from_config(config | changes)
    module = encoder_module.FAMILIES[read.family]
    table = {f"encoder.{k}": v for k, v in module.table(module.PREFIX, ("weight", "bias")).items()}
    table |= {f"head.{k}": v for k, v in module.head_table(module.PREFIX).items()}
    rng, tensors = np.random.default_rng(seed), {}
    for path, leaf in encoder_module.parameters.flatten(encoder_module.abstract(read)):
        at = table[path]
        shape = leaf.shape[1:] if "{}" in at.name else leaf.shape
        for name in encoder_module.parameters._names(at, leaf.shape):
            value = 0.25 * rng.normal(size=shape[::-1] if at.transpose else shape) + path.endswith("scale")
            tensors[name] = value.astype(np.float32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *string.ascii_lowercase, " "]
    vocabulary = {token: i for i, token in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    backend.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **special}))
    return folder


@pytest.mark.parametrize("family", CONFIGS)
def test_logits_equal_transformers(tmp_path, family):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = write(tmp_path, family)
    entailment = load_entailment(str(folder))
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    found = entailment.logits(pairs, batch_size=32)
    for pair, logits in zip(pairs[:9], found, strict=False):
        x = entailment.encoder.encode_texts([pair])
        inputs = {"input_ids": torch.from_numpy(x["ids"].astype(np.int64))}
        if "token_types" in x:
            inputs["token_type_ids"] = torch.from_numpy(x["token_types"].astype(np.int64))
        np.testing.assert_allclose(logits, model(**inputs).logits[0].detach(), atol=1e-4)


def test_the_matrix_is_the_likeliest_class_of_every_pair(tmp_path):
    entailment = load_entailment(str(write(tmp_path)))
    assert entailment.label == 1
    found = entailment.matrix(TEXTS, batch_size=7)
    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    encoder = entailment.encoder
    together = jax.jit(jax.vmap(encoder.predict, (None, 0)))(encoder.params, encoder.encode_texts(pairs, pad_to=40))
    np.testing.assert_allclose(entailment.logits(pairs, batch_size=7), together, atol=1e-5)
    wanted = np.argmax(together, axis=1) == 1
    assert found.ravel().tolist() == [a == b or bool(own) for (a, b), own in zip(pairs, wanted, strict=True)]
    assert len(set(found[0])) == 2
    assert clusters_by_entailment(found)[[0, 2]].tolist() == [0, 0]


def test_one_text_and_equal_texts_need_no_pass(tmp_path):
    entailment = load_entailment(str(write(tmp_path)))
    assert entailment.matrix(["abc"]).tolist() == [[True]]
    assert entailment.matrix(["abc"] * 3).all()


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        ({"0": "entailment", "1": "not_entailment"}, 0),
        ({"0": "NEUTRAL", "1": "CONTRADICTION", "2": "ENTAILMENT"}, 2),
    ],
)
def test_the_label_is_found_by_its_name(tmp_path, labels, number):
    write(tmp_path, id2label=labels)
    assert load_entailment(str(tmp_path)).label == number


def test_models_that_do_not_tell_entailment(tmp_path):
    write(tmp_path, id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "not_entailment"})
    with pytest.raises(ValueError, match="has the labels LABEL_0, LABEL_1, not_entailment; expected one of") as error:
        load_entailment(str(tmp_path))
    assert "\n" not in str(error.value)
    write(tmp_path, architectures=["BertModel"])
    with pytest.raises(ValueError, match="has no classification head; expected a classifier"):
        load_entailment(str(tmp_path))
