"""The depth study: its jobs, its models' names, and differences that are paired by seed and tested as one family."""

import dataclasses

import numpy as np
import pytest
from stages import summarise
from synthetic_rows import fake

from experiments import command
from experiments.synthetic.numbers import depth as depth_numbers
from experiments.synthetic.numbers.models import model_name, rows_by_model
from experiments.synthetic.presets import depth, scaling
from experiments.synthetic.registry import EXPERIMENTS as SYNTHETIC
from experiments.synthetic.study import Cell
from isouq.stats import benjamini_hochberg, paired_bootstrap

SEEDS = 5
BASE = np.array([0.1, 0.5, 0.3, 0.8, 0.6])
RISE = np.array([0.10, 0.12, 0.09, 0.11, 0.10])  # small beside the spread of BASE: clear when paired, lost otherwise


def results(networks, width=8, **unequal):
    """Rows of five seeds: (depth, activation) -> ρ by seed; r is half of it."""
    return [
        fake(
            Cell(scaling.PROBLEM, seed, width, depth=depth, activation=activation),
            epistemic_spearman=value, epistemic_pearson=value / 2, **unequal,
        )
        for (depth, activation), values in networks.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip


NETWORKS = {(1, "tanh"): BASE, (1, "relu"): BASE[[1, 0, 3, 2, 4]], (2, "tanh"): BASE + RISE}
DEEP, RELU, SHALLOW = (f"unit σ = 1, width 8{more}" for more in (", depth 2", ", relu", ""))


@pytest.mark.parametrize("preset", command.PRESETS)
def test_jobs(preset):
    cells = depth.jobs(preset)
    assert len({cell.key() for cell in cells}) == len(cells)
    assert {(cell.depth, cell.activation) for cell in cells} == set(depth.NETWORKS)
    assert {(cell.prior, cell.sigma) for cell in cells} == set(depth.PRIORS)
    shallow = {cell for cell in cells if (cell.depth, cell.activation) == (1, "tanh")}
    assert shallow <= set(scaling.jobs(preset))
    assert len(shallow) == len(cells) / len(depth.NETWORKS)
    assert {cell.study for cell in cells} == {"agreement"}
    assert {cell.seed for cell in depth.jobs(preset, 3)} == {0, 1, 2}
    assert {cell.width for cell in depth.jobs(preset, widths=(3,))} == {3}


def test_the_paper_has_every_network_and_ends_with_the_costliest():
    cells = depth.jobs("paper")
    assert len(cells) == 4 * 4 * 2 * 5  # widths, networks, priors, seeds
    assert [(cell.width, cell.depth) for cell in cells[-20:]] == [(512, 2)] * 10 + [(512, 3)] * 10
    assert [cell.width for cell in cells] == sorted(cell.width for cell in cells)


def test_a_deeper_network_is_expected_to_take_longer():
    seconds = [Cell(scaling.PROBLEM, width=512, depth=depth).reference().weight() for depth in (1, 2, 3)]
    assert seconds[0] * 3 < seconds[1]
    assert seconds[1] * 1.5 < seconds[2]


def test_depth_and_lineage_set_the_activations_themselves():
    without = {name for name, experiment in SYNTHETIC.items() if "activation" not in experiment.options}
    assert without == {"depth", "lineage"}


@pytest.mark.parametrize("preset", command.PRESETS)
def test_every_network_has_its_own_name(preset):
    cells = [cell for cell in depth.jobs(preset) if cell.seed == 0]
    names = [model_name(dataclasses.asdict(cell)) for cell in cells]
    assert len(set(names)) == len(names)


def test_names_of_older_experiments_have_not_changed():
    assert model_name(dataclasses.asdict(Cell(scaling.PROBLEM, width=8))) == "unit σ = 1, width 8"
    assert model_name(dataclasses.asdict(Cell("binary/xor"))) == "binary/xor"
    old = {"problem": scaling.PROBLEM, "width": 8, "prior": "fan_in", "sigma": 3.0}  # a table without the columns
    assert model_name(old) == "fan_in σ = 3, width 8"
    assert model_name(dataclasses.asdict(Cell("binary/xor", activation="relu"))) == "binary/xor, relu"


def test_models_stand_by_width_then_by_depth_with_tanh_first():
    rows = [result.numbers for width in (32, 8) for result in results(NETWORKS, width)]
    networks = [(model.width, model.depth, model.activation) for model in rows_by_model(rows)]
    assert networks == [(w, d, a) for w in (8, 32) for d, a in ((1, "tanh"), (1, "relu"), (2, "tanh"))]


def test_differences_are_paired_by_seed():
    shuffled = [results(NETWORKS)[i] for i in np.random.default_rng(0).permutation(3 * SEEDS)]
    groups = depth_numbers.numbers(shuffled).groups
    difference = groups[DEEP]["difference_spearman"]
    assert difference.count == SEEDS
    assert difference.mean == pytest.approx(RISE.mean())
    assert RISE.min() <= difference.low <= difference.high <= RISE.max()
    assert groups[DEEP]["difference_pearson"].mean == pytest.approx(RISE.mean() / 2)
    assert "difference_spearman" not in groups[SHALLOW]


def test_p_is_adjusted_over_both_correlations_and_all_networks():
    groups = depth_numbers.numbers(results(NETWORKS)).groups
    places = [(name, statistic) for name in (RELU, DEEP) for statistic in ("pearson", "spearman")]
    want = {
        (name, statistic): paired_bootstrap(values / half, BASE / half)[1]
        for name, values in ((RELU, NETWORKS[1, "relu"]), (DEEP, NETWORKS[2, "tanh"]))
        for statistic, half in (("pearson", 2), ("spearman", 1))
    }
    assert {place: groups[place[0]][f"p_{place[1]}"].mean for place in places} == want
    adjusted = [groups[name][f"adjusted_p_{statistic}"].mean for name, statistic in places]
    np.testing.assert_allclose(adjusted, benjamini_hochberg([want[place] for place in places]))
    assert adjusted[3] < 0.05 < adjusted[1]


def test_each_prior_and_width_has_its_own_baseline():
    rows = results(NETWORKS)
    wide = results({(1, "tanh"): BASE - 0.05, (2, "tanh"): BASE}, 32)
    for result in wide:
        result.numbers.update(prior="fan_in", sigma=3.0)
    groups = depth_numbers.numbers(rows + wide).groups
    assert groups["fan_in σ = 3, width 32, depth 2"]["difference_spearman"].mean == pytest.approx(0.05)
    assert groups[DEEP]["difference_spearman"].mean == pytest.approx(RISE.mean())


@pytest.mark.parametrize("left_out", [{"accepted": False}, {"flat": True}], ids=str)
@pytest.mark.parametrize("network", [(1, "tanh"), (2, "tanh")], ids=str)
def test_unaccepted_and_flat_rows_change_nothing(left_out, network):
    def outputs(value):
        rows = results(NETWORKS)
        place = list(NETWORKS).index(network) * SEEDS + 2  # of seed 2
        rows[place].numbers.update(epistemic_spearman=value, epistemic_pearson=value, **left_out)
        return summarise(command.EXPERIMENTS["depth"], rows)

    one, other = outputs(-0.99), outputs(0.7)
    assert one.summary == other.summary
    np.testing.assert_equal([n[2:] for n in one.numbers.summary], [n[2:] for n in other.numbers.summary])
    values = one.numbers.groups[DEEP]
    assert values["difference_spearman"].count == SEEDS - 1
    assert values["difference_spearman"].mean == pytest.approx(np.delete(RISE, 2).mean())
    assert np.isnan(values["p_spearman"].mean)  # four seeds are no test
    assert np.isnan(values["adjusted_p_spearman"].mean)


def test_the_report_tells_tests_from_what_is_none():
    summary = summarise(command.EXPERIMENTS["depth"], results(NETWORKS)).summary
    for name in ("ρ", "r"):
        count = f"Of 2 tests of {name}, 1 have an adjusted p below 0.05: 1 with a higher correlation, 0 with a lower"
        assert count in summary
    assert "| unit σ = 1 | width 8, depth 2 | +0.10 [0.10, 0.11] (5) | < 0.001 | +0.05 [0.05, 0.06] (5) |" in summary
    three = [result for result in results(NETWORKS) if result.numbers["seed"] < 3]
    summary = summarise(command.EXPERIMENTS["depth"], three).summary
    assert "Of 0 tests of ρ, 0 have" in summary
    assert "| unit σ = 1 | width 8, depth 2 | +0.10 [0.09, 0.12] (3) | – | +0.05 [0.05, 0.06] (3) | – |" in summary


def test_what_was_not_computed_is_a_dash_and_nothing_accepted_is_said():
    wide = results({(2, "tanh"): BASE}, 512)
    for result in wide:
        for name in ("laplace_pearson", "laplace_spearman"):
            del result.numbers[name]
    text = summarise(command.EXPERIMENTS["depth"], wide).summary
    assert "(5)" not in text  # without a baseline there is no difference
    assert "| 5/5 | 0.23 ± 0.14 |" in text
    assert "| – | – | 0.50 ± 0.00 | 0.50 ± 0.00 |" in text
    for result in wide:
        result.numbers["accepted"] = False
    text = summarise(command.EXPERIMENTS["depth"], wide).summary
    assert "| 0/5 | unconverged | – | unconverged | – | unconverged | unconverged |" in text


def test_the_figure_draws_each_network_at_its_own_place():
    deep = {(1, "tanh"): BASE, (2, "tanh"): BASE + RISE}
    figure = summarise(command.EXPERIMENTS["depth"], results(deep) + results(deep, 32)).figures["depth"]
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2 and np.ptp(line.get_xdata()) > 1]
    drawn = {tuple(np.round(line.get_ydata(), 6)) for line in lines}
    assert {(round(BASE.mean(), 6),) * 2, (round((BASE + RISE).mean(), 6),) * 2} == drawn
    assert len({line.get_color() for line in lines}) == 2
    assert len({tuple(line.get_xdata()) for line in lines}) == 2
