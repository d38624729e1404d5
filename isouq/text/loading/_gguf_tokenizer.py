"""A `tokenizers` backend from the metadata of a GGUF file, which holds no tokenizer.json.

The keys and their meaning are those of llama.cpp (`src/llama-vocab.cpp`). Two kinds of vocabulary are
read: `gpt2` (byte-level BPE with merges) and `llama` (SentencePiece BPE with scores).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from isouq.text.loading._extras import require

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35 = _QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class _Rules(NamedTuple):
    """How text is cut before the merges: `split` is a regex, None the one of GPT-2."""

    split: str | None = None
    single_digits: bool = False  # every digit on its own, before the GPT-2 regex
    whole_words: bool = False  # a word of the vocabulary is taken whole, whatever the merges say
    add_bos: bool = False  # where tokenizer.ggml.add_bos_token is missing
    nfc: bool = False  # the original tokenizer normalises (llama.cpp and transformers leave it out)


_LLAMA3_RULES = _Rules(_LLAMA3, whole_words=True, add_bos=True)
_DIGITS_RULES = _Rules(single_digits=True)

RULES: dict[str, _Rules] = {
    "default": _Rules(),
    "gpt-2": _Rules(),
    "phi-2": _Rules(),
    "mpt": _Rules(nfc=True),
    "olmo": _Rules(nfc=True),
    "smollm": _DIGITS_RULES,
    "starcoder": _DIGITS_RULES,
    "refact": _DIGITS_RULES,
    "codeshell": _DIGITS_RULES,
    "llama-bpe": _LLAMA3_RULES,
    "llama3": _LLAMA3_RULES,
    "llama-v3": _LLAMA3_RULES,
    "falcon3": _LLAMA3_RULES,
    "lfm2": _LLAMA3_RULES,
    "dbrx": _Rules(_LLAMA3),
    "smaug-bpe": _Rules(_LLAMA3),
    "qwen2": _Rules(_QWEN2, nfc=True),
    "deepseek-r1-qwen": _Rules(_QWEN2),
    "qwen35": _Rules(_QWEN35, nfc=True),
    "tekken": _Rules(_TEKKEN, whole_words=True, add_bos=True),
    "gpt-4o": _Rules(_GPT4O),
    "llama4": _Rules(_GPT4O),
}

_SPECIAL_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")
# What llama.cpp takes for a SentencePiece vocabulary where a key is missing.
_SENTENCEPIECE_IDS = {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}


def build(metadata: Mapping[str, Any]) -> tuple[Any, dict[str, str], list[int]]:
    """`(backend, special tokens by name, ids that the file says end a generation)` of a GGUF file.

    metadata: the file's keys and Python values. Raises ValueError on another kind of vocabulary, an
    unknown pre-tokenizer, or a key that is missing or contradicts the vocabulary.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise ValueError(
            f"tokenizer.ggml.model is {model!r}; expected 'gpt2' (byte-level BPE) or 'llama' (SentencePiece); "
            "load the model's Hugging Face folder with its tokenizer.json instead"
        )
    tokens = list(metadata.get("tokenizer.ggml.tokens") or [])
    if not tokens:
        raise ValueError("tokenizer.ggml.tokens is missing; expected the vocabulary, so use a GGUF file that holds one")
    types = list(metadata.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise ValueError(f"tokenizer.ggml.token_type has {len(types)} values; expected {len(tokens)}, one a token")
    ids = {} if model == "gpt2" else dict(_SENTENCEPIECE_IDS)
    for key in (*_SPECIAL_KEYS.values(), *_END_KEYS[1:]):
        value = metadata.get(f"tokenizer.ggml.{key}")
        if value not in (None, -1, 2**32 - 1):  # −1 stands for no token, also where it is written without a sign
            ids[key] = value
    for key, value in ids.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < len(tokens):
            raise ValueError(
                f"tokenizer.ggml.{key} is {value!r:.60}; expected an id below {len(tokens)}; the file is damaged"
            )
    special = {name: tokens[ids[key]] for name, key in _SPECIAL_KEYS.items() if key in ids}

    if model == "gpt2":
        rules = _rules(metadata.get("tokenizer.ggml.pre") or "default")
        backend, add_bos = _byte_level(metadata, tokens, rules), rules.add_bos
    else:
        backend, add_bos = _sentencepiece(metadata, tokens, types, special.get("unk_token")), True
    _add_tokens(backend, tokens, types)
    _frame(
        backend,
        special.get("bos_token") if metadata.get("tokenizer.ggml.add_bos_token", add_bos) else None,
        special.get("eos_token") if metadata.get("tokenizer.ggml.add_eos_token", False) else None,
    )
    return backend, special, [ids[key] for key in _END_KEYS if key in ids]


def _rules(pre: str) -> _Rules:
    if pre not in RULES:
        raise ValueError(
            f"tokenizer.ggml.pre is {pre!r}; expected one of {', '.join(sorted(RULES))}; "
            "load the model's Hugging Face folder with its tokenizer.json instead"
        )
    return RULES[pre]


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], rules: _Rules) -> Any:
    tokenizers = require("tokenizers")
    pre = tokenizers.pre_tokenizers
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges") or []]
    backend = _bpe(tokens, merges, ignore_merges=rules.whole_words)
    if rules.nfc:
        backend.normalizer = tokenizers.normalizers.NFC()
    byte_level = pre.ByteLevel(add_prefix_space=False, use_regex=rules.split is None)
    if rules.single_digits:
        backend.pre_tokenizer = pre.Sequence([pre.Digits(individual_digits=True), byte_level])
    elif rules.split is not None:
        split = pre.Split(tokenizers.Regex(rules.split), behavior="isolated")
        backend.pre_tokenizer = pre.Sequence([split, byte_level])
    else:
        backend.pre_tokenizer = byte_level
    backend.decoder = tokenizers.decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], unk: str | None) -> Any:
    """Like llama.cpp and the tokenizer.json of Llama 2: a space before the text and after every special token."""
    tokenizers = require("tokenizers")
    if metadata.get("tokenizer.ggml.merges"):
        merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    else:
        scores = list(metadata.get("tokenizer.ggml.scores") or [])
        if len(scores) != len(tokens):
            raise ValueError(f"tokenizer.ggml.scores has {len(scores)} values; expected {len(tokens)}, one a token")
        merges = _merges_of_scores(tokens, types, scores)
    backend = _bpe(tokens, merges, unk_token=unk, fuse_unk=True, byte_fallback=True)
    norm, dec = tokenizers.normalizers, tokenizers.decoders
    steps = [norm.Replace(" ", "▁")]
    undo = [dec.Replace("▁", " "), dec.ByteFallback(), dec.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        steps.insert(0, norm.Prepend("▁"))
        undo.append(dec.Strip(" ", 1, 0))
    backend.normalizer = norm.Sequence(steps)
    backend.decoder = dec.Sequence(undo)
    return backend


def _merges_of_scores(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The merges that build the tokens, the best score first; of one score the longest left part first."""
    ids = {token: index for index, token in enumerate(tokens) if types[index] in (NORMAL, USER_DEFINED)}
    merges = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append((-scores[index], -len(left), -len(right), index, left, right))
    return [(left, right) for *_, left, right in sorted(merges)]


def _bpe(tokens: Sequence[str], merges: Sequence[tuple[str, ...]], **options: Any) -> Any:
    tokenizers = require("tokenizers")
    vocab = {token: index for index, token in reversed(list(enumerate(tokens)))}  # the first of two equal tokens
    try:
        return tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, **options))
    except Exception as error:  # the library raises bare exceptions
        raise ValueError(
            f"the vocabulary and merges of the GGUF file do not fit: {error}; the file is damaged"
        ) from None


def _add_tokens(backend: Any, tokens: Sequence[str], types: Sequence[int]) -> None:
    added = require("tokenizers").AddedToken
    backend.add_special_tokens(
        [added(t, special=True, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    )
    backend.add_tokens(
        [added(t, normalized=False) for t, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED]
    )


def _frame(backend: Any, bos: str | None, eos: str | None) -> None:
    """Sets what stands before and after every encoded text."""
    if bos is None and eos is None:
        return
    backend.post_processor = require("tokenizers").processors.TemplateProcessing(
        single=" ".join(part for part in (bos and f"{bos}:0", "$A:0", eos and f"{eos}:0") if part),
        special_tokens=[(token, backend.token_to_id(token)) for token in {bos, eos} if token is not None],
    )
