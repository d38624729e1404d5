"""`python -m experiments status --out DIR`: what is done, failed and waiting, who is at work, and the time left.

Reads the names in the folder, the plans, and the driver's lock and progress file; opens no result, writes nothing and
imports no JAX. It may be asked at any time, from any machine that sees the folder.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.run import lock
from experiments.run.plan import Plan, read_plans

FILE = "progress.json"  # in the folder of the run; written by its driver


def duration(seconds: float) -> str:
    """Return a duration in seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_lines(plan: Plan, folder: Path, names: set[str], is_running: bool) -> Iterator[str]:
    """Yield the numbers of finished, failed and waiting jobs of a plan, then a line for each failed job.

    folder: where the results lie; names: of its files.
    """
    failed = [job for job in plan.jobs if f"{job.key}.failed" in names and f"{job.key}.json" not in names]
    done = sum(f"{job.key}.json" in names for job in plan.jobs)
    waiting = len(plan.jobs) - done - len(failed)
    parts = [f"{done} of {len(plan.jobs)} jobs done"]
    parts += [f"{count} {state}" for count, state in ((len(failed), "failed"), (waiting, "to do")) if count]
    if not is_running and (failed or waiting):
        parts.append(f"nothing runs; to go on: {plan.command}")
    yield f"{plan.name}, preset {plan.preset}: {', '.join(parts)}"
    for job in failed:
        yield f"  failed: {job.label}: {_failure(folder / f'{job.key}.failed')}"


def driver_lines(holder: lock.Holder, progress: dict[str, Any]) -> Iterator[str]:
    """Yield who is at work and the time left, then a line for each job under way that the driver knows of."""
    left, now = progress.get("left"), time.time()
    rest = "" if left is None else f", about {duration(max(0.0, left - (now - progress['written'])))} left"
    yield f"process {holder.process} on {holder.host} is at work for {duration(now - holder.started)}{rest}"
    for label, started in progress.get("running", []):
        yield f"  running: {label}, for {duration(now - started)}"


def _failure(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "the record of its failure cannot be read"


def _progress(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # the driver has not come so far
        return {}


def main(arguments: list[str]) -> int:
    """Run the command line; return the exit status: 1 if the folder has no plan."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments status",
        description="What is done, failed and waiting, who is at work, and the time left.",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder of the run")
    out = parser.parse_args(arguments).out
    folder = out / "cells"
    try:
        plans = list(read_plans(out))
        if not plans:
            raise ValueError(f"{out} holds no plan: no run was started there (give the --out of the run)")
        names = set(os.listdir(folder)) if folder.is_dir() else set()
        holder = lock.holder(out)
        lines = [line for plan in plans for line in plan_lines(plan, folder, names, holder is not None)]
        lines += [] if holder is None else driver_lines(holder, _progress(out / FILE))
        print("\n".join(lines))
    except (ValueError, OSError) as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 1
    return 0
