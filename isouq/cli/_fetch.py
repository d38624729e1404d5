"""`isouq fetch`."""

from pathlib import Path

from isouq.cli.options import Fetch
from isouq.text import checkpoint, sources
from isouq.text._hub import wanted


def run(options: Fetch) -> int:
    """Prints the canonical name, the size and, on the last line, the path."""
    source = sources.resolve(options.model, revision=options.revision)
    checkpoint.open_checkpoint(source.path)  # its headers: a damaged or pickled file is told now
    print(f"name: {source.name}")
    print(f"size: {size(source.path) / 1e6:,.1f} MB")
    print(source.path)
    return 0


def size(path: Path) -> int:
    """Bytes on disk of the files that isouq reads."""
    if path.is_file():
        return path.stat().st_size
    files = (file for file in path.rglob("*") if file.is_file() and wanted(file.relative_to(path).as_posix()))
    return sum(file.stat().st_size for file in files)
