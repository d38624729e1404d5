"""Jobs that end as their names say, for the tests of workers, which import them from here.

`python tests/doomed.py OUT EXECUTOR WORKERS NAME` is a driver that runs eight of them, as `python -m experiments` does.
"""

import errno
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from experiments.run.errors import RunError
from experiments.run.executors.settings import Settings
from experiments.run.job import Result
from experiments.run.loop import run_jobs


@dataclass(frozen=True)
class Toy:
    """A job that does as its name says; with any other name it ends well.

    fatal kills its process, once does so the first time. sick fails. slow takes half a second. large has a megabyte.
    astray asks for a file that is not there. quitter leaves Python. cores tells the cores of its threads. shell and
    fork start a child that outlives them and kill their process the first time.
    jit compiles a program of its own.
    sealed cannot be unpickled, and the result of gift neither.
    `study` is "reference" for a job that needs no other, and anything else for one that needs that.
    """

    name: str
    seed: int = 0
    study: str = "reference"

    def needs(self):
        return None if self.study == "reference" else replace(self, study="reference")

    def key(self):
        return f"{self.name}{self.seed}{self.study}".replace(".", "")

    def label(self):
        return f"{self.name} {self.seed}"

    def weight(self):
        return 1.0

    def program(self):
        return self.name

    def __reduce__(self):
        return (fail_to_unpickle, ()) if self.name == "sealed" else (Toy, (self.name, self.seed, self.study))

    def run(self, needed, checkpoint, progress):
        with open(checkpoint.with_name(f"{self.key()}.starts"), "a") as starts:
            starts.write(f"{os.getpid()}\n")
        if self.name == "slow":
            for share in np.arange(0, 1, 0.1):
                if progress is not None:
                    progress(float(share))
                time.sleep(0.05)
        if self.name == "sick":
            raise ValueError("feels unwell\ntoday")
        if self.name == "quitter":
            sys.exit("enough")
        if self.name == "astray":
            raise FileNotFoundError(errno.ENOENT, "No such file", "/weights.bin")
        if self.name == "fatal" or (self.name == "once" and starts_of(checkpoint.parent, self) == 1):
            os._exit(1)
        if self.name in ("shell", "fork") and starts_of(checkpoint.parent, self) == 1:
            start_child(self.name, checkpoint.with_name("child"))
            os.kill(os.getpid(), signal.SIGKILL)
        numbers = {"name": self.name, "seed": self.seed, "seconds": 0.1}
        if self.name == "jit":
            numbers["sum"] = float(jax.jit(lambda x: (x + self.seed).sum())(np.ones(3)))
        if self.name == "cores":
            threads = (os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task"))
            numbers["cores"] = sorted({*map(tuple, threads)})
        if needed is not None:
            numbers["read"] = needed.numbers
        if self.name == "gift":
            numbers["inside"] = Toy("sealed")
        size = 2**17 if self.name == "large" else 3
        return Result(numbers, {"x": np.random.default_rng(self.seed).normal(size=size)})


def fail_to_unpickle():
    raise RuntimeError("cannot be unpickled")


def start_child(how, path):
    """Start a process that sleeps for a minute, and write its number."""
    if how == "shell":
        os.system(f"sleep 60 >/dev/null 2>&1 & echo $! >{path}")
        return
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    path.write_text(str(child))


def starts_of(folder, job):
    """Return how often the job was started in any process."""
    path = folder / f"{job.key()}.starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def main():
    """Run four jobs, and the four that they need, and print how it ended."""
    out, executor, workers, name = sys.argv[1:]
    jobs = [Toy(name, seed, "after") for seed in range(4)]
    try:
        run_jobs(jobs, Path(out), Settings(executor, int(workers)), Console(stderr=True, soft_wrap=True))
    except RunError as error:
        sys.exit(f"experiments: {error}")


if __name__ == "__main__":
    main()
