"""Runs a list of cells, keeps what is finished, shows progress, and writes what an experiment made."""

import csv
import io
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

import isouq
from experiments.cell import AnyCell, Result, Store

EXECUTORS = ("local", "processes")


class RunError(Exception):
    """A run that cannot go on, or ended with failed cells; the message is for the user."""


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with a file or a model that a run was given, as a RunError of one line."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise RunError((str(error).strip() or type(error).__name__).splitlines()[0]) from error


@dataclass(frozen=True)
class Outputs:
    """What an experiment hands back: one row a cell or question, a Markdown summary, named figures, further files."""

    rows: list[dict[str, Any]]
    summary: str
    figures: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    def noting(self, note: str) -> "Outputs":
        """The same with a sentence under the summary's title."""
        title, rest = self.summary.split("\n", 1)
        return replace(self, summary=f"{title}\n\n{note}\n{rest}")


def run_cells(cells: Sequence[AnyCell], out: Path, executor: str, console: Console) -> list[Result]:
    """The results of all cells, in order; finished ones are read, the others are run and stored.

    References come first, each sampled once however many cells read it. A cell that fails does not
    stop the others; RunError lists the failures at the end.
    """
    store = Store(out / "cells")
    store.folder.mkdir(parents=True, exist_ok=True)
    found = {cell: store.load(cell) for cell in dict.fromkeys(cells)}
    todo = [cell for cell, result in found.items() if result is None]
    if len(todo) < len(found):
        done = len(found) - len(todo)
        console.print(f"{done} of {len(found)} cells are finished already: read from {store.folder}", markup=False)
    errors = _run_all(todo, store, executor, console) if todo else {}
    failures = [f"{cell.label()}: {errors[cell]}" for cell in todo if cell in errors]
    if failures:
        listed = "\n  ".join(failures)
        raise RunError(
            f"{len(failures)} of {len(found)} cells failed; the same command runs only them again:\n  {listed}"
        )
    return [found[cell] or _must_load(store, cell) for cell in cells]


def _run_all(todo: list[AnyCell], store: Store, executor: str, console: Console) -> dict[AnyCell, str]:
    """Runs and stores the cells, those that sample first; returns the errors of those that failed."""
    missing = dict.fromkeys(cell.reference() for cell in todo if not store.holds(cell.reference()))
    references = list(dict.fromkeys([*missing, *(cell for cell in todo if cell.study == "reference")]))
    studies = [cell for cell in todo if cell.study != "reference"]
    widest = max(len(references), len(studies))
    errors: dict[AnyCell, str] = {}
    with _reporter([*references, *studies], console) as report, _executor(executor, widest, store, report) as run:
        for wave in (references, studies):
            ready = []
            for cell in wave:
                if cell.reference() in errors:
                    errors[cell] = f"its reference failed: {errors[cell.reference()]}"
                    report(cell, 1.0, errors[cell])
                else:
                    ready.append(cell)
            for cell, error in run(ready):
                if error is not None:
                    errors[cell] = error
                report(cell, 1.0, error)
    return errors


def finished_cells(cells: Sequence[AnyCell], out: Path) -> dict[AnyCell, Result]:
    """The stored results alone, nothing run."""
    store = Store(out / "cells")
    found = {cell: store.load(cell) for cell in cells}
    return {cell: result for cell, result in found.items() if result is not None}


def _must_load(store: Store, cell: AnyCell) -> Result:
    result = store.load(cell)
    if result is None:
        raise RunError(f"the stored result of {cell.label()} cannot be read back from {store.folder}; run again")
    return result


Report = Callable[..., None]  # (cell, share done, error=None)


Outcomes = Iterator[tuple[AnyCell, str | None]]  # (cell, error)


@contextmanager
def _executor(name: str, widest: int, store: Store, report: Report) -> Iterator[Callable[[list[AnyCell]], Outcomes]]:
    """What runs a list of cells: one after the other here, or in worker processes."""
    if name != "processes" or widest < 2:
        yield lambda cells: _one_by_one(cells, store, report)
        return
    workers = _Workers(min(os.cpu_count() or 1, widest), store)
    try:
        yield workers.run
    except BaseException:
        workers.kill()
        raise
    finally:
        workers.pool.shutdown(wait=True, cancel_futures=True)


def _one_by_one(cells: list[AnyCell], store: Store, report: Report) -> Outcomes:
    for cell in cells:

        def progress(share: float, cell: AnyCell = cell) -> None:
            report(cell, min(share, 0.99))  # 1 is reported once the result is stored

        yield cell, _run_and_store(cell, store.folder, progress)


class _Workers:
    """One single-threaded worker a core. A pool that lost a worker is of no use and is replaced."""

    def __init__(self, count: int, store: Store) -> None:
        self.count, self.store = count, store
        self.pool = self._start()

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self.count, get_context("spawn"), _start_worker, (os.getpid(),))

    def run(self, cells: list[AnyCell]) -> Outcomes:
        """Runs the cells. When a worker dies, the cells it may have been at come last, and alone."""
        waiting, suspects = list(cells), []
        while waiting:
            lost = yield from self._round(waiting)
            suspects += lost[: self.count]  # cells are started in order, so the fatal one is among the first
            waiting = lost[self.count :]
        for cell in suspects:
            if (yield from self._round([cell])):
                yield cell, "a worker process died (killed, or out of memory)"

    def _round(self, cells: list[AnyCell]) -> Generator[tuple[AnyCell, str | None], None, list[AnyCell]]:
        """Yields what ended; returns what was lost because a worker died."""
        futures = self._submit(cells)
        ended = set()
        for future in as_completed(futures):
            try:
                error = future.result()
            except BrokenProcessPool:
                continue
            ended.add(futures[future])
            yield futures[future], error
        lost = [cell for cell in cells if cell not in ended]
        if lost:
            self.kill()  # a worker that was starting as the pool broke would be waited for without end
            self.pool.shutdown(wait=True)
            self.pool = self._start()
        return lost

    def _submit(self, cells: list[AnyCell]) -> dict[Future, AnyCell]:
        """The started cells; not all of them when a worker has died already."""
        futures = {}
        # workers start with Ctrl-C blocked: it is the driver's to handle
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for cell in cells:
                futures[self.pool.submit(_run_and_store, cell, self.store.folder)] = cell
        except BrokenProcessPool:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return futures

    def kill(self) -> None:
        """Ends the workers at once, whatever they are at."""
        for process in list((self.pool._processes or {}).values()):
            process.kill()


def _start_worker(parent: int) -> None:
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"

    def leave_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _run_and_store(cell: AnyCell, folder: Path, progress: Callable[[float], None] | None = None) -> str | None:
    """Runs and stores one cell; returns None, or the error in one line. A full disk stops the run."""
    store = Store(folder)
    try:
        store.save(cell, cell.run(progress, store))
    except OSError as error:  # of the store: a cell computes and touches no other file
        raise RunError(
            f"cannot store results in {folder}: {error.strerror or error}; finished cells are kept, "
            "make room and give the same command again"
        ) from error
    except Exception as error:  # a failed cell must not stop the others
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return f"{type(error).__name__}: {first}"
    return None


@contextmanager
def _reporter(cells: list[AnyCell], console: Console) -> Iterator[Report]:
    """A live bar on a terminal, one line a finished cell elsewhere; both with the time left."""
    weights = {cell: cell.weight() for cell in cells}
    shares = dict.fromkeys(cells, 0.0)
    total, started, finished = sum(weights.values()), time.monotonic(), 0

    def left() -> str:
        done = sum(weights[cell] * share for cell, share in shares.items())
        if done <= 0:
            return "time left unknown"
        return f"about {_clock((time.monotonic() - started) * (total - done) / done)} left"

    if not console.is_terminal:
        console.print(f"{len(cells)} cells to run, about {_clock(total)} on two CPU cores")

        def report(cell: AnyCell, share: float, error: str | None = None) -> None:
            nonlocal finished
            shares[cell] = share
            if share == 1.0:
                finished += 1
                state = "failed: " + error if error else "done"
                console.print(f"[{finished}/{len(cells)}] {cell.label()}: {state}, {left()}", markup=False)

        yield report
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"0/{len(cells)} cells", total=total, left="")

        def report_live(cell: AnyCell, share: float, error: str | None = None) -> None:
            nonlocal finished
            shares[cell] = share
            if share == 1.0:
                finished += 1
                if error:
                    console.print(f"{cell.label()} failed: {error}", markup=False)
            done = sum(weights[cell] * share for cell, share in shares.items())
            bar.update(task, completed=done, left=left(), description=f"{finished}/{len(cells)} cells, {cell.label()}")

        yield report_live


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def writable(out: Path) -> None:
    """Raises RunError unless files can be made in `out`: before the long part, not after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunError(f"cannot write to {out}: {error.strerror or error}; choose another folder with --out") from error


def write_outputs(outputs: Outputs, folder: Path, provenance: dict[str, Any]) -> list[Path]:
    """Writes table.csv, summary.md, further files, figures as PNG and PDF, and provenance.json; returns the paths."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "table.csv", folder / "summary.md"]
    _write(paths[0], table_csv(outputs.rows))
    _write(paths[1], outputs.summary)
    for name, text in outputs.files.items():
        paths.append(folder / name)
        _write(paths[-1], text)
    for name, figure in outputs.figures.items():
        for suffix, extra in (("png", {"metadata": {"Software": None}}), ("pdf", {"metadata": {"CreationDate": None}})):
            paths.append(folder / f"{name}.{suffix}")
            figure.savefig(paths[-1], dpi=150, **extra)
        plt.close(figure)
    paths.append(folder / "provenance.json")
    _write(paths[-1], json.dumps(provenance, indent=1) + "\n")
    return paths


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def table_csv(rows: list[dict[str, Any]]) -> str:
    """All rows under the union of their columns, timing columns last; empty where a row has none."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names.sort(key=is_timing)  # stable: the order is kept within both groups
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return buffer.getvalue()


def is_timing(column: str) -> bool:
    """True for the columns that differ from run to run."""
    return column.startswith("seconds")


def provenance(name: str, preset: str, command: str, started: float) -> dict[str, Any]:
    """Versions, device, commit, command and time of a run."""
    packages = ("jax", "jaxlib", "flax", "optax", "blackjax", "numpyro", "numpy", "scipy")
    return {
        "experiment": name,
        "preset": preset,
        "command": command,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {"isouq": isouq.__version__} | {package: _version(package) for package in packages},
        "platform": platform.platform(),
        "devices": [str(device) for device in jax.devices()],
        "cpu_count": os.cpu_count(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds_this_run": round(time.monotonic() - started, 1),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def console() -> Console:
    """Progress goes to standard error, so that standard output holds the paths alone."""
    return Console(file=sys.stderr, soft_wrap=True, highlight=False, emoji=False)
