"""A crew of workers that share a folder: what an executor has to give, and how its work is followed."""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from experiments.run import ledger, locks
from experiments.run.errors import RunError
from experiments.run.job import AnyCell
from experiments.run.store import Store
from experiments.run.work import Outcome, Report, work

POLL = 0.1  # seconds between two looks at the folder, at least; 20 times as long as a look takes
SPARE = 6  # workers that may be lost for nothing, beside two for each that there is room for


class Crew(Protocol):
    """alone: cells at which a worker died are run last, one at a time. why: for the user, why workers ended."""

    alone: bool
    why: str

    @property
    def count(self) -> int:
        """Workers that there is room for."""
        ...

    def start(self, cells: Sequence[AnyCell], count: int, lost: bool) -> None:
        """Sends `count` more workers through the cells (`go_through`); those that are idle already, or new ones."""
        ...

    def working(self) -> int:
        """How many are at it. RunError if one could not store its results."""
        ...

    def stop(self) -> None:
        """Ends all workers at once, whatever they are at."""
        ...


def go_through(cells: Sequence[AnyCell], store: Store, lost: bool, first: int = 0) -> None:
    """What a worker does: `work`, from the cell number `first` on and around."""
    for _ in work([*cells[first:], *cells[:first]], store, lost=lost):
        pass


def watch(crew: Crew, cells: Sequence[AnyCell], store: Store, report: Report) -> Iterator[Outcome]:
    """Has the crew run the cells, and yields them as they end, by whomever.

    A worker that dies is replaced as long as there is something to do. Its cell is taken up by another from the last
    checkpoint (if `alone`, at the end and by itself); after `work.MAX_DEATHS` it counts as failed.
    RunError if workers are lost one after the other and none gets to a cell that no other was at.
    """
    left = {cell.key(): cell for cell in cells}
    reached: set[str] = set()
    started = 0  # workers, since something ended or a cell was reached for the first time
    while left:
        working = crew.working()  # before the look: what the last one stored is seen
        began = time.monotonic()
        names = ledger.scan(store.folder)
        for key in [key for key in left if key in names.finished or key in names.failed]:
            done, reason = store.ended(left[key])
            if done:  # else another run has just forgotten the failure, to try again
                yield Outcome(left.pop(key), reason)
                started = 0
        if not left:
            return
        held = {key: locks.holder(store.folder / f"{key}.lock") for key in left if key in names.claimed}
        if held.keys() - reached:
            reached |= held.keys()
            started = 0
        running = {key: holder for key, holder in held.items() if holder is not None}
        for key, holder in running.items():
            report(left[key], min(holder.share, 0.99))
        fresh = [cell for key, cell in left.items() if key not in held]
        lost = [cell for key, cell in left.items() if key in held and key not in running]
        able = fresh if crew.alone and (fresh or working) else fresh + lost
        room = 1 if crew.alone and not fresh else crew.count
        missing = min(room, len(running) + len(able)) - working
        if able and missing > 0 and started < 2 * crew.count + SPARE:
            crew.start(able, missing, lost=not crew.alone or not fresh)
            started += missing
        elif able and not working:
            raise RunError(
                f"{started} workers ended and no cell did: {crew.why}; the same command goes on from what is finished"
            )
        time.sleep(min(30.0, max(POLL, 20 * (time.monotonic() - began))))
