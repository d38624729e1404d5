"""Files that are whole or absent, whatever happens while they are written."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def replace(path: Path, write: Callable[[Any], Any]) -> None:
    """`write(file)` into a temporary file beside path, on the disk before it takes the name.

    A kill leaves the old file, and perhaps a temporary one named `NAME.PID.tmp`. Raises OSError when the folder
    is full or read-only; the old file stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
