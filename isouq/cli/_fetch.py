"""`isouq fetch`."""

from isouq.cli.options import Fetch
from isouq.text.loading import checkpoint, sources


def run(options: Fetch) -> int:
    """Prints the canonical name, the size and, on the last line, the path."""
    source = sources.resolve(options.model, revision=options.revision)
    checkpoint.open_checkpoint(source.path)  # its headers: a damaged or pickled file is told now
    print(f"name: {source.name}")
    print(f"size: {sources.size(source.path) / 1e6:,.1f} MB")
    print(source.path)
    return 0
