"""The benchmarks run from end to end at their smoke preset, and what they measure is right."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import answers, cases, device, modes, polygraph, projection, provenance, reference, samplers, study
from experiments.synthetic.presets import validation

# `python -m benchmarks` in an environment that has no torch, whatever is installed in this one
WITHOUT_TORCH = """
import runpy, sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""


def run(name, folder, only, start=("-m", "benchmarks")):
    """In a process of its own: the tests forbid rank promotion, the benchmarked models use it."""
    options = ["--preset", "smoke", "--no-memory", "--rounds", "1", "--budget", "0.1", "--only", only]
    command = [sys.executable, *start, name, *options, "--out", str(folder)]
    subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases.NAMES)
def test_smoke(name, tmp_path):
    run(name, tmp_path, "of grad")
    with (tmp_path / f"{name}.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = [row for row in rows if row["contestant"].startswith("isouq")]
    assert ours
    assert all(float(row["seconds"]) > 0 for row in ours)
    if name != "probes":
        exact = [row for row in ours if "bfloat16" not in row["contestant"]]
        assert all(float(row["max_relative_error"]) < 1e-5 for row in exact)
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    table = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert f"python -m benchmarks {name}" in table
    assert json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_reference_is_measured(monkeypatch, tmp_path):
    case = next(reference.cases("smoke"))
    monkeypatch.setattr(reference, "cases", lambda preset: [case, replace(case, chains_at_once=3)])
    reference.run("smoke", tmp_path, provenance.provenance(["reference"]))
    with (tmp_path / "reference.csv").open(encoding="utf-8") as file:
        good, bad = csv.DictReader(file)
    assert float(good["kept_mb"]) == pytest.approx(4e-6 * case.chains * case.draws * case.inputs)
    assert 0 < float(good["seconds"]) < float(good["first_seconds"])
    assert good["status"] == "ok"
    assert "expected a divisor of the 2 chains" in bad["status"]
    assert "python -m benchmarks reference" in (tmp_path / "reference.md").read_text(encoding="utf-8")


def test_a_peer_that_is_missing_keeps_its_row_with_the_reason(tmp_path):
    run("mlp", tmp_path, "Opacus", ("-c", WITHOUT_TORCH))
    assert "not installed: pip install torch==2.13.0" in (tmp_path / "mlp.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_scores_without_lm_polygraph_keep_their_rows_with_the_reason(tmp_path):
    polygraph.run("smoke", tmp_path, provenance.provenance(["polygraph"]), None, None, "nll_mean")
    with (tmp_path / "polygraph.csv").open(encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert float(row["isouq_first_seconds"]) > 0
    assert "--polygraph-python" in row["status"]
    assert "python -m benchmarks polygraph" in (tmp_path / "polygraph.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_both_modes_are_maxima_of_one_density(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(modes.scaling, "jobs", lambda preset, seeds: [])
    modes.run("smoke", tmp_path, provenance.provenance(["modes"]))
    with (tmp_path / "modes.csv").open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    linear = rows["regression/linear"]  # it has one maximum
    assert float(linear["density_raw"]) == pytest.approx(float(linear["density_standardised"]), abs=0.01)
    assert float(linear["spread_standardised"]) < 0.01


def test_samplers_are_compared_and_a_second_run_goes_on(monkeypatch, tmp_path):
    monkeypatch.setattr(samplers, "cells", lambda preset: [validation.jobs("smoke")[0]])
    record = provenance.provenance(["samplers"])
    samplers.run("smoke", tmp_path, record, "HMC")
    first = (tmp_path / "samplers.csv").read_text(encoding="utf-8").splitlines()[1]
    samplers.run("smoke", tmp_path, record, "NUTS")
    again = (tmp_path / "samplers.csv").read_text(encoding="utf-8").splitlines()[1]
    assert again.split(",")[:8] == first.split(",")[:8]
    with (tmp_path / "samplers.csv").open(encoding="utf-8") as file:
        rows = {row["sampler"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == samplers.CONTESTANTS
    for name, row in rows.items():
        assert row["status"] == "ok"
        per_gradient = 1000 * float(row["ess_bulk"]) / float(row["draw_gradients"])
        assert float(row["ess_per_1000_draw_gradients"]) == pytest.approx(per_gradient, rel=1e-4)
        best = 1000 * float(rows[samplers.NUMPYRO]["ess_bulk"]) / float(rows[samplers.NUMPYRO]["draw_gradients"])
        assert float(row["ratio_to_numpyro"]) == pytest.approx(per_gradient / best, rel=1e-4), name
    expected = 4 * 50 * 50  # chains, draws, mean leapfrog steps
    assert float(rows[samplers.BEFORE]["draw_gradients"]) == pytest.approx(expected, rel=0.1)
    assert float(rows[samplers.BEFORE]["gradients"]) == pytest.approx(2 * expected, rel=0.1)
    assert float(rows[samplers.NUMPYRO]["gradients"]) > float(rows[samplers.NUMPYRO]["draw_gradients"]) + 4 * 50


@pytest.mark.slow
def test_a_commit_and_the_working_tree_are_measured_in_turn(tmp_path):
    study.run("smoke", tmp_path, provenance.provenance(["study"]), "HEAD", "nonsense", 1)
    with (tmp_path / "study.csv").open(encoding="utf-8") as file:
        before, after, *whole = csv.DictReader(file)
    assert [row["contestant"] for row in (before, after)] == ["before (HEAD)", "after"]
    for row in (before, after):
        assert row["status"] == "ok"
        assert float(row["gradient_evaluations"]) > 0
        assert 0 < float(row["cpu_seconds_after_import"]) < float(row["cpu_seconds"])
    assert all("invalid choice: 'nonsense'" in row["status"] for row in whole)
    assert len(whole) == 2


@pytest.mark.slow
def test_first_and_twenty_answers_are_measured_of_both_trees(tmp_path):
    answers.run("smoke", tmp_path, provenance.provenance(["answers"]), "HEAD", 1)
    with (tmp_path / "answers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["part"], row["contestant"]) for row in rows] == [
        (part, name) for part in answers.PARTS for name in ("before (HEAD)", "after")
    ]
    assert [row["status"] for row in rows] == ["ok"] * len(rows)
    for row in rows:
        assert float(row["cpu_seconds"]) > 0
        assert bool(row["call_cpu_seconds"]) == row["part"].startswith("20")


def test_a_commit_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"--before nonsense: .*; name a commit of this repository"):
        study.extract("nonsense", tmp_path / "before")


def test_the_sample_of_the_projection_takes_a_tenth_of_every_model_and_every_seed_and_prior():
    cells = projection.all_cells("paper")
    references = [cell for cell in cells if cell.study == "reference"]
    chosen = projection.sample(references)
    assert chosen <= set(references)
    assert {projection.model(cell) for cell in chosen} == {projection.model(cell) for cell in references}
    assert len(references) / 10 <= len(chosen) <= len(references) / 6
    sweep = [cell for cell in chosen if cell.width]
    assert {cell.seed for cell in sweep} == set(range(5))
    assert len({(cell.prior, cell.sigma) for cell in sweep}) == 5


def test_the_projection_of_equal_cells_is_their_number_times_one():
    cells = projection.all_cells("paper")
    chosen = projection.sample([cell for cell in cells if cell.study == "reference"])
    measured, compiled = [], set()
    for cell in (cell for cell in cells if cell.reference() in chosen):
        first = (cell.study, projection.model(cell)) not in compiled
        compiled.add((cell.study, projection.model(cell)))
        compiling = 6.0 if first else 1.5  # of the wall clock, on which the process ran half of the time
        measured.append(projection.Measured(cell, 4.0 + compiling, (4.0 + compiling) / 2, compiling))
    for row in projection.rows(cells, measured):
        seconds = 4.0 * row["cells"] + 6.0 + 1.5 * (row["cells"] - 1)
        assert row["projected_seconds"] == pytest.approx(seconds)
        assert row["projected_cpu_seconds"] == pytest.approx(seconds / 2)


@pytest.mark.slow
def test_a_device_is_measured_and_a_part_that_takes_too_long_is_cut(monkeypatch, tmp_path):
    monkeypatch.setattr(device, "SECONDS", {"equality": 300, "sweep": 300, "references": 0.01})
    device.run("smoke", tmp_path, provenance.provenance(["device"]))
    with (tmp_path / "device.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    equality, sweep, cut = ([row for row in rows if row["part"] == part] for part in device.SECONDS)
    assert {row["contestant"] for row in equality} == {"TF32 off", "TF32 on"}
    assert len(equality) == 20
    assert all(row["agrees"] == "True" and float(row["error_of_jax_grad"]) > 0 for row in equality)
    assert [row["contestant"] for row in sweep] == ["vmap", "one by one"] * 2
    assert all(float(row["gradients_per_second"]) > 0 and 0.5 < float(row["acceptance"]) <= 1 for row in sweep)
    assert float(sweep[0]["acceptance"]) == pytest.approx(float(sweep[1]["acceptance"]), abs=0.05)
    assert [row["status"] for row in cut] == ["cut after 0.01 s"]
