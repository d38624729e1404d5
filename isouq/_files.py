"""Replace files such that they are whole or absent, whatever happens while they are written."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace(path: Path, write: Callable[[Any], Any]) -> None:
    """Replace the file at path by what `write(file)` writes; on return it is on the disk.

    If the process is killed, path is the old file or the new one, and a temporary file may stay, with a name
    that begins as that of path does, ends in .tmp and is used by no other process on any machine.

    Raises:
        OSError: the disk is full or the folder is read-only; the old file stays.
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
    """Replace the file at path by a text in UTF-8, without a change of its line ends; see `replace`."""
    replace(path, lambda file: file.write(text.encode()))
