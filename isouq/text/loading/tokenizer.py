"""Text to token ids and back, with the `tokenizers` library; equal to transformers' AutoTokenizer, without it."""

import codecs
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isouq.text.loading import _chat, _folder_tokenizer, _gguf_tokenizer

_CLEAN_UP = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")  # transformers' list, in its order
_ENDS = (  # llama.cpp's
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<end_of_turn>", "<|end_of_turn|>", "<|end|>", "<|end_of_text|>",
)  # fmt: skip
_END_OR_PADDING = "<|endoftext|>"  # in some vocabularies an end, in others a token like any other


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A tokenizer and its chat template. Make one with `from_folder` or `from_gguf`.

    backend: a `tokenizers.Tokenizer`. special_tokens: such as `{"bos_token": "<s>"}`, what a chat
    template may name. bos_id: the token that begins a text, or None. eos_ids: every token that ends a
    generation, in order. pad_id: a token that may fill up a batch: the padding token, else an end, else 0.
    templates: chat templates by name; the usual one is "default".
    """

    backend: Any
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int = 0
    templates: Mapping[str, str] = field(default_factory=dict)
    clean_up: bool = False

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Return the tokenizer of a Hugging Face folder: its tokenizer.json, or a BERT's vocab.txt.

        tokenizer_config.json, special_tokens_map.json, generation_config.json and config.json are read
        where they exist. As in transformers, tokenizer.json alone decides whether BOS or EOS is added, and
        its truncation and padding are off. Raises FileNotFoundError without such a file, ValueError where
        one is damaged or there is only a SentencePiece model.

        One difference: for a SentencePiece vocabulary of the class LlamaTokenizer, transformers 5 replaces
        what tokenizer.json says about spaces. There a text that begins with a space, or that follows a
        special token, gets one "▁" less. We keep the file, which agrees with SentencePiece and llama.cpp. So we do
        for DebertaV2Tokenizer and CamembertTokenizer, whose normaliser transformers 5 replaces by one of its own.
        """
        backend, found = _folder_tokenizer.read(Path(path))
        return cls._of(backend, **found)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Return the tokenizer of a GGUF file, from its keys and their Python values.

        Byte-level BPE (`tokenizer.ggml.model` is gpt2) and SentencePiece BPE (llama) are read as llama.cpp
        reads them; "default" is GPT-2's. Raises ValueError on another model, an unknown
        `tokenizer.ggml.pre` (listing the known ones) or contradictory keys.

        Where transformers 5.24 differs from the original tokenizer, the original is followed: single digits
        (SmolLM, StarCoder), NFC (Qwen 2, OLMo, MPT), and whole words before merges (Llama 3).
        """
        backend, special, ends = _gguf_tokenizer.build(metadata)
        key = "tokenizer.chat_template"
        templates = {
            name.removeprefix(f"{key}."): text for name, text in metadata.items() if name.startswith(f"{key}.")
        }
        templates |= {"default": metadata[key]} if key in metadata else {}
        return cls._of(backend, special_tokens=special, ids={"eos": ends}, templates=templates)

    @classmethod
    def _of(
        cls,
        backend: Any,
        *,
        special_tokens: Mapping[str, str],
        ids: Mapping[str, Sequence[int]],
        templates: Mapping[str, str],
        clean_up: bool = False,
    ) -> "Tokenizer":
        """Reconcile what the files of a folder, or the keys of a GGUF file, say about one tokenizer.

        A token named in special_tokens comes before the ids ("bos", "eos", "pad") that other places give. What ends a
        generation is the union of all of them, of the added tokens whose name says that they end a turn or a text, and
        of `<|endoftext|>` where texts begin with it or are padded with it.
        Truncation and padding are switched off.
        """
        backend.no_truncation()
        backend.no_padding()
        named = {name: backend.token_to_id(token) for name, token in special_tokens.items()}
        bos = _distinct(named.get("bos_token"), *ids.get("bos", ()))
        pads = _distinct(named.get("pad_token"), *ids.get("pad", ()))
        by_name = [
            i
            for i, token in backend.get_added_tokens_decoder().items()
            if token.content in _ENDS or (token.content == _END_OR_PADDING and i in (*bos, *pads))
        ]
        ends = _distinct(named.get("eos_token"), *ids["eos"], named.get("eot_token"), named.get("eom_token"), *by_name)
        pad = (*pads, *ends, 0)[0]
        return cls(backend, special_tokens, bos[0] if bos else None, tuple(sorted(ends)), pad, templates, clean_up)

    @property
    def chat_template(self) -> str | None:
        """The chat template that is used where no other is asked for, or None."""
        return self.templates.get("default")

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included; a model may have more rows than that."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def __repr__(self) -> str:
        kind = type(self.backend.model).__name__
        return f"Tokenizer({kind}, vocab_size={self.vocab_size}, eos_ids={self.eos_ids})"

    def check_fits(self, rows: int, path: Path) -> None:
        """Raise a ValueError where a token has no row in a model's table of `rows` vectors, read from `path`."""
        last = max(self.backend.get_vocab(with_added_tokens=True).values(), default=0)
        if last >= rows:
            raise ValueError(
                f"{path}: the tokenizer has a token of id {last} and the model {rows} rows of vectors; "
                "take the tokenizer and the weights of one model"
            )

    def token_id(self, token: str) -> int | None:
        """Return the id of a token as the vocabulary writes it (`"<|im_end|>"`, `"##ing"`), or None."""
        return self.backend.token_to_id(token)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the token ids of a text of any length; empty text gives only the special tokens.

        Special tokens written in the text (`"<|im_start|>"`) become those tokens, as in transformers.
        add_special_tokens: whether the ones that frame a text (BOS, `[CLS]` ... `[SEP]`) are added. A text that begins
        with them already (a chat template may have written BOS) gets no second ones; transformers would double them.
        Raises ValueError unless text is a string that can be written as UTF-8.
        """
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}; expected a string; encode a list one text at a time")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text holds {text[error.start]!r} at position {error.start}, half of a surrogate pair; "
                "expected Unicode text; decode the source with errors='replace'"
            ) from None
        ids = self.backend.encode(text, add_special_tokens=False).ids
        if not add_special_tokens:
            return ids
        before, after = self._frame
        return [*([] if ids[: len(before)] == before else before), *ids, *after]

    def encode_prefix(self, text: str) -> list[int]:
        """Return the token ids of a text that goes on: as `encode`, without the EOS that some tokenizers add."""
        ids, after = self.encode(text), self._frame[1]
        return ids[: len(ids) - len(after)]

    @functools.cached_property
    def _frame(self) -> tuple[list[int], list[int]]:
        """Return the ids of the special tokens that are added before and after every text."""
        encoding = self.backend.encode("a")
        own = [i for i, sequence in enumerate(encoding.sequence_ids) if sequence is not None]
        start, stop = (own[0], own[-1] + 1) if own else (len(encoding.ids),) * 2
        return encoding.ids[:start], encoding.ids[stop:]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of token ids, by default without special tokens; an id beyond the vocabulary has no text."""
        text = self.backend.decode(_ids(ids), skip_special_tokens=skip_special_tokens)
        if self.clean_up:
            for spaced in _CLEAN_UP:
                text = text.replace(spaced, spaced.strip())
        return text

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token, special ones included, spaces shown as spaces; one string an id.

        Joined they give the text. A character spread over several tokens stands whole at the last of them
        and the earlier ones give "". A SentencePiece text begins with its extra space; WordPiece joins
        words with one space, punctuation too.
        """
        decoder = self.backend.decoder
        kind = "" if decoder is None else decoder.__getstate__().decode()
        to_bytes = _byte_level if '"ByteLevel"' in kind else _sentencepiece if "▁" in kind else _verbatim
        added = self.backend.get_added_tokens_decoder()
        half = codecs.getincrementaldecoder("utf-8")(errors="replace")
        found: list[str] = []
        ids = _ids(ids)
        for position, index in enumerate(ids):
            token = self.backend.id_to_token(index) or ""
            raw = token.encode() if index in added else to_bytes(token)
            if '"WordPiece"' in kind:
                raw = raw[2:] if raw.startswith(b"##") else b" " + raw if position else raw
            found.append(half.decode(raw, final=position == len(ids) - 1))
        return found

    def chat(
        self, /, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """Write the text of a conversation by the model's chat template.

        messages: `[{"role": "user", "content": "Hello"}, ...]`. add_generation_prompt: whether the text
        ends where the assistant's answer begins. variables: what the template may read besides, such as
        `enable_thinking=False`, `tools=[...]` or `documents=[...]`; one that it does not read has no effect. As in
        transformers, `chat_template` among them chooses another template of the model by its name, or is the text of
        one; without it "tool_use" serves calls with tools, where the model has it.

        Use `encode_chat` for the ids: the template writes BOS itself where the model wants it. Special tokens in a
        message's content are not escaped. Raises ValueError without a template, for a variable that is not plain
        data, and where the template refuses the messages.
        """
        template = self._template(variables.pop("chat_template", None), variables.get("tools"))
        variables = {**self.special_tokens, **variables, "add_generation_prompt": add_generation_prompt}
        return _chat.render(template, messages, variables)

    def encode_chat(
        self, /, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Return the token ids of `chat`, without a second BOS: what the template writes and nothing more."""
        return self.encode(self.chat(messages, add_generation_prompt, **variables), add_special_tokens=False)

    def _template(self, name: Any, tools: Any) -> str:
        """Choose the chat template: the named one, a text that is one itself, "tool_use" for tools, or the default."""
        name = "tool_use" if name is None and tools is not None and "tool_use" in self.templates else name
        if name is not None and not isinstance(name, str):
            raise ValueError(f"chat_template is {name!r:.60}; expected the name of a chat template, or its text")
        template = self.templates.get("default" if name is None else name)
        if template is not None:
            return template
        if name is not None and ("{{" in name or "{%" in name):
            return name
        if not self.templates:
            raise ValueError("this model has no chat template; expected one for chat; give plain prompts instead")
        asked = "no default chat template" if name is None else f"no chat template {name!r:.60}"
        raise ValueError(f"this model has {asked}; give chat_template as one of {', '.join(self.templates)}")


def _distinct(*ids: int | None) -> tuple[int, ...]:
    """Return the ids that are not None, each once, in their order."""
    return tuple(dict.fromkeys(i for i in ids if i is not None))


def _ids(ids: Sequence[int]) -> list[int]:
    whole = [int(i) for i in ids]
    for i in whole:
        if not 0 <= i < 2**32:
            raise ValueError(f"ids holds {i}; expected token ids of at least 0")
    return whole


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each printable character of a GPT-2 vocabulary stands for."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(256 + n): b for n, b in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    return bytes(_ALPHABET[c] for c in token) if all(c in _ALPHABET for c in token) else token.encode()


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def _verbatim(token: str) -> bytes:
    return token.encode()
