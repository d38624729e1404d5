"""Every figure: its labels, and one scale wherever panels are compared. Warnings are errors here."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from synthetic_rows import fake

from experiments.synthetic.figures import decomposition, scaling, spectrum
from experiments.synthetic.measure.decomposition import SIGMAS, VERSIONS
from experiments.synthetic.measure.spectrum import COVARIANCE_EDGES, HESSIAN_EDGES
from experiments.synthetic.numbers.validation import PAPER
from experiments.synthetic.registry import EXPERIMENTS
from experiments.synthetic.study import Cell
from isouq import plots
from isouq.stats import Interval, bootstrap_mean

RNG = np.random.default_rng(0)
NONE = Interval(0, *[float("nan")] * 4)


def drawn(figure):
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return figure


def panels(figure):
    """All axes but colour bars."""
    return [axis for axis in figure.axes if not hasattr(axis, "_colorbar")]


def planar(side=5, classes=2, constant=False):
    line = np.linspace(-2, 2, side, dtype=np.float32)
    grid = np.stack([a.ravel() for a in np.meshgrid(line, 2 * line)], axis=-1)
    names = ("reference", "epistemic", "aleatoric_reference", "aleatoric")
    maps = {name: np.zeros(side**2) if constant else RNG.random(side**2) * 10**i for i, name in enumerate(names)}
    return {"grid": grid, "xs": RNG.normal(size=(9, 2)), "ys": np.arange(9) % classes, **maps}


def line(laplace=True):
    grid = np.linspace(-2, 2, 30)[:, None]
    names = ("reference", "epistemic", "mean", "probability", *(["laplace"] if laplace else []))
    return {
        "grid": grid,
        "xs": RNG.uniform(-1, 1, (9, 1)),
        "ys": RNG.normal(size=9),
        **{n: RNG.random(30) for n in names},
    }


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_unit_range(scale):
    got = plots.unit_range(scale * np.array([[3.0, 1.0], [2.0, 1.5]]))
    np.testing.assert_allclose(got, [[1.0, 0.0], [0.5, 0.25]])


def test_unit_range_of_a_constant_is_zero():
    np.testing.assert_array_equal(plots.unit_range(np.full(3, 7.0)), np.zeros(3))
    assert plots.unit_range([1, 3]).dtype == np.float64


@pytest.mark.parametrize("rows", [1, 3])
def test_map_grid(rows):
    figure = drawn(plots.map_grid([(f"problem {i}", planar(classes=2 + i % 2)) for i in range(rows)]))
    axes = np.array(panels(figure)).reshape(rows, 4)
    assert all("problem" in axis.get_ylabel() and "x₂" in axis.get_ylabel() for axis in axes[:, 0])
    assert all(axis.get_xlabel() == "x₁" for axis in axes[-1])
    assert len({axis.get_title() for axis in axes[0]}) == 4
    assert all(axis.get_title() for axis in axes[0])
    images = [axis.images[0] for axis in axes.flat]
    assert {image.get_clim() for image in images} == {(0, 1)}
    assert len({image.get_cmap().name for image in images}) == 1
    for row in axes:
        assert len({(axis.get_xlim(), axis.get_ylim()) for axis in row}) == 1
    assert next(axis for axis in figure.axes if hasattr(axis, "_colorbar")).get_ylabel()


def test_map_grid_shows_the_second_feature_upwards():
    arrays = planar(side=4)
    arrays["reference"] = arrays["grid"][:, 1]
    image = panels(plots.map_grid([("p", arrays)]))[0].images[0]
    shown = np.asarray(image.get_array())
    assert image.origin == "lower"
    np.testing.assert_allclose(shown[0], 0)
    np.testing.assert_allclose(shown[-1], 1)
    np.testing.assert_allclose(image.get_extent(), [-2, 2, -4, 4])


def test_map_grid_of_constant_maps():
    drawn(plots.map_grid([("p", planar(constant=True))]))


@pytest.mark.parametrize("laplace", [True, False])
def test_curves(laplace):
    figure = drawn(plots.curves([("a", line(laplace)), ("b", line(laplace))]))
    assert len(figure.axes) == 4
    assert all(axis.get_xlabel() and axis.get_ylabel() and axis.get_legend() for axis in figure.axes)
    assert {axis.get_ylim() for axis in figure.axes[1::2]} == {(-0.09, 1.05)}
    for axis, title in zip(figure.axes[::2], ("a", "b"), strict=True):
        assert title in (axis.get_title(), axis.get_ylabel().split("\n")[0])
    assert any("Laplace" in text.get_text() for text in figure.axes[1].get_legend().get_texts()) == laplace


def validated():
    """The figure of a problem with an unconverged and an undefined seed, and of one with nothing accepted."""
    seeds = [(True, 0.8), (True, 0.9), (False, -0.4), (True, float("nan"))]
    cells = [fake(Cell("binary/xor", seed), ok, value) for seed, (ok, value) in enumerate(seeds)]
    return EXPERIMENTS["validation"].summarise([*cells, fake(Cell("binary/rings"), False, 0.1)], "smoke").figures


def test_agreement():
    figure = drawn(validated()["validation"])
    axes = np.array(panels(figure)).reshape(2, 3)
    assert len({axis.get_xlim() for axis in axes.flat}) == 1
    assert len({axis.get_ylim() for axis in axes.flat}) == 1
    assert {axis.get_xlabel() for axis in axes[0]} == {"Pearson r"}
    assert {axis.get_xlabel() for axis in axes[1]} == {"Spearman ρ"}
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["binary/xor", "binary/rings"]
    assert [axis.get_title().split(":")[0] for axis in axes[0]] == ["Epistemic", "Laplace", "Aleatoric"]
    bottom, top = axes[0, 0].get_ylim()
    assert bottom > top  # the first problem stands at the top
    stars = [mark.get_xdata() for mark in axes[0, 0].lines if mark.get_marker() == "*"]
    assert [float(np.ravel(x)[0]) for x in stars] == [
        PAPER["epistemic"][name][0] for name in ("binary/xor", "binary/rings")
    ]
    assert figure.legends


def test_agreement_draws_unconverged_seeds_hollow():
    lines = validated()["validation"].axes[0].lines
    filled = [m.get_xdata() for m in lines if m.get_marker() == "o" and m.get_markerfacecolor() != "none"]
    assert [float(np.ravel(x)[0]) for x in filled] == [pytest.approx(0.85)]
    hollow = [mark.get_xdata() for mark in lines if mark.get_markerfacecolor() == "none"]
    assert [float(np.ravel(x)[0]) for x in hollow if len(x)] == [-0.4, 0.1]


def cell(*values, share=1.0):
    interval = bootstrap_mean(values)
    return {"epistemic_pearson": interval, "epistemic_spearman": interval, "accepted": bootstrap_mean([share])}


def grid_of_cells():
    nothing = cell(share=0.0)
    return {
        ("unit", 1.0): {2: cell(0.8, 0.9), 4: cell(0.5), 8: nothing},
        ("fan_in", 1.0): {2: cell(0.7, 0.9, share=0.5), 4: cell(-0.1, 0.1)},
        ("fan_in", 3.0): {2: nothing, 4: nothing, 8: nothing},
    }


def test_scaling_curves():
    figure = drawn(scaling.against_width(grid_of_cells()))
    top, bottom = np.array(figure.axes).reshape(2, 2)
    assert len({axis.get_ylim() for axis in top}) == 1
    assert len({axis.get_ylim() for axis in bottom}) == 1
    assert len({axis.get_xlim() for axis in figure.axes}) == 1
    assert [axis.get_ylabel() for axis in top] == ["epistemic, Pearson r", "epistemic, Spearman ρ"]
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in bottom)
    assert [label.get_text() for label in bottom[0].get_xticklabels()] == ["2", "4", "8"]
    assert len(top[0].get_legend().get_texts()) == 3


def test_scaling_map():
    figure = drawn(scaling.heat_map(grid_of_cells()))
    axes = panels(figure)
    assert len(axes) == 2
    assert {axis.images[0].get_clim() for axis in axes} == {(0, 1)}
    assert all(axis.get_ylabel() for axis in axes)
    assert axes[-1].get_xlabel()
    texts = [text.get_text() for text in axes[0].texts]
    assert "0.85" in texts
    assert "0.80*" in texts  # some seeds left out
    assert texts.count("none\naccepted") == 4
    assert [label.get_text() for label in axes[-1].get_xticklabels()] == ["2", "4", "8"]


def test_scaling_of_one_width():
    one = {("unit", 1.0): {2: cell(0.5)}}
    drawn(scaling.against_width(one))
    drawn(scaling.heat_map(one))


def test_scaling_with_nothing_accepted():
    nothing = {("unit", 1.0): {2: cell(share=0.0)}}
    drawn(scaling.against_width(nothing))
    drawn(scaling.heat_map(nothing))


def densities(accepted=True):
    hessian, within = RNG.random(len(HESSIAN_EDGES) - 1), RNG.random(len(COVARIANCE_EDGES) - 1)
    return {"hessian": hessian / hessian.sum(), "within": within / within.sum(), "accepted": accepted}


def test_spectrum():
    lines = {("unit", 1.0): {2: densities(), 64: densities(False)}, ("fan_in", 3.0): {2: densities()}}
    figure = drawn(spectrum.densities(lines))
    top, bottom = np.array(panels(figure)).reshape(2, 2)
    for row, mark in ((top, 1 / 9), (bottom, 9)):
        assert len({(axis.get_xlim(), axis.get_ylim()) for axis in row}) == 1
        assert all(axis.get_xlabel() for axis in row)
        assert row[0].get_ylabel()
        assert mark in [pytest.approx(line.get_xdata()[0]) for line in row[1].lines]
        assert [len(axis.patches) for axis in row] == [2, 1]
    assert [axis.get_title() for axis in top] == ["unit, σ = 1", "fan_in, σ = 3"]
    assert [patch.get_linestyle() for patch in bottom[0].patches] == ["-", ":"]
    assert figure.legends


def test_spectrum_of_one_width():
    drawn(spectrum.densities({("unit", 1.0): {2: densities()}}))


def point(share, pearson, spearman, width=None, prior="unit", accepted=True):
    model = {"width": width, "prior": prior, "sigma": 1.0, "accepted": accepted}
    return {**model, "bulk_mean": share, "whole_pearson": pearson, "whole_spearman": spearman}


def test_spectrum_agreement():
    points = [
        point(0.01, 0.8, 0.6, width=2),
        point(0.3, -0.7, float("nan"), width=64, prior="fan_in", accepted=False),
        point(0.0, 0.9, 0.9),
    ]
    figure = drawn(spectrum.agreement(points))
    axes = panels(figure)
    assert [axis.get_ylabel() for axis in axes] == ["epistemic, Pearson r", "epistemic, Spearman ρ"]
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in axes}) == 1
    assert axes[0].get_ylim()[0] < -0.7
    marks = [line for line in axes[0].lines if line.get_marker() in "os*"]
    assert len({line.get_marker() for line in marks}) == 3
    assert [line.get_markerfacecolor() == "none" for line in marks] == [False, True, False]
    assert any("unconverged" in text.get_text() for text in figure.legends[0].get_texts())


def test_spectrum_agreement_of_problems_alone():
    drawn(spectrum.agreement([point(0.5, 0.9, 0.9)]))


def lost(value=0.5, count=5):
    """The intervals of one model of the decomposition."""
    names = ["whole", *(f"{term}_{version}" for term in ("taylor", "isotropy") for version in VERSIONS)]
    names += [f"perturbation_{sigma:g}" for sigma in SIGMAS]
    interval = NONE if count == 0 else bootstrap_mean(value + 0.1 * RNG.normal(size=count))
    return {f"{name}_{statistic}": interval for name in names for statistic in ("pearson", "spearman")}


@pytest.mark.parametrize("statistic", ["pearson", "spearman"])
def test_decomposition(statistic):
    unit = {2: lost(), 4: lost(count=0), 8: lost(-0.6)}
    curves = {("unit", 1.0): unit, ("fan_in", 3.0): {2: lost(count=1)}}
    figure = drawn(decomposition.against_width(curves, statistic))
    axes = np.array(panels(figure)).reshape(3, 2)
    assert [axis.get_title() for axis in axes[0]] == ["prior unit, σ = 1", "prior fan_in, σ = 3"]
    assert all(statistic.capitalize() in axis.get_ylabel() for axis in axes[:, 0])
    assert ["aligned" in axis.get_ylabel() for axis in axes[:, 0]] == [False, False, True]
    assert all(axis.get_xlabel() for axis in axes[-1])
    assert len({axis.get_ylim() for axis in axes.flat}) == 1
    assert axes[0, 0].get_ylim()[0] < unit[8][f"whole_{statistic}"].low
    curves = [line.get_ydata() for line in axes[0, 0].lines if line.get_marker() != "None"]
    assert [list(np.isnan(curve)) for curve in curves] == [[False, True, False]] * 3
    assert [text.get_text()[:5] for text in figure.legends[0].get_texts()] == ["Taylo", "isotr", "whole"]


def test_decomposition_problems():
    figure = drawn(decomposition.by_problem({"a": lost(), "b": lost(count=0), "c": lost(-0.4)}))
    axes = np.array(panels(figure)).reshape(2, 3)
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == ["a", "b", "c"]
    assert [axis.get_xlabel() for axis in axes[:, 0]] == ["Pearson r", "Spearman ρ"]
    assert len({(axis.get_xlim(), axis.get_ylim()) for axis in axes.flat}) == 1
    assert axes[0, 0].get_ylim()[0] > axes[0, 0].get_ylim()[1]  # the first problem on top


@pytest.mark.parametrize("count", [1, 5])
def test_perturbation(count):
    figure = drawn(decomposition.perturbation({f"p{i}": lost(count=i) for i in range(count)}))
    axes = [axis for axis in panels(figure) if axis.get_visible()]
    assert [axis.get_title() for axis in axes] == [f"p{i}" for i in range(count)]
    assert {axis.get_xscale() for axis in axes} == {"log"}
    assert len({axis.get_ylim() for axis in axes}) == 1
    assert axes[0].get_ylabel()
    assert axes[-1].get_xlabel()
    assert len(figure.legends[0].get_texts()) == 4
