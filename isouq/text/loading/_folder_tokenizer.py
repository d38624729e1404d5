"""The tokenizer files of a Hugging Face folder, read as transformers 5 reads them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from isouq.text.loading._extras import require
from isouq.text.loading._reading import one_line, read_json

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_OTHER_FILES = (
    "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
)  # fmt: skip


def read(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return `(backend, what else the folder tells)`; see `Tokenizer.from_folder` for the errors."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; expected one with tokenizer.json")
    config = _json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # an old folder: the names may stand in a file of their own
        config = config | _json(folder / "special_tokens_map.json")
    backend = _backend(folder, config)
    extra = config.get("extra_special_tokens")
    entries = {**config, **(extra if isinstance(extra, Mapping) else {})}
    named = {name: _content(value) for name, value in entries.items() if name.endswith("_token")}
    special = {name: content for name, content in named.items() if content}
    _add_tokens(backend, config, special.values())
    backend.encode_special_tokens = bool(config.get("split_special_tokens", False))

    files = folder / "generation_config.json", folder / "config.json"
    return backend, {
        "special_tokens": special,
        "ids": {name: _ids(files, f"{name}_token_id") for name in ("bos", "eos", "pad")},
        "templates": _templates(folder, config),
        "clean_up": _clean_up(backend, config),
    }


def _backend(folder: Path, config: Mapping[str, Any]) -> Any:
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return require("tokenizers").Tokenizer.from_file(str(path))
        except ImportError:
            raise
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(
                f"{path} cannot be read ({one_line(error)}); expected a tokenizer of the tokenizers library"
            ) from None
    vocabulary = folder / "vocab.txt"
    if vocabulary.is_file() and "MPNet" not in str(config.get("tokenizer_class")):  # it frames pairs in its own way
        return _word_piece(vocabulary, config)
    others = [name for name in _OTHER_FILES if (folder / name).is_file()]
    if others:
        raise ValueError(
            f"{folder} has {others[0]} but no tokenizer.json; save the fast tokenizer there with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    raise FileNotFoundError(f"{folder} has no tokenizer.json; expected the tokenizer beside the weights")


def _word_piece(vocabulary: Path, config: Mapping[str, Any]) -> Any:
    """Return BERT's tokenizer of a vocab.txt, which has one token a line."""
    tokenizers = require("tokenizers")
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    tokens = {name: _content(config.get(name)) or usual for name, usual in names.items()}
    tokens["mask_token"] = _content(config.get("mask_token")) or "[MASK]"
    lines = _text(vocabulary).rstrip("\n").split("\n")  # not splitlines: tokens may hold \u2028
    ids = {token: index for index, token in enumerate(lines)}
    missing = [tokens[name] for name in names if tokens[name] not in ids]
    if missing:
        raise ValueError(
            f"{vocabulary} has no {missing[0]}; expected a BERT vocabulary; save the fast tokenizer instead"
        )
    backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token=tokens["unk_token"]))
    backend.normalizer = tokenizers.normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=config.get("tokenize_chinese_chars", True),
        strip_accents=config.get("strip_accents"),
        lowercase=config.get("do_lower_case", True),
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece(prefix="##")
    cls, sep = tokens["cls_token"], tokens["sep_token"]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{cls}:0 $A:0 {sep}:0",
        pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
        special_tokens=[(cls, ids[cls]), (sep, ids[sep])],
    )
    backend.add_special_tokens([token for token in tokens.values() if token in ids])
    return backend


def _add_tokens(backend: Any, config: Mapping[str, Any], special: Iterable[str]) -> None:
    """Add what tokenizer_config.json knows and tokenizer.json does not: such tokens get ids at the end."""
    added = require("tokenizers").AddedToken
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    try:
        listed = sorted((config.get("added_tokens_decoder") or {}).items(), key=lambda item: int(item[0]))
        backend.add_tokens(
            [added(token["content"], **{flag: token[flag] for flag in _FLAGS if flag in token}) for _, token in listed]
        )
        extra = list(extra.values() if isinstance(extra, Mapping) else extra)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"tokenizer_config.json has an added token that cannot be read ({one_line(error)}); fetch the file again"
        ) from None
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    wanted = dict.fromkeys((*special, *(_content(token) for token in extra)))
    backend.add_special_tokens([added(t, special=True, normalized=False) for t in wanted if t and t not in known])


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Read the chat templates by name, from files of their own or else from tokenizer_config.json."""
    paths = {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if (folder / "chat_template.jinja").is_file():
        paths["default"] = folder / "chat_template.jinja"
    if paths:
        return {name: _text(path) for name, path in paths.items()}
    given = config.get("chat_template")
    if isinstance(given, list):
        given = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, Mapping)}
    given = given if isinstance(given, Mapping) else {"default": given}
    return {name: template for name, template in given.items() if isinstance(template, str)}


def _clean_up(backend: Any, config: Mapping[str, Any]) -> bool:
    """Return whether decoding removes spaces before punctuation; transformers never does so for BPE unless forced."""
    forced = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    is_bpe = type(backend.model).__name__ == "BPE"
    return bool(config.get("clean_up_tokenization_spaces", False)) and (forced or not is_bpe)


def _content(token: Any) -> str | None:
    """Return the text of a special token, which the files write as text or as a dictionary."""
    token = token.get("content") if isinstance(token, Mapping) else token
    return token if isinstance(token, str) else None


def _ids(files: Iterable[Path], key: str) -> list[int]:
    """Collect the ids of all files under `key`; a file has one number, a list, null, or −1 for none."""
    ids = []
    for path in files:
        value = _json(path).get(key)
        for one in value if isinstance(value, list) else [value]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int)):
                raise ValueError(f"{path} has {key} = {value!r:.60}; expected a token's id, a list of ids, or null")
            ids += [one] if one is not None and one >= 0 else []
    return ids


def _text(path: Path) -> str:
    """Return the text of a file; raise a ValueError of one line where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}); fetch it again") from None


def _json(path: Path) -> dict[str, Any]:
    """Return the dictionary of a file, empty if there is none."""
    return read_json(path) if path.is_file() else {}
