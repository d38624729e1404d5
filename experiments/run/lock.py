"""One driver a folder: a lock of the kernel (flock), which the death of its process frees by itself.

The lock file names its holder. It stays when the lock is given back, and means nothing while nobody holds it.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from experiments.run.errors import RunError

NAME = "driver.lock"


class Holder(NamedTuple):
    """The process that holds the lock. started: seconds since the epoch."""

    process: int
    host: str
    started: float


@contextmanager
def lock(out: Path) -> Iterator[None]:
    """Hold the lock of a folder; RunError if another process holds it, or if the file system has no locks."""
    descriptor = os.open(out / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(_busy_message(out, _read(descriptor))) from None
        except OSError as error:
            raise RunError(
                f"cannot lock {out / NAME}: {error.strerror or error}; choose an --out on a file system with locks"
            ) from error
        text = json.dumps(Holder(os.getpid(), socket.gethostname(), time.time())._asdict()).encode()
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
        yield
    finally:
        os.close(descriptor)


def holder(out: Path) -> Holder | None:
    """Return who holds the lock of a folder, or None. Writes nothing."""
    try:
        descriptor = os.open(out / NAME, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(descriptor)
    finally:
        os.close(descriptor)
    return None


def _busy_message(out: Path, holder: Holder) -> str:
    return (
        f"process {holder.process} on {holder.host} is at work in {out}: wait until it ends "
        f"(python -m experiments status --out {out}), stop it, or choose another --out"
    )


def _read(descriptor: int) -> Holder:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):  # it has taken the lock and not yet written its name
        return Holder(0, "an unknown host", time.time())
