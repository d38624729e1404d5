"""Cells that end as their names say, for the tests of workers, which import them from here."""

import errno
import os
import sys
import time
from dataclasses import dataclass, replace

import numpy as np

from experiments.run.job import Result


@dataclass(frozen=True)
class Toy:
    """fatal: kills its process. once: the first time. sick: fails. slow: takes a second. Else it ends well.

    astray: asks for a file that is not there. quitter: exits.
    cores: tells those of its threads.
    """

    name: str
    seed: int = 0
    study: str = "reference"

    def reference(self):
        return replace(self, study="reference")

    def key(self):
        return f"{self.name}{self.seed}{self.study}".replace(".", "")

    def label(self):
        return f"{self.name} {self.seed}"

    def weight(self):
        return 1.0

    def run(self, progress, store):
        if self.name == "slow":
            for share in np.arange(0, 1, 0.05):
                progress(float(share))
                time.sleep(0.05)
        if self.name == "sick":
            raise ValueError("feels unwell\ntoday")
        if self.name == "quitter":
            sys.exit("enough")
        if self.name == "astray":
            raise FileNotFoundError(errno.ENOENT, "No such file", "/weights.bin")
        mark = store.folder / f"{self.key()}.been"
        if self.name == "fatal" or (self.name == "once" and not mark.exists()):
            mark.touch()
            os._exit(1)
        cores = {}
        if self.name == "cores":
            threads = (os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task"))
            cores = {"cores": sorted({*map(tuple, threads)})}
        return Result({"name": self.name, "seed": self.seed, "seconds": 0.1} | cores, {"x": np.arange(3.0)})
