"""Fetches a model from the Hugging Face hub, or takes it from Hugging Face's cache."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from isouq.text.loading import _extras
from isouq.text.loading._reading import one_line
from isouq.text.loading._safetensors import ADAPTER_CONFIG, PICKLED, weight_files
from isouq.text.loading.adapter import ADAPTER_WEIGHTS, is_adapter

FILES = (  # what a folder needs; nothing else is fetched
    "config.json",
    ADAPTER_CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "modules.json",
    "1_Pooling/config.json",
    "model.safetensors.index.json",
    "*.safetensors",
)
IGNORED = ("*/*.safetensors", "consolidated*.safetensors")  # copies of the weights in other layouts
NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+\.gguf))?(?:@(?P<revision>[^@\s]+))?")


def is_repository(name: str) -> bool:
    """Return whether `name` reads as `org/name` or `org/name@revision`."""
    found = NAME.fullmatch(name)
    return found is not None and found["file"] is None and not name.startswith(".") and not name.endswith(".gguf")


def wanted(file: str) -> bool:
    """Return whether a file of a model's folder is one that isouq reads."""
    return any(fnmatch(file, pattern) for pattern in FILES) and not any(fnmatch(file, p) for p in IGNORED)


def fetch(name: str, revision: str | None, progress: bool, also: str = "") -> tuple[str, Path]:
    """Return `(hf:org/name[/file.gguf]@commit, path)` of a name without its `hf:`.

    also: what the message about an unknown repository adds.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise ValueError(f"the model is 'hf:{name}'; expected hf:org/name[@revision] or hf:org/name/file.gguf")
    repo, file = found["repo"], found["file"]
    if revision is not None and found["revision"] not in (None, revision):
        raise ValueError(f"hf:{name} and revision={revision!r} disagree; give one revision")
    revision = revision or found["revision"] or "main"
    with _progress_bars(progress):
        path = _fetch(repo, file, revision, also)
    commit = path.parents[len(PurePosixPath(file).parts) - 1].name if file else path.name
    return f"hf:{repo}/{file}@{commit}" if file else f"hf:{repo}@{commit}", path


def _fetch(repo: str, file: str | None, revision: str, also: str) -> Path:
    hub = _extras.require("huggingface_hub")
    if re.fullmatch(r"[0-9a-f]{40}", revision) and (path := _cached(repo, file, revision)):
        return path
    listing = _asked(repo, revision, also, lambda: hub.HfApi().model_info(repo, revision=revision, timeout=10))
    if isinstance(listing, Exception):
        path = _cached(repo, file, revision)
        if path is None:
            raise FileNotFoundError(
                f"the Hugging Face hub cannot be reached ({one_line(listing)}) and hf:{repo}@{revision} "
                f"is not cached; connect, or give a local path{also}"
            ) from listing
        print(f"isouq: the Hugging Face hub cannot be reached; using the cached hf:{repo}@{revision}", file=sys.stderr)
        return path
    _check_listing(repo, file, [entry.rfilename for entry in listing.siblings or []])
    path = _asked(repo, revision, also, lambda: _download(repo, file, revision))
    if isinstance(path, Exception):
        raise OSError(f"the download of hf:{repo}@{revision} failed ({one_line(path)}); try again") from path
    return path


def _download(repo: str, file: str | None, revision: str, **options: Any) -> Path:
    hub = _extras.require("huggingface_hub")
    if file:
        return Path(hub.hf_hub_download(repo, file, revision=revision, **options))
    options |= {"allow_patterns": list(FILES), "ignore_patterns": list(IGNORED)}
    return Path(hub.snapshot_download(repo, revision=revision, **options))


def _asked(repo: str, revision: str, also: str, question: Callable[[], Any]) -> Any:
    """Return what the hub answers; the exception itself where there was no answer, whatever the HTTP library raised."""
    errors = _extras.require("huggingface_hub.errors")
    try:
        return question()
    except errors.GatedRepoError as error:
        raise ValueError(
            f"hf:{repo} is gated; accept its terms at https://huggingface.co/{repo} and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"hf:{repo} is unknown to the Hugging Face hub (or private: log in with `hf auth login`){also}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"hf:{repo} has no revision {revision!r}; expected a branch, a tag or a commit") from error
    except errors.HFValidationError as error:
        raise ValueError(f"hf:{repo} is no name of a repository ({one_line(error)})") from error
    except Exception as error:
        return error


def _cached(repo: str, file: str | None, revision: str) -> Path | None:
    """Return the files in Hugging Face's cache, or None where they are not all there."""
    errors = _extras.require("huggingface_hub.errors")
    try:
        path = _download(repo, file, revision, local_files_only=True)
    except errors.LocalEntryNotFoundError:
        return None
    return path if file or _is_whole(path) else None


def _is_whole(folder: Path) -> bool:
    """Return whether a cached folder has its configuration and weights: older caches keep no list of files."""
    if is_adapter(folder):
        return (folder / ADAPTER_WEIGHTS).is_file()
    try:
        files = weight_files(folder)
    except (ValueError, FileNotFoundError):
        return False
    return (folder / "config.json").is_file() and all(file.is_file() for file in files)


def _check_listing(repo: str, file: str | None, files: list[str]) -> None:
    """Raise before anything is fetched where a repository lacks what isouq reads."""
    ggufs = sorted(name for name in files if name.endswith(".gguf"))
    choice = f"; it has {', '.join(ggufs[:8])}" if ggufs else ""
    if file:
        if file not in files:
            raise FileNotFoundError(f"hf:{repo} has no file {file}{choice}")
        return
    if any(fnmatch(name, "*.safetensors") and wanted(name) for name in files):
        return
    if ggufs:
        raise ValueError(f"hf:{repo} has no safetensors{choice}: name one as hf:{repo}/{ggufs[0]}")
    if any(name.endswith(PICKLED) for name in files):
        raise ValueError(
            f"hf:{repo} holds pickled weights only; isouq never unpickles: convert to safetensors, "
            "or name a revision that has them"
        )
    raise ValueError(f"hf:{repo} has no safetensors; expected the repository of a model")


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Hugging Face's progress bars, hidden inside where `shown` is False."""
    utils = _extras.require("huggingface_hub.utils")
    if shown or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()
