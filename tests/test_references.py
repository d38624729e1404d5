"""Several posteriors in one program: the draws of one by one, each ended by its own verdict, compiled once a shape."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from test_reference import case

from isouq.posterior import (
    LogDensity,
    Sampling,
    Verdict,
    _sampling,
    fit_map,
    fit_maps,
    judge,
    map,
    probabilities,
    sample_reference,
    sample_references,
)

MEANS = np.float32([[0.0, 1.0], [5.0, -5.0], [-3.0, 0.5]])
SCALES = np.float32([[1.0, 2.0], [0.5, 3.0], [2.0, 2.0]])


def gaussian(mean, scale):
    return lambda params: -0.5 * jnp.sum(((params - mean) / scale) ** 2)


DENSITIES = [gaussian(*both) for both in zip(MEANS, SCALES, strict=True)]
MATRICES = list(SCALES**2)
INITS = [mean + np.linspace(-0.5, 0.5, 4, dtype=np.float32)[:, None] for mean in MEANS]
KEYS = jax.random.split(jax.random.key(0), 3)


def several(sampling, keys=KEYS, count=3, **options):
    return sample_references(DENSITIES[:count], INITS[:count], keys[:count], sampling=sampling, **options)


def test_one_at_a_time_is_the_default_on_a_cpu_and_sample_reference_to_the_bit():
    sampling = Sampling(20, 10, 5)
    one_by_one = [
        sample_reference(*row, sampling=sampling, inverse_mass_matrix=diagonal)
        for *row, diagonal in zip(DENSITIES, INITS, KEYS, MATRICES, strict=True)
    ]
    shares = []
    for references in (
        several(sampling, inverse_mass_matrices=MATRICES, progress=shares.append),
        several(sampling, inverse_mass_matrices=MATRICES, at_once=1),
    ):
        for got, want in zip(references, one_by_one, strict=True):
            np.testing.assert_array_equal(got.draws, want.draws)
            np.testing.assert_array_equal(got.step_size, want.step_size)
            assert got.cost == want.cost
    np.testing.assert_allclose(shares, np.concatenate([np.array([1 / 3, 1]) + done for done in range(3)]) / 3)


@pytest.mark.parametrize("sampler", ["hmc", "nuts"])
def test_short_chains_of_networks_are_those_of_one_by_one(sampler, x64):
    """Data, prior, record and mass matrix of each posterior reach its chains; the key, and so the lengths, is one."""
    cases = jax.tree.map(
        lambda a: a.astype(float) if jnp.issubdtype(a.dtype, jnp.floating) else a,
        [case("binary/xor", width=3, seed=seed, sigma=1.0 + seed) for seed in range(3)],
    )
    sampling, key = Sampling(8, 10, 3, sampler=sampler), jax.random.key(0)
    log_densities, fits, records = zip(*(made[1:] for made in cases), strict=True)
    matrices = [jax.tree.map(jnp.square, log_density.scales) for log_density in log_densities]
    inits = [fit.params for fit in fits]
    together = sample_references(
        log_densities, inits, [key] * 3, sampling=sampling, records=records, inverse_mass_matrices=matrices, at_once=3
    )
    for got, *row, record, matrix in zip(together, log_densities, inits, records, matrices, strict=True):
        want = sample_reference(*row, key, sampling=sampling, record=record, inverse_mass_matrix=matrix)
        np.testing.assert_allclose(got.predictions, want.predictions, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(got.step_size, want.step_size, rtol=1e-6)
        assert got.verdict == judge(got.predictions, got.divergent, probabilities(got.predictions, "binary"))
        assert got.cost == want.cost
        assert got.draws is None
    assert not np.allclose(together[0].predictions, together[1].predictions, rtol=0.1)


def test_long_chains_sample_each_posterior_right():
    got = several(Sampling(1000, 200, 8), inverse_mass_matrices=MATRICES, at_once=3)
    for reference, mean, scale in zip(got, MEANS, SCALES, strict=True):
        draws = np.asarray(reference.draws, float)
        assert draws.shape == (4, 1000, 2)
        for entry in range(2):
            centred = draws[..., entry] - mean[entry]
            for statistic, truth in ((centred, 0.0), (centred**2, scale[entry] ** 2)):
                size = float(array_stats.ess(statistic, chain_axis=0, draw_axis=1, method="mean"))
                assert abs(statistic.mean() - truth) < 4 * statistic.std() / np.sqrt(size)
        assert reference.divergent == 0
        assert 0.6 < reference.acceptance_rate.mean() < 0.97


def test_each_posterior_ends_at_its_own_verdict():
    sampling = Sampling(10, 10, 3, max_rounds=4)
    asked = [[], [], []]

    def accept_at(index, draws):
        def verdict(recorded, divergent):
            asked[index].append(recorded.shape[1])
            np.testing.assert_allclose(recorded.mean(axis=(0, 1)), MEANS[index], atol=8)  # its own draws
            return Verdict(recorded.shape[1] >= draws, 1.0, 500.0, divergent, 1.0)

        return verdict

    verdicts = [accept_at(0, 20), accept_at(1, 10), accept_at(2, 30)]
    got = several(sampling, verdicts=verdicts, at_once=3)
    assert asked == [[10, 20], [10], [10, 20, 30]]
    assert [reference.rounds for reference in got] == [2, 1, 3]
    every = several(sampling, verdicts=[False] * 3, at_once=3)
    for reference, longest in zip(got, every, strict=True):
        draws = 10 * reference.rounds
        assert longest.draws.shape[1] == 40
        np.testing.assert_array_equal(reference.draws, longest.draws[:, :draws])
        assert reference.verdict.accepted
        assert longest.verdict is None
        assert reference.cost.transitions == 4 * (10 + draws)
        assert reference.cost.gradient_evaluations < longest.cost.gradient_evaluations
    never = several(sampling, verdicts=[accept_at(0, 20), accept_at(1, 99), accept_at(2, 99)], at_once=3)
    assert [reference.rounds for reference in never] == [2, 4, 4]
    assert not never[1].verdict.accepted


def test_gives_up_where_the_ess_in_proportion_stays_below_half_of_what_is_asked():
    sampling = Sampling(10, 10, 3, max_rounds=8, give_up=True)

    def with_ess(ess, accepted_at=99):
        return lambda recorded, divergent: Verdict(recorded.shape[1] >= accepted_at, 1.2, ess, divergent, 1.0)

    # an ESS that stays at 51 is in proportion 204 of the 200 after two rounds, and 136 after three
    verdicts = [with_ess(49.0), with_ess(51.0), with_ess(51.0, accepted_at=20)]
    for at_once in (1, 3):
        got = several(sampling, verdicts=verdicts, at_once=at_once)
        assert [reference.rounds for reference in got] == [2, 3, 2]
        assert [reference.verdict.accepted for reference in got] == [False, False, True]
    patient = several(replace(sampling, give_up=False), verdicts=verdicts, at_once=3)
    assert [reference.rounds for reference in patient] == [8, 8, 2]
    np.testing.assert_array_equal(got[0].draws, patient[0].draws[:, :20])
    enough = several(sampling, verdicts=[with_ess(200.0), with_ess(float("nan")), with_ess(99.0)], at_once=3)
    assert [reference.rounds for reference in enough] == [8, 8, 4]


def test_compiles_once_for_a_shape_also_where_posteriors_do_not_fill_the_last_program():
    sampling = Sampling(20, 10, 3)
    several(sampling, count=2, at_once=2)
    compiled = [program._cache_size() for program in (_sampling._start, _sampling._run_block)]
    shares = []
    got = several(sampling, at_once=2, progress=shares.append)  # a program of two, and one of one and its copy
    several(sampling, keys=KEYS[::-1], at_once=2)
    assert [program._cache_size() for program in (_sampling._start, _sampling._run_block)] == compiled
    assert len(got) == 3
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    wider = sample_references(
        [gaussian(np.zeros(5, np.float32), np.ones(5, np.float32))] * 2,
        [np.zeros((4, 5), np.float32)] * 2, KEYS[:2], sampling=sampling, at_once=2,
    )  # fmt: skip
    assert wider[1].draws.shape == (4, 20, 5)
    assert [program._cache_size() for program in (_sampling._start, _sampling._run_block)] == [n + 1 for n in compiled]


def test_chains_of_several_posteriors_lie_on_all_devices_and_equal_those_of_one_device(monkeypatch):
    devices = []
    run_block = _sampling._run_block

    def spy(*args):
        result = run_block(*args)
        devices.append(len(result[0].hmc.logdensity.sharding.device_set))
        return result

    monkeypatch.setattr(_sampling, "_run_block", spy)
    halves = Sampling(10, 10, 3, chains_at_once=6)  # of 12 chains; the second posterior is on both devices
    many = several(halves, at_once=3)
    assert devices == [2, 2]
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    one = several(halves, at_once=3)
    assert devices == [2, 2] + [1] * 4
    together = several(Sampling(10, 10, 3), at_once=3)
    assert devices[6:] == [1, 1]
    for spread, alone, batch in zip(many, one, together, strict=True):
        np.testing.assert_array_equal(spread.draws, alone.draws)
        np.testing.assert_allclose(batch.draws, alone.draws, rtol=1e-3, atol=1e-3)


def nan_at_zero(scale):
    return lambda params: jnp.sum(jnp.where(params == 0, jnp.nan, -((params * scale) ** 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: sample_references([DENSITIES[0], jnp.sum], INITS[:2], KEYS[:2]),
            "posterior 1, counted from 0, has other shapes or computes something else than posterior 0; they cannot",
        ),
        (
            lambda: sample_references(DENSITIES[:2], [INITS[0], INITS[1][:3]], KEYS[:2]),
            "posterior 1, counted from 0, has other shapes",
        ),
        (
            lambda: fit_maps(DENSITIES[:2], [INITS[0], INITS[1][:3]]),
            "posterior 1, counted from 0, has other shapes",
        ),
        (lambda: several(Sampling(), keys=KEYS[:2]), "keys has 2 entries for 3 log densities; pass one for each"),
        (lambda: fit_maps(DENSITIES, INITS[:1]), "inits has 1 entries for 3 log densities; pass one for each"),
        (lambda: several(Sampling(), at_once=0), "at_once is 0; expected a whole number of at least 1"),
        (
            lambda: several(Sampling(chains_at_once=5), at_once=3),
            "chains_at_once is 5; expected a divisor of the 12 chains",
        ),
        (
            lambda: sample_references(
                [nan_at_zero(jnp.ones(2)), nan_at_zero(jnp.ones(2))],
                [np.ones((4, 2), np.float32), np.float32([[1, 1], [1, 1], [0, 1], [1, 1]])],
                KEYS[:2],
                at_once=2,
            ),
            r"posterior 1 of 2, counted from 0: the log density is not finite \(nan\) at the start of chain 2 of 4",
        ),
    ],
)
def test_posteriors_that_do_not_fit_together_are_named(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_no_posteriors_give_no_references():
    assert sample_references([], [], []) == []
    assert fit_maps([], []) == []


def test_maps_together_are_those_of_one_by_one():
    """The first log density has a saddle at zero, the second has none, so that only one posterior goes on from it."""

    def ridge(height, centre):
        return lambda params: -((params[0] ** 2 - height) ** 2) / 8 - (params[1] - centre) ** 2

    data = [np.float32([4, 1]), np.float32([-1, 2]), np.float32([9, 3])]
    log_densities = [ridge(*jnp.asarray(row)) for row in data]
    inits = [np.float32([[0, 5], [0.1, 0]])] * 3
    together = fit_maps(log_densities, inits, at_once=3, tolerance=1e-3)
    by_twos = fit_maps(log_densities, inits, at_once=2, tolerance=1e-3)
    for fits in (together, by_twos):
        for fit, start, log_density in zip(fits, inits, log_densities, strict=True):
            want = fit_map(log_density, start, tolerance=1e-3)
            np.testing.assert_allclose(np.abs(fit.params), np.abs(want.params), atol=2e-3)
            np.testing.assert_allclose(fit.log_density, want.log_density, atol=1e-4)
            np.testing.assert_array_equal(fit.num_escapes, want.num_escapes)
            np.testing.assert_array_equal(fit.converged, want.converged)
            assert (np.abs(np.asarray(fit.num_steps) - np.asarray(want.num_steps)) <= 2).all()
    assert [int(fit.num_escapes.sum()) for fit in together] == [1, 0, 1]
    assert all(fit.converged.all() for fit in together)


def test_maps_are_compiled_once_for_a_shape_and_have_scales_of_their_own():
    _, log_density, fit, _ = case("binary/xor", width=3)
    other = case("binary/xor", width=3, seed=1, sigma=2.0)[1]
    inits = [jax.tree.map(lambda leaf: 0.9 * leaf, fit.params)] * 2
    fits = fit_maps([log_density, other], inits, at_once=2)
    compiled = map._fit_several._cache_size()
    fit_maps([other, log_density], inits, at_once=2, max_steps=50)
    assert map._fit_several._cache_size() == compiled
    for got, density in zip(fits, (log_density, other), strict=True):
        assert isinstance(density, LogDensity)
        want = fit_map(density, inits[0])
        np.testing.assert_allclose(got.log_density.max(), want.log_density.max(), atol=0.05)
        assert got.converged.all()
    scaled = fit_maps(DENSITIES, INITS, scales=list(SCALES), at_once=3, tolerance=1e-4)
    for got, mean in zip(scaled, MEANS, strict=True):
        np.testing.assert_allclose(got.best(), mean, atol=1e-3)
