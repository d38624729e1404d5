"""Results with every column that the stages of the synthetic experiments read."""

import dataclasses

import numpy as np

from experiments.run.job import Result
from experiments.synthetic.numbers.validation import PAPER


def fake(cell, accepted=True, value=0.5, **more):
    """A result with every column that a summary reads."""
    names = [f"{e}_{s}{r}" for e in PAPER for s in ("pearson", "spearman") for r in ("", "_data", "_wide")]
    verdict = {
        "accepted": accepted,
        "rhat": 1.001 if accepted else 1.2,
        "ess_bulk": 900.0,
        "divergent": 0.0,
        "halves": 0.99,
    }
    numbers = {
        **dataclasses.asdict(cell), **verdict, "accepted_wide": accepted, **dict.fromkeys(names, value),
        "num_params": 9, "map_grad_norm": 0.01, "map_converged": True,
        "map_log_density": -20.0, "map_spread": 0.5, "map_escapes": 0, "rounds": 2,
        "step_size": 0.1, "acceptance": 0.8, "gradient_evaluations": 1000, "seconds": 1.0,
    }  # fmt: skip
    line = np.linspace(-1, 1, 3, dtype=np.float32)
    grid = np.stack([a.ravel() for a in np.meshgrid(line, line)], axis=-1)
    fields = ("reference", "epistemic", "aleatoric_reference", "aleatoric", "mean", "probability")
    arrays = {"grid": grid, "xs": grid, "ys": np.arange(9) % 2, **dict.fromkeys(fields, np.arange(9.0))}
    return Result({**numbers, **more}, arrays)
