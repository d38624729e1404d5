"""Jobs that end as their names say, for the tests of workers, which import them from here."""

import errno
import os
import sys
import time
from dataclasses import dataclass, replace

import numpy as np

from experiments.run.job import Result


@dataclass(frozen=True)
class Toy:
    """A job of a name: fatal kills its process, once does so the first time, sick fails, slow takes a second.

    astray asks for a file that is not there. quitter leaves Python. cores tells the cores of its threads. Any other
    ends well. `study` is "reference" for a job that needs no other, anything else for one that needs it.
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

    def run(self, needed, checkpoint, progress):
        with open(checkpoint.with_name(f"{self.key()}.starts"), "a") as starts:
            starts.write(f"{os.getpid()}\n")
        if self.name == "slow":
            for share in np.arange(0, 1, 0.05):
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
        numbers = {"name": self.name, "seed": self.seed, "seconds": 0.1}
        if self.name == "cores":
            threads = (os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task"))
            numbers["cores"] = sorted({*map(tuple, threads)})
        if needed is not None:
            numbers["read"] = needed.numbers
        return Result(numbers, {"x": np.arange(3.0)})


def starts_of(folder, job):
    """Return how often the job was started in any process."""
    path = folder / f"{job.key()}.starts"
    return len(path.read_text().splitlines()) if path.exists() else 0
