"""What a worker process does: it chooses its cores, and then applies functions to jobs.

Nothing is imported here that imports JAX or NumPy: they divide their threads over the cores of the moment at which they
are imported, and then it is too late to choose the cores.
"""

import os
import threading
import time
from multiprocessing.connection import Connection

from isouq._errors import first_line


def serve(connection: Connection, driver: int, cores: list[int]) -> None:
    """Receive (function, job) and send function(job), or its error as a string, until the connection is closed."""
    prepare(driver, cores)
    while True:
        try:
            function, job = connection.recv()
        except EOFError:
            return
        try:
            connection.send(function(job))
        except (Exception, SystemExit) as error:  # the outcome cannot be pickled, or the job has left Python
            connection.send(f"{type(error).__name__}: {first_line(error)}")


def prepare(driver: int, cores: list[int]) -> None:
    """Bind this process to its cores and to the CPU, and end it as soon as the driver is gone."""

    def leave_with_driver() -> None:
        while os.getppid() == driver:
            time.sleep(1)
        os._exit(1)

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    threading.Thread(target=leave_with_driver, daemon=True).start()
