"""What stands in the README is what results/ says, and the committed tables hold what is claimed of them."""

import csv
import json

import numpy as np
import pytest

from experiments import EXPERIMENTS, publish, validation


def rows(name):
    with open(publish.ROOT / "results" / name / "table.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_readme_is_made_from_results():
    text = (publish.ROOT / "README.md").read_text(encoding="utf-8")
    assert publish.with_results(text, publish.ROOT / "results") == text


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
    (root / "README.md").write_text(f"Above\n{publish.BEGIN}\nold\n{publish.END}\nBelow\n", encoding="utf-8")
    names = list(EXPERIMENTS)[:-1]
    for name in EXPERIMENTS:
        (out / name).mkdir(parents=True)
        for file in ("table.csv", f"{name}.png", f"{name}.pdf"):
            (out / name / file).write_text(f"{name} {file}", encoding="utf-8")
        (out / name / "summary.md").write_text(f"# Title of {name}\n\nText\n", encoding="utf-8")
        if name in names:  # the last one was not finished
            (out / name / "provenance.json").write_text('{"preset": "quick"}', encoding="utf-8")
    written = publish.publish(out, root)
    assert {str(path.relative_to(root)) for path in written} == {"README.md"} | {
        f"{folder}/{name}/{file}"
        for name in names
        for folder, file in (
            ("results", "table.csv"), ("results", "summary.md"), ("results", "provenance.json"),
            ("figures", f"{name}.png"),
        )
    }  # fmt: skip
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("Above\n")
    assert readme.endswith("Below\n")
    assert "old" not in readme
    assert ("### Title of validation" in readme) == ("validation" in names)
