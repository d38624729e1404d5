"""Small random encoders of transformers, as slow twins of ours, and what to run both on."""

import json
import string

import numpy as np
import pytest
import tokenizers

SMALL = dict(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
    hidden_act="gelu",
)
DISTIL = dict(
    vocab_size=60, dim=32, n_layers=3, n_heads=4, hidden_dim=48, max_position_embeddings=40, activation="gelu"
)
ROBERTA = SMALL | dict(pad_token_id=1, type_vocab_size=1, layer_norm_eps=1e-5)
CONFIGS = {
    "Bert": SMALL | dict(type_vocab_size=2),
    "DistilBert": DISTIL,
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "Camembert": ROBERTA,
    "DebertaV2": SMALL
    | dict(
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        position_biased_input=False,
        type_vocab_size=0,
    ),
    "ModernBert": SMALL | dict(pad_token_id=0, local_attention=6, num_hidden_layers=4),
    "MPNet": SMALL | dict(pad_token_id=1),
    "Electra": SMALL | dict(type_vocab_size=2, embedding_size=24),
}
LENGTHS = (13, 20, 5)


def build(folder, name, seed=0, **changes):
    """A random model of transformers, and its folder with weights and a tokenizer of letters."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    family = next(family for family in sorted(CONFIGS, key=len, reverse=True) if name.startswith(family))
    config = getattr(transformers, f"{family}Config")(**(CONFIGS[family] | {"num_labels": 3} | changes))
    model = getattr(transformers, name)(config).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_scale = key.endswith("weight") and parameter.ndim == 1
            parameter.copy_(0.25 * torch.randn(parameter.shape) + (1.0 if is_scale else 0.0))
    model.save_pretrained(folder)
    write_tokenizer(folder, pad=config.pad_token_id)
    return model


def write_tokenizer(folder, pad=0):
    """[CLS] a [SEP] and [CLS] a [SEP] b [SEP], one token a letter, segments 0 and 1."""
    names = ["[CLS]", "[SEP]", "[UNK]"]
    names.insert(pad, "[PAD]")
    vocabulary = {token: i for i, token in enumerate(names + list(string.ascii_letters))}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    backend.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **special}))


def batch(pad, types, seed=1):
    """Ids that hold no padding token but at the end, lengths, and segments."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(LENGTHS), max(LENGTHS)), pad, np.int32)
    for row, length in zip(ids, LENGTHS, strict=True):
        row[:length] = rng.integers(4, 56, length)
    return ids, np.array(LENGTHS, np.int32), rng.integers(0, types, ids.shape).astype(np.int32)


def theirs(model, ids, length, types=None, **kwargs):
    """What the model of transformers gives for a padded batch."""
    torch = pytest.importorskip("torch")
    mask = np.arange(ids.shape[1]) < length[:, None]
    inputs = {"input_ids": ids.astype(np.int64), "attention_mask": mask.astype(np.int64)}
    if types is not None:
        inputs["token_type_ids"] = types.astype(np.int64)
    return model(**{name: torch.from_numpy(array) for name, array in inputs.items()}, **kwargs)
