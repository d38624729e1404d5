"""`python -m experiments status --out DIR`: what is done, running, failed and waiting, and the time left.

Reads names, locks and the log; opens no result, writes nothing and imports no JAX. It may be asked at any time, from
any machine that sees the folder.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from experiments.run import clock, ledger, locks
from experiments.run.plan import Plan, Planned
from experiments.run.plan import read as read_plans


class State(NamedTuple):
    """The cells of a plan: done, running (with who is at it), failed (with the reason), waiting. left: seconds."""

    done: list[Planned]
    running: list[tuple[Planned, locks.Holder]]
    failed: list[tuple[Planned, str]]
    waiting: list[Planned]
    left: float


def state(plan: Plan, folder: Path, names: ledger.Names, measured: dict[str, tuple[float, float]]) -> State:
    """folder: of the cells, `names` in it. measured: of finished cells, `(seconds, weight)` by key."""
    found = State([], [], [], [], 0.0)
    for cell in plan.cells:
        holder = locks.holder(folder / f"{cell.key}.lock") if cell.key in names.claimed else None
        if cell.key in names.finished:
            found.done.append(cell)
        elif holder is not None:
            found.running.append((cell, holder))
        elif cell.key in names.failed:
            found.failed.append((cell, ledger.failure(folder, cell.key) or ""))
        else:
            found.waiting.append(cell)
    rest = sum(cell.weight for cell in found.waiting)
    rest += sum(cell.weight * (1 - holder.share) for cell, holder in found.running)
    known = [measured[cell.key] for cell in found.done if cell.key in measured]
    pace = sum(seconds for seconds, _ in known) / max(1e-9, sum(weight for _, weight in known)) if known else 1.0
    return found._replace(left=rest * pace / max(1, len(found.running)))


def told(plan: Plan, found: State) -> Iterator[str]:
    """In lines: one of numbers, then the running and the failed cells."""
    counts = [(len(found.running), "running"), (len(found.failed), "failed"), (len(found.waiting), "waiting")]
    parts = [f"{len(found.done)} of {len(plan.cells)} cells done", *(f"{n} {what}" for n, what in counts if n)]
    if found.running:
        parts.append(f"about {clock.words(found.left)} left")
    elif found.waiting or found.failed:
        parts.append(f"nothing runs; to go on: {plan.command}")
    yield f"{plan.name}, preset {plan.preset}: {', '.join(parts)}"
    for cell, holder in found.running:
        since = clock.words(max(0.0, time.time() - holder.started))
        share = f", {holder.share:.0%}" if holder.share else ""
        yield f"  running: {cell.label}{share}, for {since}, process {holder.pid} on {holder.host}"
    for cell, reason in found.failed:
        yield f"  failed: {cell.label}: {reason}"


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status: 1 if the folder has no plan."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments status", description="What is done, running, failed and waiting, and the time left."
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    out = parser.parse_args(arguments).out
    folder = out / "cells"
    try:
        plans = list(read_plans(out))
        if not plans:
            raise ValueError(f"{out} holds no plan: no run was started there (give the --out of the run)")
        names = ledger.scan(folder)
        measured = ledger.measured(folder)
        for plan in plans:
            print("\n".join(told(plan, state(plan, folder, names, measured))))
    except (ValueError, OSError) as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    return 0
