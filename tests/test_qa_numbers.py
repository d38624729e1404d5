"""The numbers of the experiment `qa`, against brute force, scipy and constructed questions."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import qa_rows
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import false_discovery_control, spearmanr

from experiments.answers.numbers import analysis, auroc, combination
from experiments.answers.numbers.auroc import auroc_interval, resample_counts, resampled_auroc
from experiments.answers.numbers.combination import fit_combination
from experiments.answers.numbers.groups import finite, group_rows, short_names
from experiments.answers.numbers.logistic import fit_logistic, log_odds
from experiments.answers.numbers.qa import numbers_of_rows
from experiments.answers.numbers.scores import BASELINES, FEATURES, MAIN, PASSES, SCORES, paper
from experiments.report.outputs import read_rows, read_summary
from isouq import stats


def pairs_won(wrong, score):
    """The AUROC by counting every pair of a wrong and a right answer."""
    a, b = score[wrong][:, None], score[~wrong][None]
    return np.mean((a > b) + (a == b) / 2)


def one_group(n=300, **options):
    return group_rows(qa_rows.rows(n=n, **options))[0]


# logistic regression


def test_the_logistic_regression_is_the_minimum_that_scipy_finds():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) * [1, 20, 1e-3] + [5, -40, 0]
    y = rng.random(200) < 1 / (1 + np.exp(-(x - [5, -40, 0]) @ [1, 0.05, 500]))
    mean, scale = x.mean(axis=0), x.std(axis=0)

    def loss(w):
        margin = w[0] + (x - mean) / scale @ w[1:]
        return np.sum(np.logaddexp(0, margin) - y * margin) + 0.7 * w[1:] @ w[1:] / 2

    wanted = minimize(loss, np.zeros(4), tol=1e-12).x
    w = fit_logistic(x, y, 0.7)
    np.testing.assert_allclose(w[1:] * scale, wanted[1:], atol=1e-4)
    wanted_p = 1 / (1 + np.exp(-(wanted[0] + (x - mean) / scale @ wanted[1:])))
    np.testing.assert_allclose(expit(log_odds(w, x)), wanted_p, atol=1e-5)


def test_the_logistic_regression_against_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 2)), rng.random(200) < 0.3
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    wanted = linear.LogisticRegression(C=1.0, tol=1e-10).fit(z, y).predict_proba(z)[:, 1]
    np.testing.assert_allclose(expit(log_odds(fit_logistic(x, y, 1.0), x)), wanted, atol=1e-5)


def test_separable_classes_constant_features_and_outliers_have_finite_weights():
    x = np.array([[0.0, 7], [1, 7], [2, 7], [3, 7]])
    w = fit_logistic(x, np.array([0, 0, 1, 1]))
    assert np.isfinite(w).all()
    assert w[2] == 0
    assert (np.diff(log_odds(w, x)) > 0).all()
    far = np.r_[np.random.default_rng(0).normal(size=50), 1e6][:, None]
    w = fit_logistic(far, np.arange(51) % 2, 1e-6)
    assert np.isfinite(log_odds(w, far)).all()


@pytest.mark.parametrize(
    ("x", "y", "l2", "message"),
    [
        ([[1.0], [2]], [1, 1], 1, "needs both classes; all 2 labels are 1"),
        ([[np.nan], [2]], [0, 1], 1, "NaN or infinity"),
        ([[1.0], [2]], [0, 1], 0, "l2 is 0; expected a positive number"),
    ],
)
def test_what_cannot_be_fitted_is_said(x, y, l2, message):
    with pytest.raises(ValueError, match=message):
        fit_logistic(np.array(x), np.array(y), l2)


# areas


@pytest.mark.parametrize("levels", [3, 10**9])
def test_the_areas_of_resamples_are_those_of_the_drawn_questions(levels):
    rng = np.random.default_rng(1)
    wrong, score = rng.random(60) < 0.7, rng.integers(levels, size=60).astype(float)
    counts = resample_counts(60, 20)
    assert (counts.sum(axis=1) == 60).all()
    found = resampled_auroc(wrong, score, counts)
    for count, value in zip(counts, found, strict=True):
        rows = np.repeat(np.arange(60), count.astype(int))
        assert value == pytest.approx(pairs_won(wrong[rows], score[rows]))
        assert value == pytest.approx(stats.auroc(wrong[rows], score[rows]))
    whole = resampled_auroc(wrong, score, np.ones((1, 60)))[0]
    assert whole == pytest.approx(pairs_won(wrong, score))


def test_the_area_against_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.default_rng(1)
    wrong, score = rng.random(100) < 0.7, rng.integers(9, size=100).astype(float)
    assert auroc_interval(wrong, score).mean == pytest.approx(metrics.roc_auc_score(wrong, score))


def test_resamples_of_one_class_and_questions_without_the_score_are_left_out():
    wrong = np.array([True, True, True, False])
    assert np.isnan(resampled_auroc(wrong, np.arange(4.0), np.array([[2, 1, 1, 0.0]])))[0]
    found = auroc_interval(wrong, np.array([3.0, np.nan, 2, 1]))
    assert (found.count, found.mean, found.low, found.high) == (3, 1.0, 1.0, 1.0)
    assert auroc_interval(wrong, np.array([3.0, 2, 1, np.nan])) is None
    assert auroc_interval(wrong, np.full(4, np.nan)) is None
    assert auroc_interval(wrong, np.ones(4)).mean == 0.5


def test_an_interval_covers_the_area_that_the_scores_are_built_to_have():
    covered = 0
    for seed in range(20):
        group = one_group(n=400, right=0.4, seed=seed)
        found = auroc_interval(group.wrong, group.scores["p_true"])
        covered += found.low <= qa_rows.KNOWN["p_true"] <= found.high
        assert found.sd == pytest.approx(0.027, abs=0.006)  # Hanley and McNeil (1982)
    assert covered >= 16


# the learned combination


def test_the_combination_finds_a_signal_in_both_features_and_none_in_noise():
    group = one_group(n=600, right=0.5)
    rng = np.random.default_rng(5)
    for name in FEATURES["combined_mean"]:
        group.scores[name] = rng.normal(size=600) + 1.0 * group.wrong  # AUROC 0.76 each, 0.84 together
    group.scores["aleatoric_mean"] *= -1  # a sign that a sum would not know
    found = fit_combination(group, "combined_mean", runs=60)
    assert found.interval().mean == pytest.approx(0.84, abs=0.04)
    assert found.interval().low < 0.84 < found.interval().high
    assert stats.auroc(group.wrong, found.held_out) == pytest.approx(0.84, abs=0.03)
    noise = fit_combination(group, "combined_first", runs=60)
    assert noise.interval().mean == pytest.approx(0.5, abs=0.05)


def test_no_run_scores_a_question_that_it_was_fitted_on():
    group = one_group(n=41, right=0.3)
    found = fit_combination(group, "combined_mean", runs=25)
    x = combination.features(group)
    for odds, counts, value in zip(found.odds, found.counts, found.auroc, strict=True):
        assert counts.sum() == math.ceil((~group.wrong).sum() / 2) + math.ceil(group.wrong.sum() / 2)
        rows = np.repeat(np.arange(41), counts.astype(int))
        if 0 < group.wrong[rows].sum() < len(rows):
            assert value == pytest.approx(pairs_won(group.wrong[rows], odds[rows]))
    # a label that is random tells nothing held out, though a fit on all of it does
    wrong = np.random.default_rng(3).random(41) < 0.5
    chance = fit_combination(group._replace(wrong=wrong), "combined_mean", runs=200)
    w = fit_logistic(x, wrong)
    assert stats.auroc(wrong, x @ w[1:]) > chance.interval().mean


def test_a_combination_without_its_features_or_a_class():
    group = one_group(n=40, right=1 / 40)
    assert fit_combination(group, "combined_mean", 20) is None
    del group.scores["epistemic_mean"]
    assert fit_combination(group, "combined_mean", 20) is None
    assert combination.add_combinations(group)[1] == {}


def test_a_question_without_a_feature_is_in_no_run():
    group = one_group(n=60, right=0.5)
    group.scores["epistemic_mean"][7] = np.nan
    found = fit_combination(group, "combined_mean", runs=20)
    assert found.counts[:, 7].sum() == 0
    assert np.isnan(found.held_out[7])
    assert np.isfinite(np.delete(found.held_out, 7)).all()
    assert found.interval().count == 59
    assert np.isfinite(found.interval().mean)


# tests


def test_paired_tests_tell_a_better_score_from_an_equal_one(monkeypatch):
    monkeypatch.setattr(auroc, "RUNS", 50)
    monkeypatch.setattr(auroc, "TESTS", 200)
    group = one_group(n=800, right=0.5)
    rng = np.random.default_rng(0)
    group.scores["epistemic_mean"] = rng.normal(size=800) + 2.0 * group.wrong
    group.scores["exgrad"] = np.exp(group.scores["epistemic_mean"])  # orders alike
    group.scores["nll_mean"][:10] = np.nan
    group, learned = combination.add_combinations(group)
    tests = auroc.adjust(combination.paired_tests(group, learned))
    by = {(test["score"], test["baseline"]): test for test in tests}
    assert len(by) == 3 * len(BASELINES) + len(SCORES) - 4
    assert by["combined_first", "nll_answer"]["p"] > 0
    better, equal = by["epistemic_mean", "naive_entropy"], by["epistemic_mean", "exgrad"]
    assert better["difference"] == pytest.approx(0.42, abs=0.05)
    assert 0 < better["low"] < better["difference"] < better["high"]
    assert better["p"] == 1 / 200
    assert (equal["difference"], equal["p"]) == (0, 1)
    assert by["combined_mean", "naive_entropy"]["p"] == 1 / 200
    known = np.arange(800) >= 10
    combined = learned["combined_mean"]
    some = combined.auroc_among(group.wrong, known)
    again = resampled_auroc(group.wrong[known], combined.odds[3, known], combined.counts[3:4, known])
    assert some[3] == pytest.approx(again[0])
    wanted = false_discovery_control([test["p"] for test in tests])
    np.testing.assert_allclose([test["adjusted"] for test in tests], wanted)


def test_the_p_value_is_that_of_a_mean_where_the_area_is_one():
    rng = np.random.default_rng(2)
    resampled = rng.normal(0.1, 0.1, size=500)
    row = auroc.difference_row(0.1, np.r_[resampled, np.nan])
    assert row["p"] == pytest.approx(2 * np.mean(resampled <= 0))
    assert (row["low"], row["high"]) == pytest.approx(np.quantile(resampled, [0.025, 0.975]))
    assert auroc.difference_row(1, np.ones(500))["p"] == 1 / 500
    assert auroc.difference_row(0, np.zeros(500))["p"] == 1


def test_nothing_is_tested_with_few_answers_of_a_kind():
    assert combination.paired_tests(one_group(n=60, right=9 / 60), {}) == []
    assert combination.paired_tests(one_group(n=60, right=10 / 60), {})
    assert auroc.adjust([]) == []


# questions as arrays


def test_refusals_empty_answers_and_answers_without_a_label_are_counted_apart():
    rows = qa_rows.rows(n=20, right=0.5)
    rows[0], rows[1], rows[2]["right"] = qa_rows.refused(rows[0]), qa_rows.empty(rows[1]), None
    rows += [dict(rows[5], seed=1, naive_entropy=99.0)]
    group = group_rows(rows)[0]
    assert [group.count_state(state) for state in ("answered", "refused", "empty")] == [18, 1, 1]
    assert group.unjudged == 1
    assert len(group.wrong) == 17
    assert len(group.rows) == 20
    assert group.scores["naive_entropy"].max() < 99  # the first seed's
    assert all(len(values) == 17 for values in (*group.scores.values(), *group.views.values()))


def test_infinities_become_the_ends_of_what_is_finite():
    np.testing.assert_array_equal(finite([1.0, -np.inf, 3, np.inf, None, np.nan]), [1, 1, 3, 3, np.nan, np.nan])
    assert np.isnan(finite([-np.inf, None])).all()
    assert finite([]).shape == (0,)


def test_names():
    assert paper("triviaqa") == paper("hf:mandarjoshi/trivia_qa:rc.nocontext")
    assert paper("TruthfulQA.csv")["combined_mean"] == (0.63, 0.08)
    assert paper("sample_trivia") == paper("sample_truthful") == {}
    assert short_names(["hf:org/name", "pypi:llm==1"]) == {"hf:org/name": "name", "pypi:llm==1": "pypi:llm==1"}
    assert short_names(["a/m", "b/m"]) == {"a/m": "a/m", "b/m": "b/m"}
    assert {one for score in SCORES.values() for one in score.passes} <= set(PASSES)
    assert set(MAIN) | {n for names in FEATURES.values() for n in names} | set(FEATURES) <= set(SCORES)


# further numbers


def test_lengths_are_thirds_and_the_same_whole():
    group = one_group(n=600, right=0.4)
    parts = analysis.divide_by_length(group)
    lengths = group.scores["num_tokens"]
    assert [part.shortest for part in parts] == sorted(part.shortest for part in parts)
    assert all(one.longest < other.shortest for one, other in pairwise(parts))
    assert sum(part.right + part.wrong for part in parts) == 600
    first = (lengths >= parts[0].shortest) & (lengths <= parts[0].longest)
    wanted = stats.auroc(group.wrong[first], group.scores["p_true"][first])
    assert parts[0].auroc["p_true"].mean == pytest.approx(wanted)
    group.scores["num_tokens"][:] = 3
    (only,) = analysis.divide_by_length(group)
    assert (only.shortest, only.longest) == (3, 3)
    assert analysis.divide_by_length(one_group(n=20, right=0.5))[0].auroc == {}


def test_other_views_of_right():
    group = one_group(n=200, right=0.3)
    right, wrong, found = analysis.label_by_views(group)["right_contained"]
    assert (right, wrong) == (int(group.views["right_contained"].sum()), 200 - right)
    wanted = stats.auroc(group.views["right_contained"] == 0, group.scores["p_true"])
    assert found["p_true"].mean == pytest.approx(wanted)
    assert analysis.average_choices(group) == {}
    other = one_group(n=200, kind="references", benchmark="truthfulqa")
    assert set(analysis.label_by_views(other)) == {"right_similarity", "mc1"}
    assert analysis.average_choices(other)["mc1"].mean == pytest.approx(np.mean([row["mc1"] for row in other.rows]))


def test_the_scale_of_another_model_is_taken_out_by_the_parameters_norm():
    def model(name, scale, seed):
        """Epistemic uncertainty alone tells right from wrong, in units of the model."""
        group = one_group(n=400, right=0.5, model=name, seed=seed, norm_of_all=np.exp(scale))
        rng = np.random.default_rng(seed)
        group.scores["epistemic_mean"] = rng.normal(size=400) + 2.0 * group.wrong + scale
        return group

    few, many = model("a", 0.0, 0), model("b", 6.0, 1)
    many.rows[0]["param_sq_norm"] = np.exp(6.0)
    pooled = [few, many._replace(wrong=~many.wrong)]  # of b the other sign, so that units matter
    held = model("c", 12.0, 2)
    for divided in (False, True):
        assert analysis.transfer(held, [few], divided).mean > 0.85  # an order knows no unit
        assert analysis.transfer(held, [], divided) is None
    x, wrong = analysis._pool([few, many], True)
    np.testing.assert_allclose(x[400:, 1], many.scores["epistemic_mean"] - 6)
    assert len(wrong) == 800
    assert analysis.transfer(held, pooled, True) is not None
    few.rows[0]["param_sq_norm"] = None
    assert analysis.transfer(held, [few], True) is None
    assert analysis.transfer(held, [few._replace(wrong=np.ones(400, bool))], False) is None


def test_rejection_goes_from_the_surest_to_all():
    group = one_group(n=100, right=0.25)
    perfect = analysis.reject(group, group.wrong.astype(float))
    coverage = analysis.COVERAGES
    np.testing.assert_allclose(perfect.mean, np.minimum(1, 0.25 / coverage), atol=0.02)
    useless = analysis.reject(group, np.zeros(100))
    np.testing.assert_allclose(useless.mean, 0.25)
    assert perfect.aurc[0] < useless.aurc[0] == pytest.approx(0.75)
    for curve in (perfect, useless):
        assert (curve.low <= curve.mean + 1e-9).all()
        assert (curve.mean <= curve.high + 1e-9).all()


def test_rank_correlations_and_constant_scores():
    group = one_group(n=80)
    group.scores["nll_mean"] = np.ones(80)
    matrix = analysis.rank_matrix(group)
    i, j = MAIN.index("p_true"), MAIN.index("epistemic_mean")
    assert (
        matrix[i, j]
        == matrix[j, i]
        == pytest.approx(spearmanr(group.scores["p_true"], group.scores["epistemic_mean"]).statistic)
    )
    assert np.isnan(matrix[MAIN.index("nll_mean")]).all()
    assert np.isnan(matrix[MAIN.index("combined_mean")]).all()  # not fitted yet


def test_models_of_one_short_name_keep_their_long_one():
    rows = [row for name in ("a/m", "b/m") for row in qa_rows.rows(n=30, model=name, right=0)]
    assert [one.name for one in group_rows(rows)] == ["a/m", "b/m"]
    assert group_rows(rows[:30])[0].title == "m, triviaqa"


def test_the_committed_numbers_follow_from_the_committed_table():
    folder = Path(__file__).parents[1] / "results" / "qa"
    numbers = numbers_of_rows(read_rows(folder / "table.csv"), [])
    for name in ("auroc.csv", "tests.csv", "correlations.csv"):
        assert numbers.files[name] == (folder / name).read_text(encoding="utf-8"), name
    committed = {(number.group, number.statistic): number for number in read_summary(folder / "summary.csv")}
    assert len(committed) == len(numbers.summary)
    for number in numbers.summary:
        np.testing.assert_allclose(committed[number[:2]][2:], number[2:], rtol=1e-9, err_msg=str(number))
