"""What distinguishes the encoders of the BERT family: one configuration, read from config.json."""

from dataclasses import dataclass
from typing import Any

from isouq.text.models._numbers import number, whole
from isouq.text.models.activations import activation
from isouq.text.models.architectures import ENCODERS, architecture

NORM_EPS = {"deberta": 1e-7, "modernbert": 1e-5}  # where it is not 1e-12 in a config.json without it
KEYS = {  # a field here: its key in config.json, for DistilBERT where that differs
    "hidden_size": ("hidden_size", "dim"),
    "intermediate_size": ("intermediate_size", "hidden_dim"),
    "num_layers": ("num_hidden_layers", "n_layers"),
    "num_heads": ("num_attention_heads", "n_heads"),
    "activation": ("hidden_act", "activation"),
    "norm_eps": ("layer_norm_eps", ""),
}


@dataclass(frozen=True)
class Disentangled:
    """How the attention of a DeBERTa reads the distance between two tokens; by default, as in BERT, it does not.

    c2p, p2c: whether a query meets the key of the distance, and a key its query. share_keys: whether these keys and
    queries are made by the weights of the tokens' own. span: the table has 2 · span rows, for distances from −span
    to span − 1. buckets: how many the far distances share, 0 where each has a row. longest: the distance, plus one,
    at which the last bucket ends. norm: whether the table's rows are normalised. num_terms: scores are divided by
    √(num_terms · head size).
    """

    c2p: bool = False
    p2c: bool = False
    share_keys: bool = False
    span: int = 0
    buckets: int = 0
    longest: int = 0
    norm: bool = False
    num_terms: int = 1


@dataclass(frozen=True)
class EncoderConfig:
    """Shapes and switches of an encoder; hashable.

    embedding_size: width of the tables of embeddings, which ELECTRA projects to hidden_size where the two differ.
    num_positions: rows of the table of positions. position_offset: the row of the first token; RoBERTa leaves the
    rows up to its padding token's id unused. type_vocab_size: kinds of segment, 0 for none (DistilBERT).
    activation: a name of `activations.ACTIVATIONS`. head: "" for none; "tanh", "relu" or "gelu", the activation
    between the two layers of a checkpoint's classification head; "linear", one layer on the pooled vector.
    num_classes: outputs of the head, 0 without one. labels: their names, where the checkpoint has them.
    has_position_table: False where no table of positions is added. disentangled: for DeBERTa.
    head_pooling: what the head reads, "cls" (the first token) or "mean". biases: the parts that have biases.
    num_buckets: rows of MPNet's table of biases, 0 without it. reaches, thetas: of every layer of a ModernBERT, the
    largest distance that its attention sees and the base of its rotary positions.
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
    has_position_table: bool = True
    disentangled: Disentangled = Disentangled()
    head_pooling: str = "cls"
    biases: tuple[str, ...] = ("attention", "mlp", "norm", "head")
    num_buckets: int = 0
    reaches: tuple[int, ...] = ()
    thetas: tuple[float, ...] = ()

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
    """Return the configuration; raise KeyError for a key that is missing, ValueError for a value of no use."""
    distil, modern = family == "distilbert", family == "modernbert"
    key = {field: names[distil] for field, names in KEYS.items()}
    key |= {"activation": "hidden_activation", "norm_eps": "norm_eps"} if modern else {}
    labels = _labels(config) if classifies else ()
    hidden_size = whole(config, key["hidden_size"])
    own = {"deberta": _disentangled, "modernbert": _modern, "mpnet": _mpnet}.get(family, lambda config: {})(config)
    return EncoderConfig(
        family=family,
        vocab_size=whole(config, "vocab_size"),
        embedding_size=whole(config, "embedding_size", 128) if family == "electra" else hidden_size,
        hidden_size=hidden_size,
        intermediate_size=whole(config, key["intermediate_size"]),
        num_layers=whole(config, key["num_layers"]),
        num_heads=whole(config, key["num_heads"]),
        num_positions=whole(config, "max_position_embeddings"),
        position_offset=_position_offset(family, config),
        type_vocab_size=_type_vocab_size(family, config),
        activation=activation(config, key["activation"], "gelu"),
        norm_eps=1e-12 if distil else number(config, key["norm_eps"], NORM_EPS.get(family, 1e-12)),
        head=_head(family, config) if classifies else "",
        num_classes=len(labels),
        labels=labels,
        **own,
    )


def _position_offset(family: str, config: dict[str, Any]) -> int:
    """Return the row of the first token's position: after the padding token's id in RoBERTa, 2 in every MPNet."""
    return {"roberta": 1 + whole(config, "pad_token_id", 1, least=0), "mpnet": 2}.get(family, 0)


def _type_vocab_size(family: str, config: dict[str, Any]) -> int:
    """Return the number of kinds of segment."""
    if family in ("distilbert", "mpnet", "modernbert"):
        return 0
    return whole(config, "type_vocab_size", 0 if family == "deberta" else 2, least=0)


def _head(family: str, config: dict[str, Any]) -> str:
    """Return the activation between the two layers of a checkpoint's head."""
    key = {"deberta": "pooler_hidden_act", "modernbert": "classifier_activation"}.get(family)
    if key is not None:
        return activation(config, key, "gelu")
    return {"distilbert": "relu", "electra": "gelu"}.get(family, "tanh")


def _disentangled(config: dict[str, Any]) -> dict[str, Any]:
    """Return a DeBERTa's own fields; raise a ValueError for a variant that is not built here."""
    if whole(config, "conv_kernel_size", 0, least=0):
        raise ValueError(
            f"conv_kernel_size is {config['conv_kernel_size']}; expected 0: the convolution of the large DeBERTa v2 "
            "is not built here; take a DeBERTa v3, which has none"
        )
    hidden_size, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    for key, expected in (
        ("embedding_size", hidden_size),
        ("pooler_hidden_size", hidden_size),
        ("attention_head_size", hidden_size // heads),
    ):
        if whole(config, key, expected) != expected:
            raise ValueError(f"{key} is {config[key]}; expected {expected}, which follows from hidden_size")
    kinds = config.get("pos_att_type") or []
    kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not all(kind in ("c2p", "p2c") for kind in kinds):
        raise ValueError(f"pos_att_type is {config['pos_att_type']!r:.60}; expected c2p, p2c or both")
    relative = bool(config.get("relative_attention", False))
    longest = _above_0(config, "max_relative_positions") or whole(config, "max_position_embeddings")
    buckets = _above_0(config, "position_buckets")
    if buckets and longest - 1 <= max(buckets // 2, 1):
        raise ValueError(
            f"position_buckets is {buckets} and the longest distance {longest - 1}; expected one of more than half "
            "the buckets"
        )
    norms = str(config.get("norm_rel_ebd", "none")).lower().split("|")
    disentangled = Disentangled(
        c2p=relative and "c2p" in kinds,
        p2c=relative and "p2c" in kinds,
        share_keys=bool(config.get("share_att_key", False)),
        span=buckets or longest,
        buckets=buckets,
        longest=longest,
        norm="layer_norm" in [norm.strip() for norm in norms],
        num_terms=1 + len(set(kinds)),
    )
    return {
        "disentangled": disentangled,
        "has_position_table": bool(config.get("position_biased_input", True)),
    }


def _mpnet(config: dict[str, Any]) -> dict[str, Any]:
    """Return an MPNet's own fields; transformers computes 32 buckets whatever the file says."""
    return {"num_buckets": whole(config, "relative_attention_num_buckets", 32, least=32)}


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """Return a ModernBERT's own fields; raise a ValueError for a variant that is not built here."""
    count, context = whole(config, "num_hidden_layers"), whole(config, "max_position_embeddings")
    if whole(config, "hidden_size") % (2 * whole(config, "num_attention_heads")):
        raise ValueError(
            f"hidden_size is {config['hidden_size']}; expected heads of an even size, which positions turn"
        )
    every = whole(config, "global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = ["sliding_attention" if i % every else "full_attention" for i in range(count)]
    reaches = {"full_attention": context, "sliding_attention": min(whole(config, "local_attention", 128) // 2, context)}
    if not isinstance(kinds, list) or len(kinds) != count or not all(kind in tuple(reaches) for kind in kinds):
        raise ValueError(
            f"layer_types is {kinds!r:.60}; expected one of {', '.join(reaches)} for each of {count} layers"
        )
    thetas = {
        "full_attention": _theta(config, "full_attention", "global_rope_theta", 160_000.0),
        "sliding_attention": _theta(config, "sliding_attention", "local_rope_theta", 10_000.0),
    }
    biased = {"attention_bias": "attention", "mlp_bias": "mlp", "norm_bias": "norm", "classifier_bias": "head"}
    return {
        "has_position_table": False,
        "head_pooling": _pooling(config),
        "biases": tuple(part for key, part in biased.items() if config.get(key)),
        "reaches": tuple(reaches[kind] for kind in kinds),
        "thetas": tuple(thetas[kind] for kind in kinds),
    }


def _theta(config: dict[str, Any], kind: str, old_key: str, default: float) -> float:
    """Return the rotary base of one kind of layer, from `rope_parameters` or the key of older files."""
    parameters = config.get("rope_parameters") or {}
    settings = parameters.get(kind) or {} if isinstance(parameters, dict) else None
    scaling = config.get("rope_scaling")
    if not isinstance(settings, dict) or scaling or settings.get("rope_type", "default") != "default":
        raise ValueError(f"{kind} has rotary positions {settings or scaling!r:.60}; expected plain ones, not stretched")
    if old_key in config and config[old_key] is None:
        raise ValueError(f"{old_key} is null; expected a number above 0")
    return number(settings, "rope_theta", number(config, old_key, default))


def _above_0(config: dict[str, Any], key: str) -> int:
    """Return the whole number under `key`, 0 for one below 1 and for none."""
    return max(whole(config, key, -1, least=-1), 0)


def _pooling(config: dict[str, Any]) -> str:
    """Return how a ModernBERT's classifier pools: "cls" or "mean"; raise a ValueError for another way."""
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise ValueError(f"classifier_pooling is {pooling!r:.60}; expected one of cls, mean")
    return str(pooling)


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of the classes in order; Hugging Face's own where none are given, two classes by default."""
    named = config.get("id2label") or {str(i): f"LABEL_{i}" for i in range(whole(config, "num_labels", 2))}
    if not isinstance(named, dict) or not all(str(key).isdecimal() for key in named):
        raise ValueError(f"id2label is {named!r:.60}; expected a dictionary from the numbers of classes to their names")
    return tuple(str(named[key]) for key in sorted(named, key=int))
