"""A worker of the executor `processes`, from its start.

Nothing is imported here that imports JAX: it computes as soon as `isouq.posterior` is imported (BlackJAX does), and
then it is too late to say on which cores, in how many threads and on which devices.
"""

import os
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path


def live(connection: Connection, folder: Path, parent: int, cores: list[int]) -> None:
    """Goes through the lists that it is sent, and says when it is through, or what stopped it."""

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    threading.Thread(target=leave_with_parent, daemon=True).start()

    from experiments.run.errors import RunError
    from experiments.run.executors import _crew
    from experiments.run.store import Store

    store = Store(folder)
    with suppress(EOFError, BrokenPipeError):  # the driver is gone
        while True:
            cells, lost = connection.recv()
            try:
                _crew.go_through(cells, store, lost)
            except RunError as error:
                connection.send(str(error))
            else:
                connection.send(None)
