"""Keep compiled programs on disk, so that the next process loads them instead of compiling them again."""

from pathlib import Path

import jax

from isouq.text.loading import sources


def keep_compiled_programs(folder: str | Path | None = None) -> None:
    """Store every program that JAX compiles from now on in a folder, and load it from there the next time.

    Call it once, before the first score: a second process then starts without compiling. It sets JAX's options
    `jax_compilation_cache_dir` and `jax_persistent_cache_min_compile_time_secs` for the whole process, unless the user
    has set the first of them (by `JAX_COMPILATION_CACHE_DIR`, say): then it changes nothing.

    folder: by default `xla` in isouq's cache, `$ISOUQ_CACHE`, `$XDG_CACHE_HOME/isouq` or `~/.cache/isouq`. Where it
    cannot be made, nothing is stored. JAX does not limit its size: delete the folder to free the space.
    """
    if jax.config.jax_compilation_cache_dir is not None:  # type: ignore[attr-defined]
        return
    path = sources.cache_folder() / "xla" if folder is None else Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
