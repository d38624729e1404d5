"""Numbers, report and figures of the experiment `estimators`, from rows that were made up."""

import dataclasses
from functools import partial

import numpy as np
import pytest
import stages
from synthetic_rows import fake

from experiments.run.job import Result
from experiments.synthetic.figures.estimators import LOWEST
from experiments.synthetic.measure.estimators import CONTROL, ESTIMATORS, NEEDS, STATISTICS
from experiments.synthetic.numbers.estimators import ALL, MIN_MODELS, MIN_SEEDS, SHOWN, numbers
from experiments.synthetic.presets import estimators as presets
from experiments.synthetic.presets import real, scaling, validation
from experiments.synthetic.registry import EXPERIMENTS
from experiments.synthetic.study import Cell
from isouq.stats import benjamini_hochberg, clustered_bootstrap

summarise = partial(stages.summarise, EXPERIMENTS["estimators"])
GAINS = {"ggn": 0.2, "control": -0.3, "swag": 0.0}  # differences in ρ to ‖g‖²; of all others 0.01
XOR = Cell("binary/xor", study="estimators")
RINGS = Cell("multiclass/rings", study="estimators")
LINE = Cell("regression/nonlinear", study="estimators")
TWO_RINGS = Cell("binary/rings", study="estimators")
SYNTHETIC = (XOR, RINGS, LINE, TWO_RINGS)
WIDTHS = (8, 16, 32, 64)
REAL = [f"real/{name}" for name in ("iris", "wine", "breast_cancer", "digits")]


def row(cell, base=0.6, noise=0.0, **more):
    """A result with the columns of every estimate, whose differences to ‖g‖² vary with the seed."""
    rng, columns = np.random.default_rng([cell.seed, len(cell.problem), cell.width or 0]), {}
    for name in ESTIMATORS:
        if cell.problem.startswith("regression") and name == CONTROL:
            continue
        gain = 0 if name == "gradient" else GAINS.get(name, 0.01) + noise * rng.normal()
        columns |= {f"{name}_{statistic}": base + gain for statistic in STATISTICS}
        columns[f"seconds_{name}"] = 0.5
        if cell.problem.startswith("regression"):
            columns[f"{name}_partial"] = float("nan")
    return fake(cell, flat=False, **columns, **more)


def seeds(cell, count=5, **options):
    return [row(dataclasses.replace(cell, seed=seed), **options) for seed in range(count)]


@pytest.fixture(scope="module")
def measured():
    """Three families, whose estimates differ from ‖g‖² by noise of 0.02 and the gains above."""
    sweep = [dataclasses.replace(RINGS, width=width, prior="fan_in") for width in WIDTHS]
    cells = [*SYNTHETIC, *sweep, *(dataclasses.replace(XOR, problem=name) for name in REAL)]
    return [result for cell in cells for result in seeds(cell, noise=0.02)]


@pytest.fixture(scope="module")
def outputs(measured):
    return summarise(measured)


def test_families(outputs):
    families = outputs.numbers.details.families
    assert {name: [model.name for model in models] for name, models in families.items()} == {
        "synthetic problems": [cell.problem for cell in SYNTHETIC],
        "real data, unit σ = 1": REAL,
        "three rings, widths, fan_in σ = 1": [f"fan_in σ = 1, width {width}" for width in WIDTHS],
        ALL: [*(cell.problem for cell in SYNTHETIC), *REAL, *(f"fan_in σ = 1, width {width}" for width in WIDTHS)],
    }
    diabetes = seeds(dataclasses.replace(LINE, problem="regression/real"))
    diabetes = [
        Result(one.numbers | {"problem": "real/diabetes", "prior": prior}, {})
        for one in diabetes
        for prior in ("unit", "fan_in")
    ]
    assert list(numbers(diabetes).details.families) == ["real data, regression"]


def test_numbers_of_a_family_are_means_over_models_of_means_over_seeds(measured, outputs):
    values = outputs.numbers.groups["synthetic problems"]
    by_model = [
        [
            one.numbers["ggn_spearman"]
            for one in measured
            if one.numbers["problem"] == cell.problem and one.numbers["width"] is None
        ]
        for cell in SYNTHETIC
    ]
    expected, _ = clustered_bootstrap(by_model, resamples=2000)
    assert values["ggn_spearman"].mean == pytest.approx(expected.mean)
    assert values["ggn_spearman"].low == pytest.approx(expected.low)
    assert values["ggn_spearman"].count == 20
    assert values["ggn_partial"].count == 15  # a regression has none
    assert values["control_spearman"].count == 15
    assert values["ggn_seconds"].mean == pytest.approx(0.5)


def test_differences_are_paired_by_posterior():
    """‖g‖² varies from seed to seed far more than the differences do."""
    results = [row(dataclasses.replace(XOR, seed=seed), base=0.1 + 0.2 * seed, noise=0.01) for seed in range(5)]
    test = numbers(results).details.differences["synthetic problems", "ggn"]
    assert test.interval.mean == pytest.approx(0.2, abs=0.02)
    assert test.interval.high - test.interval.low < 0.05
    shuffled = [
        Result(one.numbers | {"ggn_spearman": float("nan")}, {}) if i == 0 else one for i, one in enumerate(results)
    ]
    assert numbers(shuffled).details.differences["synthetic problems", "ggn"].interval.count == 4


def test_p_values_are_adjusted_over_all_estimates_and_families(measured, outputs):
    details = outputs.numbers.details
    groups = {}
    for one in sorted(measured, key=lambda one: one.numbers["width"] or 0):
        n = one.numbers
        model = (n["problem"], n["width"])
        family = "synthetic problems" if n["width"] is None else "three rings, widths, fan_in σ = 1"
        family = "real data, unit σ = 1" if n["problem"] in REAL else family
        for name in ESTIMATORS:
            if name != "gradient" and f"{name}_spearman" in n:
                for each in (family, ALL):
                    by_model = groups.setdefault((each, name), {})
                    by_model.setdefault(model, []).append(n[f"{name}_spearman"] - n["gradient_spearman"])
    plain = {
        pair: clustered_bootstrap(list(by_model.values()))[1]
        for pair, by_model in groups.items()
        if len(by_model) >= MIN_MODELS
    }
    adjusted = dict(zip(plain, benjamini_hochberg(list(plain.values())), strict=True))
    got = {pair: test.p for pair, test in details.differences.items() if np.isfinite(test.p)}
    assert got == pytest.approx(adjusted)
    untested = set(details.differences) - set(got)
    assert untested == {("synthetic problems", CONTROL)}  # which a regression lacks: three models
    assert sum(p > 0.05 for p in got.values()) > 10
    assert len(details.beyond_control) == 4


def test_verdicts(outputs):
    tests = outputs.numbers.details.differences
    for family in ("synthetic problems", "real data, unit σ = 1", "three rings, widths, fan_in σ = 1", ALL):
        assert tests[family, "ggn"].verdict == 1
        assert tests[family, "control"].verdict == (0 if family == "synthetic problems" else -1)
    assert tests[ALL, "swag"].verdict == 0


def test_rows_that_do_not_count_change_nothing():
    good = seeds(XOR, noise=0.02)

    def with_bad(value):
        bad = [row(dataclasses.replace(XOR, seed=seed), base=value) for seed in (8, 9)]
        flags = ({"accepted": False}, {"flat": True})
        return numbers([*good, *(Result(one.numbers | more, {}) for one, more in zip(bad, flags, strict=True))])

    one, other = with_bad(-5.0), with_bad(7.0)
    assert repr(one.details) == repr(other.details)  # NaN is unequal to itself
    assert repr(one.summary) == repr(other.summary)
    assert repr(one.details.differences) == repr(numbers(good).details.differences)


@pytest.mark.parametrize("count", [1, 2, MIN_SEEDS - 1])
def test_fewer_than_five_seeds_make_no_claim(count):
    outputs = summarise(seeds(XOR, count) + seeds(RINGS, count))
    assert all(np.isnan(test.p) for test in outputs.numbers.details.differences.values())
    assert all(np.isnan(test.p) for test in outputs.numbers.details.beyond_control.values())
    assert "No claim is made from fewer than 5 seeds" in outputs.summary
    assert "better, by how much" not in outputs.summary
    assert "< 0.001" not in outputs.summary
    assert "GGN Laplace, linearised | training data | 0.80" in outputs.summary


def test_a_family_of_few_models_is_not_tested():
    three, four = ([one for cell in cells for one in seeds(cell)] for cells in (SYNTHETIC[:3], SYNTHETIC))
    for results, is_tested in ((three, False), (four, True)):
        test = numbers(results).details.differences["synthetic problems", "ggn"]
        assert np.isfinite(test.p) == is_tested


def test_a_family_with_too_few_accepted_posteriors_is_not_tested():
    results = [Result(one.numbers | {"accepted": i < 3}, {}) for i, one in enumerate(seeds(XOR))]
    tests = numbers(results).details.differences
    assert {test.interval.count for test in tests.values()} == {3}
    assert all(np.isnan(test.p) and test.verdict == 0 for test in tests.values())


def section(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_report_says_what_is_better_by_what_it_needs(outputs):
    text = outputs.summary
    claims = section(text, "Synthetic problems: against ‖g‖²")
    lines = {line.split(" | ")[0].strip("| "): line for line in claims.splitlines() if line.startswith("|")}
    assert set(NEEDS.values()) < set(lines)
    assert "GGN Laplace, linearised (+0.2" in lines["training data"].split(" | ")[1]
    on_real_data = section(text, "Real data, unit σ = 1: against ‖g‖²")
    assert "p(1 − p), the control (-0." in on_real_data
    table = section(text, "Synthetic problems: every estimate")
    assert table.count("\n| ") == len(ESTIMATORS) + 2  # two lines of the heading
    assert "nan" not in text


def test_report_of_what_the_gradient_adds_to_the_control(outputs):
    text = section(outputs.summary, "What does ‖g‖² know beyond p(1 − p)?")
    assert "| real data, unit σ = 1 | 0.60 [0.60, 0.60] | < 0.001 | -0." in text
    assert "| synthetic problems | 0.60 [0.60, 0.60] | – | -0." in text  # three models that are no regression
    only_regression = summarise(seeds(LINE)).summary
    assert "No classification was accepted." in only_regression


def test_nothing_accepted_is_said():
    outputs = summarise([Result(one.numbers | {"accepted": False}, {}) for one in seeds(XOR)])
    assert "No reference was accepted." in outputs.summary
    assert "0.60" not in outputs.summary.split("## How to read this page")[1]
    for figure in outputs.figures.values():
        figure.canvas.draw()


def test_figures_show_every_family_within_the_axes():
    results = seeds(XOR, noise=0.02) + seeds(dataclasses.replace(XOR, problem="real/wine"), 2)
    far = [
        Result(one.numbers | {"ggn_sampled_spearman": one.numbers["gradient_spearman"] - 1.2}, {}) for one in results
    ]
    figures = summarise(far).figures
    assert set(figures) == {"estimators", "estimators_cost"}
    differences = figures["estimators"]
    differences.canvas.draw()
    assert len(differences.axes) == 3
    left = differences.axes[0].get_xlim()[0]
    assert left >= LOWEST - 0.06
    for axis in differences.axes:
        assert [text.get_text() for text in axis.texts] == ["← -1.20"]
    labels = [label.get_text() for label in differences.axes[0].get_yticklabels()]
    assert labels == [ESTIMATORS[name].title for name in SHOWN]
    renderer = differences.canvas.get_renderer()
    assert min(label.get_window_extent(renderer).x0 for label in differences.axes[0].get_yticklabels()) >= 0
    costs = figures["estimators_cost"]
    costs.canvas.draw()
    (legend,) = costs.legends
    assert {"‖g‖²", "p(1 − p)"} <= {text.get_text() for text in legend.get_texts()}
    marks = {line.get_marker(): line.get_ydata()[0] for line in costs.axes[0].lines if line.get_color() == "black"}
    base = summarise(far).numbers.groups["binary/xor"]["gradient_spearman"].mean
    assert marks["o"] == pytest.approx(base)
    assert "x" in marks


def test_titles_are_unlike_each_other_and_needs_are_known():
    assert len({one.title for one in ESTIMATORS.values()}) == len(ESTIMATORS)
    assert {one.needs for one in ESTIMATORS.values()} == set(NEEDS)
    assert set(SHOWN) < set(ESTIMATORS)


@pytest.mark.parametrize("preset", ["smoke", "quick", "paper"])
def test_jobs_read_the_references_of_other_experiments(preset):
    cells = presets.jobs(preset)
    assert {cell.study for cell in cells} == {"estimators"}
    assert len(set(cells)) == len(cells)
    widths = (4,) if preset == "smoke" else presets.WIDTHS
    others = [*validation.jobs(preset, 5), *scaling.jobs(preset, 5, widths), *real.jobs(preset, 5)]
    assert {cell.reference() for cell in cells} <= {cell.reference() for cell in others}
    if preset == "paper":
        assert len(cells) == 9 * 5 + 4 * 3 * 5 + 5 * 2 * 5


def test_every_difference_is_a_number(outputs):
    assert all(
        np.isfinite(number.mean) or number.count == 0
        for number in outputs.numbers.summary
        if number.statistic.endswith("_gain")
    )
