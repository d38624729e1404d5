"""The configuration of a posterior and of what is computed of it: everything that a result depends on."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np

from isouq import _checks
from isouq.posterior import PRIORS
from isouq.posterior._sampling import SAMPLERS


@dataclass(frozen=True)
class Configuration:
    """A problem, a model, its prior, how its posterior is sampled, and the study: what is computed of that posterior.

    num_draws: draws of a chain in a round; rounds end when the reference is accepted, or after `max_rounds`.
    width: units of the one hidden layer; None is the problem's own model. resolution: points of the evaluation grid
    along an axis; None is the problem's own grid.
    """

    problem: str
    seed: int = 0
    width: int | None = None
    prior: str = "unit"
    sigma: float = 1.0
    num_points: int = 200
    chains: int = 4
    num_warmup: int = 200
    num_draws: int = 250
    max_rounds: int = 8
    thin: int = 1
    num_leapfrog: int = 20
    sampler: str = "hmc"
    resolution: int | None = None
    study: str = "agreement"

    def __post_init__(self) -> None:
        _checks.positive_int("seed", self.seed, 0)
        if self.resolution is not None:
            _checks.positive_int("resolution", self.resolution, 2)
        _checks.one_of("prior", self.prior, PRIORS)
        _checks.one_of("sampler", self.sampler, SAMPLERS)
        _checks.positive("sigma", self.sigma)
        if self.width is not None:
            _checks.positive_int("width", self.width)
        _checks.positive_int("chains", self.chains, 2)
        _checks.positive_int("num_warmup", self.num_warmup, 10)
        _checks.positive_int("num_draws", self.num_draws, 4)
        for name in ("num_points", "thin", "num_leapfrog", "max_rounds"):
            _checks.positive_int(name, getattr(self, name))
        for field in dataclasses.fields(self):  # equal cells have one key: 1, 1.0 and np.int64(1) are written alike
            value = getattr(self, field.name)
            if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
                object.__setattr__(self, field.name, float(value) if field.name == "sigma" else int(value))

    def reference(self) -> Self:
        """Return the configuration that trains and samples for this one."""
        return dataclasses.replace(self, study="reference")

    def label(self) -> str:
        """Return how progress and errors name the configuration."""
        width = "" if self.width is None else f", width {self.width}"
        return f"{self.problem}{width}, {self.prior} σ={self.sigma:g}, seed {self.seed}, {self.study}"
