"""Workers on this machine's CPU cores, which are divided between them. They stay for all lists of a run."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from experiments.run import _spawned
from experiments.run.errors import RunError
from experiments.run.executors import Run, Settings, _crew, local
from experiments.run.job import AnyCell
from experiments.run.store import Store
from experiments.run.work import Report


@contextmanager
def opened(settings: Settings, widest: int, store: Store, report: Report) -> Iterator[Run]:
    """See `executors.opened`. By default one worker a core; a single one is this process itself."""
    count = min(settings.workers or len(_cores()), widest)
    if count < 2:
        with local.opened(settings, widest, store, report) as run:
            yield run
        return
    crew = Processes(count, store.folder)
    try:
        yield lambda cells: _crew.watch(crew, cells, store, report)
    finally:
        crew.stop()


class _Worker(NamedTuple):
    process: Any
    connection: Connection
    cores: list[int]


class Processes:
    """See `_crew.Crew`."""

    alone = True  # what killed one, too little memory as a rule, would kill others beside it
    why = "what they said stands above; if nothing does, memory was short as a rule (fewer --workers)"

    def __init__(self, count: int, folder: Path) -> None:
        self.count, self.folder = count, folder
        self._shares = [_cores()[i::count] or _cores() for i in range(count)]
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []

    def start(self, cells: Sequence[AnyCell], count: int, lost: bool) -> None:
        """See `_crew.Crew`."""
        for _ in range(count):
            worker = self._idle.pop() if self._idle else self._new()
            with suppress(OSError):  # dead already: it will be missed
                worker.connection.send((list(cells), lost))
            self._busy.append(worker)

    def working(self) -> int:
        """See `_crew.Crew`."""
        for worker in list(self._busy):
            try:
                if not worker.connection.poll():
                    continue
                problem = worker.connection.recv()
            except (EOFError, OSError):  # it died
                self._busy.remove(worker)
                self._dismiss(worker)
                continue
            self._busy.remove(worker)
            self._idle.append(worker)
            if problem is not None:
                raise RunError(problem)
        for worker in [worker for worker in self._idle if not worker.process.is_alive()]:
            self._idle.remove(worker)
            self._dismiss(worker)
        return len(self._busy)

    def stop(self) -> None:
        """See `_crew.Crew`."""
        for worker in (*self._idle, *self._busy):
            self._dismiss(worker)
        self._idle, self._busy = [], []

    def _new(self) -> _Worker:
        ours, theirs = get_context("spawn").Pipe()
        taken = [worker.cores for worker in (*self._idle, *self._busy)]
        cores = next((share for share in self._shares if share not in taken), self._shares[0])
        arguments = (theirs, self.folder, os.getpid(), cores)
        process = get_context("spawn").Process(target=_spawned.live, args=arguments, daemon=True)
        # workers start with Ctrl-C blocked: it is the driver's to handle
        resource_tracker.ensure_running()  # as it starts it lifts the block
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return _Worker(process, ours, cores)

    def _dismiss(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()


def _cores() -> list[int]:
    """The cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
