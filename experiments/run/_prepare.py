"""What a worker process does before anything else.

Nothing is imported here that imports JAX or NumPy: they divide their threads over the cores of the moment at which they
are imported, and then it is too late to choose the cores.
"""

import os
import threading
import time


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
