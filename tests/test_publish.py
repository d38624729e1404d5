"""What stands in the README is what results/ says, and the committed tables hold what is claimed of them."""

import csv
import importlib
import json

import numpy as np
import pytest

from benchmarks import compare
from experiments import publish
from experiments.command import EXPERIMENTS, SYNTHETIC
from experiments.report.outputs import Number, read_rows, read_summary, summary_csv
from experiments.run.job import Result
from experiments.synthetic.numbers.models import COSTS
from experiments.synthetic.presets import validation


def rows(name):
    with open(publish.ROOT / "results" / name / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_page_of_results_is_made_from_results():
    page = publish.ROOT / "docs" / "results.md"
    assert page.read_text(encoding="utf-8") == publish.results_page(publish.ROOT / "results")


def test_comparison_is_made_from_the_benchmarks():
    assert compare.PAGE.read_text(encoding="utf-8") == compare.filled(compare.PAGE)


def test_every_picture_of_the_readme_exists():
    text = (publish.ROOT / "README.md").read_text(encoding="utf-8")
    pictures = [part.split(")")[0] for part in text.split("](")[1:] if part.split(")")[0].endswith(".png")]
    assert pictures
    for picture in pictures:
        assert (publish.ROOT / picture).is_file(), picture


@pytest.mark.parametrize("problem", ["binary/linear", "multiclass/clusters"])
def test_linear_models_agree_with_the_reference(problem):
    mine = [row for row in rows("validation") if row["problem"] == problem and row["accepted"] == "True"]
    assert len(mine) >= 5
    assert np.mean([float(row["epistemic_pearson"]) for row in mine]) >= 0.9
    assert np.mean([float(row["epistemic_spearman"]) for row in mine]) >= 0.95


def test_gold_case_agrees_with_the_closed_form():
    mine = [row for row in rows("validation") if row["problem"] == "regression/linear" and row["accepted"] == "True"]
    assert len(mine) >= 5
    for name in ("reference", "laplace"):
        assert np.mean([float(row[f"exact_{name}_pearson"]) for row in mine]) >= 0.99
        assert abs(np.mean([float(row[f"exact_{name}_scale"]) for row in mine]) - 1) <= 0.05


def test_second_opinion_agrees():
    mine = [row for row in rows("validation") if row["numpyro_scale"]]
    assert {row["problem"] for row in mine} == set(validation.SECOND_OPINION)
    for row in mine:
        assert float(row["numpyro_spearman"]) >= 0.95
        assert 0.9 <= float(row["numpyro_scale"]) <= 1.1


def test_commits_carry_no_path_of_a_machine():
    for path in (publish.ROOT / "results").rglob("*.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        assert facts["command"].startswith("python -m experiments ")
        assert " /" not in facts["command"]


def test_publish_refuses_an_empty_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["publish", str(tmp_path)])
    assert publish.main() == 1
    assert "holds no finished experiment" in capsys.readouterr().err


def test_publish_copies_every_experiment_that_was_run(tmp_path):
    assert set(publish._SECTIONS) <= set(EXPERIMENTS)
    out, root = tmp_path / "out", tmp_path / "root"
    root.mkdir()
    (root / "README.md.in").write_text("Above\n{{validation name=one value}}\nBelow\n", encoding="utf-8")
    names = list(EXPERIMENTS)[:-1]
    for name in EXPERIMENTS:
        (out / name).mkdir(parents=True)
        for file in ("table.csv", f"{name}.png", f"{name}.pdf"):
            (out / name / file).write_text("name,value\none,0.25\ntwo,0.75\n", encoding="utf-8")
        (out / name / "summary.md").write_text(f"# Title of {name}\n\nText\n", encoding="utf-8")
        if name in names:  # the last one was not finished
            (out / name / "provenance.json").write_text('{"preset": "quick"}', encoding="utf-8")
    written = publish.publish(out, root)
    assert {str(path.relative_to(root)) for path in written} == {"README.md", "docs/results.md"} | {
        f"{folder}/{name}/{file}"
        for name in names
        for folder, file in (
            ("results", "table.csv"), ("results", "summary.md"), ("results", "provenance.json"),
            ("figures", f"{name}.png"), ("figures", f"{name}.pdf"),
        )
    }  # fmt: skip
    assert (root / "README.md").read_text(encoding="utf-8").startswith("Above\n0.25")
    page = (root / "docs" / "results.md").read_text(encoding="utf-8")
    assert all((f"\n## Title of {name}\n" in page) == (name in names) for name in publish._SECTIONS)


def test_docs_are_made_from_results():
    templates = publish.templates(publish.ROOT)
    assert publish.ROOT / "README.md.in" in templates
    for template in templates:
        text = publish.fill_numbers(template.read_text(encoding="utf-8"), publish.ROOT / "results")
        assert template.with_suffix("").read_text(encoding="utf-8") == text
        assert "{{" not in text


def test_numbers_are_means_over_accepted_rows_and_a_missing_one_is_an_error(tmp_path):
    (tmp_path / "some").mkdir()
    table = "problem,accepted,r\na,True,0.5\na,True,0.7\na,False,9\nb,True,1234\n"
    (tmp_path / "some" / "table.csv").write_text(table, encoding="utf-8")
    text = publish.fill_numbers("{{some problem=a r}} and {{some\nproblem=b r}}", tmp_path)
    assert text == "0.60 [0.50, 0.70] and 1234 –"
    with pytest.raises(ValueError, match="no accepted row"):
        publish.fill_numbers("{{some problem=c r}}", tmp_path)


def test_numbers_of_a_summary_and_a_missing_one_is_an_error(tmp_path):
    (tmp_path / "some").mkdir()
    summary = [Number("prior σ = 1, width 2", "r", 0.6, 0.5, 0.7, 2, 2), Number("b", "r", *[float("nan")] * 3, 0, 0)]
    (tmp_path / "some" / "summary.csv").write_text(summary_csv(summary), encoding="utf-8")
    assert publish.fill_numbers("{{some | prior σ = 1,\nwidth 2 | r}}", tmp_path) == "0.60 [0.50, 0.70]"
    for text, message in (("{{some | c | r}}", "has no 'c'"), ("{{some | b | r}}", "has no accepted posterior")):
        with pytest.raises(ValueError, match=message):
            publish.fill_numbers(text, tmp_path)


@pytest.mark.parametrize("name", [name for name in SYNTHETIC if (publish.ROOT / "results" / name).exists()])
def test_a_committed_summary_follows_from_its_table(name):
    """The numbers stage on the rows of table.csv; the few numbers that need maps stand in no committed table.

    Costs are left out: the committed results are older than their columns.
    """
    folder = publish.ROOT / "results" / name
    rows = [{k: v for k, v in row.items() if v is not None or k == "width"} for row in read_rows(folder / "table.csv")]
    numbers = importlib.import_module(f"experiments.synthetic.numbers.{name}").numbers([Result(r, {}) for r in rows])
    committed = {(number.group, number.statistic): number for number in read_summary(folder / "summary.csv")}
    assert len(numbers.summary) > 30
    for number in (number for number in numbers.summary if number.statistic not in COSTS):
        np.testing.assert_allclose(committed[number[:2]][2:], number[2:], rtol=1e-9, err_msg=str(number))


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_proxies_distort_in_the_stated_direction_in_every_seed(curvature):
    mine = [row for row in rows("covariance") if row["problem"] == "binary/xor"]
    assert len(mine) >= 5
    for row in mine:
        for data in ("", "orbit_"):
            assert float(row[f"{data}proxy_a_{curvature}_inside"]) < 1
            assert float(row[f"{data}proxy_b_{curvature}_inside"]) < 1
            assert float(row[f"{data}log_ratio_a_{curvature}"]) < 0 < float(row[f"{data}log_ratio_b_{curvature}"])
        assert float(row["orbit_identity_symmetry"]) >= 0.9


def test_every_accepted_cell_of_the_sweep_is_decomposed():
    columns = [
        f"{what}_{s}" for what in ("whole", "taylor_aligned", "isotropy_aligned") for s in ("pearson", "spearman")
    ]
    decomposed = {(r["prior"], r["sigma"], r["width"], r["seed"]): r for r in rows("decomposition")}
    for row in rows("scaling"):
        if row["accepted"] == "True":
            mine = decomposed[row["prior"], row["sigma"], row["width"], row["seed"]]
            assert all(mine[column] for column in columns)
