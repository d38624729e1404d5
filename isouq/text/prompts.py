"""From prompts and answers to token ids: one definition for scoring and for generation."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Prompt = str | Sequence[dict[str, str]]


class Row(NamedTuple):
    """Token ids of a prompt and its answer; those from `first` on are the answer's."""

    ids: np.ndarray
    first: int


def encode_prompt(model: Any, prompt: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """Return the token ids of a `Prompt`: text, or messages `{"role", "content"}` for the chat template.

    chat_template_kwargs: variables for that template. Raises ValueError for another type of prompt, for variables that
    are no dictionary, for an empty prompt (there must be a token that the first answer token follows), and for one
    that fills the context.
    """
    return _encode_prompt(model, prompt, _text(model, prompt, chat_template_kwargs))


def _text(model: Any, prompt: Any, chat_template_kwargs: Any) -> str:
    """Return the text of a prompt, which for messages is that of the chat template; raise for another type."""
    if not isinstance(prompt, Sequence):
        raise ValueError(
            f'the prompt is a {type(prompt).__name__}; expected text or a list of {{"role": ..., "content": ...}}'
        )
    variables = _variables(chat_template_kwargs)
    return prompt if isinstance(prompt, str) else model.tokenizer.chat(prompt, **variables)


def _encode(model: Any, prompt: Any, text: str) -> list[int]:
    """Return the token ids of the prompt's text, and of what follows it; a chat template writes the special tokens."""
    if isinstance(prompt, str):
        return model.tokenizer.encode_prefix(text)
    return model.tokenizer.encode(text, add_special_tokens=False)


def _encode_prompt(model: Any, prompt: Any, text: str) -> list[int]:
    """Return the token ids of the prompt's text; raise unless there is one and the context has room for an answer."""
    ids = _encode(model, prompt, text)
    if not ids:
        raise ValueError("the prompt is empty; expected at least one token")
    if len(ids) >= model.config.context_length:
        raise ValueError(
            f"the prompt has {len(ids)} tokens; the model's context is {model.config.context_length}, "
            "and the answer needs room in it: shorten the prompt"
        )
    return ids


def encode_pair(model: Any, prompt: Any, answer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> Row:
    """Return the Row of a prompt and an answer, text or token ids.

    Prompt and answer are tokenised together, as the model would read them: where a token spans the seam (or a merge
    changes the prompt's last token) it counts as the answer's first.

    Raises ValueError for an empty prompt or answer and for more tokens than the context.
    """
    text = _text(model, prompt, chat_template_kwargs)
    start = _encode_prompt(model, prompt, text)
    if isinstance(answer, str) and not answer:
        raise ValueError("the answer is empty; expected text or token ids")
    if not isinstance(answer, str):
        ids = [*start, *_token_ids(answer, model.config.vocab_size)]
        first = len(start)
    else:
        ids = _encode(model, prompt, text + answer)
        first = next((i for i, (a, b) in enumerate(zip(start, ids, strict=False)) if a != b), min(len(start), len(ids)))
        if first == len(ids):
            raise ValueError(f"the answer {answer!r} adds no token to the prompt; expected text")
        if first == 0:
            raise ValueError("the first token spans prompt and answer; give the prompt at least one token of its own")
    context = model.config.context_length
    if len(ids) > context:
        raise ValueError(f"prompt and answer have {len(ids)} tokens; the model's context is {context}")
    return Row(np.asarray(ids, np.int32), first)


def encode_pairs(model: Any, pairs: Sequence[Any], chat_template_kwargs: Mapping[str, Any] | None = None) -> list[Row]:
    """Return the Row of every (prompt, answer); a ValueError has the number of the pair."""
    if not len(pairs):
        raise ValueError("pairs is empty; expected at least one (prompt, answer)")
    rows = []
    for i, pair in enumerate(pairs):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(f"pair {i}: {pair!r:.60} is not one; expected a prompt and an answer: [(prompt, answer)]")
        try:
            rows.append(encode_pair(model, pair[0], pair[1], chat_template_kwargs))
        except ValueError as error:
            raise ValueError(f"pair {i}: {error}") from None
    return rows


def _variables(chat_template_kwargs: Any) -> dict[str, Any]:
    """Check the variables for a chat template, and return them; the messages may not be among them."""
    given = {} if chat_template_kwargs is None else chat_template_kwargs
    if not isinstance(given, Mapping) or not all(isinstance(name, str) for name in given) or "messages" in given:
        raise ValueError(
            f'chat_template_kwargs is {given!r:.60}; expected a dictionary such as {{"enable_thinking": False}}, '
            "of variables other than the messages"
        )
    return dict(given)


def _token_ids(answer: Any, vocab_size: int) -> list[int]:
    try:
        ids = np.asarray(answer)
    except ValueError:  # lists of different lengths
        ids = np.asarray(None)
    if ids.ndim == 1 and not len(ids):
        raise ValueError("the answer is empty; expected text or token ids")
    if not np.issubdtype(ids.dtype, np.integer) or ids.ndim != 1 or ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"the answer is neither text nor token ids below {vocab_size}")
    return [int(i) for i in ids]
