"""Questions with reference answers: a file of one's own, TriviaQA's and TruthfulQA's public forms, or a sample.

Every form is a list of rows with a question, its answer, further right answers ("aliases") and, where there are any,
wrong ones ("incorrect"). Rows without wrong answers are of kind "alias": an answer is right where it is one of the
aliases. Rows with them are of kind "references": an answer is right where it is nearer to the true ones.

A row that cannot be used is left out and listed: a file of a thousand questions is not lost to one broken line.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from experiments.answers.correctness import normalise
from isouq._errors import first_line

KINDS = ("alias", "references")
SAMPLES = {
    "sample_trivia": Path(__file__).with_name("sample_trivia.jsonl"),
    "sample_truthful": Path(__file__).with_name("sample_truthful.csv"),
}
# The names that the fields of a row have, in the forms that are read: ours, TruthfulQA's CSV, TruthfulQA's on the hub.
# TriviaQA on the hub has ours, with a dictionary {"value", "aliases"} as the answer.
_FIELDS = {
    "question": ("question", "Question"),
    "answer": ("answer", "Best Answer", "best_answer"),
    "aliases": ("aliases", "Correct Answers", "correct_answers"),
    "incorrect": ("incorrect", "Incorrect Answers", "incorrect_answers"),
}
_CONFIGS = {"mandarjoshi/trivia_qa": "rc.nocontext", "truthfulqa/truthful_qa": "generation"}
_EXPECTED = "expected question, answer, aliases and incorrect (the last two if there are any), or TruthfulQA's columns"


@dataclass(frozen=True)
class Question:
    """A question. index: its row in the file, from 0. answers: the best first. incorrect: empty where it has none."""

    index: int
    question: str
    answers: tuple[str, ...]
    incorrect: tuple[str, ...]


class Questions(NamedTuple):
    """A set of questions. kind: one of `KINDS`. digest: a hash of the items. broken: rows left out, each with why."""

    name: str
    kind: str
    items: list[Question]
    digest: str
    broken: list[str]


class _Row(NamedTuple):
    """A row as it was read. number: from 0. place: such as "line 3". fields: by name, or why there are none."""

    number: int
    place: str
    fields: Mapping[str, Any] | str


def load_questions(data: str | None) -> Questions:
    """Return the questions called `data`.

    None or "sample_trivia": the built-in ones of kind "alias"; "sample_truthful": those of kind "references".
    `hf:org/name[:config[:split]]`: a data set of the Hugging Face hub, such as mandarjoshi/trivia_qa or
    truthfulqa/truthful_qa; the split is validation by default. Else a path, its text in UTF-8:

    - FILE.jsonl: in each line `{"question": "...", "answer": "...", "aliases": ["..."], "incorrect": ["..."]}`, the
      last two if there are any.
    - FILE.csv: the same columns, several answers separated by ";", or the official TruthfulQA CSV.

    The first usable row decides the kind. A row that is broken, that repeats a question or that lacks the wrong
    answers which the kind asks for is left out and listed in `broken`, as "FILE line N: why".

    Raises FileNotFoundError, ImportError, ValueError: one line that says what is wrong; also where no row is usable.
    """
    source = "sample_trivia" if data is None else data
    if source.startswith("hf:"):
        where, rows = source, _from_hub(source[3:])
        name = source[3:].partition(":")[0].rpartition("/")[2]
    else:
        path = SAMPLES.get(source, Path(source))
        where, name, rows = path.name, path.stem, _from_file(path)
        if _has_other_bytes(name):
            raise ValueError(f"{path!a}: the name is not UTF-8; rename the file")
    return _collect(name, where, rows)


def _collect(name: str, where: str, rows: Iterator[_Row]) -> Questions:
    items: list[Question] = []
    broken: list[str] = []
    seen: dict[str, str] = {}
    for row in rows:
        try:
            item = _question(row)
            if item.question in seen:
                raise ValueError(f"the question of {seen[item.question]} again")
            if items and items[0].incorrect and not item.incorrect:
                raise ValueError("no incorrect answer; expected some, as the questions before it have")
        except ValueError as error:
            broken.append(f"{where} {row.place}: {error}")
            continue
        seen[item.question] = row.place
        items.append(item)
    if not items:
        why = f"the first of {len(broken)} broken ones: {broken[0]}" if broken else "the file is empty"
        raise ValueError(f"{where} holds no usable question ({why}); {_EXPECTED}")
    kind = "references" if items[0].incorrect else "alias"
    if kind == "alias":
        unused = sum(bool(item.incorrect) for item in items)
        if unused:
            broken.append(
                f"{where}: the first question has no incorrect answer, so those of {unused} others are not used"
            )
        items = [replace(item, incorrect=()) for item in items]
    digest = hashlib.sha256(json.dumps([kind, *map(astuple, items)]).encode()).hexdigest()[:16]
    return Questions(name, kind, items, digest, broken)


def _question(row: _Row) -> Question:
    """Return the question of a row; raises ValueError that says why the row cannot be used."""
    if isinstance(row.fields, str):
        raise ValueError(row.fields)
    fields: dict[str, Any] = {field: _value(row.fields, names) for field, names in _FIELDS.items()}
    answer = fields["answer"]
    if isinstance(answer, Mapping):
        fields |= {"answer": answer.get("value"), "aliases": answer.get("aliases")}
    answers = (_text("answer", fields["answer"]), *_texts("aliases", fields["aliases"]))
    if not any(map(normalise, answers)):
        raise ValueError(f"answer is {_short(answers[0])}; expected a letter or a digit in it")
    incorrect = tuple(_texts("incorrect", fields["incorrect"]))
    return Question(row.number, _text("question", fields["question"]), tuple(dict.fromkeys(answers)), incorrect)


def _value(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def _text(field: str, value: Any) -> str:
    """Return a text in one line, as prompts need it."""
    if value is None:
        raise ValueError(f"no {field}; expected text")
    if not isinstance(value, str):
        raise ValueError(f"{field} is {_short(value)}; expected text")
    if _has_other_bytes(value):
        raise ValueError(f"{field} holds what is not UTF-8; expected Unicode text")
    if not value.strip():
        raise ValueError(f"{field} is empty; expected text")
    return " ".join(value.split())


def _has_other_bytes(text: str) -> bool:
    """Return whether a text holds bytes that are not UTF-8, which Python keeps as surrogates."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _texts(field: str, value: Any) -> list[str]:
    """Return the texts of a list, or of one text with ";" between; empty ones are left out."""
    values = value.split(";") if isinstance(value, str) else [] if value is None else value
    if not isinstance(values, list | tuple):
        raise ValueError(f"{field} is {_short(value)}; expected a list of texts")
    return list(dict.fromkeys(_text(field, one) for one in values if not (isinstance(one, str) and not one.strip())))


def _short(value: Any) -> str:
    shown = f"{value!r}"
    return shown if len(shown) <= 40 else f"{shown[:37]}..."


def _from_file(path: Path) -> Iterator[_Row]:
    readers = {".jsonl": _from_lines, ".csv": _from_csv}
    reader = readers.get(path.suffix.lower())
    if path.is_dir() or (reader is None and path.exists()):
        raise ValueError(f"{path} is no file of questions; expected a name that ends in .jsonl or .csv")
    if reader is None or not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; expected a file (.jsonl or .csv), hf:org/name, or one of {', '.join(SAMPLES)}"
        )
    return reader(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), path.name)


def _from_lines(content: bytes, name: str) -> Iterator[_Row]:
    for i, line in enumerate(content.split(b"\n")):
        if line.strip():
            yield _Row(i, f"line {i + 1}", _parse(line))


def _parse(line: bytes) -> Mapping[str, Any] | str:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError:
        return "bytes that are not UTF-8; expected text in UTF-8"
    except (ValueError, RecursionError) as error:
        return f"not JSON ({first_line(error)[:80]}); expected an object in one line"
    return fields if isinstance(fields, dict) else f"{_short(fields)}; expected an object with question and answer"


def _from_csv(content: bytes, name: str) -> Iterator[_Row]:
    records = _records(list(io.StringIO(content.decode(errors="surrogateescape"), newline="")))
    header = next(records, (0, []))[1]
    if isinstance(header, str) or any(set(header).isdisjoint(_FIELDS[field]) for field in ("question", "answer")):
        shown = _short(", ".join(header)) if header else "nothing"
        raise ValueError(f"{name} line 1 holds {shown}; {_EXPECTED}")
    for i, (start, record) in enumerate(records):
        fields: Mapping[str, Any] | str
        if isinstance(record, str):
            fields = f"not CSV ({record})"
        elif len(record) != len(header):
            fields = f"{len(record)} fields; expected {len(header)} as in the header (is a comma unquoted?)"
        else:
            fields = dict(zip(header, record, strict=True))
        yield _Row(i, f"line {start + 1}", fields)


def _records(lines: list[str]) -> Iterator[tuple[int, list[str] | str]]:
    """Yield the line where each record starts, and the record or why it cannot be read.

    A quotation mark that is left open takes in all lines up to the next one. Therefore reading goes back and continues
    at the line after the one where the broken record starts.
    """
    start = 0
    while start < len(lines):
        reader = csv.reader(islice(lines, start, None), strict=True)
        first, before = start, 0
        try:
            for record in reader:
                if record:
                    yield first + before, record
                before = reader.line_num
            return
        except csv.Error as error:
            yield first + before, str(error)
            start = first + before + 1


def _from_hub(name: str) -> Iterator[_Row]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"hf:{name} needs the package datasets; pip install 'isouq[data]'") from error
    repository, config, split = (*name.split(":", 2), "", "")[:3]
    loaded = datasets.load_dataset(repository, config or _CONFIGS.get(repository), split=split or "validation")
    known = [column for names in _FIELDS.values() for column in names if column in loaded.column_names]
    if not {*_FIELDS["question"]} & {*known} or not {*_FIELDS["answer"]} & {*known}:
        raise ValueError(f"hf:{name} has the columns {', '.join(loaded.column_names)}; {_EXPECTED}")
    return (_Row(i, f"row {i}", row) for i, row in enumerate(loaded.select_columns(known)))
