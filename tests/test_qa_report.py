"""The summary and figures of the experiment `qa`, on constructed questions."""

import csv
import io
import math
import re

import numpy as np
import pytest
import qa_rows
from stages import Outputs

from experiments.answers.figures.auroc import draw_auroc
from experiments.answers.figures.qa import draw_correlations, draw_rejection, figures
from experiments.answers.numbers import analysis, auroc
from experiments.answers.numbers.analysis import Curve
from experiments.answers.numbers.qa import numbers_of_rows
from experiments.answers.numbers.scores import BASELINES, SCORES
from experiments.answers.report.qa import report
from isouq.stats import Interval

FIGURES = {"auroc", "rejection", "correlations", "length"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(auroc, "RUNS", 20)
    monkeypatch.setattr(auroc, "TESTS", 40)
    monkeypatch.setattr(analysis, "CURVE_RUNS", 10)


def summarise(rows, costs=(), left_out=(), preset="quick"):
    """The outputs of the stages after the measurement."""
    numbers = numbers_of_rows(rows, costs, left_out)
    return Outputs(numbers, report(numbers, preset), figures([], numbers))


def made(rows, costs=(), broken=()):
    """The outputs, without a number that is none; the figures can be drawn."""
    found = summarise(rows, costs, broken)
    assert not re.search(r"\bnan\b|\binf\b|None", found.summary)
    for text in found.numbers.files.values():
        assert not re.search(r"\bnan\b|\binf\b", text)
    for figure in found.figures.values():
        figure.canvas.draw()
    assert found.numbers.rows == list(rows)
    return found


def table(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_two_benchmarks_of_one_model_beside_the_paper():
    rows = qa_rows.rows(n=300) + qa_rows.rows(benchmark="truthfulqa", n=200, right=0.4, seed=1, kind="references")
    rows[0], rows[1] = qa_rows.refused(rows[0]), qa_rows.empty(rows[1])
    found = made(rows, qa_rows.costs(), ["a.jsonl line 3: no question"])
    assert set(found.figures) == FIGURES
    summary = found.summary
    for title in (
        "Answers", "AUROC and PRR of every score", "Against the baselines", "Against −log p",
        "If only the surest", "Is it the length", "Under another view", "Multiple choice", "What a score costs",
        "Left out of the files: 1",
    ):  # fmt: skip
        assert f"## {title}" in summary
    assert "Does the combination carry over" not in summary  # one model
    assert "| one | 135,000,000 | triviaqa | 300 |" in summary
    assert "| 1 | 1 |" in summary  # refused, empty
    line = next(line for line in summary.splitlines() if line.startswith("| 1 − P(True) | published | 0."))
    assert line.endswith("| 0.69 ± 0.06 |")
    assert "- a.jsonl line 3: no question" in summary
    assert "| 1 − P(True) | 1 | 0 | yes | – | 2.20 | – |" in summary  # the samples and its own pass
    assert "| epistemic ‖∇p‖² | 1 | 1 | no | – | 0.60 | 700 |" in summary
    areas = {(row["benchmark"], row["score"]): row for row in table(found.numbers.files["auroc.csv"])}
    one = areas["triviaqa", "p_true"]
    assert float(one["low"]) < float(one["auroc"]) < float(one["high"])
    assert (one["paper"], one["questions"]) == ("0.69", "298")
    lines = {(line.group, line.statistic): line for line in found.numbers.summary}
    line = lines["one, triviaqa", "auroc_p_true"]
    ends = [float(one[name]) for name in ("auroc", "low", "high")]
    assert (line.mean, line.low, line.high) == pytest.approx(ends, abs=1e-6)
    assert (line.n, line.accepted) == (298, 298)
    tests = table(found.numbers.files["tests.csv"])
    assert len(tests) == 2 * (3 * len(BASELINES) + len(SCORES) - 4)
    assert f"over all {len(tests)} tests" in summary
    assert all(float(test["adjusted"]) >= float(test["p"]) - 1e-6 for test in tests)


def test_models_are_columns_and_the_combination_is_carried_over():
    rows = [
        row
        for seed, model in enumerate(("x/a", "x/b", "y/c"))
        for row in qa_rows.rows(model, n=120, right=0.3, seed=seed, norm_of_all=10.0**seed)
    ]
    found = made(rows)
    header = next(line for line in found.summary.splitlines() if line.startswith("| score | whose"))
    models = [f"{name}: 36 right, 84 wrong | PRR" for name in "abc"]
    assert header == f"| score | whose | {' | '.join(models)} | mean of the models | paper |"
    part = found.summary.split("## Does the combination carry over")[1].split("##")[0]
    assert len([line for line in part.splitlines() if line.startswith(("| a |", "| b |", "| c |"))]) == 3
    assert "## Multiple choice" not in found.summary
    assert set(found.figures) == FIGURES


def test_the_same_rows_give_the_same_report():
    rows = qa_rows.rows(n=60, right=0.4)
    one, other = made(rows), made(rows)
    assert (one.summary, one.numbers.files) == (other.summary, other.numbers.files)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "There is no question that was both scored and judged"),
        (qa_rows.rows(n=40, right=0), "all 40 answers are wrong, so there is no AUROC"),
        (qa_rows.rows(n=40, right=1), "all 40 answers are right, so there is no AUROC"),
        (qa_rows.rows(n=1), "all 1 answers are wrong"),
        ([qa_rows.empty(row) for row in qa_rows.rows(n=9)], "no answer could be judged, so there is no AUROC"),
        ([qa_rows.refused(row) for row in qa_rows.rows(n=9)], "no answer could be judged"),
    ],
)
def test_without_both_classes_it_is_said_and_no_figure_drawn(rows, sentence):
    found = made(rows, qa_rows.costs())
    assert sentence in found.summary
    assert found.figures == {}
    assert found.numbers.files == {}


def test_one_benchmark_of_one_class_does_not_stop_the_other():
    rows = qa_rows.rows(n=50, right=0) + qa_rows.rows(benchmark="truthfulqa", n=100, right=0.5, kind="references")
    found = made(rows)
    assert "one, triviaqa: all 50 answers are wrong" in found.summary
    assert "### truthfulqa" in found.summary
    assert set(found.figures) == FIGURES


@pytest.mark.parametrize("right", [1, 2, 3])
def test_few_right_answers_are_warned_of_and_not_tested(right):
    found = made(qa_rows.rows(n=40, right=right / 40))
    assert f"{right} right and {40 - right} wrong answers. With fewer than 10" in found.summary
    assert "## Against the baselines" not in found.summary
    assert "length" not in found.figures
    assert ("no combination could be fitted" in found.summary) == (right == 1)


def test_constant_infinite_and_absent_scores():
    rows = qa_rows.rows(n=80, right=0.5)
    for i, row in enumerate(rows):
        row["nll_mean"] = 1.0
        row["aleatoric_mean"] = -math.inf if i % 5 == 0 else row["aleatoric_mean"]
        row["p_true"] = math.nan if i % 4 == 0 else row["p_true"]
        row["semantic_entropy"] = None
        row["naive_entropy"] = -math.inf
        del row["semantic_entropy_entailment"]
    found = made(rows)
    assert "the same for every question, so at chance: −log p by length" in found.summary
    areas = {row["score"]: row for row in table(found.numbers.files["auroc.csv"])}
    assert float(areas["nll_mean"]["auroc"]) == 0.5
    assert areas["p_true"]["questions"] == "60"
    assert "(60 answers)" in found.summary
    assert not {"semantic_entropy", "semantic_entropy_entailment", "naive_entropy"} & set(areas)
    assert set(found.figures) == FIGURES


def test_only_the_scores_that_are_there():
    keep = {"model", "benchmark", "index", "state", "right", "p_true"}
    found = made([{k: v for k, v in row.items() if k in keep} for row in qa_rows.rows(n=40, right=0.5)])
    assert set(found.figures) == {"auroc", "rejection", "correlations"}
    assert "no combination could be fitted" in found.summary


def test_several_seeds_of_the_samples_are_said():
    rows = qa_rows.rows(n=40, right=0.5)
    found = made(rows + [dict(row, seed=1) for row in rows])
    assert "Samples of 2 seeds stand in table.csv" in found.summary
    assert "| 40 | 20 | 20 | 0 | 0 |" in found.summary


def test_many_lines_that_were_left_out_are_counted():
    found = made(qa_rows.rows(n=5, right=0), broken=[f"f line {i}: bad" for i in range(31)])
    assert "## Left out of the files: 31" in found.summary
    assert "- and 11 more" in found.summary


def test_a_thousand_questions_of_known_areas(monkeypatch):
    monkeypatch.setattr(auroc, "RUNS", 300)
    monkeypatch.setattr(auroc, "TESTS", 1000)
    found = summarise(qa_rows.rows(), preset="paper")
    areas = {row["score"]: float(row["auroc"]) for row in table(found.numbers.files["auroc.csv"])}
    for name, value in qa_rows.KNOWN.items():
        assert areas[name] == pytest.approx(value, abs=0.06)


# figures


def test_the_colours_of_more_models_than_the_palette_and_titles_of_one_panel():
    interval = Interval(9, 0.6, 0.1, 0.5, 0.7)
    by_model = {f"m{i}": {"s": interval} for i in range(7)}
    figure = draw_auroc({"b": by_model}, {}, {"s": "score"})
    figure.canvas.draw()
    assert len({(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()}) == 7
    assert "paper" not in " ".join(text.get_text() for text in figure.legends[0].get_texts())


def test_an_undefined_correlation_is_left_empty():
    figure = draw_correlations({"b": np.array([[1.0, np.nan], [np.nan, -0.001]])}, ["a", "b"])
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", ".00"]


def test_four_titles_have_four_panels():
    curve = Curve(np.array([0.5, 0.4]), np.array([0.4, 0.3]), np.array([0.6, 0.5]), np.ones(3), np.ones(3))
    titles = {f"t{i}": {"s": curve} for i in range(4)}
    figure = draw_rejection(titles, np.array([0.5, 1.0]), {"s": "score"})
    assert [axis.get_title() for axis in figure.axes] == list(titles)
