"""Who is at a cell: a lock of the kernel (flock) on a small file, which the death of a process frees by itself.

The file says who holds it and how far they are, for whoever looks; a lock that nobody holds means nothing. It goes
with the claim. One that is left behind tells that its process died at that cell.
"""

import fcntl
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

NOTE_SECONDS = 1.0  # between two notes of how far a cell is


@dataclass(frozen=True)
class Holder:
    """Who holds, or held, a claim.

    started: seconds since the epoch. share: of the work, 0 to 1. deaths: processes that died at the cell before this
    one, without a new checkpoint in between. checkpoint: when the cell's checkpoint was last written (mtime in ns) as
    the claim was made. working: False once it has been given back undone.
    """

    label: str
    host: str
    pid: int
    started: float
    share: float = 0.0
    deaths: int = 0
    checkpoint: int = 0
    working: bool = True


class Claim:
    """A held lock; a context manager that gives it back."""

    def __init__(self, path: Path, descriptor: int, holder: Holder) -> None:
        self.path, self.holder = path, holder
        self._descriptor, self._noted, self._held = descriptor, time.monotonic(), True
        self._write()

    def note(self, share: float) -> None:
        """Says how far the cell is, at most once a second."""
        if time.monotonic() - self._noted >= NOTE_SECONDS:
            self._noted = time.monotonic()
            self.holder = replace(self.holder, share=round(share, 4))
            self._write()

    def release(self) -> None:
        """Gives the claim back, done or failed."""
        if self._held:
            self._held = False
            self.path.unlink(missing_ok=True)  # before the lock goes, so that no one can hold a file without a name
            os.close(self._descriptor)

    def leave(self) -> None:
        """Gives it back undone: the file stays, with the number of deaths, for whoever takes it next."""
        self.holder = replace(self.holder, working=False)
        self._write()
        self._held = False
        os.close(self._descriptor)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def _write(self) -> None:
        text = json.dumps(asdict(self.holder)).encode()
        os.pwrite(self._descriptor, text, 0)
        os.ftruncate(self._descriptor, len(text))


def claim(path: Path, label: str, checkpoint: Path | None = None, wait: bool = False) -> Claim | None:
    """The claim that this file stands for; None if another process has it and `wait` is False.

    checkpoint: the cell's; one that has changed since a dead process took the cell forgives the deaths before.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_still(path, descriptor):
                before, written = _read(descriptor), _written(checkpoint)
                deaths = 0
                if before is not None:
                    forgiven = before.checkpoint != written
                    deaths = (0 if forgiven else before.deaths) + before.working
                mine = Holder(label, socket.gethostname(), os.getpid(), time.time(), 0.0, deaths, written)
                return Claim(path, descriptor, mine)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the holder before gave it back while this one waited, and the name with it


def holder(path: Path) -> Holder | None:
    """Who holds the claim now; None if nobody does. Writes nothing, and holds up nobody."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor) or Holder("", "", 0, time.time())
    finally:
        os.close(descriptor)
    return None


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one of that name, and not one that was unlinked in between."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _read(descriptor: int) -> Holder | None:
    try:
        found = Holder(**json.loads(os.pread(descriptor, 4096, 0)))
        whole = found.deaths >= 0 <= found.started and 0 <= found.share <= 1
    except (ValueError, TypeError):  # empty, or cut off by a kill
        return None
    return found if whole else None


def _written(path: Path | None) -> int:
    try:
        return 0 if path is None else path.stat().st_mtime_ns
    except OSError:
        return 0
