"""The lineage: slow twins of what a cell measures, and the distance to the paper on made-up numbers."""

import csv
import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from stages import summarise
from synthetic_rows import fake

from experiments import command
from experiments.run.job import Result
from experiments.synthetic.measure import lineage
from experiments.synthetic.numbers.lineage import PROTOCOL, compare, paper_entries
from experiments.synthetic.numbers.lineage import numbers as lineage_numbers
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.presets import lineage as presets
from experiments.synthetic.presets.validation import TINY
from experiments.synthetic.study import Cell, run_cell
from experiments.synthetic.subject import FACTS, evaluation_inputs, set_up, subject
from isouq import problems, stats

RNG = np.random.default_rng(0)
MADE_UP = (
    dict.fromkeys(FACTS, 1.0)
    | {"accepted": True, "divergent": 0.0, "accepted_wide": True}
    | dict.fromkeys(("seconds_map", "seconds_reference", "seconds"), 1.0)
)
LINEAGE = command.EXPERIMENTS["lineage"]


def made(problem, **changes):
    """A subject at its first initialisation with made-up draws: nothing here needs a trained or sampled model."""
    cell = Cell(problem, study="lineage", **{**TINY, "resolution": 5, "num_draws": 8, **changes})
    setting = set_up(cell, problems.get(problem))
    starts = np.asarray(jax.vmap(lambda params: ravel_pytree(params)[0])(setting.inits))
    points = len(evaluation_inputs(cell, setting)[0])
    draws = starts[:, None] + 0.5 * RNG.normal(size=(4, 20, starts.shape[1])).astype(np.float32)
    arrays = {"starts": starts, "draws": draws, "variance": RNG.random(points)}
    return subject(cell, problems.get(problem), Result({**MADE_UP, "best": 0, "num_params": starts.shape[1]}, arrays))


# what a cell measures


@pytest.fixture(scope="module")
def rings():
    return made("multiclass/rings", activation="relu")


def outputs_of_draws(it, xs):
    """The outputs at every input under every draw, `[draws, points, ...]`."""
    unravel = ravel_pytree(it.theta)[1]
    thetas = it.draws.reshape(-1, it.draws.shape[2])
    outputs = jax.vmap(lambda theta: jax.vmap(lambda x: it.setting.predict(unravel(theta), x))(xs))(thetas)
    return np.asarray(outputs, np.float64)


def softmax(logits):
    """p of every class, from the formula."""
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def widened(it, widen):
    """The grid over the data's range widened at both ends."""
    xs = np.asarray(it.setting.data.xs)
    axes = [np.linspace(a - widen, b + widen, 5) for a, b in zip(xs.min(axis=0), xs.max(axis=0), strict=True)]
    return np.array([[x, y] for y in axes[1] for x in axes[0]], np.float32)


def test_sums_over_classes_and_the_grid_1_5_against_the_formulas(rings):
    got = lineage.measure(rings).numbers
    for grid, widen in (("near", 0.5), ("far", 1.5)):
        xs = widened(rings, widen)
        p = softmax(outputs_of_draws(rings, xs))
        slopes = jax.vmap(jax.jacrev(lambda t, x: jax.nn.softmax(rings.setting.predict(t, x))), (None, 0))(
            rings.theta, xs
        )
        gradients = np.concatenate([np.reshape(leaf, (len(xs), 3, -1)) for leaf in jax.tree.leaves(slopes)], axis=2)
        norms = np.sum(gradients**2, axis=2)
        p_star = softmax(np.asarray(jax.vmap(lambda x: rings.setting.predict(rings.theta, x))(xs), np.float64))
        predicted = p_star.argmax(axis=1)
        points = np.arange(len(xs))
        variance, norm = p.var(axis=0), norms[points, predicted]
        assert got[f"epistemic_map_{grid}_sum_pearson"] == pytest.approx(
            stats.pearson(norms.sum(axis=1), variance.sum(axis=1)), abs=1e-4
        )
        assert got[f"epistemic_map_{grid}_class_pearson"] == pytest.approx(
            stats.pearson(norm, variance[points, predicted]), abs=1e-4
        )
        moments = lineage.moments_by_class(lineage.margins_by_class(rings, jnp.asarray(xs)), "multiclass")
        np.testing.assert_allclose(moments.variance.T, variance, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(moments.aleatoric.T, (p * (1 - p)).mean(axis=0), rtol=1e-4)
        estimate = lineage.estimate_by_class(rings.setting, rings.theta, jnp.asarray(xs))
        np.testing.assert_allclose(estimate.epistemic.T, norms, rtol=1e-3)
        p_star = p_star.max(axis=1)
        aleatoric = stats.spearman(p_star * (1 - p_star), moments.aleatoric[predicted, points])
        assert got[f"aleatoric_map_{grid}_spearman"] == pytest.approx(aleatoric, abs=0.01)


def test_binary_classes_have_one_row_and_no_sum():
    it = made("binary/xor")
    got = lineage.measure(it).numbers
    assert not [name for name in got if "_sum_" in name]
    xs = jnp.asarray(widened(it, 1.5))
    moments = lineage.moments_by_class(lineage.margins_by_class(it, xs), "binary")
    variance = (1 / (1 + np.exp(-outputs_of_draws(it, xs)))).var(axis=0)
    np.testing.assert_allclose(moments.variance, variance[None], rtol=1e-3)
    assert {f"laplace_map_{grid}_pearson" for grid in lineage.GRIDS} <= set(got)
    assert not [name for name in got if name.startswith("laplace_mle")]
    assert not got["accepted_far"]  # the made-up chains start apart and stay there
    assert got["rhat_far"] > 1.01


def test_a_flat_map_has_no_correlation_and_others_keep_theirs():
    it = made("binary/xor")
    constant = jax.tree.map(jnp.zeros_like, it.theta)  # predicts ½ everywhere, and only the last bias has a slope
    got = lineage.measure(it._replace(theta=constant)).numbers
    assert all(got[f"flat_map_{grid}"] for grid in lineage.GRIDS)
    assert not got["flat"]
    assert not [name for name in got if name.startswith(("epistemic_map", "aleatoric_map", "laplace_map"))]
    assert np.isfinite(got["epistemic_mle_near_class_pearson"])


def test_of_a_reference_that_was_given_up_there_are_the_facts_alone():
    it = made("binary/xor", give_up=True)
    it.reference.numbers["accepted"] = False
    got = lineage.measure(it).numbers
    assert not [name for name in got if name.startswith(("epistemic", "aleatoric", "laplace"))]
    assert not any(got[flag] for flag in lineage.ACCEPTED.values())
    assert {"mle_converged", "flat_mle_wide", "seconds"} <= set(got)
    it.reference.numbers["accepted"] = True
    assert "epistemic_map_far_class_pearson" in lineage.measure(it).numbers


def test_a_sampled_cell_agrees_with_the_agreement():
    cell = Cell("multiclass/clusters", study="lineage", **TINY)
    reference = run_cell(cell.reference())
    got = run_cell(cell, reference=reference).numbers
    other = run_cell(dataclasses.replace(cell, study="agreement"), reference=reference).numbers
    for statistic in ("pearson", "spearman"):
        assert got[f"epistemic_map_near_class_{statistic}"] == pytest.approx(other[f"epistemic_{statistic}"], abs=1e-4)
        wide = other[f"epistemic_{statistic}_wide"]
        assert got[f"epistemic_map_wide_class_{statistic}"] == pytest.approx(wide, abs=1e-4)
        assert got[f"aleatoric_map_near_{statistic}"] == pytest.approx(other[f"aleatoric_{statistic}"], abs=1e-4)


def test_maximum_likelihood_of_a_linear_regression_is_least_squares():
    setting = set_up(Cell("regression/linear", num_points=60), problems.get("regression/linear"))
    fit = lineage.fit_mle(setting)
    xs, ys = (np.asarray(array, np.float64) for array in setting.data)
    slope, intercept = np.linalg.lstsq(np.column_stack([xs, np.ones(60)]), ys, rcond=None)[0]
    got = np.asarray([setting.predict(fit.best(), jnp.asarray([x])) for x in (0.0, 1.0)])
    np.testing.assert_allclose(got, [intercept, intercept + slope], atol=1e-3)
    assert lineage.mle_facts(setting, fit)["mle_converged"]
    assert not lineage.mle_facts(setting, fit)["mle_separates"]


@pytest.mark.parametrize(("gap", "separates"), [(1.0, True), (-1.0, False)])
def test_separable_data_are_said_to_be_so(gap, separates):
    xs = np.concatenate([np.linspace(-3, -gap, 20), np.linspace(gap, 3, 20)])[:, None]
    own = problems.from_arrays(xs, np.repeat([0, 1], 20), "binary", hidden=(), name="own")
    setting = set_up(Cell("own", num_points=40), own)
    fit = lineage.fit_mle(setting)
    assert lineage.mle_facts(setting, fit)["mle_separates"] == separates
    assert (lineage.mle_facts(setting, fit)["mle_log_likelihood"] > -0.5) == separates


# the grid


def test_the_whole_grid_is_run():
    cells = presets.jobs("paper")
    assert len(set(cells)) == len(cells) == 5 * 2 * 5 * (3 + 6 * 3)
    linear = {name for name, problem in problems.PROBLEMS.items() if not problem.hidden}
    assert len(linear) == 3
    assert {cell.activation for cell in cells if cell.problem in linear} == {"tanh"}
    assert {cell.activation for cell in cells if cell.problem not in linear} == {"tanh", "relu", "sigmoid"}
    assert {cell.study for preset in command.PRESETS for cell in presets.jobs(preset)} == {"lineage"}
    settings = [
        one.setting for one in compare([fake(cell, accepted_far=True).numbers for cell in presets.jobs("paper", 1)])
    ]
    assert len(set(settings)) == len(settings) == 3 * 5 * 2 * 2 * 3 * 2 * 2
    assert PROTOCOL in settings


# the distance


def at(cell, shift=0.0, accepted=True, **more):
    """The result of a cell whose numbers are all `shift` below those of the paper."""
    columns = {}
    for theta in lineage.THETAS:
        for grid in lineage.GRIDS:
            columns |= {f"flat_{theta}_{grid}": False}
            for estimate, place in (("epistemic", "_class"), ("epistemic", "_sum"), ("laplace", ""), ("aleatoric", "")):
                paper = PAPER[estimate].get(cell.problem)
                if paper is not None and not (estimate == "laplace" and theta == "mle"):
                    name = f"{estimate}_{theta}_{grid}{place}"
                    columns |= {f"{name}_pearson": paper[0] - shift, f"{name}_spearman": paper[1] - shift}
    facts = {"accepted_far": accepted, "flat": False, "mle_converged": True, "mle_separates": False}
    return fake(dataclasses.replace(cell, study="lineage"), accepted, **columns, **facts, **more)


def cells(activations=("tanh",), seeds=3):
    """The cells of one prior and n: all problems."""
    return [
        Cell(name, seed, activation=activation)
        for seed in range(seeds)
        for name in problems.PROBLEMS
        for activation in (activations if problems.PROBLEMS[name].hidden else ("tanh",))
    ]


def comparison(results, **changes):
    """The comparison of the protocol's setting with changes."""
    setting = PROTOCOL._replace(**changes)
    return next(one for one in compare([result.numbers for result in results]) if one.setting == setting)


def test_the_distance_is_the_mean_difference():
    shifts = dict(zip(problems.PROBLEMS, (0.1, 0.2, 0.0, 0.05, 0.3, 0.0, 0.1, 0.4, 0.8), strict=True))
    one = comparison([at(cell, shifts[cell.problem]) for cell in cells()])
    assert one.distance.mean == pytest.approx(np.mean([0.1, 0.2, 0.0, 0.05, 0.3, 0.0, 0.1, 0.4]))
    assert (one.existing, one.seeds, one.complete) == (16, 3, True)
    assert [one.distance.low, one.distance.high] == pytest.approx([one.distance.mean] * 2)  # the seeds are alike
    assert comparison([at(cell, shifts[cell.problem]) for cell in cells()], gap=False).distance.mean == pytest.approx(
        np.mean([0.1, 0.2, 0.0, 0.05, 0.3, 0.0, 0.1, 0.8])
    )
    everything = [shifts[problem] for _, problem in paper_entries()]
    assert len(everything) == 19
    assert one.distance_all.mean == pytest.approx(np.mean(everything))
    assert np.isnan(comparison([at(cell) for cell in cells()], theta="mle").distance_all.mean)  # Laplace lacks


def test_the_interval_is_that_of_resampled_seeds():
    rows = [at(cell, 0.3 + 0.1 * cell.seed) for cell in cells()]
    one = comparison(rows)
    assert one.distance.mean == pytest.approx(0.4)
    assert 0.3 < one.distance.low < 0.4 < one.distance.high < 0.5
    r, rho = one.entry("epistemic", "binary/xor").intervals
    assert [r.mean, r.low, r.high] == pytest.approx([0.25, 0.15, 0.35])
    assert rho.count == 3


@pytest.mark.parametrize("unused", [{"accepted": False}, {"flat": True}])
def test_unaccepted_and_flat_seeds_change_nothing(unused):
    rows = [at(cell, 0.1) for cell in cells(seeds=4)]
    more = []
    for cell in cells(seeds=6)[-2 * len(problems.PROBLEMS) :]:
        result = at(cell, -0.9, accepted=unused.get("accepted", True))
        if "flat" in unused:
            lacking = {
                n: v for n, v in result.numbers.items() if not n.startswith(("epistemic_m", "laplace", "aleatoric"))
            }
            result = result._replace(numbers=lacking | {"flat_map_near": True})
        more.append(result)
    first, second = (lineage_numbers(results) for results in (rows, [*rows, *more]))
    assert repr(first.summary) == repr(second.summary)  # some are NaN
    assert first.files == second.files
    assert first.details.nearest.seeds == 4


def test_each_grid_has_a_verdict_of_its_own():
    rows = [at(cell) for cell in cells()]
    rows = [row._replace(numbers=row.numbers | {"accepted_far": row.numbers["seed"] == 0}) for row in rows]
    assert comparison(rows).seeds == comparison(rows, grid="wide").seeds == 3
    assert comparison(rows, grid="far").seeds == 1


@pytest.mark.parametrize("keep", [lambda cell: cell.problem != "binary/rings", lambda cell: cell.seed < 2])
def test_a_setting_without_a_row_or_with_few_seeds_is_never_nearest(keep):
    """tanh is exact where it has numbers, relu is far off and complete."""
    rows = [
        at(cell, 0.0 if cell.activation == "tanh" else 0.3)
        for cell in cells(("tanh", "relu"))
        if cell.activation == "relu" or not problems.PROBLEMS[cell.problem].hidden or keep(cell)
    ]
    outputs = summarise(LINEAGE, rows, "paper")
    details = outputs.numbers.details
    assert details.nearest.setting.activation == "relu"
    assert not details.protocol.complete
    assert details.protocol.distance.mean == pytest.approx(0)  # listed all the same
    lines = list(csv.DictReader(io.StringIO(outputs.numbers.files["settings.csv"])))
    assert len(lines) == 2 * 24
    assert {line["activation"] for line in lines if line["complete"] == "True"} == {"relu"}
    assert not lineage_numbers([row for row in rows if row.numbers["activation"] == "tanh"]).details.nearest


# report and figure


def test_the_report_says_what_the_choice_is_worth():
    shift, run = {"tanh": 0.2, "relu": 0.02}, cells(("tanh", "relu"), seeds=4)
    rows = [at(cell, shift[cell.activation] + 0.03 * cell.seed) for cell in run]
    rows[3] = at(run[3], accepted=False)
    outputs = summarise(LINEAGE, rows, "paper")
    text = outputs.summary
    assert "The settings of the paper are unknown." in text
    assert "picked by looking at all of them" in text
    assert "| protocol | tanh | unit σ = 1 | 200 | MAP | ± 0.5 | predicted class | yes |" in text
    nearest = outputs.numbers.groups["nearest"]["distance"].mean
    assert nearest == min(one.distance.mean for one in outputs.numbers.details.comparisons if one.complete)
    assert f"distance {nearest:.3f}" in text
    assert "Entries that no setting reaches: binary/linear (Epistemic" in text
    effects = outputs.numbers.groups
    assert effects["activation: relu"]["distance"].mean < effects["activation: tanh"]["distance"].mean
    assert effects["gap: yes"]["distance"].count == 24
    (axis,) = outputs.figures["lineage"].axes
    labels = [label.get_text() for label in axis.get_yticklabels()]
    assert labels[:3] == ["activation: tanh", "activation: relu", "prior: unit σ = 1"]
    assert not axis.get_legend()  # it stands below the axes
    low, high = axis.get_xlim()
    assert low == 0
    assert high > max(one.distance.mean for one in outputs.numbers.details.comparisons)
    stars = [line.get_xdata()[0] for line in axis.lines if line.get_marker() == "*"]
    assert stars == [nearest]


def test_a_part_of_the_grid_names_no_nearest():
    rows = [at(cell) for cell in cells(seeds=1)[:3]]
    outputs = summarise(LINEAGE, rows)
    assert "No setting is complete" in outputs.summary
    assert "No entry has 3 accepted seeds" in outputs.summary
    assert "nearest" not in outputs.numbers.groups
