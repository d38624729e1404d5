"""The calibration on texts: logits by brute force, ensembles that share a split, numbers, report and figure."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import scipy.special
import stages
from jax.flatten_util import ravel_pytree

from experiments.calibration import LOSSES
from experiments.domains import inputs, statistics, texts
from experiments.domains.configuration import NETWORKS
from experiments.domains.measure import calibration
from experiments.domains.measure.tuned import FACTS, Tuned
from experiments.domains.numbers.calibration import Change
from experiments.domains.presets import calibration as presets
from experiments.domains.registry import EXPERIMENTS
from experiments.domains.study import DomainCell
from experiments.run.job import Result
from isouq import stats
from isouq.stats import Interval

summarise = partial(stages.summarise, EXPERIMENTS["text-calibration"])


def log_loss(logits, labels):
    return -np.mean(scipy.special.log_expit(np.where(labels == 1, logits, -logits)))


@pytest.fixture(scope="module", params=["whole", "head"])
def tuned(request):
    """A cell and the tiny encoder as it is, with a wide head, so that its logits are not all near 0."""
    cell = DomainCell("tiny", None, texts.load_texts(None).digest, request.param, max_length=12, study="calibration")
    corpus = inputs.read_corpus("tiny", None, cell.digest, 12)
    encoder = corpus.encoder.with_head(1, jax.random.key(0))
    head = jax.tree.map(lambda leaf: leaf + jax.random.normal(jax.random.key(1), leaf.shape), encoder.params["head"])
    params = encoder.params | {"head": head}
    rows = np.concatenate(texts.split(corpus.labels, 0))
    vectors = jax.vmap(encoder.predict.vector, (None, 0))(params, corpus.rows(rows))
    flat = ravel_pytree(params if request.param == "whole" else head["out"])[0]
    arrays = {"params": np.asarray(flat), "features": np.asarray(vectors)}
    return cell, Tuned.of(cell, corpus, Result(dict.fromkeys(FACTS, 0), arrays))


@pytest.mark.filterwarnings("ignore:the scale is")  # of a few texts with random labels
def test_logits_by_brute_force(tuned):
    cell, model = tuned
    result = calibration.calibrate(cell, model)
    numbers, got = result.numbers, result.arrays
    rows, ys, split = calibration.HeldOut.of(model.split), model.corpus.labels, model.split
    used = np.concatenate([split.train, split.validation, rows.fitting])
    assert not set(got["rows"]) & set(used)
    assert set(got["rows"]) | set(used) == set(np.concatenate(split))
    np.testing.assert_array_equal(got["labels"], ys[got["rows"]])

    def logit(params, x):
        return model.predict(params, x)[0]

    def logits(part):
        return np.asarray(jax.vmap(logit, (None, 0))(model.params, model.corpus.rows(part)), np.float64)

    plain, fitting = logits(rows.test), logits(rows.fitting)
    np.testing.assert_allclose(got["plain"], plain, atol=1e-5)
    assert numbers["errors"] == np.sum((plain > 0) != (ys[rows.test] == 1))

    def is_least(loss, number, largest):
        return all(loss(number) <= loss(f * number) + 1e-7 for f in (0.9, 1.1) if f * number < largest)

    temperature = numbers["temperature_number"]
    assert is_least(lambda t: log_loss(fitting / t, ys[rows.fitting]), temperature, 100)
    np.testing.assert_allclose(got["temperature"], plain / temperature, rtol=1e-4, atol=1e-5)

    def squared_norms(part):
        grads = jax.vmap(jax.grad(logit), (None, 0))(model.params, model.corpus.rows(part))
        trained = grads if cell.variant == "whole" else grads["head"]
        squares = [np.square(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(trained)]
        return sum(leaf.reshape(len(part), -1).sum(axis=1) for leaf in squares)

    def moderated(outputs, variances):
        return outputs / np.sqrt(1 + np.pi / 8 * variances)

    scale, norms = numbers["scale_number"], squared_norms(rows.fitting)
    assert is_least(lambda s: log_loss(moderated(fitting, s * norms), ys[rows.fitting]), scale, np.inf)
    np.testing.assert_allclose(got["scale"], moderated(plain, scale * squared_norms(rows.test)), rtol=1e-3, atol=1e-5)

    features = np.column_stack([np.ones(len(ys)), model.features]).astype(np.float64)
    train, test = features[split.train], features[rows.test]
    p = scipy.special.expit(train @ np.asarray(ravel_pytree(model.head)[0], np.float64))  # bias, kernel
    precision = train.T @ ((p * (1 - p))[:, None] * train) + np.eye(train.shape[1]) / numbers["last_layer_prior"] ** 2
    variances = np.einsum("np,pq,nq->n", test, np.linalg.inv(precision), test)
    np.testing.assert_allclose(got["last_layer"], moderated(plain, variances), rtol=1e-3, atol=1e-5)
    scaled = moderated(plain, numbers["last_layer_scale_number"] * variances)
    np.testing.assert_allclose(got["last_layer_scale"], scaled, rtol=1e-3, atol=1e-5)
    assert got["heads"].std() > 0

    member = calibration.predict_test(cell, model).arrays
    np.testing.assert_array_equal(member["rows"], got["rows"])
    np.testing.assert_allclose(member["plain"], plain, atol=1e-5)


def test_members_share_the_split_and_nothing_of_the_training():
    first = DomainCell("tiny", None, texts.load_texts(None).digest, max_length=12, epochs=3, study="reference")
    second = replace(first, member=1)
    assert first.training_seed == first.seed
    assert len({cell.training_seed for cell in (first, second, replace(first, seed=1))}) == 3
    assert first.key() != second.key()
    results = [cell.run() for cell in (first, second)]
    corpus = inputs.read_corpus("tiny", None, first.digest, 12)
    splits = [Tuned.of(*pair).split for pair in ((first, corpus, results[0]), (second, corpus, results[1]))]
    for one, other in zip(*splits, strict=True):
        np.testing.assert_array_equal(one, other)
    params = [result.arrays["params"] for result in results]
    assert not np.allclose(*params)
    assert replace(second, study="member").needs() == second


# numbers, report, figure


def made_up(variant="whole", seeds=3, members=NETWORKS - 1, shift=0.0):
    """Results of texts whose every fifth label is wrong; all predictors but the ensemble multiply the logits."""
    results = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        cell = DomainCell("e", "d.csv", "0", variant, seed, study="calibration")
        rows = rng.permutation(60)[:40]
        labels = (rows + (rows % 5 == 0)) % 2
        plain = 8.0 * np.where(rows % 2 == 1, 1, -1) + rng.normal(size=40)
        facts = {**cell.row(), "accepted": True, "accuracy": 0.98, "num_params": 9, "train": 4, "validation": 2,
                 "fitting": 6, "compared": 40, "best_epoch": 1, "errors": int(np.sum((plain > 0) != labels)),
                 "temperature_number": 4.0, "scale_number": 1e-3, "last_layer_prior": 2.0,
                 "last_layer_scale_number": 0.0}  # fmt: skip
        names = [name for name in calibration.PREDICTORS if name != calibration.ENSEMBLE]
        logits = {name: plain / (1 if name == calibration.PLAIN else 4 + shift) for name in names}
        results.append(Result(facts, {"rows": rows, "labels": labels, **logits}))
        for member in range(1, members + 1):
            other = replace(cell, study="member", member=member)
            results.append(Result({**facts, **other.row()}, {"rows": rows, "plain": plain + rng.normal(size=40)}))
    return results


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 50)


def test_changes_are_paired_and_the_ensemble_is_the_mean_probability():
    results = made_up()
    groups = summarise(results).numbers.groups["whole"]
    own = [result for result in results if result.numbers["study"] == "calibration"]
    losses = {
        name: np.array([log_loss(one.arrays[name], one.arrays["labels"]) for one in own])
        for name in ("plain", "temperature")
    }
    assert groups["plain_loss"].mean == pytest.approx(losses["plain"].mean())
    change = groups["temperature_loss_gain"]
    assert (change.mean, change.count) == (pytest.approx(np.mean(losses["temperature"] - losses["plain"])), 3)
    over_texts = groups["temperature_loss_text_gain"]
    assert over_texts.mean == pytest.approx(change.mean)
    assert over_texts.low < over_texts.mean < over_texts.high
    members = [result.arrays["plain"] for result in results if result.numbers["seed"] == 0]
    p = scipy.special.expit(np.array(members)).mean(axis=0)
    row = summarise(results).numbers.rows[0]
    assert row["networks_loss"] == pytest.approx(stats.log_loss(p, own[0].arrays["labels"]), rel=1e-9)
    assert "networks_loss" not in summarise(made_up(members=2)).numbers.groups["whole"]
    p = scipy.special.expit(own[0].arrays["plain"])
    for name, loss in (("brier", stats.brier_score), ("ece", stats.calibration_error)):
        assert row[f"plain_{name}"] == pytest.approx(loss(p, own[0].arrays["labels"]))


def test_losses_have_the_digits_of_a_logit_whose_probability_is_one():
    logits = np.array([[45.0, 45.0, -45.0], [60.0, 45.0, -45.0]])
    np.testing.assert_allclose(calibration.mean_logits(logits[1:]), logits[1], rtol=1e-12)
    pooled = calibration.mean_logits(logits)
    assert pooled[1] == pytest.approx(45)
    assert 45 < pooled[0] < 46  # the mean of the probabilities of being wrong is halved
    results = made_up(members=0)
    for result in results:
        result.arrays["plain"] *= 10
    assert np.isfinite(summarise(results).numbers.groups["whole"]["plain_loss"].mean)


def test_a_text_is_drawn_for_every_seed_whose_test_it_is_in():
    """With the same texts and logits on all seeds the interval over texts is that of one seed."""
    one = made_up(seeds=1, members=0)
    three = [Result({**one[0].numbers, "seed": seed}, one[0].arrays) for seed in range(3)]
    lone, several = (summarise(results).numbers.groups["whole"] for results in (one, three))
    name = "temperature_loss_text_gain"
    assert (lone[name].low, lone[name].high) == pytest.approx((several[name].low, several[name].high))


@pytest.mark.parametrize(
    ("seeds", "over_seeds", "over_texts", "clear"),
    [
        (3, (-0.2, -0.1), (-0.3, -0.1), True),
        (3, (0.1, 0.2), (0.1, 0.3), True),
        (3, (-0.2, -0.1), (0.1, 0.3), False),
        (3, (-0.2, 0.1), (-0.3, -0.1), False),
        (3, (0.0, 0.0), (0.0, 0.0), False),
        (2, (-0.2, -0.1), (-0.3, -0.1), False),
    ],
)
def test_a_change_is_clear_where_neither_interval_holds_0(seeds, over_seeds, over_texts, clear):
    change = Change(Interval(seeds, 0.0, 0.1, *over_seeds), statistics.Estimate(0.0, *over_texts))
    assert change.is_clear is clear


def test_report_and_figure_show_every_predictor():
    outputs = summarise([*made_up(), *made_up("head", seeds=2, members=0)])
    changes = outputs.summary.split("## What each predictor changes")[1].split("\n## ")[0]
    whole, head = changes.split("### ")[1:]
    assert whole.startswith("Whole model fine-tuned: 6 texts fit, 40 test; ")
    assert "| temperature | 3 | **-" in whole
    assert "| 5 fine-tuned networks | 3 |" in whole
    assert "| temperature | 2 | -" in head  # two seeds are no claim
    assert "fine-tuned networks" not in head
    assert "| head alone | 1 |" in outputs.summary.split("## The fitted numbers")[1]
    assert "nan" not in outputs.summary
    figure = outputs.figures["calibration"]
    figure.canvas.draw()
    assert [axis.get_xlabel() for axis in figure.axes] == [f"change of {title}" for title in LOSSES.values()]
    assert len(figure.axes[0].get_yticklabels()) == len(calibration.PREDICTORS) - 1


def test_jobs_of_the_presets(monkeypatch):
    monkeypatch.setattr(inputs, "check_model", lambda name: f"{name}, found")
    cells = presets.jobs("paper")
    assert len({cell.key() for cell in cells}) == len(cells)
    whole = [cell for cell in cells if cell.variant == "whole"]
    assert len(whole) == presets.SEEDS["paper"]["whole"] * NETWORKS
    assert {cell.study for cell in whole if cell.member} == {"member"}
    assert {cell.study for cell in cells if not cell.member} == {"calibration"}
    own = {cell.reference() for cell in EXPERIMENTS["domains"].jobs("paper")}
    assert {cell.reference() for cell in cells if cell.seed < 3 and not cell.member} == own  # tuned once for both
    assert {cell.variant for cell in presets.jobs("quick")} == {"head"}
    assert {cell.seed for cell in presets.jobs("paper", seeds=2)} == {0, 1}
