"""Texts of two domains, science (label 0) and sports (label 1): a CSV, Hugging Face's, or the sample."""

import csv
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

DOMAINS = ("science", "sports")
COLUMNS = ("label", "title", "description")
SAMPLE = Path(__file__).with_name("sample_texts.csv")
NAMES = {"science": 0, "sci/tech": 0, "sci-tech": 0, "science/technology": 0, "technology": 0, "sports": 1, "sport": 1}
MIN_TEXTS = 12
FULL = {"train": 160, "validation": 40, "proxies": 1000}
PARTS = (*FULL, "test")


class Texts(NamedTuple):
    """texts and labels `[n]`, 0 science, 1 sports. digest: a hash of both."""

    texts: list[str]
    labels: np.ndarray
    digest: str


def load_texts(data: str | None) -> Texts:
    """Return the texts called `data`.

    None: the built-in sample. `hf:org/name[:split]`: a data set of the Hugging Face hub with the columns text and label
    (names such as Sci/Tech and Sports; other classes are left out), the split test by default. Else a path: a CSV with
    the columns label, title, description. A text that repeats counts once, so that no text is in two parts.

    Raises FileNotFoundError, ImportError, ValueError: one line that says what is wrong, a wrong row by its number.
    """
    name = "sample" if data is None else data
    rows = _from_hub(data[3:]) if data and data.startswith("hf:") else _from_csv(Path(data) if data else SAMPLE)
    once: dict[str, int] = {}
    for label, text in rows:
        if once.setdefault(text, label) != label:
            raise ValueError(f"{name} holds {text!r:.60} in both {' and '.join(DOMAINS)}; expected each text in one")
    texts, labels = list(once), np.array(list(once.values()), np.int32)
    for i, domain in enumerate(DOMAINS):
        count = int(np.sum(labels == i))
        if count < MIN_TEXTS:
            raise ValueError(
                f"{name} holds {count} different texts of {domain}; expected at least {MIN_TEXTS} of each of "
                f"{' and '.join(DOMAINS)}"
            )
    digest = hashlib.sha256("\0".join([*texts, labels.tobytes().hex()]).encode()).hexdigest()[:16]
    return Texts(texts, labels, digest)


def _from_csv(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        wrong = "is no file" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {wrong}; expected a CSV with the columns {', '.join(COLUMNS)}")
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or ()
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise ValueError(
                    f"{path} line 1: no column {', '.join(missing)} in {', '.join(header)!r:.60}; "
                    f"expected the columns {', '.join(COLUMNS)}"
                )
            for row in reader:
                rows.append(_row(row, f"{path} line {reader.line_num}"))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} line {len(rows) + 2} or later: {error}; expected a CSV in UTF-8") from None
    return rows


def _row(row: dict[Any, Any], where: str) -> tuple[int, str]:
    if None in row or None in row.values():
        fields = len(row) - (None in row) + len(row.get(None, ())) - sum(value is None for value in row.values())
        raise ValueError(f"{where}: {fields} fields; expected as many as the header has (is a comma unquoted?)")
    label = row["label"].strip().lower()
    if label not in NAMES:
        raise ValueError(f"{where}: label {row['label']!r}; expected {' or '.join(DOMAINS)}")
    text = ". ".join(part for part in (row["title"].strip(), row["description"].strip()) if part)
    if not text:
        raise ValueError(f"{where}: title and description are empty; expected a text")
    return NAMES[label], text


def _from_hub(name: str) -> list[tuple[int, str]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"hf:{name} needs the package datasets; pip install 'isouq[data]'") from error
    repository, _, split = name.partition(":")
    loaded = datasets.load_dataset(repository, split=split or "test")
    for column in ("text", "label"):
        if column not in loaded.column_names:
            raise ValueError(
                f"hf:{name} has the columns {', '.join(loaded.column_names)}; expected text and label among them"
            )
    names = getattr(loaded.features["label"], "names", None)
    if not names:
        raise ValueError(f"hf:{name} does not name its classes; expected such as Sci/Tech and Sports")
    numbers = [NAMES.get(str(label).lower()) for label in names]
    rows = [(numbers[label], text) for label, text in zip(loaded["label"], loaded["text"], strict=True) if label >= 0]
    return [(number, text) for number, text in rows if number is not None and text and text.strip()]


class Split(NamedTuple):
    """The row numbers of each part, disjoint: the proxies of each domain apart, every other part with both domains."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    science: np.ndarray
    sports: np.ndarray


def sizes(labels: np.ndarray) -> dict[str, int]:
    """Return the texts a domain in each part: `FULL` where there are enough, else thirds; the rest is the test."""
    count = int(np.bincount(labels, minlength=2).min())
    parts = dict(FULL)
    if count < sum(FULL.values()) + 50:
        parts = {"train": count // 3, "validation": count // 10, "proxies": count // 3}
        parts = {name: min(size, FULL[name]) for name, size in parts.items()}
    return parts | {"test": min(500, count - sum(parts.values()))}


def split(labels: np.ndarray, seed: int) -> Split:
    """Return the parts of `sizes`, drawn from a seed; n proxy texts are the first n of their domain."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for domain in range(len(DOMAINS)):
        rows, start = rng.permutation(np.flatnonzero(labels == domain)), 0
        for name, size in sizes(labels).items():
            parts[name].append(rows[start : start + size])
            start += size
    mixed = {name: rng.permutation(np.concatenate(rows)) for name, rows in parts.items() if name != "proxies"}
    return Split(**mixed, science=parts["proxies"][0], sports=parts["proxies"][1])
