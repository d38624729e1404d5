"""Counts the programs that a job compiles, and keeps them in a folder for other processes and later runs."""

import functools
import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache

NONE = "none"  # the choice of no folder
LARGEST = 2**30  # bytes of a folder after a run


@dataclass
class Compilations:
    """Programs that were needed, those of them that were loaded from the cache, and the seconds of both."""

    programs: int = 0
    loaded: int = 0
    seconds: float = 0.0


@contextmanager
def compilations(cache: str | None = None) -> Iterator[Compilations]:
    """Use the cache, and yield the count of this process's compilations, which grows until the context is left.

    cache: see `cache_folder`. Where a file of the cache cannot be read or written, its program is compiled.
    """
    _use(cache)
    with warnings.catch_warnings(), count_compilations() as count:
        warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
        yield count


@contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Yield the count of this process's compilations, which grows until the context is left."""
    count = Compilations()

    def count_program(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            count.programs += 1
            count.seconds += duration_secs

    def count_loaded(event: str, **_: Any) -> None:
        count.loaded += event == "/jax/compilation_cache/cache_hits"

    monitoring.register_event_duration_secs_listener(count_program)
    monitoring.register_event_listener(count_loaded)
    try:
        yield count
    finally:
        monitoring.unregister_event_duration_listener(count_program)
        monitoring.unregister_event_listener(count_loaded)


def cache_folder(cache: str | None) -> Path | None:
    """Return the folder of this processor's programs; None for no folder, or where JAX has one already.

    cache: a folder, "none", or None for JAX_COMPILATION_CACHE_DIR and else a folder in the user's cache folder.
    """
    if cache == NONE or (cache is None and os.environ.get("JAX_COMPILATION_CACHE_DIR")):
        return None
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "isouq" / "compiled"
    return Path(cache or base).expanduser().absolute() / _processor()


def cache_problem(cache: str | None) -> str | None:
    """Return a line for the user if the folder cannot be written; programs are then compiled in every process."""
    folder = cache_folder(cache)
    if folder is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(folder, os.W_OK) else "no permission"
    except OSError as error:
        reason = error.strerror or str(error)
    return reason and f"compiled programs cannot be kept in {folder}: {reason}; choose another --compilation-cache"


def shrink(folder: Path, largest: int = LARGEST) -> None:
    """Delete empty files, which a full disk leaves, and the programs used longest ago until `largest` bytes are left.

    JAX can bound the folder itself, but then looks at every file of it whenever it writes one.
    """
    files = {}
    for path in folder.glob("*-cache"):
        with suppress(FileNotFoundError):  # another run deletes too
            files[path] = path.stat()
    size = 0
    for path in sorted(files, key=lambda path: max(files[path].st_atime, files[path].st_mtime), reverse=True):
        size += files[path].st_size
        if size > largest or files[path].st_size == 0:
            path.unlink(missing_ok=True)


def _use(cache: str | None) -> None:
    folder = cache_folder(cache)
    if folder is None and cache != NONE:
        return  # JAX's own setting
    directory = None if folder is None else str(folder)
    if jax.config.jax_compilation_cache_dir != directory:  # type: ignore[attr-defined]
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def _processor() -> str:
    """Return a name of this machine's processor: what is compiled for one may not run on another."""
    facts = {platform.processor()}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    facts |= {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return f"{platform.machine()}-{hashlib.sha256(repr(sorted(facts)).encode()).hexdigest()[:8]}"
