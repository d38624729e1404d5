"""Rows of the input: JSON lines, each checked for itself."""

import difflib
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from isouq.text.prompts import Prompt

MISNAMED = ("question", "input", "text", "instruction")  # what other programs call a prompt
FIELDS = ("prompt", "answer", "chat_template_kwargs")  # what is read; all other fields are only copied


class InputRow(NamedTuple):
    """One row.

    line: its number, from 1. fields: all it holds. answer: text, token ids, or None to generate one. variables: for
    the chat template.
    """

    line: int
    fields: dict[str, Any]
    prompt: Prompt
    answer: str | list[int] | None
    variables: dict[str, Any]


class BadRow(NamedTuple):
    """A line that is no row, and why. misnamed: the field that it has instead of "prompt", if that is why."""

    line: int
    reason: str
    misnamed: str | None = None


def count_lines(path: Path) -> int:
    """Return the number of lines of a file, blank ones included."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def read(path: Path, lines: int) -> Iterator[InputRow | BadRow]:
    """Yield every row of the first `lines` lines; blank lines are skipped, as are lines added during the run."""
    with path.open("rb") as file:
        for number, raw in enumerate(itertools.islice(file, lines), 1):
            raw = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if raw.strip():
                try:
                    yield _parse(number, raw)
                except _Misnamed as error:
                    yield BadRow(number, str(error), error.field)
                except ValueError as error:
                    yield BadRow(number, str(error))


def misnamed(path: Path, lines: int) -> set[str]:
    """Return the fields that all rows have instead of "prompt"; none where one row has no such field."""
    names: set[str] = set()
    for row in read(path, lines):
        if not isinstance(row, BadRow) or row.misnamed is None:
            return set()
        names.add(row.misnamed)
    return names


class _Misnamed(ValueError):
    """A row has another field instead of "prompt"."""

    def __init__(self, field: str) -> None:
        super().__init__(f'the field "prompt" is missing; rename "{field}" to "prompt"')
        self.field = field


def _parse(line: int, raw: bytes) -> InputRow:
    """Return the row in the bytes of one line; raise a ValueError that says what is wrong."""
    fields = strict_object(raw)
    if "prompt" not in fields:
        for name in fields:
            if name.lower() in ("prompt", *MISNAMED):
                raise _Misnamed(name)
        raise ValueError('the field "prompt" is missing')
    prompt, answer = fields["prompt"], fields.get("answer")
    _check_prompt(prompt)
    if answer is not None and not isinstance(answer, str) and not _is_list_of(answer, int):
        raise ValueError('"answer" is neither text nor a list of token ids')
    if answer is not None and not len(answer):
        raise ValueError('"answer" is empty; leave the field out to have one generated')
    return InputRow(line, fields, prompt, answer, _variables(fields))


def _variables(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a row's variables for the chat template; raise ValueError where they can have no effect."""
    variables = fields.get("chat_template_kwargs")
    if variables is None:
        return {}
    if not isinstance(variables, dict) or "messages" in variables:
        raise ValueError('"chat_template_kwargs" is no object of variables such as {"enable_thinking": false}')
    if variables and isinstance(fields["prompt"], str):
        raise ValueError('"chat_template_kwargs" needs a "prompt" of messages; this one is text, without a template')
    return variables


def unknown_fields(names: Iterable[str]) -> str:
    """Return one line that names the fields that are not read, each with the known field that it may misspell."""
    shown = []
    for name in sorted(names):
        near = difflib.get_close_matches(name.lower(), FIELDS, 1)
        shown.append(f"{name} (did you mean {near[0]}?)" if near else name)
    more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
    listed = ", ".join(shown[:10]) + more
    return f"fields of the input that are not read, only copied: {listed}; read are {', '.join(FIELDS)}"


def strict_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in a line; raise ValueError unless it can be written again as strict JSON in UTF-8."""
    try:
        fields = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: byte {error.object[error.start]:#04x} at position {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at position {error.pos}") from None
    except RecursionError:
        raise ValueError("not JSON: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is expected, not {_kind(fields)}")
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"holds {error.object[error.start]!r}, half of a surrogate pair: no Unicode text") from None
    except ValueError:
        raise ValueError("holds a number beyond the range of a double") from None
    return fields


def chunks(rows: Iterator[Any], size: int, least: int) -> Iterator[list[Any]]:
    """Yield lists of `size` rows; the last may be shorter, and takes up a rest of fewer than `least`."""
    chunk = list(itertools.islice(rows, size))
    while chunk:
        following = list(itertools.islice(rows, size))
        if len(following) < least:
            chunk, following = chunk + following, []
        yield chunk
        chunk = following


def number(value: float) -> float | None:
    """Return the value with nine digits, more than float32 has; None for NaN and infinity, which JSON cannot write."""
    return float(f"{value:.9g}") if math.isfinite(value) else None


def _check_prompt(prompt: Any) -> None:
    if isinstance(prompt, str):
        if not prompt:
            raise ValueError('"prompt" is empty')
        return
    if not _is_list_of(prompt, dict):
        raise ValueError(f'"prompt" is {_kind(prompt)}; expected text or a list of messages')
    if not prompt:
        raise ValueError('"prompt" has no messages')
    for i, message in enumerate(prompt):
        content = message.get("content")
        absent = content is None and message.get("tool_calls")  # an assistant that only calls tools
        if not isinstance(message.get("role"), str) or not (
            isinstance(content, str) or _is_list_of(content, dict) or absent
        ):
            raise ValueError(f'message {i} of "prompt" lacks a "role" or a "content", text or a list of parts')


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)


def _kind(value: Any) -> str:
    names = {str: "text", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
