"""Two samplers, two libraries, one map: NumPyro's NUTS against our HMC."""

import jax
import numpy as np
import pytest

from isouq import models, problems, stats
from isouq._uncertainty import uncertainty
from isouq.posterior import LogDensity, Margins, Sampling, fit_map, probabilities, sample_numpyro, sample_reference


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
def test_numpyro_and_hmc_give_the_same_map():
    data = problems.get("binary/linear").sample(jax.random.key(0), 100)
    predict, init = models.mlp(2, (), 1)
    inits = jax.vmap(init)(jax.random.split(jax.random.key(1), 4))
    one = jax.tree.map(lambda leaf: leaf[0], inits)
    log_density = LogDensity.of(predict, one, data.xs, data.ys, "binary")
    fit = fit_map(log_density, inits)
    grid = problems.evaluation_inputs(data.xs, 15)
    target = uncertainty(predict, fit.best(), grid, "binary").target
    options = {"record": Margins(predict, grid, target, "binary")}
    ours = sample_reference(log_density, fit.params, jax.random.key(2), sampling=Sampling(1000, 200, 30), **options)
    theirs = sample_numpyro(log_density, fit.params, jax.random.key(3), num_draws=1000, num_warmup=200, **options)
    assert ours.predictions.shape == theirs.predictions.shape == (4, 1000, 225)
    p = [probabilities(reference.predictions, "binary") for reference in (ours, theirs)]
    maps = [draws.var(axis=(0, 1)) for draws in p]
    assert stats.spearman(*maps) >= 0.95
    assert abs(maps[0].mean() / maps[1].mean() - 1) <= 0.1
    np.testing.assert_allclose(p[0].mean(axis=(0, 1)), p[1].mean(axis=(0, 1)), atol=0.05)
    assert theirs.divergent < 0.01
    assert theirs.cost.transitions == ours.cost.transitions == 4 * 1200
    assert theirs.cost.gradient_evaluations > 4 * 1000
