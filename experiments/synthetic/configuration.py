"""The configuration of a posterior and of what is computed of it: everything that a result depends on."""

import dataclasses
from dataclasses import dataclass
from typing import Self

import numpy as np

from isouq import _checks
from isouq.models import ACTIVATIONS
from isouq.posterior import PRIORS
from isouq.posterior._sampling import SAMPLERS


@dataclass(frozen=True)
class Configuration:
    """A problem, a model, its prior, how its posterior is sampled, and the study: what is computed of that posterior.

    num_draws: draws of a chain in a round; rounds end when the reference is accepted, or after `max_rounds`.
    give_up: whether rounds also end when `max_rounds` will hardly suffice; see `isouq.posterior.Sampling`.
    width, depth: units of a hidden layer, and the number of such layers; width None is the problem's own model.
    activation: that between the layers, by its name in `isouq.models.ACTIVATIONS`. resolution: points of the evaluation
    grid along an axis; None is the problem's own grid.
    """

    problem: str
    seed: int = 0
    width: int | None = None
    prior: str = "unit"
    sigma: float = 1.0
    depth: int = 1
    activation: str = "tanh"
    num_points: int = 200
    chains: int = 4
    num_warmup: int = 200
    num_draws: int = 250
    max_rounds: int = 8
    give_up: bool = False
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
        _checks.one_of("activation", self.activation, ACTIVATIONS)
        _checks.positive_int("depth", self.depth)
        if self.width is not None:
            _checks.positive_int("width", self.width)
        elif self.depth != 1:
            raise ValueError(f"depth is {self.depth}; expected 1 without a width, because a depth belongs to a width")
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
        model = describe_model(self.width, self.depth, self.activation, self.num_points)
        return f"{self.problem}{model}, {self.prior} σ={self.sigma:g}, seed {self.seed}, {self.study}"


def describe_model(width: int | None, depth: int, activation: str, num_points: int = Configuration.num_points) -> str:
    """Return how network and data differ from the problem's own, as ", width 8, depth 2, relu, n = 1000"."""
    parts = [] if width is None else [f"width {width}"]
    parts += [f"depth {depth}"] if depth != 1 else []
    parts += [activation] if activation != "tanh" else []
    parts += [f"n = {num_points}"] if num_points != Configuration.num_points else []
    return "".join(f", {part}" for part in parts)
