"""A posterior whose ‖g‖² is flat is in no mean, test or figure."""

import numpy as np
import pytest
from synthetic_rows import fake

from experiments.synthetic.figures import maps as maps_figures
from experiments.synthetic.figures import spectrum as spectrum_figures
from experiments.synthetic.measure.proxies import CURVATURES, DATA
from experiments.synthetic.numbers import covariance, decomposition, lineage, maps, spectrum
from experiments.synthetic.numbers.models import rows_by_model, usable_rows
from experiments.synthetic.numbers.prediction import PREDICTORS, relations
from experiments.synthetic.report import maps as maps_report
from experiments.synthetic.study import Cell
from experiments.synthetic.subject import is_flat


def rows(columns, count=4, **cell):
    """Rows whose values grow by 0.1 with the seed, and after each a flat one with other values."""
    listed = []
    for seed in range(count):
        for flat in (False, True):
            value = 99.0 if flat else 0.1 + 0.1 * seed
            columns_of_row = dict.fromkeys(columns, value)
            listed.append(fake(Cell("binary/xor", seed, **cell), flat=flat, **columns_of_row).numbers)
    return listed


MEAN = np.mean([0.1, 0.2, 0.3, 0.4])


def test_usable_rows_are_accepted_and_not_flat():
    assert [row["seed"] for row in usable_rows(rows([]))] == [0, 1, 2, 3]
    assert usable_rows([fake(Cell("binary/xor"), accepted=False, flat=False).numbers]) == []
    assert len(usable_rows([fake(Cell("binary/xor")).numbers])) == 1  # the tables of version 0.1 have no such column


def test_a_constant_map_is_flat():
    assert is_flat(np.zeros(5))
    assert is_flat(np.ones(5))
    assert not is_flat([1.0, 1.01])


def test_the_share_in_the_bulk():
    numbers = {n.statistic: n for n in spectrum._bulk(rows(["bulk_dimension", "bulk_mean"]))}
    assert numbers["largest_bulk_mean"].mean == pytest.approx(0.4)
    assert numbers["median_bulk_dimension"].mean == pytest.approx(0.25)
    assert numbers["median_bulk_mean"].n == 4


def test_the_relations_of_the_spectrum():
    relation = relations(rows(["whole_pearson", *PREDICTORS]), lambda row: row["seed"], "whole_pearson")["bulk_mean"]
    assert (relation.models, relation.clusters, relation.value) == (4, 4, pytest.approx(1.0))


def test_the_figure_of_the_spectrum():
    cells = [fake(Cell("binary/xor", width=4), flat=flat) for flat in (True, False)]
    for cell in cells:
        cell.arrays.update(hessian_density=np.ones(3), within_density=np.ones(3))
    assert spectrum_figures._lines(cells[:1]) == {}
    assert list(spectrum_figures._lines(cells)) == [("unit", 1.0)]


def test_the_losses_of_the_decomposition():
    columns = [f"{term}_pooled_pearson" for term in decomposition.TERMS]
    losses = decomposition._pairs(rows_by_model(rows(columns)), "pooled", "pearson")
    np.testing.assert_allclose(losses, [[1 - MEAN, 1 - MEAN]])


def test_the_values_of_the_lineage():
    values = lineage.accepted_values(rows(["x_pearson", "x_spearman"]), "x", "accepted")
    np.testing.assert_allclose(values[:, 0], [0.1, 0.2, 0.3, 0.4])


def test_the_proxies_of_the_covariances():
    columns = {
        f"{data}{name}" for data in DATA for curvature in CURVATURES for name in covariance.proxy_columns(curvature)
    }
    agreement = {f"{name}_{what}" for name in covariance.METHODS for what in ("pearson", "spearman", "scale")}
    costs = {*covariance._COST, *agreement}
    listed = rows({*columns, *costs})
    results = [fake(Cell("binary/xor"))._replace(numbers=row) for row in listed]
    values = covariance.numbers(results).groups["binary/xor"]
    assert values["identity_symmetry"].mean == pytest.approx(MEAN)
    assert values["as_stated_hessian"].count == 4
    flat = covariance.numbers([result for result in results if result.numbers["flat"]]).groups["binary/xor"]
    assert flat["identity_symmetry"].count == flat["as_stated_hessian"].count == 0


def test_the_maps_are_not_drawn_and_the_report_says_so():
    results = [fake(Cell("binary/xor"), flat=True), fake(Cell("binary/rings"), flat=False)]
    assert set(maps_figures.figures(results, maps.numbers(results))) == {"maps", "binary_rings"}
    summary = maps_report.report(maps.numbers(results), "smoke")
    assert "| binary/xor | accepted, flat ‖g‖², not drawn |" in summary
