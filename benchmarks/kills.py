"""Kills at random moments: does a sweep that is killed again and again end as one that was not?

Command: python -m benchmarks.kills            (2 CPU cores, about 20 minutes)
The sweep is `python -m experiments scaling --preset smoke --seeds 4`: 24 jobs and the 24 references that they need. It
is run once in peace. Then it is run in fresh folders, by `processes` and by `ray` on two local nodes, and at a random
moment one of these gets kill -9: the driver, the driver with its process group, a worker, or (ray) a node with all that
runs there. A killed driver is started again at once, while its workers may still be dying; a killed node is replaced.
After every sweep:

- all numbers and arrays of all jobs, and table.csv, are byte for byte those of the peaceful run, timing aside;
- the files of every job that was finished at a kill are still the same files: none was computed again;
- nothing is left over: no temporary file, no checkpoint, no failure.

Written to benchmarks/results/kills.csv (a row a kill) and kills.md.
"""

import argparse
import csv
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.provenance import in_words, provenance

ROOT = Path(__file__).parents[1]
SWEEP = ("scaling", "--preset", "smoke", "--seeds", "4")
TARGETS = {"processes": ("driver", "group", "worker"), "ray": ("driver", "worker", "node")}
WORKERS = ("--multiprocessing-fork", "ray::_call")  # how the command line of a worker shows it
SHARE = 0.2  # share of the kills that go to the last of several executors


class Kill(NamedTuple):
    """A kill at a `second` after the start of the driver, with the numbers of finished jobs and of running workers."""

    executor: str
    sweep: int
    target: str
    second: float
    finished: int
    running: int


class Files(NamedTuple):
    """The inode and the time of writing of a file, which tell it from a later file of the same name."""

    inode: int
    written: int


def start(out: Path, extra: list[str], cache: Path) -> subprocess.Popen:
    """Start a driver; all drivers share one cache of compiled programs."""
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "MPLBACKEND": "Agg"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "experiments", *SWEEP, "--out", str(out), *extra]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)


def files(folder: Path) -> dict[str, Files]:
    """Return the files of all finished jobs, by name."""
    listed = {}
    for path in folder.glob("*.json"):
        for file in (path, path.with_suffix(".npz")):
            facts = file.stat()
            listed[file.name] = Files(facts.st_ino, facts.st_mtime_ns)
    return listed


def workers() -> list[int]:
    """Return the workers, by number: descendants of this process, which starts the drivers and the Ray nodes."""
    parents, commands = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended in between
            commands[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])

    def is_descendant(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    return [number for number in parents if any(mark in commands[number] for mark in WORKERS) and is_descendant(number)]


def untimed(path: Path) -> str:
    """Return a table without its columns of seconds."""
    rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"))))
    columns = [i for i, name in enumerate(rows[0]) if not name.startswith("seconds")]
    return "\n".join(",".join(row[i] for i in columns) for row in rows)


def content(out: Path) -> dict[str, Any]:
    """Return all that a sweep has computed: the table, and every job's numbers and bytes, timing aside."""
    contents: dict[str, Any] = {"table": untimed(out / "scaling" / "table.csv")}
    for path in sorted((out / "cells").glob("*.json")):
        numbers = json.loads(path.read_text(encoding="utf-8"))
        plain = {name: value for name, value in numbers.items() if not name.startswith(("seconds", "_"))}
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            arrays = {name: (values.dtype.str, values.shape, values.tobytes()) for name, values in stored.items()}
        contents[path.stem] = (json.dumps(plain, sort_keys=True), arrays)
    return contents


def check(out: Path, peaceful: dict[str, Any], finished: dict[str, Files]) -> None:
    """Raise an AssertionError unless a sweep has ended as the peaceful one, without computing a finished job again."""
    contents = content(out)
    assert contents.keys() == peaceful.keys(), "other jobs"
    for name, value in peaceful.items():
        assert contents[name] == value, f"{name} differs"
    now = files(out / "cells")
    assert all(now[name] == file for name, file in finished.items()), "a finished job was computed again"
    suffixes = {path.name.partition(".")[2] for path in (out / "cells").iterdir()} - {"json", "npz"}
    assert not suffixes, f"left over: {suffixes}"


@contextmanager
def cluster(executor: str) -> Any:
    """Start two Ray nodes of one core for Ray; yield the arguments of a driver and a function that kills a node."""
    if executor != "ray":
        yield ["--executor", executor, "--workers", "2"], None
        return
    from ray.cluster_utils import Cluster

    os.environ["PYTHONPATH"] = str(ROOT)
    ray_cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [ray_cluster.add_node(num_cpus=1)]

    def kill_node() -> None:
        ray_cluster.remove_node(nodes.pop(), allow_graceful=False)
        nodes.append(ray_cluster.add_node(num_cpus=1))

    try:
        yield ["--executor", "ray", "--address", ray_cluster.address], kill_node
    finally:
        ray_cluster.shutdown()


def sweep(out: Path, number: int, executor: str, most: int, longest: float, dice: random.Random, cache: Path,
          peaceful: dict[str, Any]) -> list[Kill]:  # fmt: skip
    """Run one sweep to its end with at most `most` kills on the way, check it, and return the kills."""
    kills: list[Kill] = []
    finished: dict[str, Files] = {}
    with cluster(executor) as (extra, kill_node):
        driver = start(out, extra, cache)
        began, moment = time.monotonic(), dice.uniform(0, longest)
        while driver.poll() is None or driver.returncode != 0:
            if driver.poll() is not None:
                text = out.with_suffix(".log").read_text(errors="replace")
                unlucky = "its worker died" in text  # the same job was hit three times
                assert driver.returncode == -signal.SIGKILL or unlucky, f"status {driver.returncode}: {text[-2000:]}"
                driver = start(out, extra, cache)
                began, moment = time.monotonic(), dice.uniform(0, longest)
            if len(kills) < most and time.monotonic() - began >= moment:
                at = workers()
                target = dice.choice([target for target in TARGETS[executor] if target != "worker" or at])
                before = files(out / "cells")
                kills.append(
                    Kill(executor, number, target, round(time.monotonic() - began, 2), len(before) // 2, len(at))
                )
                finished |= before
                if target in ("driver", "group"):
                    (os.kill if target == "driver" else os.killpg)(driver.pid, signal.SIGKILL)
                    driver.wait()
                elif target == "worker":
                    with suppress(ProcessLookupError):  # it has ended by itself
                        os.kill(dice.choice(at), signal.SIGKILL)
                else:
                    kill_node()
                moment = time.monotonic() - began + dice.uniform(0, longest)
                print(f"kill {kills[-1]}", flush=True)
            time.sleep(0.02)
    check(out, peaceful, finished)
    return kills


def main(arguments: list[str] | None = None) -> int:
    """Run all sweeps; return the exit status, 1 if the sweep without kills fails."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kills", description="Kills at random moments.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the targets")
    parser.add_argument("--executors", default="processes,ray", help="the last gets a fifth of the kills, if several")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    dice, kills, started = random.Random(options.seed), [], time.monotonic()
    names = options.executors.split(",")
    with tempfile.TemporaryDirectory() as folder:
        base, cache = Path(folder), Path(folder) / "programs"
        seconds: list[float] = []
        for _ in range(2):  # the first compiles
            out = base / f"peace{len(seconds)}"
            began = time.monotonic()
            driver = start(out, ["--executor", "processes", "--workers", "2"], cache)
            if driver.wait():
                print(out.with_suffix(".log").read_text(errors="replace"), file=sys.stderr)
                return 1
            seconds.append(time.monotonic() - began)
        peaceful = content(base / "peace0")
        assert peaceful == content(base / "peace1"), "two peaceful runs differ"
        jobs = len(peaceful) - 1
        print(f"{jobs} jobs, {seconds[1]:.0f} s in peace", flush=True)
        number = 0
        for name in names:
            share = SHARE if len(names) > 1 and name == names[-1] else 1 - SHARE if len(names) > 1 else 1.0
            remaining = round(options.kills * share)
            while remaining > 0:
                number += 1
                new = sweep(base / f"{name}{number}", number, name, remaining, seconds[1] / 2, dice, cache, peaceful)
                kills += new
                remaining -= len(new)
    _write(options.out, kills, jobs, number, seconds[1], time.monotonic() - started, arguments)
    return 0


def _write(
    out: Path, kills: list[Kill], jobs: int, sweeps: int, peace: float, total: float, arguments: list[str]
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "kills.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Kill._fields)
        writer.writerows(kills)
    lines = [
        "# Kills at random moments", "",
        in_words(provenance(arguments)).replace("-m benchmarks", "-m benchmarks.kills"), "",
        f"The sweep: `python -m experiments {' '.join(SWEEP)}`, {jobs} jobs, {peace:.0f} s in peace. {len(kills)} "
        f"kills in {sweeps} sweeps, {total / 60:.0f} minutes. After every sweep all numbers, arrays and the table were "
        "byte for byte those of the peaceful run (timing aside), no job was computed again once finished, and nothing "
        "was left over.",
        "", "| executor | killed | times | workers alive |", "| --- | --- | --- | --- |",
    ]  # fmt: skip
    for executor, targets in TARGETS.items():
        for target in targets:
            hits = [kill for kill in kills if (kill.executor, kill.target) == (executor, target)]
            if hits:
                lines.append(f"| {executor} | {target} | {len(hits)} | {sum(kill.running for kill in hits)} |")
    (out / "kills.md").write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
