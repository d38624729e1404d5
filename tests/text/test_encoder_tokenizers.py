"""Tokenizers of CamemBERT and DeBERTa v3 (Unigram, from SentencePiece) and of MPNet, against transformers."""

import json
import string

import pytest
from test_tokenizer import AWKWARD

from isouq.text.encoder import _tokenize
from isouq.text.loading.tokenizer import Tokenizer

PIECES = [
    ("▁", -3.0),
    *((f"▁{word}", -4.0 - i) for i, word in enumerate(["the", "a", "chat", "le"])),
    *((letter, -5.0 - 0.01 * i) for i, letter in enumerate(string.ascii_letters + string.digits + "é.,!'")),
]
SPECIAL = {
    "Camembert": [("<s>NOTUSED", 0.0), ("<pad>", 0.0), ("</s>NOTUSED", 0.0), ("<unk>", 0.0), ("<unk>NOTUSED", -100.0)],
    "DebertaV2": [("[PAD]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("[UNK]", 0.0)],
}
TEXTS = [*AWKWARD, "the cat [MASK] <mask> le chat", ""]
PAIRS = [("the cat", "a chat"), ("", "a"), ("a rather long text", "")]


def write_word_pieces(folder):
    names = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *string.ascii_letters,
        *(f"##{letter}" for letter in string.ascii_letters),
    ]
    (folder / "vocab.txt").write_text("\n".join([*names, "[UNK]", "<mask>"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MPNetTokenizer"}))


@pytest.mark.parametrize("family", ["Camembert", "DebertaV2", "MPNet"])
def test_texts_and_pairs_get_the_ids_of_transformers(tmp_path, family):
    transformers = pytest.importorskip("transformers")
    if family == "MPNet":
        write_word_pieces(tmp_path)
        transformers.MPNetTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path)
    else:
        getattr(transformers, f"{family}Tokenizer")(vocab=SPECIAL[family] + PIECES).save_pretrained(tmp_path)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_folder(tmp_path)
    assert [ours.encode(text) for text in TEXTS] == theirs(TEXTS)["input_ids"]
    assert ours.pad_id == theirs.pad_token_id
    found = _tokenize(ours.backend, PAIRS, 10)
    wanted = theirs(*map(list, zip(*PAIRS, strict=True)), truncation=True, max_length=10, return_token_type_ids=True)
    assert [one.ids for one in found] == wanted["input_ids"]
    if family == "DebertaV2":
        assert [one.type_ids for one in found] == wanted["token_type_ids"]


@pytest.mark.parametrize("name", ["spm.model", "sentencepiece.bpe.model"])
def test_a_sentencepiece_model_alone_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\0")
    with pytest.raises(ValueError, match=f"has {name} but no tokenizer.json; save the fast tokenizer there"):
        Tokenizer.from_folder(tmp_path)


def test_a_vocabulary_of_mpnet_alone_is_refused(tmp_path):
    write_word_pieces(tmp_path)
    with pytest.raises(ValueError, match=r"has vocab.txt but no tokenizer.json; save the fast tokenizer there"):
        Tokenizer.from_folder(tmp_path)
