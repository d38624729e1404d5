"""A cell: the frozen configuration that a result depends on."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from experiments.run.job import Result
from isouq import _checks
from isouq.posterior import PRIORS
from isouq.posterior._sampling import SAMPLERS

# What is done with a cell, and a version that is part of every key: raise it when a change to the
# code changes the numbers. "reference" trains and samples; every other study reads what it kept.
STUDIES = {
    "reference": 2,  # 2: keys by chain and transition
    "agreement": 1,
    "second_opinion": 1,
    "covariance": 1,
    "decomposition": 1,
    "spectrum": 1,
}


@dataclass(frozen=True)
class Cell:
    """Everything a result depends on. `width` None is the problem's own model."""

    problem: str
    seed: int = 0
    width: int | None = None
    prior: str = "unit"
    sigma: float = 1.0
    num_points: int = 200
    chains: int = 4
    num_warmup: int = 500
    num_draws: int = 500
    thin: int = 1
    num_leapfrog: int = 50
    sampler: str = "hmc"
    resolution: int | None = None
    study: str = "agreement"

    def __post_init__(self) -> None:
        _checks.positive_int("seed", self.seed, 0)
        if self.resolution is not None:
            _checks.positive_int("resolution", self.resolution, 2)
        _checks.one_of("prior", self.prior, PRIORS)
        _checks.one_of("sampler", self.sampler, SAMPLERS)
        _checks.one_of("study", self.study, STUDIES)
        _checks.positive("sigma", self.sigma)
        if self.width is not None:
            _checks.positive_int("width", self.width)
        _checks.positive_int("chains", self.chains, 2)
        _checks.positive_int("num_warmup", self.num_warmup, 10)
        _checks.positive_int("num_draws", self.num_draws, 4)
        for name in ("num_points", "thin", "num_leapfrog"):
            _checks.positive_int(name, getattr(self, name))
        for field in dataclasses.fields(self):  # equal cells have one key: 1, 1.0 and np.int64(1) are written alike
            value = getattr(self, field.name)
            if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value) if field.name == "sigma" else int(value))

    def reference(self) -> "Cell":
        """The cell that trains and samples for this one."""
        return dataclasses.replace(self, study="reference")

    def key(self) -> str:
        """A hash of the configuration and of the versions of the code that computes it."""
        versions = [STUDIES["reference"], STUDIES[self.study]]
        text = json.dumps({**dataclasses.asdict(self), "versions": versions}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def label(self) -> str:
        """How progress and errors name the cell."""
        width = "" if self.width is None else f", width {self.width}"
        return f"{self.problem}{width}, {self.prior} σ={self.sigma:g}, seed {self.seed}, {self.study}"

    def weight(self) -> float:
        """Expected seconds with two cores at work, from measured cells: for the estimate of the time left."""
        width = 32 if self.width is None else self.width
        if self.study == "second_opinion":
            return 30.0
        if self.study != "reference":
            cubic = 5e-7 * min(width, 650) ** 3  # eigenvalues, up to the limit of the dense studies; matching of units
            return {"agreement": 2.0, "covariance": 15.0, "decomposition": 3.0, "spectrum": 3.0}[self.study] + cubic
        gradients = self.chains * (self.num_warmup + self.num_draws * self.thin) * self.num_leapfrog
        judging = 2.2e-3 * self.chains * self.num_draws
        return (4 + gradients * (3e-5 + 7.5e-7 * width) + judging) / 2

    def needs(self) -> "Cell | None":
        """Return the reference that the cell reads; None for a reference."""
        return None if self.study == "reference" else self.reference()

    def run(
        self,
        needed: Result | None = None,
        checkpoint: Path | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> Result:
        """Compute the result; see `study.run_cell`."""
        module = import_module("experiments.synthetic.study")
        return module.run_cell(self, reference=needed, checkpoint=checkpoint, progress=progress)
