"""The verdict against BlackJAX's own diagnostics, and against references that must be refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from arviz_stats.base import array_stats
from blackjax.diagnostics import ess_bulk, rhat

from isouq.posterior import judge
from isouq.posterior._diagnostics import rhat_and_ess_bulk
from isouq.posterior.verdict import MIN_ESS


def autoregressive(chains=4, draws=300, points=30, phi=0.3, seed=0):
    """Stationary AR(1) draws whose spread differs from point to point, so that a map exists."""
    rng = np.random.default_rng(seed)
    x = np.zeros((chains, draws, points))
    x[:, 0] = rng.normal(size=(chains, points))
    for t in range(1, draws):
        x[:, t] = phi * x[:, t - 1] + np.sqrt(1 - phi**2) * rng.normal(size=(chains, points))
    return (x * np.linspace(1, 10, points)).astype(np.float32)


@pytest.mark.parametrize(("phi", "points"), [(0.0, 20), (0.9, 257)])
def test_numbers_are_the_quantiles_of_another_librarys_diagnostics(phi, points):
    x = autoregressive(phi=phi, points=points)
    verdict = judge(x, 0.0)
    with jax.numpy_rank_promotion("allow"):
        rhats, sizes = np.asarray(rhat(jnp.asarray(x))), np.asarray(ess_bulk(jnp.asarray(x)))
    slack = 1 / points  # rounding may carry one input over the bound
    assert np.mean(rhats <= verdict.rhat + 1e-5) >= 0.95 - slack
    assert np.mean(rhats < verdict.rhat - 1e-5) <= 0.95
    assert np.mean(sizes >= verdict.ess_bulk * 0.999) >= 0.95 - slack
    assert np.mean(sizes > verdict.ess_bulk * 1.001) <= 0.95


@pytest.mark.parametrize(("level", "spread"), [(0.0, 1e-24), (1e7, 3.0)])
def test_maps_whose_squares_or_means_are_no_float32(level, spread):
    x = (level + spread * autoregressive()).astype(np.float32)
    assert judge(x, 0.0).halves == judge(x.astype(np.float64), 0.0).halves > 0.95


def test_good_chains_are_accepted():
    verdict = judge(autoregressive(), 0.0)
    assert verdict.accepted
    assert str(verdict) == "accepted"
    assert verdict.reasons() == []


def test_a_shifted_chain_is_refused():
    x = autoregressive()
    x[0] += 5 * x.std(axis=(0, 1))
    verdict = judge(x, 0.0)
    assert not verdict.accepted
    assert "R-hat" in str(verdict)


def test_a_chain_of_another_width_is_refused():
    x = autoregressive(draws=1000)
    x[0] *= 4  # same mean, other spread: only the folded R-hat sees it
    assert judge(x, 0.0).rhat > 1.01


def test_few_effective_draws_are_refused():
    verdict = judge(autoregressive(draws=60), 0.0)
    assert verdict.ess_bulk < MIN_ESS
    assert "bulk ESS" in str(verdict)


@pytest.mark.parametrize(("share", "accepted"), [(0.0009, True), (0.001, False), (0.2, False)])
def test_divergences(share, accepted):
    assert judge(autoregressive(), share).accepted is accepted


def test_halves_that_disagree_are_refused():
    x = autoregressive(draws=1000)
    maps = x.copy()
    maps[2:] = maps[2:, :, ::-1]
    verdict = judge(x, 0.0, maps)
    assert not verdict.accepted
    assert verdict.reasons() == [f"half-chain Spearman {verdict.halves:.3f} < 0.95"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_a_number_is_never_accepted(bad):
    x = autoregressive()
    x[1, 5] = bad
    verdict = judge(x, 0.0)
    assert not verdict.accepted
    assert verdict.rhat == np.inf
    assert verdict.ess_bulk == 0


def test_constant_predictions_are_not_accepted():
    assert not judge(np.ones((4, 500, 3), np.float32), 0.0).accepted


def arviz(x):
    """ArviZ's rank-normalised split R-hat and bulk ESS of each point."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rhats = array_stats.rhat(x.astype(float), chain_axis=0, draw_axis=1, method="rank")
        return rhats, array_stats.ess(x.astype(float), chain_axis=0, draw_axis=1, method="bulk")


def with_rejections(x, share, seed=0):
    """Chains that repeat a draw where a proposal is rejected, as those of HMC do."""
    rejected = np.random.default_rng(seed).random(x.shape[:2]) < share
    moved = np.where(rejected, 0, np.arange(x.shape[1]))
    return np.take_along_axis(x, np.maximum.accumulate(moved, axis=1)[:, :, None], axis=1)


CHAINS = {
    "4 draws": autoregressive(draws=4, points=50),
    "11 draws": autoregressive(chains=2, draws=11, points=200, phi=0.0),
    "301 draws": autoregressive(draws=301),
    "slow": autoregressive(draws=500, phi=0.99),
    "anticorrelated": autoregressive(draws=501, phi=-0.7),
    "alternating": autoregressive(draws=200, phi=-0.99),
    "many chains": autoregressive(chains=33, draws=70),
    "rejections": with_rejections(autoregressive(draws=400), 0.3),
    "mostly rejections": with_rejections(autoregressive(draws=400), 0.95),
    "rounded": np.round(autoregressive(points=70)),
    "two values": np.sign(autoregressive(draws=100)),
    "two values, each as often": np.random.default_rng(0).permutation(np.resize([-1.0, 1.0], 400)).reshape(4, 100, 1),
    "heavy tails": np.random.default_rng(0).standard_cauchy((4, 333, 30)),
    "a stuck chain": np.concatenate([autoregressive(), np.ones((1, 300, 30), np.float32)]),
    "stuck chains": np.broadcast_to(np.arange(4.0)[:, None, None], (4, 100, 3)),
    "large numbers": 1e7 + 3 * autoregressive(),
}


@pytest.mark.parametrize("name", CHAINS)
def test_diagnostics_are_those_of_arviz(name):
    x = CHAINS[name]
    for ours, theirs in zip(rhat_and_ess_bulk(x), arviz(x), strict=True):
        assert not np.isnan(theirs).any()
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_points_without_diagnostics_are_the_worst_and_leave_the_others_alone(bad):
    x = autoregressive(draws=101)
    rhats, sizes = arviz(x)
    x[2, 50, 4] = bad  # the draw between the halves
    x[:, :, 7] = 3.0
    rhats[[4, 7]], sizes[[4, 7]] = np.inf, 0
    for ours, theirs in zip(rhat_and_ess_bulk(x), (rhats, sizes), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


@pytest.mark.parametrize("points", [7, 300, 1200])
def test_the_verdict_takes_the_95th_of_a_hundred_inputs(points):
    x = autoregressive(phi=0.8, draws=120, points=points, seed=points)
    verdict = judge(x, 0.0)
    rhats, sizes = arviz(x[:, :, ::3] if points == 1200 else x)
    last = int(np.ceil(0.95 * len(rhats))) - 1  # of the fewest inputs that are 95 % of them
    np.testing.assert_allclose(verdict.rhat, np.sort(rhats)[last], rtol=1e-10)
    np.testing.assert_allclose(verdict.ess_bulk, np.sort(sizes)[::-1][last], rtol=1e-10)


@pytest.mark.parametrize(("shifted", "accepted"), [(5, True), (6, False)])
def test_five_in_a_hundred_inputs_may_fail(shifted, accepted):
    x = autoregressive(draws=1500, points=100, phi=0.0)
    spread = x.std(axis=(0, 1))
    x[0, :, :shifted] += 0.5 * spread[:shifted]
    verdict = judge(x, 0.0)
    assert verdict.accepted is accepted
    assert (verdict.rhat <= 1.01) is accepted


def test_a_stuck_chain_is_refused():
    x = autoregressive()
    x[2] = x[2, :1]
    verdict = judge(x, 0.0)
    assert not verdict.accepted
    assert any("R-hat" in reason for reason in verdict.reasons())


@pytest.mark.parametrize("where", [np.s_[0, 0, 0], np.s_[:, :, 3], np.s_[:]])
def test_nan_on_the_scale_of_the_map_or_of_the_ranks_is_refused(where):
    x = autoregressive(draws=1000)
    broken = x.copy()
    broken[where] = np.nan
    assert judge(x, 0.0).accepted
    assert not judge(x, 0.0, broken).accepted
    assert not judge(broken, 0.0).accepted
    assert not judge(x, float("nan")).accepted


def test_reasons_name_every_rule_that_failed():
    x = autoregressive(draws=20)
    x[0] += 5 * x.std(axis=(0, 1))
    words = "; ".join(judge(x, 0.5, np.where(np.arange(4)[:, None, None] < 2, x, x[:, :, ::-1])).reasons())
    for name in ("R-hat", "bulk ESS", "divergent", "Spearman"):
        assert name in words


@pytest.mark.parametrize(
    ("points", "maps", "message"),
    [
        (0, None, r"predictions has 0 point\(s\)"),
        (1, None, r"predictions has 1 point\(s\)"),
        (3, np.zeros((4, 8, 2)), r"maps has shape \(4, 8, 2\); expected that of predictions, \(4, 8, 3\)"),
        (3, np.zeros(3), r"maps has shape \(3,\)"),
    ],
)
def test_what_cannot_be_compared(points, maps, message):
    with pytest.raises(ValueError, match=message):
        judge(np.zeros((4, 8, points)), 0.0, maps)
