"""The experiment `trace`: classifiers on constructed traces with a known signal, figures, and what cannot be judged."""

import numpy as np
import pytest
import qa_rows
from stages import Outputs

from experiments.answers.figures.trace import figures
from experiments.answers.numbers import trace as trace_numbers
from experiments.answers.numbers.groups import group_rows
from experiments.answers.numbers.logistic import fit_logistic
from experiments.answers.presets import qa, trace
from experiments.answers.report.trace import report
from experiments.run.job import Result
from isouq import plots, stats
from isouq.text import Trace, features


def traced(n=60, right=0.4, seed=0, signal=1.0, tokens=9):
    """Rows of `qa` with traces, and the block that they come from; entropy rises along wrong answers."""
    rng = np.random.default_rng(seed)
    rows = qa_rows.rows(n=n, right=right, seed=seed)
    series, questions = [], []
    for row in rows:
        count = int(rng.integers(1, tokens))
        entropy = rng.random(count) + (not row["right"]) * signal * np.linspace(0, 1, count)
        log_grad = rng.normal(size=count)
        made = Trace(("a",) * count, np.zeros(count, int), -rng.exponential(size=count), entropy, log_grad)
        row |= {"pieces": [" ab"] * count, "features": features(made)}
        questions.append({"index": row["index"], "pieces": row["pieces"], "features": row["features"]})
        series.append(made)
    names = ("log_p", "entropy", "log_grad_sq_norm")
    arrays = {name: np.concatenate([getattr(one, name) for one in series]) for name in names}
    block = {"study": "trace", "model": rows[0]["model"], "benchmark": rows[0]["benchmark"], "checks": [CHECK]}
    return rows, Result(block | {"questions": questions}, arrays)


CHECK = {"tokens": 7, "probes": 32, "rms": 0.9, "worst": 1.9, "seconds_token": 0.1, "seconds_probe": 0.3}


def summarise(block, rows):
    """The outputs of the stages after the measurement."""
    numbers = trace_numbers.numbers_of_rows(rows, [block])
    return Outputs(numbers, report(numbers, "quick"), figures([block], numbers))


# Numbers


def test_cross_validation_never_sees_the_question_that_it_judges():
    x, wrong = np.random.default_rng(0).normal(size=(23, 3)), np.arange(23) % 3 == 0
    found = trace_numbers.cross_validate(x, wrong, folds=4, splits=1)
    fold = trace_numbers.assign_folds(wrong, 4, 0)
    for i in range(len(x)):
        train = fold != fold[i]
        w = fit_logistic(x[train], wrong[train])
        assert found[i] == pytest.approx(w[0] + x[i] @ w[1:])


def test_folds_have_their_share_of_each_class():
    wrong = np.arange(53) < 12
    fold = trace_numbers.assign_folds(wrong, 5, 1)
    for label in (True, False):
        counts = np.bincount(fold[wrong == label], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_a_signal_is_found_and_noise_is_not():
    known, _ = traced(n=300, signal=2.0)
    noise, _ = traced(n=300, signal=0.0)
    signal, none = (trace_numbers.add_traces(group_rows(rows)[0]) for rows in (known, noise))
    assert stats.auroc(signal.wrong, signal.scores["classifier_entropy"]) > 0.8
    assert stats.auroc(signal.wrong, signal.scores["classifier"]) > 0.75
    assert abs(stats.auroc(none.wrong, none.scores["classifier"]) - 0.5) < 0.12


def test_answers_without_a_trace_and_too_few_of_a_class():
    rows, _ = traced(n=20)
    del rows[3]["features"]
    group = trace_numbers.add_traces(group_rows(rows)[0])
    assert np.isnan(group.scores["classifier"]).sum() == np.isnan(group.scores["trace_epistemic_mean"]).sum() == 1
    one_right = [row | {"right": i == 0} for i, row in enumerate(rows)]
    group = trace_numbers.add_traces(group_rows(one_right)[0])
    assert "classifier" not in group.scores
    assert trace_numbers.paired_tests(group) == []


def test_differences_are_of_the_same_questions():
    rows, _ = traced(n=80, signal=2.0)
    group = trace_numbers.add_traces(group_rows(rows)[0])
    found = {test["score"]: test for test in trace_numbers.paired_tests(group, runs=200)}
    assert set(found) == {*trace_numbers.SINGLE, *trace_numbers.OTHERS} & set(group.scores)
    ours, other = group.scores["classifier"], group.scores["nll_mean"]
    wanted = stats.auroc(group.wrong, ours) - stats.auroc(group.wrong, other)
    assert found["nll_mean"]["difference"] == pytest.approx(wanted)
    assert found["nll_mean"]["low"] <= wanted <= found["nll_mean"]["high"]


# Summary and figures


def test_summary_and_figures():
    rows, block = traced(signal=2.0)
    outputs = summarise(block, rows)
    assert set(outputs.figures) == {"auroc", "trace_triviaqa", "course_triviaqa"}
    assert set(outputs.numbers.files) == {"auroc.csv", "tests.csv"}
    assert len(outputs.numbers.rows) == len(rows)
    assert outputs.numbers.rows[0]["trace_entropy_mean"] == pytest.approx(rows[0]["features"]["entropy_mean"], rel=1e-5)
    for words in ("24 | 36", "best single score", "trace classifier, all three series", "86"):
        assert words in outputs.summary
    assert "nan" not in outputs.summary.lower()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"right": False}, "all 5 answers are wrong, so there is no AUROC"),
        ({"state": "refused", "right": None}, "no answer could be judged, so there is no AUROC"),
    ],
)
def test_one_class_only(change, words):
    rows, block = traced(n=5)
    outputs = summarise(block, [row | change for row in rows])
    assert words in outputs.summary
    assert "auroc" not in outputs.figures
    assert "nan" not in outputs.summary.lower()


def test_nothing_to_report():
    _, block = traced(n=3)
    outputs = summarise(block, [])
    assert "nothing to report" in outputs.summary
    assert outputs.numbers.rows == []
    assert outputs.figures == {}


def test_one_right_answer_is_said_to_be_few():
    rows, block = traced(n=6)
    rows = [row | {"right": i == 0} for i, row in enumerate(rows)]
    outputs = summarise(block, rows)
    assert "only 1 right and 5 wrong answers" in outputs.summary
    assert "no classifier; it needs two right and two wrong answers" in outputs.summary
    assert "nan" not in outputs.summary.lower()


def test_figures_of_odd_traces():
    pieces = [" a", "\n", "", "$x^2", "é", "x" * 100, " b"]
    one = {"pieces": pieces, "epistemic": np.array([0, 1e-30, 1, 5, 2, 3, 4.0]), "committal": np.zeros(7),
           "entropy": np.linspace(0, 3, 7), "error": np.full(7, 0.1)}  # fmt: skip
    single = {"pieces": ["a"], "epistemic": np.zeros(1), "committal": np.zeros(1), "entropy": np.zeros(1)}
    plots.trace_tokens({"both": one, "single": single}).draw_without_rendering()
    plots.trace_tokens({"single": single}).draw_without_rendering()


@pytest.mark.parametrize("relative_error", [0.0, 0.35])
def test_the_figure_takes_what_trace_returns(relative_error):
    answer = Trace((" a", " b"), np.arange(2), np.log([0.5, 0.25]), np.ones(2), np.zeros(2), relative_error)
    for given in (answer, {"a title": answer}):
        figure = plots.trace_tokens(given)
        assert figure.axes[0].get_title(loc="left") == ("" if given is answer else "a title")
        assert bool(figure.axes[1].containers[0].has_yerr) == bool(relative_error)


@pytest.mark.parametrize("given", ["text", [1, 2], {"a title": 3}])
def test_the_figure_refuses_what_is_no_trace(given):
    with pytest.raises(ValueError, match=r"expected what isouq\.text\.trace returns, alone or by its title"):
        plots.trace_tokens(given)


# Cells


def test_cells_share_the_answers_and_scores_of_qa():
    jobs = trace.jobs("smoke")
    assert {job.study for job in jobs} == {"scores", "judged", "trace"}
    assert {job for job in jobs if job.study != "trace"} <= set(qa.jobs("smoke"))
    assert {job.reference() for job in jobs} == set(qa.blocks("smoke"))
