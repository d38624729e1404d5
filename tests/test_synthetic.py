"""The synthetic experiments: configurations and keys, presets, numbers and reports of validation, maps and scaling."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from stages import summarise
from synthetic_rows import fake

from experiments import command
from experiments.report.outputs import table_csv
from experiments.report.tables import (
    accepted_share,
    bounds,
    mean_sd,
    number,
    table,
)
from experiments.run.errors import RunError
from experiments.synthetic import study
from experiments.synthetic.measure.agreement import ESTIMATES
from experiments.synthetic.numbers import scaling as scaling_numbers
from experiments.synthetic.numbers.models import mean_over_accepted
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.presets import maps, scaling, validation
from experiments.synthetic.report import scaling as scaling_report
from experiments.synthetic.report.page import reference_section, training_section
from experiments.synthetic.report.validation import HEADINGS
from experiments.synthetic.study import STUDIES, Cell
from experiments.synthetic.subject import FACTS, is_flat, set_up
from isouq import models, problems
from isouq.stats import Interval

TINY = {"num_points": 20, "num_warmup": 10, "num_draws": 10, "num_leapfrog": 3, "resolution": 6}


@pytest.fixture
def cells():
    return [Cell("binary/xor", seed) for seed in range(4)]


@pytest.mark.slow
def test_second_opinion_of_a_cell(tmp_path):
    cell = Cell("regression/linear", study="second_opinion", **{**TINY, "num_warmup": 100, "num_draws": 200})
    numbers, arrays = study.run_cell(cell)
    assert list(numbers)[: len(dataclasses.asdict(cell))] == list(dataclasses.asdict(cell))
    assert numbers["study"] == "second_opinion"
    assert set(FACTS) <= set(numbers)
    assert numbers["numpyro_spearman"] > 0.9
    assert numbers["numpyro_scale"] == pytest.approx(1, abs=0.5)
    assert numbers["numpyro_scale"] == pytest.approx(arrays["reference"].mean() / arrays["numpyro"].mean())
    assert numbers["seconds"] > numbers["seconds_numpyro"] > 0


def test_a_version_belongs_to_its_study(monkeypatch):
    cells = [Cell("binary/xor", study=name) for name in STUDIES]
    before = {cell.study: cell.key() for cell in cells}
    assert len(set(before.values())) == len(STUDIES)
    monkeypatch.setitem(STUDIES, "agreement", STUDIES["agreement"]._replace(version=999))
    assert {cell.study for cell in cells if cell.key() != before[cell.study]} == {"agreement"}
    monkeypatch.setitem(STUDIES, "reference", STUDIES["reference"]._replace(version=999))  # every study reads it
    assert {cell.study for cell in cells if cell.key() != before[cell.study]} == set(STUDIES)


def test_maps_shares_its_cells_with_validation():
    for preset in ("smoke", "quick", "paper"):
        assert set(maps.jobs(preset)) <= set(validation.jobs(preset))
        assert {(cell.seed, cell.study) for cell in maps.jobs(preset)} == {(0, "agreement")}


OTHER = {
    "problem": "binary/rings", "seed": 1, "width": 4, "prior": "fan_in", "sigma": 2.0, "num_points": 50, "chains": 6,
    "num_warmup": 60, "num_draws": 70, "thin": 2, "num_leapfrog": 9, "sampler": "nuts", "resolution": 8,
    "study": "spectrum", "max_rounds": 3, "activation": "relu", "give_up": True,
}  # fmt: skip


def test_every_field_is_part_of_the_key():
    assert {*OTHER, "depth"} == {field.name for field in dataclasses.fields(Cell)}
    plain = Cell("binary/xor")
    keys = {plain.key()} | {dataclasses.replace(plain, **{name: value}).key() for name, value in OTHER.items()}
    keys |= {Cell("binary/xor", width=4, depth=2).key()}
    assert len(keys) == len(OTHER) + 2
    assert all(re.fullmatch("[0-9a-f]{16}", key) for key in keys)
    assert Cell("binary/xor").key() == plain.key()


@pytest.mark.parametrize("same", [{"sigma": 1}, {"seed": np.int64(0)}, {"sigma": np.float64(1.0)}])
def test_equal_cells_have_equal_keys(same):
    cell = Cell("binary/xor", **same)
    assert cell == Cell("binary/xor")
    assert cell.key() == Cell("binary/xor").key()


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 2}, {"activation": "sine"},
        {"seed": -1}, {"seed": 0.5}, {"width": 0}, {"prior": "flat"}, {"sigma": 0.0}, {"sigma": float("nan")},
        {"num_points": 0},
        {"chains": 1}, {"num_warmup": 9}, {"num_draws": 3}, {"thin": 0}, {"num_leapfrog": 0}, {"sampler": "gibbs"},
        {"resolution": 1}, {"study": "nothing"},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_cell_cannot_be_made(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*; expected"):
        Cell("binary/xor", **wrong)


@pytest.mark.parametrize("activation", models.ACTIVATIONS)
def test_a_cell_builds_the_layers_and_the_activation_that_it_names(activation):
    cell = Cell("multiclass/rings", width=4, depth=2, activation=activation)
    setting = set_up(cell, problems.get(cell.problem))
    layers = [setting.zeros["layers"][i] for i in range(3)]
    assert set(setting.zeros["layers"]) == {0, 1, 2}
    assert [layer["kernel"].shape for layer in layers] == [(2, 4), (4, 4), (4, 3)]
    params = jax.tree.map(lambda leaf: leaf[0], setting.inits)
    function = {"tanh": np.tanh, "relu": lambda h: np.maximum(h, 0), "sigmoid": lambda h: 1 / (1 + np.exp(-h))}
    h = x = np.array([0.7, -1.2], np.float32)
    for i, layer in params["layers"].items():
        h = h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        h = function[activation](h) if i < 2 else h
    np.testing.assert_allclose(setting.predict(params, x), h, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", models.ACTIVATIONS)
def test_the_name_of_an_activation_means_its_function(name):
    named, called = models.mlp(2, (3,), 1, name), models.mlp(2, (3,), 1, models.ACTIVATIONS[name])
    assert named == called  # they share compiled programs
    params = named[1](jax.random.key(0))
    np.testing.assert_array_equal(named[0](params, np.ones(2)), called[0](params, np.ones(2)))
    with pytest.raises(ValueError, match="activation is 'sine'; expected"):
        models.mlp(2, (3,), 1, "sine")


@pytest.mark.parametrize("preset", command.PRESETS)
@pytest.mark.parametrize("experiment", [validation, maps, scaling])
def test_presets(experiment, preset):
    cells = experiment.jobs(preset)
    assert len(set(cells)) == len(cells) > 0
    assert {cell.problem for cell in cells} <= set(problems.PROBLEMS)
    assert {cell.seed for cell in experiment.jobs(preset, 3)} == ({0} if experiment is maps else {0, 1, 2})
    assert all(cell.weight() > 0 for cell in cells)
    assert sum(cell.weight() for cell in experiment.jobs("smoke")) < sum(
        cell.weight() for cell in experiment.jobs("paper")
    )


def test_the_second_opinions_of_the_paper():
    cells = validation.jobs("paper")
    opinions = [cell for cell in cells if cell.study == "second_opinion"]
    assert {cell.problem for cell in opinions} == set(validation.SECOND_OPINION)
    assert len(opinions) == 5 * len(validation.SECOND_OPINION)
    assert {cell.reference() for cell in opinions} <= {cell.reference() for cell in cells if cell.study == "agreement"}
    assert {cell.study for preset in ("smoke", "quick") for cell in validation.jobs(preset)} == {"agreement"}


def test_widths_replace_those_of_the_preset():
    assert {cell.width for cell in scaling.jobs("smoke", 1, (3, 5))} == {3, 5}
    assert {cell.width for cell in scaling.jobs("paper")} == {2**k for k in range(1, 11)}


def test_table_csv_puts_timing_last_and_leaves_missing_empty():
    rows = [{"a": 1, "seconds": 0.5, "b": None}, {"a": 2, "seconds": 0.7, "c": "x,y", "seconds_map": 1.0, "b": 3}]
    assert table_csv(rows) == 'a,b,c,seconds,seconds_map\n1,,,0.5,\n2,3,"x,y",0.7,1.0\n'
    assert table_csv([]).strip() == ""


def test_numbers_in_words():
    nan = float("nan")
    assert number(0.456) == "0.46"
    assert number(0.456, 1) == "0.5"
    assert number(None) == number(nan) == "–"
    assert mean_sd(Interval(0, nan, nan, nan, nan)) == "unconverged"
    assert mean_sd(Interval(1, 0.5, nan, nan, nan)) == "0.50"
    assert mean_sd(Interval(3, 0.5, 0.1, 0.4, 0.6)) == "0.50 ± 0.10"
    assert bounds(Interval(1, 0.5, nan, nan, nan)) == "–"
    assert bounds(Interval(3, 0.5, 0.1, 0.4, 0.6)) == "[0.40, 0.60]"
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n"


def test_unconverged_rows_are_in_no_mean(cells):
    values = (0.4, 0.6, -0.9, float("nan"))
    rows = [fake(c, accepted=i != 2, value=v).numbers for i, (c, v) in enumerate(zip(cells, values, strict=True))]
    interval = mean_over_accepted(rows, "epistemic_pearson")
    assert interval.count == 2
    assert interval.mean == pytest.approx(0.5)
    assert accepted_share(rows) == "3/4"
    assert mean_over_accepted([rows[2]], "epistemic_pearson").count == 0


def test_the_end_lists_what_was_not_accepted(cells):
    rows = [fake(c, accepted=c.seed != 2).numbers for c in cells]
    text = reference_section(rows)
    assert "3 of 4 accepted" in text
    assert "- binary/xor, unit σ = 1, seed 2: unconverged: R-hat 1.2000 > 1.01\n" in text
    assert text.count("\n- ") == 1


def test_training_lists_what_did_not_converge(cells):
    rows = [fake(c, map_converged=c.seed != 1, map_grad_norm=0.01 + c.seed % 2).numbers for c in cells]
    text = training_section(rows)
    assert "3 of 4 θ* converged; largest ‖∇ log p(θ*|D)‖ 1.01" in text
    assert "- not converged: binary/xor, unit σ = 1, seed 1, 1.01\n" in text


@pytest.mark.parametrize(
    ("name", "cell"), [("validation", Cell("binary/xor")), ("scaling", Cell(scaling.PROBLEM, width=4))]
)
def test_a_summary_does_not_depend_on_unconverged_values(name, cell):
    def summary(of_unconverged):
        seeds = [(0, True, 0.5), (1, False, of_unconverged), (2, True, 0.7)]
        return summarise(
            command.EXPERIMENTS[name], [fake(dataclasses.replace(cell, seed=s), ok, v) for s, ok, v in seeds], "smoke"
        ).summary

    text = summary(-0.99)
    assert text == summary(0.3)
    assert "0.60 ± 0.14" in text
    assert "2/3" in text
    assert re.search(r"seed 1: unconverged: R-hat", text)


@pytest.mark.parametrize(
    ("name", "cell"), [("validation", Cell("binary/xor")), ("scaling", Cell(scaling.PROBLEM, width=4))]
)
def test_nothing_accepted_is_said_and_has_no_number(name, cell):
    text = summarise(command.EXPERIMENTS[name], [fake(cell, accepted=False, value=0.1234)], "smoke").summary
    assert "| unconverged | – |" in text
    assert "0/1" in text
    assert "0.12" not in text


def test_a_second_opinion_stands_on_the_row_of_its_cell():
    cells = [Cell("binary/xor", seed) for seed in range(2)]
    opinion = fake(
        dataclasses.replace(cells[1], study="second_opinion"), value=0.1234, numpyro_pearson=0.9, numpyro_spearman=0.8,
        numpyro_scale=1.1, numpyro_accepted=True,
    )  # fmt: skip
    outputs = summarise(command.EXPERIMENTS["validation"], [fake(cells[0]), fake(cells[1]), opinion], "paper")
    assert [(row["seed"], row["study"], row.get("numpyro_scale")) for row in outputs.numbers.rows] == [
        (0, "agreement", None), (1, "agreement", 1.1)
    ]  # fmt: skip
    assert outputs.numbers.rows[1]["epistemic_pearson"] == 0.5
    assert "| binary/xor | 1 | yes | yes | 0.900 | 0.800 | 1.100 |" in outputs.summary
    assert "2 of 2 accepted" in outputs.summary
    with pytest.raises(RunError, match="a second opinion alone makes no table"):
        summarise(command.EXPERIMENTS["validation"], [opinion], "paper")


def test_maps_mark_what_was_not_accepted():
    outputs = summarise(
        command.EXPERIMENTS["maps"], [fake(Cell("binary/xor"), accepted=False), fake(Cell("binary/rings"))], "smoke"
    )
    assert set(outputs.figures) == {"maps", "binary_xor", "binary_rings"}
    labels = [axis.get_ylabel() for axis in outputs.figures["maps"].axes]
    assert any("binary/xor (unconverged)" in label for label in labels)
    assert any("binary/rings\n" in label for label in labels)
    assert "| binary/xor | unconverged |" in outputs.summary


def test_the_papers_numbers():
    assert set(PAPER) == set(HEADINGS) == set(ESTIMATES)
    for by_problem in PAPER.values():
        assert set(by_problem) <= set(problems.PROBLEMS)
        assert all(-1 <= value <= 1 for pair in by_problem.values() for value in pair)
    assert set(PAPER["epistemic"]) == set(problems.PROBLEMS)


def widths(*means, accepted=True, spread=0.01, seeds=5):
    """Rows of one prior: a mean for each of the widths 2, 4, 8, …."""
    noise = spread * np.linspace(-1, 1, seeds)
    return [
        fake(
            Cell(scaling.PROBLEM, seed, width=2 ** (k + 1)), accepted, mean,
            epistemic_pearson=mean + noise[seed], epistemic_spearman=mean + noise[(seed + k) % seeds],
        )
        for k, mean in enumerate(means)
        for seed in range(seeds)
    ]  # fmt: skip


def verdicts(results):
    """What the report says of the U, for r and for ρ."""
    text = scaling_report._shapes(scaling_numbers.numbers(results))
    assert "nan" not in text
    return [line.split("|")[-2].strip() for line in text.splitlines() if line.startswith("| unit")]


@pytest.mark.parametrize("means", [(0.9, 0.3, 0.9), (0.8, 0.6, 0.4, 0.5, 0.7)])
def test_a_clear_u(means):
    assert verdicts(widths(*means)) == ["yes", "yes"]


@pytest.mark.parametrize("means", [(0.9, 0.6, 0.3), (0.3, 0.6, 0.9), (0.3, 0.9, 0.3), (0.5, 0.5, 0.5)])
def test_a_clear_lack_of_a_u(means):
    assert verdicts(widths(*means)) == ["no", "no"]


def test_a_dip_within_the_noise_is_no_u():
    results = widths(0.5, 0.5, 0.5, spread=0.0)
    for result, jump in zip(results[5:10], (0.3, -0.4, 0.3, -0.4, 0.1), strict=True):
        result.numbers["epistemic_pearson"] += jump
        result.numbers["epistemic_spearman"] += jump
    assert verdicts(results) == ["no", "no"]


def test_the_shape_needs_three_accepted_widths():
    assert verdicts(widths(0.9, 0.3)) == []
    assert verdicts(widths(0.9, 0.3, 0.9, accepted=False)) == []


def test_the_shape_leaves_undefined_correlations_out():
    results = widths(0.9, 0.3, 0.9)
    results[10].numbers["epistemic_pearson"] = float("nan")
    assert verdicts(results) == ["too few seeds (4)", "yes"]


def test_a_flat_estimate_is_listed_and_in_no_mean():
    flat, uneven = fake(Cell(scaling.PROBLEM, width=4)), fake(Cell(scaling.PROBLEM, 1, width=4), value=0.25)
    flat.numbers["flat"] = True
    outputs = summarise(command.EXPERIMENTS["scaling"], [flat, uneven], "smoke")
    assert "- multiclass/rings, width 4, unit σ = 1, seed 0\n" in outputs.summary
    assert "seed 1\n" not in outputs.summary
    assert mean_over_accepted([flat.numbers, uneven.numbers], "epistemic_pearson").mean == 0.25
    assert "Flat" not in summarise(command.EXPERIMENTS["scaling"], [uneven], "smoke").summary


@pytest.mark.parametrize(("share", "flat"), [(0.9e-3, True), (1.1e-3, False)])
def test_a_map_is_flat_below_a_thousandth(share, flat):
    assert is_flat(np.float32([1 - share / 2, 1, 1 + share / 2])) == flat


def test_a_flat_estimate_has_no_correlation(monkeypatch):
    cell = Cell("regression/linear", **TINY)
    reference = study.run_cell(cell.reference())
    usual = study.run_cell(cell, reference=reference).numbers
    monkeypatch.setattr("experiments.synthetic.subject.FLAT", np.inf)
    flat = study.run_cell(cell, reference=reference).numbers
    names = {name for name in usual if "pearson" in name or "spearman" in name}
    assert len(names) > 6
    assert np.isfinite([usual[name] for name in names]).all()
    assert np.isnan([flat[name] for name in names]).all()
    assert {name for name in usual if not name.startswith("seconds") and flat[name] != usual[name]} == {*names, "flat"}
