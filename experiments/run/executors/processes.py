"""A pool of processes on this machine's CPU cores, which are divided between them."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from experiments.run._prepare import prepare
from experiments.run.executors import local
from experiments.run.executors._attempts import run_with_attempts
from experiments.run.executors.settings import Settings
from experiments.run.job import Job, Outcome
from isouq._errors import first_line


@contextmanager
def start(
    settings: Settings, widest: int, function: Callable[..., Outcome], out: Path, report: Callable[..., None]
) -> Iterator[Any]:
    """Return an executor that runs the jobs in worker processes; see `executors.start`.

    The default is one worker for each core. If there is only one worker, it is this process itself.
    """
    count = min(settings.workers or len(usable_cores()), widest)
    if count < 2:
        with local.start(settings, widest, function, out, report) as run:
            yield run
        return
    pools = Pools(count)
    try:
        yield partial(run_with_attempts, partial(pools.run, function, report))
    finally:
        pools.kill()


class Pools:
    """Pools of one process each, so that the death of one tells which job it was at and leaves the others alone."""

    def __init__(self, count: int) -> None:
        cores = usable_cores()
        self.shares = [cores[i::count] or cores for i in range(count)]
        self._others = set(multiprocessing.active_children())  # children of this process that are no workers
        self._pools = [self._new(share) for share in self.shares]

    def kill(self) -> None:
        """End all workers at once, whatever they are at."""
        for process in set(multiprocessing.active_children()) - self._others:
            process.kill()
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)

    def run(
        self, function: Callable[..., Outcome], report: Callable[..., None], jobs: Sequence[Job], alone: bool
    ) -> Iterator[tuple[Job, Outcome | None]]:
        """Yield each job with its outcome, as they end; None if its worker died.

        alone: one job at a time, for what has killed a worker: as a rule memory was short.
        """
        waiting, idle = deque(jobs), [0] if alone else list(range(len(self._pools)))
        running: dict[Future[Outcome], tuple[int, Job]] = {}
        while waiting or running:
            while waiting and idle:
                number, job = idle.pop(), waiting.popleft()
                running[self._submit(number, function, job)] = (number, job)
                report(job, 0.0)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                number, job = running.pop(future)
                idle.append(number)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    self._renew(number)
                    yield job, None
                except (Exception, SystemExit) as error:  # the outcome cannot be sent, or the job has left Python
                    yield job, Outcome(error=f"{type(error).__name__}: {first_line(error)}")

    def _submit(self, number: int, function: Callable[..., Outcome], job: Job) -> Future[Outcome]:
        """Submit a job to a pool, which starts its process if it has none; a broken pool is replaced first."""
        # workers start with Ctrl-C blocked: it is the driver's to handle
        resource_tracker.ensure_running()  # as it starts it lifts the block
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            try:
                return self._pools[number].submit(function, job)
            except BrokenProcessPool:  # its process was killed between two jobs
                self._renew(number)
                return self._pools[number].submit(function, job)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _renew(self, number: int) -> None:
        self._pools[number].shutdown(cancel_futures=True)
        self._pools[number] = self._new(self.shares[number])

    def _new(self, share: list[int]) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=prepare, initargs=(os.getpid(), share))


def usable_cores() -> list[int]:
    """Return the cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
