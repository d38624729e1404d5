"""One cell after the other in this process, each on all its devices."""

from collections.abc import Iterator
from contextlib import contextmanager

from experiments.run.executors import Run, Settings
from experiments.run.store import Store
from experiments.run.work import Report, work


@contextmanager
def opened(settings: Settings, widest: int, store: Store, report: Report) -> Iterator[Run]:
    """See `executors.opened`; cells that another run is at are waited for."""
    yield lambda cells: work(cells, store, wait=True, report=report)
