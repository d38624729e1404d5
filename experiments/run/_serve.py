"""What a worker process does: it binds itself to its cores, and then applies functions to jobs.

This module must not import JAX or NumPy. When they are imported, they start threads for the cores that the process may
use at that moment, so the process must be bound to its cores first.
"""

import os
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler

from isouq._errors import first_line


def serve(connection: Connection, driver: int, cores: list[int]) -> None:
    """Receive (function, job) and send function(job), or its error as a string, until the connection is closed."""
    prepare(driver, cores)
    keep_from_children(connection)
    with suppress(EOFError, OSError):  # the driver is gone, or a job has closed the connection
        while True:
            connection.send_bytes(answer(connection.recv_bytes()))


def answer(message: bytes) -> memoryview:
    """Return function(job), pickled, or its error as a string; whatever of it cannot be pickled is an error too."""
    try:
        function, job = ForkingPickler.loads(message)
        return ForkingPickler.dumps(function(job))
    except Exception as error:
        return ForkingPickler.dumps(f"{type(error).__name__}: {first_line(error)}")


def keep_from_children(connection: Connection) -> None:
    """Close the connection in what a job starts: a child that outlives this process would hide its death."""
    os.set_inheritable(connection.fileno(), False)
    os.register_at_fork(after_in_child=connection.close)


def prepare(driver: int, cores: list[int]) -> None:
    """Bind this process to its cores and to the CPU, and end it as soon as the driver is gone."""

    def leave_with_driver() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(len(cores)))  # more threads than cores wait for each other
    threading.Thread(target=leave_with_driver, daemon=True).start()
