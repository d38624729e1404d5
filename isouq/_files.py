"""Files that are whole or absent, whatever happens while they are written."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace(path: Path, write: Callable[[Any], Any]) -> None:
    """`write(file)` fills the file; whatever happens, path is the old one or the new one. The disk has it on return.

    The temporary name begins as path's does and ends in .tmp; no other process on any machine uses it. A kill may
    leave it. OSError when the folder is full or read-only; the old file stays.
    """
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """The same for a text, in UTF-8, line ends as they are."""
    replace(path, lambda file: file.write(text.encode()))
