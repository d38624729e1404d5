"""Posteriors that were not sampled: draws around arbitrary parameters, and the variance that these draws have."""

import jax
import numpy as np
import twins

from experiments.run.job import Result
from experiments.synthetic.subject import FACTS, set_up, subject
from isouq import problems

VERDICT = {"accepted": True, "rhat": 1.001, "ess_bulk": 900.0, "divergent": 0.0, "halves": 0.99}


def shifted(params, count, size):
    """Parameters `[count, P]` around given ones, at a distance that depends on nothing else."""
    noise = np.random.default_rng(count).normal(size=(count, twins.flat(params).size))
    return (twins.flat(params) + size * noise).astype(np.float32)


def made_up(cell, problem=None, count=12):
    """A subject whose θ* is random, with `count` draws of each chain."""
    problem = problem or problems.get(cell.problem)
    start = set_up(cell, problem)
    first = jax.tree.map(lambda leaf: 1.5 * np.asarray(leaf), start.init(jax.random.key(11)))
    rows = shifted(first, cell.chains * count, 0.5)
    numbers = {"best": 0, **dict.fromkeys(FACTS, 1), **VERDICT}
    theta = shifted(first, 1, 0.3)
    arrays = {"starts": theta, "draws": rows.reshape(cell.chains, count, -1), "variance": np.ones(1)}
    one = subject(cell, problem, Result(numbers, arrays))
    p = np.array([twins.classes(twins.outputs(twins.shaped(row, first), one.xs), problem.kind) for row in rows])
    target = np.zeros(len(one.xs), int) if one.estimate.target is None else np.asarray(one.estimate.target)
    return one._replace(variance=np.take_along_axis(p.var(axis=0), target[:, None], axis=1)[:, 0])
