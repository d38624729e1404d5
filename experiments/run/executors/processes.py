"""Worker processes on this machine's CPU cores, which are divided between them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from experiments.run._serve import serve
from experiments.run.errors import RunError
from experiments.run.executors import local
from experiments.run.executors._attempts import run_with_attempts
from experiments.run.executors._order import Queue
from experiments.run.executors.settings import Settings
from experiments.run.job import Job, Outcome
from isouq._errors import first_line

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    workers = Workers(count)
    try:
        yield partial(run_with_attempts, partial(workers.run, function, report))
    finally:
        workers.kill()


class Workers:
    """Processes with a connection each, so that the death of one shows which job it ran and does not affect the others.

    The driver closes its copy of the worker's end of a connection. A worker that dies therefore closes the connection,
    even while it sends an outcome. A pool of the standard library would wait for the rest of the outcome for ever.
    """

    def __init__(self, count: int) -> None:
        cores = usable_cores()
        self.shares = [cores[i::count] or cores for i in range(count)]
        self._started: dict[int, tuple[BaseProcess, Connection]] = {}
        self._programs: dict[int, str] = {}

    def kill(self) -> None:
        """End all workers at once, also those that run a job."""
        for process, _ in self._started.values():  # before the first wait, which a second Ctrl-C may interrupt
            process.kill()
        for number in list(self._started):
            self._kill(number)

    def run(
        self, function: Callable[..., Outcome], report: Callable[..., None], jobs: Sequence[Job], alone: bool
    ) -> Iterator[tuple[Job, Outcome | None]]:
        """Yield each job with its outcome as it ends; the outcome is None if the worker died.

        alone: run one job at a time, as for jobs that have killed a worker, which mostly lacked memory.
        """
        queue, idle = Queue(jobs), [0] if alone else list(range(len(self.shares)))
        running: dict[Connection, tuple[int, Job]] = {}
        while queue or running:
            while queue and idle:
                number = idle.pop()
                last = self._programs.pop(number, None)
                job = queue.pop(last, self._programs.values())
                self._programs[number] = job.program()
                running[self._send(number, function, job)] = (number, job)
                report(job, 0.0)
            ready = wait(list(running))
            for connection in [connection for connection in running if connection in ready]:
                number, job = running.pop(connection)
                idle.append(number)
                try:
                    message = connection.recv_bytes()
                except (EOFError, OSError):
                    self._kill(number)
                    yield job, None
                else:
                    yield job, _read(message)

    def _send(self, number: int, function: Callable[..., Outcome], job: Job) -> Connection:
        """Send a job to a worker and return its connection; the worker is started if it does not run."""
        message = ForkingPickler.dumps((function, job))
        if number in self._started and not self._started[number][0].is_alive():  # it was killed between two jobs
            self._kill(number)
        if number not in self._started:
            self._start(number)
        connection = self._started[number][1]
        with suppress(OSError):  # it has died since; `run` sees that in place of an answer
            connection.send_bytes(message)
        return connection

    def _start(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        with _delayed_signals():
            try:
                connection, worker_end = context.Pipe()
                process = context.Process(target=serve, args=(worker_end, os.getpid(), self.shares[number]))
                resource_tracker.ensure_running()  # its start would lift the block of the next line
                before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the driver alone handles Ctrl-C
                try:
                    process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, before)
            except OSError as error:
                raise RunError(
                    f"cannot start a worker process: {error.strerror or error}; finished jobs are kept, "
                    "give the same command with fewer --workers"
                ) from error
            worker_end.close()
            self._started[number] = (process, connection)

    def _kill(self, number: int) -> None:
        process, connection = self._started.pop(number)
        self._programs.pop(number, None)
        process.kill()
        process.join()
        connection.close()


@contextmanager
def _delayed_signals() -> Iterator[None]:
    """Delay the signals that end a run until the context is left.

    A worker whose start is interrupted lacks its arguments, and prints a traceback.
    """
    handlers: dict[int, Any] = {number: signal.getsignal(number) for number in ENDING}
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread alone
        handlers = {}
    handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    arrived: list[int] = []
    try:
        for number in handlers:
            signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def _read(message: bytes) -> Outcome:
    """Return the outcome that a worker sent, or the error that it sent as a string."""
    try:
        outcome = ForkingPickler.loads(message)
    except Exception as error:
        return Outcome(error=f"its result cannot be unpickled: {type(error).__name__}: {first_line(error)}")
    return Outcome(error=outcome) if isinstance(outcome, str) else outcome


def usable_cores() -> list[int]:
    """Return the cores that this process may use, by number."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
