"""The reference against a second sampler: NumPyro's NUTS on the same model."""

import numpy as np

from experiments.clock import Clock
from experiments.run.job import Result
from experiments.synthetic.measure.agreement import compare_maps, seconds
from experiments.synthetic.subject import Subject
from isouq.posterior import Margins, probabilities, sample_numpyro


def measure(subject: Subject) -> Result:
    """Sample by NUTS from the same starts, and return how its epistemic map agrees with the reference's.

    NUTS draws four rounds, whatever the reference took, and has twice its warm-up, in which it adapts masses too.

    numpyro_pearson, numpyro_spearman: of the two maps over the grid. numpyro_scale: the ratio of their means, reference
    to NUTS. numpyro_accepted: the verdict on the draws of NUTS.
    """
    clock = Clock()
    setting, kind, grid, cell = subject.setting, subject.kind, subject.grid, subject.cell
    nuts = sample_numpyro(
        setting.log_density, subject.starts, setting.second_key,
        record=Margins(setting.predict, subject.xs[grid], subject.target, kind),
        num_draws=4 * cell.num_draws, num_warmup=2 * cell.num_warmup,
    )  # fmt: skip
    variance = probabilities(nuts.predictions, kind).var(axis=(0, 1))
    clock.lap("seconds_numpyro")
    numbers = {
        **subject.facts(),
        **compare_maps("numpyro", variance, subject.variance[grid]),
        "numpyro_accepted": nuts.verdict is not None and nuts.verdict.accepted,
    }
    arrays = {"grid": np.asarray(subject.xs[grid]), "numpyro": variance, "reference": subject.variance[grid]}
    return Result({**numbers, **seconds(subject, clock)}, arrays)
