"""Statistics against NumPy, SciPy and counting by hand."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from isouq import stats

RNG = np.random.default_rng(0)
A = RNG.normal(size=200)
B = 0.6 * A + RNG.normal(size=200)


@pytest.mark.parametrize("seed", range(5))
def test_pearson_is_numpys(seed):
    a, b = np.random.default_rng(seed).normal(size=(2, 50))
    assert stats.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_spearman_is_pearson_of_ranks(seed):
    a, b = np.random.default_rng(seed).integers(0, 10, size=(2, 50))  # with ties
    ranks = scipy.stats.rankdata(a), scipy.stats.rankdata(b)
    assert stats.spearman(a, b) == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-10)
    assert stats.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic, rel=1e-12)


def test_correlations_of_any_shape_and_type():
    a, b = A.reshape(10, 20).astype(np.float32), B.reshape(10, 20).astype(np.float32)
    assert stats.pearson(a, b) == pytest.approx(np.corrcoef(A, B)[0, 1], rel=1e-5)
    assert isinstance(stats.pearson(a, b), float)
    assert isinstance(stats.spearman(a, b), float)


def test_spearman_sees_ranks_only():
    assert stats.spearman(A, np.exp(3 * A)) == pytest.approx(1.0)
    assert stats.spearman(A, -(A**3)) == pytest.approx(-1.0)
    assert stats.pearson(A, -2 * A + 1) == pytest.approx(-1.0)


@pytest.mark.parametrize("statistic", [stats.pearson, stats.spearman])
def test_constant_is_nan(statistic):
    constant = np.full(A.size, 0.1)
    assert math.isnan(statistic(A, constant))
    assert math.isnan(statistic(constant, A))
    assert math.isnan(statistic(constant, constant))


def test_bootstrap_mean_of_nothing_and_of_one():
    none = stats.bootstrap_mean([])
    assert none.count == 0
    assert all(math.isnan(value) for value in (none.mean, none.sd, none.low, none.high))
    one = stats.bootstrap_mean([0.3])
    assert (one.count, one.mean) == (1, 0.3)
    assert all(math.isnan(value) for value in (one.sd, one.low, one.high))


def test_bootstrap_mean_of_five():
    values = [0.1, 0.2, 0.4, 0.8, 0.9]
    five = stats.bootstrap_mean(values)
    assert five.count == 5
    assert five.mean == pytest.approx(np.mean(values))
    assert five.sd == pytest.approx(np.std(values, ddof=1))
    assert min(values) < five.low < five.mean < five.high < max(values)
    narrow = stats.bootstrap_mean(values, level=0.5)
    assert five.low < narrow.low < narrow.high < five.high


def test_bootstrap_mean_of_equal_values_has_no_width():
    assert stats.bootstrap_mean([0.5] * 4) == stats.Interval(4, 0.5, 0.0, 0.5, 0.5)


def test_bootstrap_mean_is_deterministic():
    values = A[:5]
    assert stats.bootstrap_mean(values) == stats.bootstrap_mean(values)
    assert stats.bootstrap_mean(values) != stats.bootstrap_mean(values, seed=1)


def test_bootstrap_interval_equals_the_normal_one_for_many_values():
    interval = stats.bootstrap_mean(A)
    half = 1.96 * A.std(ddof=1) / np.sqrt(A.size)
    assert interval.low == pytest.approx(A.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(A.mean() + half, abs=0.1 * half)


def test_bootstrap_mean_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    intervals = [stats.bootstrap_mean(rng.normal(3.0, 1.0, 30), resamples=500) for _ in range(400)]
    covered = np.mean([interval.low <= 3.0 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.98


def test_paired_bootstrap_finds_a_shift_that_unpaired_noise_hides():
    rng = np.random.default_rng(2)
    level = rng.normal(0, 10, 40)
    interval, p = stats.paired_bootstrap(level + 0.5 + rng.normal(0, 0.3, 40), level)
    assert p < 0.001
    assert interval.low > 0
    assert interval.mean == pytest.approx(0.5, abs=0.2)
    mirrored, q = stats.paired_bootstrap(level, level + 0.5 + rng.normal(0, 0.3, 40))
    assert q < 0.001
    assert mirrored.high < 0


def test_paired_bootstrap_p_value_bounds():
    assert stats.paired_bootstrap([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])[1] == 1.0
    assert stats.paired_bootstrap([2.0, 3.0, 4.0], [1.0, 2.0, 3.0], resamples=200)[1] == 1 / 200
    assert stats.paired_bootstrap(A[:9], B[:9]) == stats.paired_bootstrap(A[:9], B[:9])


def test_paired_bootstrap_p_values_are_about_uniform_without_a_shift():
    rng = np.random.default_rng(3)
    p = [stats.paired_bootstrap(*rng.normal(size=(2, 30)), resamples=500, seed=i)[1] for i in range(400)]
    for level in (0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=0.07)


def test_benjamini_hochberg_by_hand():
    # sorted 0.01 0.02 0.03 0.5: times 4/rank = 0.04 0.04 0.04 0.5, then the minimum from above
    np.testing.assert_allclose(stats.benjamini_hochberg([0.03, 0.5, 0.01, 0.02]), [0.04, 0.5, 0.04, 0.04])
    # 0.01 0.04 0.04 0.9: 0.04, min(0.08, 0.16/3) = 0.16/3, 0.16/3, 0.9
    np.testing.assert_allclose(stats.benjamini_hochberg([0.01, 0.04, 0.9, 0.04]), [0.04, 0.16 / 3, 0.9, 0.16 / 3])
    np.testing.assert_allclose(stats.benjamini_hochberg([0.2]), [0.2])


def by_pairs(wrong, score):
    pairs = [
        (s > t) + 0.5 * (s == t)
        for s, w in zip(score, wrong, strict=True)
        if w
        for t, v in zip(score, wrong, strict=True)
        if not v
    ]
    return sum(pairs) / len(pairs)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=30).filter(
        lambda rows: len({wrong for wrong, _ in rows}) == 2
    )
)
def test_auroc_counts_pairs_and_ties(rows):
    wrong, score = zip(*rows, strict=True)
    assert stats.auroc(wrong, score) == pytest.approx(by_pairs(wrong, score), abs=1e-12)
    assert stats.auroc(wrong, -np.array(score)) == pytest.approx(1 - by_pairs(wrong, score), abs=1e-12)


def test_auroc_is_high_when_wrong_answers_are_more_uncertain():
    assert stats.auroc([1, 1, 0, 0], [0.9, 0.8, 0.2, 0.1]) == 1.0
    assert stats.auroc([1, 1, 0, 0], [0.1, 0.2, 0.8, 0.9]) == 0.0
    assert stats.auroc([1, 0], [0.5, 0.5]) == 0.5
    assert stats.auroc([1, 0, 0], [np.inf, 1.0, -np.inf]) == 1.0


# --- what is beyond a third variable, the top, and groups


@pytest.mark.parametrize("seed", range(5))
def test_partial_spearman_is_the_correlation_of_residuals_of_ranks(seed):
    a, b, c = np.random.default_rng(seed).integers(0, 12, size=(3, 60)).astype(float)
    a, b = a + c, b + 0.5 * c
    ranks = [scipy.stats.rankdata(one) for one in (a, b, c)]
    design = np.column_stack([ranks[2], np.ones(60)])
    residuals = [rank - design @ np.linalg.lstsq(design, rank, rcond=None)[0] for rank in ranks[:2]]
    assert stats.partial_spearman(a, b, c) == pytest.approx(np.corrcoef(*residuals)[0, 1], rel=1e-9)


def test_partial_spearman_of_what_is_only_shared_is_small():
    rng = np.random.default_rng(1)
    c = rng.normal(size=4000)
    a, b = (np.exp(c + rng.normal(size=4000)) for _ in range(2))
    assert stats.spearman(a, b) > 0.4
    assert abs(stats.partial_spearman(a, b, c)) < 0.06


def test_partial_spearman_is_undefined_without_anything_left():
    assert math.isnan(stats.partial_spearman(A, B, np.exp(A)))
    assert math.isnan(stats.partial_spearman(A, np.exp(-B), -B))
    assert math.isnan(stats.partial_spearman(A, B, np.ones(200)))
    assert math.isnan(stats.partial_spearman(A, np.ones(200), B))


@pytest.mark.parametrize("share", [0.05, 0.1, 0.33])
def test_top_overlap_is_that_of_two_sets(share):
    count = round(share * 200)
    top = [{i for i in range(200) if np.sum(values > values[i]) < count} for values in (A, B)]
    assert stats.top_overlap(A, B, share) == len(top[0] & top[1]) / count
    assert stats.top_overlap(A, np.exp(A), share) == 1
    assert stats.top_overlap(A, -A, share) == 0


def test_top_overlap_of_few_and_of_equal_values():
    assert stats.top_overlap([3, 1, 2], [9, 1, 2]) == 1  # the top of three is one
    assert stats.top_overlap([1, 1, 0], [2, 3, 1]) == 0  # of equal values the first
    assert math.isnan(stats.top_overlap(np.ones(20), np.arange(20)))
    with pytest.raises(ValueError, match="expected two arrays of one length"):
        stats.top_overlap(A, B[:5])


GROUPS = ([0.3, 0.1, 0.4], [0.2], [-0.1, 0.5])


def test_clustered_bootstrap_is_a_loop_over_groups_and_their_values():
    interval, p = stats.clustered_bootstrap(GROUPS, resamples=4000)
    rng, means = np.random.default_rng(9), []
    for _ in range(4000):
        drawn = [GROUPS[rng.integers(3)] for _ in range(3)]
        means.append(np.mean([np.mean([group[rng.integers(len(group))] for _ in group]) for group in drawn]))
    own = [np.mean(group) for group in GROUPS]
    assert (interval.count, interval.mean) == (6, pytest.approx(np.mean(own)))
    assert interval.sd == pytest.approx(np.std(own, ddof=1))
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(means, [0.025, 0.975]), atol=0.02)
    assert p == pytest.approx(stats.two_sided_p(means), abs=0.01)


def test_clustered_bootstrap_of_one_group_is_that_of_its_values():
    interval, p = stats.clustered_bootstrap([A[:20]])
    plain = stats.bootstrap_mean(A[:20])
    assert (interval.count, interval.mean) == (20, pytest.approx(plain.mean))
    np.testing.assert_allclose([interval.low, interval.high], [plain.low, plain.high], atol=0.03)
    assert math.isnan(interval.sd)
    assert p == pytest.approx(stats.paired_bootstrap(A[:20], np.zeros(20))[1], abs=0.05)


def test_clustered_bootstrap_of_nothing_and_of_one_value():
    interval, p = stats.clustered_bootstrap([[], []])
    assert (interval.count, math.isnan(interval.mean), math.isnan(p)) == (0, True, True)
    interval, p = stats.clustered_bootstrap([[], [0.25]])
    assert (interval.count, interval.mean, math.isnan(interval.low), math.isnan(p)) == (1, 0.25, True, True)


def test_groups_without_values_change_nothing():
    assert stats.clustered_bootstrap([*GROUPS, []]) == stats.clustered_bootstrap(GROUPS)


@pytest.mark.parametrize("between", [0.0, 1.0])
def test_clustered_bootstrap_covers_the_mean(between):
    """Nine groups of five: the interval holds the mean, and p is below 0.05 about as often as it should."""
    rng, covered, small = np.random.default_rng(2), 0, 0
    for _ in range(200):
        values = between * rng.normal(size=(9, 1)) + rng.normal(size=(9, 5))
        interval, p = stats.clustered_bootstrap(values, resamples=400)
        covered += interval.low <= 0 <= interval.high
        small += p < 0.05
    assert 0.87 <= covered / 200 <= 1
    assert small / 200 <= 0.13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2, np.nan], [1, 2, 3]), "the values to correlate hold NaN or infinity; remove them first"),
        (([1, 2], [1, 2, 3]), "got 2 and 3 values; expected two arrays of one length, at least 2"),
        (([1], [1]), "got 1 and 1 values"),
        (([1, 2], [1, 2], 0.0), "share is 0.0; expected a number above 0 and at most 1"),
        (([1, 2], [1, 2], 1.5), "share is 1.5; expected"),
        (([1, 2], [1, 2], np.nan), "share is nan; expected"),
    ],
)
def test_top_overlap_of_wrong_values_is_one_clear_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        stats.top_overlap(*arguments)


def test_a_p_value_of_nan_is_nan():
    """A comparison with NaN is false, which would count as no resampled difference on either side of 0."""
    interval, p = stats.clustered_bootstrap([[1.0, np.nan], [2.0]])
    assert math.isnan(interval.mean)
    assert math.isnan(p)
    assert math.isnan(stats.paired_bootstrap([1.0, np.nan, 2.0], [0.0, 0.0, 0.0])[1])


def test_calibration_error_is_a_sum_over_ten_bins():
    rng = np.random.default_rng(1)
    p = rng.dirichlet([0.5, 0.5, 0.5], size=400)
    p[0] = [1, 0, 0]  # on the edge of the last bin
    ys = rng.integers(3, size=400)
    total = 0.0
    for b in range(10):
        rows = [i for i in range(400) if b / 10 <= p[i].max() < (b + 1) / 10 or (b == 9 and p[i].max() == 1)]
        if rows:
            accuracy = np.mean([p[i].argmax() == ys[i] for i in rows])
            total += len(rows) / 400 * abs(accuracy - np.mean([p[i].max() for i in rows]))
    assert stats.calibration_error(p, ys) == pytest.approx(total)
    sure = np.eye(3)[ys]
    assert stats.calibration_error(sure, ys) == 0
    assert stats.calibration_error(sure, (ys + 1) % 3) == 1
    assert stats.calibration_error(p, ys, bins=1) == pytest.approx(abs((p.argmax(1) == ys).mean() - p.max(1).mean()))


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_those_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    p, labels = rng.dirichlet([1.0, 0.3, 2.0], size=50), rng.integers(3, size=50)
    assert stats.log_loss(p, labels) == pytest.approx(metrics.log_loss(labels, p, labels=[0, 1, 2]))
    of_one, binary = p[:, 0], (labels == 0).astype(int)
    assert stats.log_loss(of_one, binary) == pytest.approx(metrics.log_loss(binary, of_one))
    assert stats.log_loss(of_one[:, None], binary) == stats.log_loss(of_one, binary)
    assert stats.brier_score(of_one, binary) == pytest.approx(2 * metrics.brier_score_loss(binary, of_one))
    one_hot = np.eye(3)[labels]
    assert stats.brier_score(p, labels) == pytest.approx(np.mean(np.sum((p - one_hot) ** 2, axis=1)))
    mean, variance, ys = rng.normal(size=20), rng.uniform(0.1, 2, size=20), rng.normal(size=20)
    expected = -scipy.stats.norm.logpdf(ys, mean, np.sqrt(variance)).mean()
    assert stats.gaussian_log_loss(mean, variance, ys) == pytest.approx(expected)


def test_the_area_under_the_rejection_curve_by_counting():
    errors, score = np.array([0, 0, 1, 1]), np.array([1.0, 2, 3, 4])
    np.testing.assert_allclose(stats.rejection_curve(errors, score), [0, 0, 1 / 3, 1 / 2])
    assert stats.aurc(errors, score) == pytest.approx(5 / 24)
    assert stats.aurc(errors, -score) > stats.aurc(errors, score)
    np.testing.assert_allclose(stats.rejection_curve(errors, np.ones(4)), np.full(4, 0.5))  # ties: no order
    assert stats.aurc([4.0, 1.0], [2.0, 1.0]) == pytest.approx((1 + 2.5) / 2)  # any loss


def test_the_prediction_rejection_ratio_of_a_perfect_a_random_and_a_reversed_order():
    errors = np.array([0, 1, 0, 1, 1])
    assert stats.prediction_rejection_ratio(errors, errors) == pytest.approx(1)
    assert stats.prediction_rejection_ratio(errors, np.ones(5)) == pytest.approx(0)
    # mean error 3/5; of this order 0, 1/2, 1/3, 2/4, 3/5 are rejected one by one, of a perfect one 0, 0, 1/3, 2/4, 3/5
    mean, perfect, order = 3 / 5, np.mean([0, 0, 1 / 3, 2 / 4, 3 / 5]), np.mean([0, 1 / 2, 1 / 3, 2 / 4, 3 / 5])
    ratio = stats.prediction_rejection_ratio(errors, [1, 2, 3, 4, 5])
    assert ratio == pytest.approx((mean - order) / (mean - perfect))
    assert stats.prediction_rejection_ratio(errors, -errors) < 0
    for equal in (1.0, 0.1):
        assert np.isnan(stats.prediction_rejection_ratio(np.full(3, equal), [1, 2, 3]))


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        ([[0.5, 0.5]], [0, 1], r"probabilities of shape \(1, 2\) and labels of shape \(2,\); expected \[n\]"),
        ([], [], "expected"),
        ([0.5, np.nan], [0, 1], "NaN or a number outside 0 to 1; pass probabilities and not logits"),
        ([[3.0, -2.0]], [0], "pass probabilities and not logits"),
        ([[0.5, 0.2]], [0], "do not add up to 1; pass those of all classes"),
        ([0.5, 0.5], [0, 2], "no class from 0 to 1"),
        ([0.5, 0.5], [0, 0.5], "no class from 0 to 1"),
    ],
)
@pytest.mark.parametrize("loss", [stats.log_loss, stats.brier_score, stats.calibration_error])
def test_a_loss_of_wrong_values_is_one_clear_line(loss, probabilities, labels, message):
    with pytest.raises(ValueError, match=message) as error:
        loss(probabilities, labels)
    assert "\n" not in str(error.value)


def test_a_gaussian_loss_of_wrong_values_is_one_clear_line():
    with pytest.raises(ValueError, match="expected"):
        stats.gaussian_log_loss([0.0], [1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="expected"):
        stats.gaussian_log_loss(np.zeros(5), np.ones(3), np.zeros(5))
    with pytest.raises(ValueError, match="bins is 0; expected a whole number above 0"):
        stats.calibration_error([[0.5, 0.5]], [0], bins=0)
    with pytest.raises(ValueError, match="variance holds NaN or a number that is not above 0"):
        stats.gaussian_log_loss([0.0], [0.0], [0.0])


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=2, max_size=12))
@settings(deadline=None)
def test_the_rejection_curve_is_the_mean_over_all_orders_of_the_ties(answers):
    score, wrong = (np.array(column) for column in zip(*answers, strict=True))
    below, ties = np.sum(score[:, None] > score, axis=1), np.sum(score[:, None] == score, axis=1)
    curve = []
    for k in range(1, len(score) + 1):
        probability = np.clip((k - below) / ties, 0, 1)  # that the answer is among the first k
        curve.append(np.sum(probability * wrong) / k)
    np.testing.assert_allclose(stats.rejection_curve(wrong, score), curve)
