"""What any worker does, wherever it runs: goes through a list of cells and computes those that nobody else has."""

import errno
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.run.errors import RunError
from experiments.run.job import AnyCell
from experiments.run.store import Store

MAX_DEATHS = 3  # workers that one cell may cost, without a new checkpoint in between, before it counts as failed
PATIENCE = 0.5  # seconds between two looks at what other processes are at
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)  # what writing may say


class Outcome(NamedTuple):
    """A cell that ended. error: why it failed, in one line; None if its result is stored."""

    cell: AnyCell
    error: str | None = None


Report = Callable[[AnyCell, float], None]  # (cell, share done)


def work(
    cells: Sequence[AnyCell], store: Store, *, lost: bool = True, wait: bool = False, report: Report | None = None
) -> Iterator[Outcome]:
    """The cells that this process has ended, as they end; those that others ended or are at are passed over.

    lost: whether to take cells at which a worker has died. wait: stays until all have ended, whoever computes them, and
    yields every one.
    """
    left = list(cells)
    while left:
        undone, moved = [], False
        for cell in left:
            done, reason = store.ended(cell)
            if done:
                if wait:
                    yield Outcome(cell, reason)
                continue
            outcome = _attempt(cell, store, lost, report)
            if outcome is None:
                undone.append(cell)
            else:
                moved = True
                yield outcome
        left = undone
        if left and not moved:
            if not wait:
                return
            time.sleep(PATIENCE)


def _attempt(cell: AnyCell, store: Store, lost: bool, report: Report | None) -> Outcome | None:
    """None if another process is at the cell, or it is a lost one and those are not wanted."""
    try:
        claim = store.claim(cell)
        if claim is None:
            return None
        with claim:
            done, reason = store.ended(cell)  # in the meantime
            if done:
                return Outcome(cell, reason)
            if claim.holder.deaths and not lost:
                claim.leave()
                return None
            if claim.holder.deaths >= MAX_DEATHS:
                reason = f"its worker died {claim.holder.deaths} times (killed, or out of memory)"
                store.fail(cell, reason)
                return Outcome(cell, reason)

            def progress(share: float) -> None:
                claim.note(share)
                if report is not None:
                    report(cell, min(share, 0.99))  # 1 is reported once the result is stored

            try:
                store.computed(cell, lambda: cell.run(progress, store))
            except (Exception, SystemExit) as error:  # a failed cell must not stop the others
                if isinstance(error, OSError) and _of_store(error, store):
                    raise
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                reason = f"{type(error).__name__}: {first}"
                store.fail(cell, reason, error)
                return Outcome(cell, reason)
            return Outcome(cell)
    except OSError as error:
        raise RunError(
            f"cannot store results in {store.folder}: {error.strerror or error}; finished cells are kept, "
            "make room and give the same command again"
        ) from error


def _of_store(error: OSError, store: Store) -> bool:
    """Whether the folder of results is at fault, and so every cell; else a file or a host that this cell asked for."""
    named = isinstance(error.filename, (str, os.PathLike)) and store.folder in Path(error.filename).parents
    return named or error.errno in NO_ROOM
