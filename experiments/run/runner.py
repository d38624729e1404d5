"""Runs a list of cells and keeps what is finished, with any executor."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.run import executors, ledger
from experiments.run.errors import RunError
from experiments.run.job import AnyCell, Result
from experiments.run.plan import Plan, Planned
from experiments.run.plan import write as write_plan
from experiments.run.progress import reporter
from experiments.run.store import Store


def run_cells(
    cells: Sequence[AnyCell], out: Path, how: executors.Settings, console: Console, plan: Plan | None = None
) -> list[Result]:
    """The results of all cells, in order; finished ones are read, the others are run and stored.

    References come first, each sampled once however many cells read it. A cell that fails does not
    stop the others; RunError lists the failures at the end. Several runs may share a folder: none computes
    what another has computed or is at.

    plan: name, preset and command, for `status`; its cells are put in here.
    """
    store = Store(out / "cells")
    store.folder.mkdir(parents=True, exist_ok=True)
    store.sweep()
    wanted = list(dict.fromkeys(cells))
    found = {cell: store.load(cell) for cell in wanted}
    todo = [cell for cell, result in found.items() if result is None]
    references = _references(wanted, todo, store)
    if plan is not None:
        listed = dict.fromkeys([*references, *wanted])
        write_plan(out, plan._replace(cells=[Planned(c.key(), c.label(), c.weight()) for c in listed]))
    if len(todo) < len(found):
        done = len(found) - len(todo)
        console.print(f"{done} of {len(found)} cells are finished already: read from {store.folder}", markup=False)
    errors = _run_all(todo, store, how, console) if todo else {}
    failures = [f"{cell.label()}: {errors[cell]}" for cell in todo if cell in errors]
    if failures:
        lines = "\n  ".join(failures)
        raise RunError(
            f"{len(failures)} of {len(found)} cells failed; the same command runs only them again:\n  {lines}"
        )
    return [found[cell] or _must_load(store, cell) for cell in cells]


def _references(wanted: list[AnyCell], todo: list[AnyCell], store: Store) -> list[AnyCell]:
    """Those of the plan: that are needed, or are there already."""
    finished = ledger.scan(store.folder).finished
    needed = {cell.reference() for cell in todo}
    return [one for one in dict.fromkeys(c.reference() for c in wanted) if one in needed or one.key() in finished]


def _run_all(todo: list[AnyCell], store: Store, how: executors.Settings, console: Console) -> dict[AnyCell, str]:
    """Runs and stores the cells, those that sample first; returns the errors of those that failed."""
    missing = dict.fromkeys(cell.reference() for cell in todo if not store.holds(cell.reference()))
    references = list(dict.fromkeys([*missing, *(cell for cell in todo if cell.study == "reference")]))
    studies = [cell for cell in todo if cell.study != "reference"]
    store.retry([*references, *studies])
    widest = max(len(references), len(studies))
    errors: dict[AnyCell, str] = {}
    with reporter([*references, *studies], console) as report, executors.opened(how, widest, store, report) as run:
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
    store.sweep()
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
