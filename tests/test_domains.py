"""The experiment `domains`: its data, its covariances against materialised gradients, and the command end to end."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import isouq
from experiments import command
from experiments.domains import inputs, statistics, texts
from experiments.domains.configuration import COVARIANCES
from experiments.domains.measure import kronecker, memory
from experiments.domains.measure.covariances import score
from experiments.domains.measure.tuned import SCORED, Tuned, scored_rows
from experiments.domains.numbers.domains import SCORES, numbers
from experiments.domains.presets import domains as presets
from experiments.domains.report.domains import report
from experiments.domains.study import DomainCell
from experiments.domains.tiny_encoder import write_tiny
from experiments.run.errors import RunError
from experiments.run.job import Result
from experiments.run.store import Store
from isouq._predict import margin
from isouq.covariance import laplace
from isouq.posterior import LogDensity

DISTIL = {
    "architectures": ["DistilBertModel"], "dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2,
    "activation": "gelu",
}  # fmt: skip


def written(tmp_path, text):
    path = tmp_path / "own.csv"
    path.write_text(text, encoding="utf-8")
    return path


def table(science=12, sports=12):
    rows = [
        f"{label},{label.title()} {i},Text {i}"
        for label, n in (("science", science), ("Sports", sports))
        for i in range(n)
    ]
    return "label,title,description\n" + "\n".join(rows) + "\n"


# data


def test_the_sample_holds_sixty_texts_of_each_domain():
    found = texts.load_texts(None)
    assert np.bincount(found.labels).tolist() == [60, 60]
    assert len(set(found.texts)) == 120
    assert found.texts[0].startswith("Frog skin yields a new antibiotic. Chemists")


def test_a_csv_of_ones_own_is_read_and_known_by_what_it_holds(tmp_path):
    one = texts.load_texts(str(written(tmp_path, table())))
    assert np.bincount(one.labels).tolist() == [12, 12]
    assert one.texts[0] == "Science 0. Text 0"
    moved = tmp_path / "moved.csv"
    moved.write_text(table(), encoding="utf-8")
    cell = DomainCell("tiny", "own.csv", one.digest, study="reference")
    assert replace(cell, data="moved.csv").key() == cell.key()
    assert texts.load_texts(str(moved)).digest == one.digest
    moved.write_text(table(13), encoding="utf-8")
    assert texts.load_texts(str(moved)).digest != one.digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "label,title\nscience,a\n",
            r"own.csv line 1: no column description in 'label, title'; expected the columns label, title, description",
        ),
        ("", r"own.csv line 1: no column label, title, description in ''"),
        (table() + "weather,a,b\n", r"own.csv line 26: label 'weather'; expected science or sports"),
        (table() + "sports,a\n", r"own.csv line 26: 2 fields; expected as many"),
        (table() + "sports,a,b,c\n", r"own.csv line 26: 4 fields; expected as many"),
        (table() + "sports, ,\n", r"own.csv line 26: title and description are empty"),
        (table(sports=0), r"own.csv holds 0 different texts of sports; expected at least 12 of each of science and"),
        (table() + "sports,Twin,b\nscience,Twin,b\n", r"own.csv holds 'Twin. b' in both science and sports; expected"),
        (table(11) + "science,Science 3,Text 3\n" * 9, r"own.csv holds 11 different texts of science"),
    ],
)
def test_what_is_wrong_with_a_csv_is_said_in_one_line_with_its_number(tmp_path, text, message, capsys):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        texts.load_texts(str(path))
    status = command.main(["domains", "--preset", "smoke", "--data", str(path), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().err.splitlines()
    assert status == 1
    assert len(lines) == 1
    assert "own.csv" in lines[0]


def test_a_file_that_is_not_there_and_options_of_other_experiments(tmp_path, capsys):
    with pytest.raises(RunError, match=r"none.csv does not exist; expected a CSV"):
        presets.jobs("smoke", data=str(tmp_path / "none.csv"))
    with pytest.raises(RunError, match="is no file; expected a CSV"):
        presets.jobs("smoke", data=str(tmp_path))
    with pytest.raises(RunError, match="does not exist"):
        presets.jobs("smoke", encoder=str(tmp_path / "none"))
    with pytest.raises(RunError, match=r"has no config.json; expected a folder"):
        presets.jobs("smoke", encoder=str(tmp_path))
    for arguments in (["maps", "--data", "x.csv"], ["all", "--encoder", "tiny"], ["domains", "--widths", "2"]):
        with pytest.raises(SystemExit):
            command.main([*arguments, "--out", str(tmp_path)])
        assert "means nothing to" in capsys.readouterr().err


def test_the_hub_needs_an_extra_and_gives_science_and_sports_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs the package datasets; pip install 'isouq\[data\]'"):
        texts.load_texts("hf:fancyzhx/ag_news")

    class Table(dict):
        column_names = ("text", "label")
        features = {"label": SimpleNamespace(names=["World", "Sports", "Business", "Sci/Tech"])}  # noqa: RUF012

    asked = []

    def load_dataset(repository, split):
        asked.append((repository, split))
        return Table(text=[f"text {i}" for i in range(80)], label=[i % 4 for i in range(80)])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    found = texts.load_texts("hf:fancyzhx/ag_news")
    assert asked == [("fancyzhx/ag_news", "test")]
    assert np.bincount(found.labels).tolist() == [20, 20]
    assert found.texts[:2] == ["text 1", "text 3"]
    assert found.labels[:2].tolist() == [1, 0]


def test_a_folders_encoder_is_known_by_what_it_holds_and_a_lost_file_is_said(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    write_tiny(folder)
    own = written(tmp_path, table())
    first = presets.jobs("smoke", data=str(own), encoder=str(folder))[0]
    assert first == presets.jobs("smoke", data=str(own), encoder=str(folder))[0]
    assert first.row()["encoder"] == "own"
    assert first.row()["data"] == "own.csv"
    write_tiny(folder, seed=1)
    with pytest.raises(ValueError, match="has changed since the run began"):
        first.reference().run()
    second = presets.jobs("smoke", data=str(own), encoder=str(folder))[0]
    assert first.key() != second.key()
    own.unlink()
    with pytest.raises(ValueError, match=r"own.csv does not exist"):  # no OSError, which would be the store's
        second.reference().run()


@pytest.mark.parametrize("counts", [(1312, 1346), (60, 60), (12, 40), (5000, 2000)])
def test_parts_are_disjoint_balanced_and_drawn_from_the_seed(counts):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], counts))
    split = texts.split(labels, 3)
    rows = np.concatenate(split)
    assert len(set(rows.tolist())) == len(rows)
    assert set(labels[split.science]) == {0}
    assert set(labels[split.sports]) == {1}
    for part in (split.train, split.validation, split.test):
        assert len(part) >= 2
        assert labels[part].mean() == 0.5
    if min(counts) >= 1250:
        assert [len(part) for part in split[:2]] == [320, 80]
        assert len(split.science) == len(split.sports) == 1000
    np.testing.assert_array_equal(split.test, texts.split(labels, 3).test)
    assert not np.array_equal(split.test, texts.split(labels, 4).test)
    scored = scored_rows(split)
    assert len(set(scored.tolist())) == len(scored) <= SCORED
    assert not set(scored.tolist()) & set(np.concatenate([split.train, split.validation]).tolist())


# covariances against materialised gradients


@pytest.fixture(scope="module", params=["bert", "distilbert"])
def model(request, tmp_path_factory):
    """A tiny encoder read from a folder, 8 texts, and labels of both domains."""
    folder = tmp_path_factory.mktemp(request.param)
    write_tiny(folder, DISTIL if request.param == "distilbert" else None)
    encoder = isouq.text.load_encoder(str(folder)).with_head(1, jax.random.key(0))
    assert encoder.config.family == request.param
    found = texts.load_texts(None)
    return encoder, encoder.encode_texts(found.texts[:8], 12, 12), found.labels[:8]


def gradients(predict, params, xs):
    """∇p of every text `[n, P]`, one vmap of grad."""

    def probability(theta, x):
        logit = predict(theta, x)
        return jax.nn.sigmoid(margin(logit, (logit[0] > 0).astype(jnp.int32), "binary"))

    grads = jax.jit(jax.vmap(jax.grad(probability), (None, 0)))(params, xs)
    return grads, np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(grads), np.float64)


def test_an_encoder_without_the_layers_of_bert_is_refused(model):
    config = replace(model[0].config, family="mpnet")
    predict = kronecker.PredictByLayer(replace(model[0].predict, config=config))
    with pytest.raises(ValueError, match="of the family mpnet; expected one whose layers are BERT's"):
        predict({"encoder": {}}, {})


@pytest.mark.slow
def test_the_quadratic_forms_are_those_of_materialised_gradients(model):
    encoder, xs, ys = model
    params = kronecker.separate_layers(encoder.params)
    predict = kronecker.PredictByLayer(encoder.predict)
    logits = jax.vmap(encoder.predict, (None, 0))(encoder.params, xs)
    np.testing.assert_allclose(jax.vmap(predict, (None, 0))(params, xs), logits, atol=1e-5)
    grads, flat = gradients(predict, params, xs)
    epistemic = isouq.uncertainty(encoder.predict, encoder.params, xs, "binary").epistemic
    np.testing.assert_allclose(epistemic, np.sum(flat**2, axis=1), rtol=1e-4)
    if encoder.config.family == "distilbert":
        return  # the same code from here on

    log_density = LogDensity.of(predict, params, xs, ys, "binary", sigma=3.0)
    covariance = kronecker.kronecker(log_density, params, "ggn", 1)
    got = isouq.uncertainty(predict, params, xs, "binary", covariance=covariance).epistemic
    np.testing.assert_allclose(got, covariance.quadratic(grads), rtol=1e-4)
    assert np.all(got < 9 * epistemic)  # the data narrow the prior

    # as stacked: the sum of squared gradients, text by text
    log_density = LogDensity.of(encoder.predict, encoder.params, xs, ys, "binary", sigma=3.0)
    covariance = laplace(log_density, encoder.params, "ggn", "diagonal", batch_size=4)
    got = isouq.uncertainty(encoder.predict, encoder.params, xs, "binary", covariance=covariance).epistemic
    p = np.asarray(jax.nn.sigmoid(logits))[:, 0]
    squared = [np.asarray(leaf, np.float64) ** 2 for leaf in jax.tree.leaves(grads)]
    wanted = 0.0
    for leaf in squared:
        curvature = np.tensordot(1 / (p * (1 - p)), leaf, 1)  # p(1 − p) (∇ logit)²
        wanted += np.sum((leaf / (curvature + 1 / 9)).reshape(len(ys), -1), axis=1)
    np.testing.assert_allclose(got, wanted, rtol=1e-3)


def test_kfac_keeps_the_diagonal_of_tables_and_vectors(model):
    encoder, _, _ = model
    params = kronecker.separate_layers(encoder.params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    kept = dict(zip(names, kronecker.keep_diagonal(params), strict=True))
    assert all(kept[name] == ("embedding" in name or not name.endswith("['kernel']")) for name in kept)
    assert sum(not other for other in kept.values()) == 2 * 6 + 1  # six matrices a layer, and the head


@pytest.fixture(scope="module")
def head():
    """A cell and its reference, which those of all covariances share."""
    cell = DomainCell("tiny", None, texts.load_texts(None).digest, "head", 0, COVARIANCES[0], 10, 0.5, max_length=12)
    return cell, cell.reference().run()


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_cells_score_is_its_formula_on_the_last_layer(head, covariance):
    cell, kept = replace(head[0], covariance=covariance), head[1]
    assert cell.reference() == head[0].reference()
    corpus = inputs.read_corpus("tiny", None, cell.digest, 12)
    tuned = Tuned.of(cell, corpus, kept)
    rows = tuned.split.test
    proxies = tuned.split.sports[:10]
    got = np.exp(score(cell, tuned, proxies, rows))
    features = np.column_stack([np.ones(len(corpus.labels)), tuned.features]).astype(np.float64)
    flat = np.asarray(ravel_pytree(tuned.head)[0], np.float64)  # bias, kernel
    p = 1 / (1 + np.exp(-features @ flat))
    g = ((p * (1 - p))[:, None] * features)[rows]
    curvature, structure = covariance.split("_")
    weights = p * (1 - p) if curvature == "ggn" else (corpus.labels - p) ** 2
    matrix = (weights[:, None] * features)[proxies].T @ features[proxies]
    if structure == "diagonal":
        matrix = np.diag(np.diag(matrix))
    if structure == "kronecker":  # the bias apart; of the weight the mean of hhᵀ times the sum of the weights
        matrix = np.zeros_like(matrix)
        matrix[0, 0] = weights[proxies].sum()
        h = features[proxies][:, 1:]
        matrix[1:, 1:] = weights[proxies].sum() * h.T @ h / len(h)
    wanted = np.einsum("np,pq,nq->n", g, np.linalg.inv(matrix + 0.5 * np.eye(len(matrix))), g)
    np.testing.assert_allclose(got, wanted, rtol=1e-3)


# numbers


def test_the_area_is_over_a_half_where_each_proxy_lowers_its_own_domain(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 100)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 40)
    identity = rng.normal(size=80)
    own = np.where(labels == 0, -1.0, 1.0)
    a, b = identity - 2 + 0.5 * own + 0.1 * rng.normal(size=80), identity - 2 - 0.5 * own
    row = statistics.compare_domains(identity, a, b, labels)
    assert row["auroc"] > 0.95
    assert row["auroc_low"] <= row["auroc"] <= row["auroc_high"]
    assert row["log_ratio_science"] < 0 < row["log_ratio_sports"]
    assert row["sign_change"]
    assert row["lowered_a"] > 0
    assert row["lowered_b"] > 0
    assert row["right_sign"] > 0.95
    assert row["identity_auroc"] == pytest.approx(0.5, abs=0.15)
    turned = statistics.compare_domains(identity, b, a, labels)
    assert turned["auroc"] == pytest.approx(1 - row["auroc"])
    assert not turned["sign_change"]
    assert turned["lowered_a"] < 0


def test_risk_against_coverage():
    wrong = np.array([0, 0, 1, 1])
    np.testing.assert_allclose(isouq.stats.rejection_curve(wrong, np.array([1.0, 2, 3, 4])), [0, 0, 1 / 3, 1 / 2])
    np.testing.assert_allclose(isouq.stats.rejection_curve(wrong, np.ones(4)), np.full(4, 0.5))  # ties: no order
    risk = isouq.stats.rejection_curve(np.tile(wrong, 10), np.array([1.0, 2, 3, 4] * 10))
    assert statistics.coverage_accuracy(risk, 0.8) == pytest.approx(20 / 32)
    assert statistics.coverage_accuracy(risk, 1.0) == 0.5


def test_wilsons_interval():
    low, high = statistics.wilson(98, 100)
    assert (low, high) == pytest.approx((0.930, 0.9945), abs=1e-3)


def test_the_report_says_what_a_claim_lacks_and_dashes_where_nothing_is_wrong(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 5)
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 20)
    ratio = np.where(labels == 0, -1.0, 1.0)
    facts = {"encoder": "e", "data": "d", "max_length": 8, "variant": "head", "num_params": 3, "train": 2,
             "validation": 2, "tests": 40, "epochs": 3, "best_epoch": 2, "precision": 1.0}  # fmt: skip

    def one(seed, accuracy):
        logs = {"identity": rng.normal(size=40)}
        logs |= {"a": logs["identity"] + ratio, "b": logs["identity"] - ratio}
        row = {**facts, "seed": seed, "accepted": accuracy >= 0.97, "accuracy": accuracy}
        of = {"study": "domains", "covariance": "ggn_dense", "proxies": 8, "scope": "last layer", "compared": 40}
        compared = statistics.compare_domains(*logs.values(), labels)
        kept = {f"score_{name}": rng.normal(size=40) for name in SCORES}
        rejected = {"study": "rejection", "covariance": "", "proxies": 0, "judged": 40, "errors": 0}
        return [
            Result({**row, **of, **compared}, {**logs, "labels": labels}),
            Result({**row, **rejected}, {**kept, "wrong": np.zeros(40)}),
        ]

    def summary(*accuracies):
        results = [result for seed, accuracy in enumerate(accuracies) for result in one(seed, accuracy)]
        return report(numbers(results), "paper")

    whole = summary(1.0, 1.0, 1.0)
    assert "is 0.97 or more: head alone, GGN, dense.\n" in whole
    assert "Not claimed" not in whole
    assert "0 of 120 texts wrong" in whole
    assert "unconverged" not in whole
    assert "nan" not in whole
    assert "\n- head alone, GGN, dense: accuracy of at least 0.97 on 2/3 seeds\n" in summary(1.0, 1.0, 0.9)
    assert "\n- head alone, GGN, dense: 3 seeds (there are 1)\n" in summary(1.0)


# the command


def test_cells_of_the_presets(monkeypatch):
    monkeypatch.setattr(inputs, "check_model", lambda name: f"{name}, found")
    found = texts.load_texts(None)
    large = texts.Texts([f"text {i}" for i in range(2658)], np.arange(2658) % 2, "0")
    monkeypatch.setattr(texts, "load_texts", lambda data: large)
    paper = presets.jobs("paper")
    assert len({cell.key() for cell in paper}) == len(paper)
    assert {cell.seed for cell in paper} == {0, 1, 2}
    for variant in ("whole", "head"):
        counts = {cell.proxies for cell in paper if cell.variant == variant and cell.study == "domains"}
        assert counts == {50, 200, 1000}
    assert {c.covariance for c in paper if c.variant == "head" and c.study == "domains"} == set(COVARIANCES)
    assert len([cell for cell in paper if cell.study == "memory"]) == 1
    assert all(cell.encoder == f"{inputs.ENCODER}, found" for cell in paper)
    monkeypatch.setattr(texts, "load_texts", lambda data: found)
    assert {cell.proxies for cell in presets.jobs("paper") if cell.study == "domains"} == {20}  # all that there are
    assert {cell.variant for cell in presets.jobs("quick", 1)} == {"head"}


@pytest.mark.slow
def test_the_smoke_run_end_to_end_and_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "FORMS", ("identity",))
    monkeypatch.setattr(statistics, "RESAMPLES", 20)
    few = [c for c in presets.jobs("smoke") if c.variant == "head" or c.study in ("rejection", "memory")
           or c.covariance == "ggn_dense"]  # fmt: skip
    some = command.EXPERIMENTS["domains"]._replace(jobs=lambda *_, **__: few)
    monkeypatch.setitem(command.EXPERIMENTS, "domains", some)
    arguments = ["domains", "--preset", "smoke", "--out", str(tmp_path), "--executor", "local"]
    assert command.main(arguments) == 0
    folder = tmp_path / "domains"
    names = {path.name for path in folder.iterdir()}
    figures = {"domains_whole", "domains_head", "proxies", "rejection"}
    assert names == {"table.csv", "summary.csv", "summary.md", "provenance.json"} | {
        f"{n}.{e}" for n in figures for e in ("png", "pdf")
    }
    summary = (folder / "summary.md").read_text(encoding="utf-8")
    for title in ("Held-out accuracy", "Do the domains overlap", "Does a proxy bend", "How many proxy texts",
                  "What a user would do", "Memory of one batch"):  # fmt: skip
        assert f"## {title}" in summary
    assert "nan" not in summary
    assert str(tmp_path) not in (folder / "table.csv").read_text(encoding="utf-8")
    assert json.loads((folder / "provenance.json").read_text())["experiment"] == "domains"

    store = Store(tmp_path / "cells")
    before = {path: path.stat().st_mtime_ns for path in store.folder.iterdir()}
    capsys.readouterr()
    assert command.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in store.folder.iterdir()} == before
    assert (folder / "summary.md").read_text(encoding="utf-8") == summary

    lost = next(cell for cell in few if cell.study == "domains")
    row = store.load(lost).numbers
    (store.folder / f"{lost.key()}.json").unlink()  # it alone is run again, from the reference that was kept
    assert command.main(arguments) == 0
    changed = {path for path, at in before.items() if path.stat().st_mtime_ns != at}
    assert {path.stem for path in changed} == {lost.key()}
    assert {**store.load(lost).numbers, "seconds": 0} == {**row, "seconds": 0}
