"""What distinguishes the encoders of the BERT family: one configuration, read from config.json."""

from dataclasses import dataclass
from typing import Any

from isouq.text.models._numbers import number, whole
from isouq.text.models.architectures import ENCODERS, architecture

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
HEADS = {"distilbert": "relu", "electra": "gelu"}  # the activation between the layers of a head, where it is not tanh
KEYS = {  # a field here: its key in config.json, for DistilBERT where that differs
    "hidden_size": ("hidden_size", "dim"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
    "num_layers": ("num_hidden_layers", "n_layers"),
    "num_heads": ("num_attention_heads", "n_heads"),
    "activation": ("hidden_act", "activation"),
}


@dataclass(frozen=True)
class EncoderConfig:
    """Shapes and switches of an encoder; hashable.

    embedding_size: width of the tables of embeddings, which ELECTRA projects to hidden_size where the two differ.
    num_positions: rows of the table of positions. position_offset: the row of the first token; RoBERTa leaves the
    rows up to its padding token's id unused. type_vocab_size: kinds of segment, 0 for none (DistilBERT).
    activation: "gelu" (with erf), "gelu_tanh" or "relu". head: "" for none; "tanh", "relu" or "gelu", the activation
    between the two layers of a checkpoint's classification head; "linear", one layer on the pooled vector.
    num_classes: outputs of the head, 0 without one. labels: their names, where the checkpoint has them.
    """

    family: str
    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_positions: int
    position_offset: int
    type_vocab_size: int
    activation: str
    norm_eps: float
    head: str = ""
    num_classes: int = 0
    labels: tuple[str, ...] = ()

    @property
    def context_length(self) -> int:
        """The longest sequence, in tokens, special ones included."""
        return self.num_positions - self.position_offset


def from_config(config: dict[str, Any]) -> EncoderConfig:
    """Return the EncoderConfig of a Hugging Face config.json (a dict). Raises ValueError of one line."""
    name, family = architecture(config, ENCODERS)
    _refuse(config)
    try:
        found = _read(family, name.endswith("ForSequenceClassification"), config)
    except KeyError as error:
        raise ValueError(f"config lacks {error}; expected the config.json of a {family} model") from None
    if found.hidden_size % found.num_heads:
        raise ValueError(f"hidden size {found.hidden_size} does not divide into {found.num_heads} heads")
    if found.context_length < 1:
        raise ValueError(
            f"max_position_embeddings is {found.num_positions}; expected more than the {found.position_offset} rows "
            "up to the padding token's id"
        )
    return found


def _refuse(config: dict[str, Any]) -> None:
    """Raise for variants of these architectures that compute something else."""
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise ValueError(f"position_embedding_type is {kind!r}; expected 'absolute'")
    for switch in ("is_decoder", "add_cross_attention"):
        if config.get(switch):
            raise ValueError(f"{switch} is set; expected an encoder, in which every token sees every other")


def _read(family: str, classifies: bool, config: dict[str, Any]) -> EncoderConfig:
    distil = family == "distilbert"
    key = {field: names[distil] for field, names in KEYS.items()}
    activation = config.get(key["activation"], "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(f"{key['activation']} is {activation!r:.60}; expected one of {', '.join(ACTIVATIONS)}")
    labels = _labels(config) if classifies else ()
    hidden_size = whole(config, key["hidden_size"])
    return EncoderConfig(
        family=family,
        vocab_size=whole(config, "vocab_size"),
        embedding_size=whole(config, "embedding_size", 128) if family == "electra" else hidden_size,
        hidden_size=hidden_size,
        intermediate_size=whole(config, key["intermediate_size"]),
        num_layers=whole(config, key["num_layers"]),
        num_heads=whole(config, key["num_heads"]),
        num_positions=whole(config, "max_position_embeddings"),
        position_offset=1 + whole(config, "pad_token_id", 1, least=0) if family == "roberta" else 0,
        type_vocab_size=0 if distil else whole(config, "type_vocab_size", 2, least=0),
        activation=ACTIVATIONS[activation],
        norm_eps=1e-12 if distil else number(config, "layer_norm_eps", 1e-12),
        head=HEADS.get(family, "tanh") if classifies else "",
        num_classes=len(labels),
        labels=labels,
    )


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in order; Hugging Face's own where none are given, two classes by default."""
    named = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(whole(config, "num_labels", 2))}
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        raise ValueError(f"id2label is {named!r:.60}; expected a dictionary from the numbers of classes to their names")
    return tuple(str(named[key]) for key in sorted(named, key=int))
