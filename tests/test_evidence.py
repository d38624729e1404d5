"""The evidence, the choice of a prior, and curvature from a stream, against closed forms and NumPy."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax.flatten_util import ravel_pytree
from test_covariance_builders import KINDS, NOISE, case
from twins import dense

import isouq
from isouq import stats
from isouq._evidence import Evidence, layers
from isouq.covariance import laplace
from isouq.covariance._curvature import kronecker
from isouq.covariance._laplace import CurvatureFit, fit_curvature
from isouq.covariance._structures import KroneckerCurvature
from isouq.posterior import LogDensity

STRUCTURES = ("dense", "diagonal", "kronecker", "low_rank")


def sd_of(log_density, params):
    """The prior's standard deviation of every parameter."""
    scales = jax.tree.map(lambda s, leaf: jnp.full(leaf.shape, s), log_density.scales, params)
    return np.asarray(ravel_pytree(scales)[0], np.float64)


def evidence_of(log_density, params, covariance):
    """log p(D|θ) + log p(θ) + P/2 log 2π + ½ log det Σ, from the matrix."""
    matrix = dense(covariance, params)
    return float(log_density(params)) + len(matrix) / 2 * np.log(2 * np.pi) + np.linalg.slogdet(matrix)[1] / 2


def with_sigma(log_density, sigma):
    return dataclasses.replace(log_density, scales=jax.tree.map(lambda s: s * sigma, log_density.scales))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "hessian"])
def test_the_evidence_is_that_of_the_matrix(kind, structure, curvature):
    if (structure, curvature) == ("kronecker", "hessian"):
        pytest.skip("a Hessian has no Kronecker factors")
    log_density, params = case(kind)
    for sigma in (0.3, 1.0, 4.0):
        one = with_sigma(log_density, sigma)
        covariance = laplace(one, params, curvature, structure, rank=100)
        got = isouq.log_marginal_likelihood(one, params, curvature, structure, rank=100)
        assert got == pytest.approx(evidence_of(one, params, covariance), abs=2e-3)


def test_the_evidence_of_a_linear_regression_is_exact():
    """y ~ N(0, σ² X Xᵀ + noise² I), whose density is known."""
    rng = np.random.default_rng(0)
    xs, noise = rng.normal(size=(30, 3)).astype(np.float32), 0.5
    ys = (xs @ [1.0, -2.0, 0.5] + noise * rng.normal(size=30)).astype(np.float32)

    def predict(params, x):
        return x @ params["w"]

    def mode(sigma):
        """The mode in closed form; the evidence of the Laplace approximation is exact there."""
        precision = xs.T @ xs / noise**2 + np.eye(3) / sigma**2
        return {"w": jnp.asarray(np.linalg.solve(precision, xs.T @ ys / noise**2), jnp.float32)}

    def exact(sigma):
        return scipy.stats.multivariate_normal.logpdf(ys, np.zeros(30), sigma**2 * xs @ xs.T + noise**2 * np.eye(30))

    for sigma in (0.2, 1.0, 10.0):
        log_density = LogDensity.of(predict, mode(sigma), xs, ys, "regression", sigma=sigma, noise=noise)
        assert isouq.log_marginal_likelihood(log_density, mode(sigma)) == pytest.approx(exact(sigma), abs=1e-3)
    # at the prior of the largest exact evidence its own choice is that prior
    best = float(np.exp(scipy.optimize.minimize_scalar(lambda s: -exact(np.exp(s)), bounds=(-3, 4)).x))
    log_density = LogDensity.of(predict, mode(best), xs, ys, "regression", sigma=best, noise=noise)
    choice = isouq.choose_prior(log_density, mode(best))
    assert float(choice.log_density.scales["w"]) == pytest.approx(best, rel=0.02)
    assert choice.log_marginal_likelihood == pytest.approx(exact(best), abs=1e-3)
    assert choice.log_loss is None


PEER = json.loads((Path(__file__).parent / "laplace_torch.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker"])
@pytest.mark.parametrize("number", range(len(PEER["cases"])))
def test_evidence_and_precision_are_those_of_laplace_torch(number, structure, x64):
    """The numbers of laplace-torch were written by tests/laplace_torch.py."""
    peer = PEER["cases"][number]
    weights = {name: np.asarray(value) for name, value in peer["weights"].items()}
    params = {name: jnp.asarray(value.T if value.ndim == 2 else value) for name, value in weights.items()}
    kind, noise = peer["kind"], PEER["noise"] if peer["kind"] == "regression" else None

    def predict(params, x):
        hidden = jnp.tanh(x @ params["0.weight"] + params["0.bias"])
        outputs = hidden @ params["2.weight"] + params["2.bias"]
        return outputs[0] if kind == "regression" else outputs

    sigma = PEER["prior_precision"] ** -0.5
    log_density = LogDensity.of(
        predict, params, np.asarray(peer["xs"]), np.asarray(peer["ys"]), kind, sigma=sigma, noise=noise
    )
    want = peer["structures"][structure]
    got = isouq.log_marginal_likelihood(log_density, params, structure=structure)
    assert got == pytest.approx(want["log_marginal_likelihood"], rel=1e-6)
    # ours are ordered by name; laplace-torch's as the layers are, with transposed matrices
    numbers, first = {}, 0
    for name, leaf in sorted(params.items()):
        numbers[name], first = np.arange(first, first + leaf.size).reshape(leaf.shape), first + leaf.size
    order = np.concatenate(
        [(numbers[name].T if leaf.ndim == 2 else numbers[name]).ravel() for name, leaf in weights.items()]
    )
    precision = np.linalg.inv(dense(laplace(log_density, params, structure=structure), params))[np.ix_(order, order)]
    peers = np.asarray(want["posterior_precision"])
    peers = np.diag(peers) if peers.ndim == 1 else peers
    np.testing.assert_allclose(precision, peers, rtol=1e-4, atol=1e-4 * np.abs(peers).max())


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_chosen_prior_has_the_largest_evidence(structure):
    log_density, params = case("multiclass")
    choice = isouq.choose_prior(log_density, params, structure=structure, rank=5)
    factor = float(choice.log_density.scales["b1"] / log_density.scales["b1"])
    ratios = jax.tree.map(lambda new, old: float(new / old), choice.log_density.scales, log_density.scales)
    assert all(ratio == pytest.approx(factor) for ratio in ratios.values())
    for nearby in (0.5, 0.9, 1.1, 2.0):
        other = with_sigma(choice.log_density, nearby)
        assert (
            isouq.log_marginal_likelihood(other, params, structure=structure, rank=5) < choice.log_marginal_likelihood
        )
    again = isouq.log_marginal_likelihood(choice.log_density, params, structure=structure, rank=5)
    assert choice.log_marginal_likelihood == pytest.approx(again, abs=2e-3)
    want = laplace(choice.log_density, params, structure=structure, rank=5)
    np.testing.assert_allclose(dense(choice.covariance, params), dense(want, params), rtol=2e-2, atol=1e-3)


def nested(params):
    """The parameters of `case` as two layers, and the function that takes them."""
    tree = {"first": {"w": params["w1"], "b": params["b1"]}, "second": {"w": params["w2"], "b": params["b2"]}}

    def flat(tree):
        return {
            "w1": tree["first"]["w"],
            "b1": tree["first"]["b"],
            "w2": tree["second"]["w"],
            "b2": tree["second"]["b"],
        }

    return tree, flat


@pytest.mark.parametrize("structure", STRUCTURES)
def test_layers_have_priors_of_their_own(structure):
    original, params = case("multiclass", prior="unit")
    tree, flat = nested(params)

    def predict(tree, x):
        return original.predict(flat(tree), x)

    log_density = LogDensity.of(predict, tree, original.xs, original.ys, "multiclass")
    assert layers(tree) == [0, 0, 1, 1]
    one = isouq.choose_prior(log_density, tree, structure=structure, rank=5)
    two = isouq.choose_prior(log_density, tree, structure=structure, rank=5, per="layer")
    scales = two.log_density.scales
    assert float(scales["first"]["w"]) == pytest.approx(float(scales["first"]["b"]))
    assert float(scales["first"]["w"]) != pytest.approx(float(scales["second"]["w"]), rel=0.01)
    assert two.log_marginal_likelihood > one.log_marginal_likelihood

    def evidence(first, second):
        changed = {name: {leaf: jnp.float32(s) for leaf in "wb"} for name, s in (("first", first), ("second", second))}
        other = dataclasses.replace(log_density, scales=changed)
        return isouq.log_marginal_likelihood(other, tree, structure=structure, rank=100)

    if structure != "low_rank":  # whose eigenpairs are those of the prior at which they were found
        best = float(scales["first"]["w"]), float(scales["second"]["w"])
        assert evidence(*best) == pytest.approx(two.log_marginal_likelihood, abs=2e-3)
        for a, b in ((0.8, 1), (1.2, 1), (1, 0.8), (1, 1.2)):
            assert evidence(a * best[0], b * best[1]) < two.log_marginal_likelihood


@pytest.mark.filterwarnings("ignore:the best factor of the prior")  # some labels prefer the widest prior
@pytest.mark.parametrize("structure", ["dense", "low_rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prior_chosen_by_held_out_labels_has_the_smallest_loss(kind, structure):
    log_density, params = case(kind)
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(200, 2)), jnp.float32)
    outputs = np.asarray(jax.vmap(log_density.predict, (None, 0))(params, xs))
    ys = (
        outputs + rng.normal(size=200)
        if kind == "regression"
        else rng.integers(3 if kind == "multiclass" else 2, size=200)
    )
    noise = NOISE if kind == "regression" else None
    choice = isouq.choose_prior(log_density, params, "ggn", structure, rank=3, validation=(xs, ys))

    def loss(one):
        covariance = laplace(one, params, "ggn", structure, rank=3)
        got = isouq.predictive(one.predict, params, xs, kind, covariance, noise=noise)
        return stats.gaussian_log_loss(got.mean, got.variance, ys) if noise else stats.log_loss(got.mean, ys)

    assert choice.log_loss == pytest.approx(loss(choice.log_density), abs=1e-5)
    factors = np.logspace(-3, 1, 9) if structure == "low_rank" else np.logspace(-3, 3, 13)
    assert choice.log_loss <= min(loss(with_sigma(log_density, factor)) for factor in factors) + 1e-4
    assert np.isfinite(choice.log_marginal_likelihood)


def test_the_evidence_of_a_convolution_differs_from_that_of_laplace_torch_by_the_block_of_its_bias(x64):
    """Ours is exact, (Σ_p δ_p)(Σ_p δ_p)ᵀ over the positions p; laplace-torch takes Σ_p δ_p δ_pᵀ, as for the kernel."""
    peer = PEER["convolution"]
    params = {name: jnp.asarray(value) for name, value in peer["weights"].items()}

    def predict(params, x):
        hidden = jax.lax.conv(x[None], params["0.weight"], (1, 1), "SAME")[0] + params["0.bias"][:, None, None]
        return params["3.weight"] @ jnp.tanh(hidden).reshape(-1) + params["3.bias"]

    # the leading axes of a kernel are those of A, so that the outputs come last
    last = {name: jnp.moveaxis(leaf, 0, -1) for name, leaf in params.items()}
    log_density = LogDensity.of(
        lambda p, x: predict({name: jnp.moveaxis(leaf, -1, 0) for name, leaf in p.items()}, x),
        last, np.asarray(peer["xs"]), np.asarray(peer["ys"]), "multiclass", sigma=PEER["prior_precision"] ** -0.5,
    )  # fmt: skip
    fit = fit_curvature(log_density, last, structure="kronecker")
    pairs = kronecker(log_density, last, "ggn", 24)
    names = sorted(params)
    kernel, bias = names.index("0.weight"), names.index("0.bias")
    pairs[bias] = pairs[bias][0], pairs[kernel][1]
    other = fit._replace(curvature=KroneckerCurvature.of(pairs, last))
    ours, theirs = (Evidence.of(each)(np.asarray(fit.scales))[0] for each in (fit, other))
    assert theirs == pytest.approx(peer["log_marginal_likelihood"], rel=1e-6)
    assert abs(ours - theirs) > 0.01


# a stream


def in_batches(log_density, size):
    return [
        (np.asarray(log_density.xs[i : i + size]), np.asarray(log_density.ys[i : i + size]))
        for i in range(0, len(log_density.ys), size)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker"])
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "hessian"])
def test_a_stream_gives_the_curvature_of_the_data_in_memory(kind, structure, curvature):
    if (structure, curvature) == ("kronecker", "hessian"):
        pytest.skip("a Hessian has no Kronecker factors")
    log_density, params = case(kind)
    few = dataclasses.replace(log_density, xs=log_density.xs[:1], ys=log_density.ys[:1])
    counts = []
    got = laplace(few, params, curvature, structure, batches=iter(in_batches(log_density, 4)), progress=counts.append)
    assert counts == [4, 8, 11]
    want = dense(laplace(log_density, params, curvature, structure), params)
    np.testing.assert_allclose(dense(got, params), want, rtol=0, atol=2e-4 * np.abs(want).max())
    in_memory = isouq.log_marginal_likelihood(log_density, params, curvature, structure)
    streamed = isouq.log_marginal_likelihood(few, params, curvature, structure, batches=in_batches(log_density, 5))
    assert streamed == pytest.approx(in_memory, abs=1e-3)
    choice = isouq.choose_prior(few, params, curvature, structure, batches=in_batches(log_density, 5))
    whole = isouq.choose_prior(log_density, params, curvature, structure)
    assert choice.log_marginal_likelihood == pytest.approx(whole.log_marginal_likelihood, abs=1e-3)


@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher", "hessian"])
def test_sums_of_bfloat16_parameters_are_in_float32(curvature):
    """One datum in each of 600 batches: a sum in bfloat16 stays where it is once a term is 1/256 of it."""
    log_density, params = case("multiclass")
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), narrow)
    one = in_batches(log_density, 1)[0]
    got = laplace(log_density, narrow, curvature, batches=[one] * 600)
    want = dense(laplace(log_density, wide, curvature, batches=[one] * 600), wide)
    assert np.abs(dense(got, wide) - want).max() < 0.1 * want.max()
    one_batch = [jnp.repeat(jnp.asarray(part), 600, axis=0) for part in one]
    in_memory = laplace(dataclasses.replace(log_density, xs=one_batch[0], ys=one_batch[1]), narrow, curvature)
    assert np.abs(dense(in_memory, wide) - want).max() < 0.1 * want.max()


def test_lists_of_numbers_are_batches():
    log_density, params = case("multiclass")
    lists = [(xs.tolist(), ys.tolist()) for xs, ys in in_batches(log_density, 4)]
    want = laplace(log_density, params, batches=in_batches(log_density, 4))
    np.testing.assert_array_equal(laplace(log_density, params, batches=lists).factor, want.factor)


def test_a_batch_on_which_predict_is_not_finite_is_named(tmp_path):
    log_density, params = case("multiclass")
    broken = not_finite_far_away(log_density)
    batches = in_batches(broken, 4)
    batches[1] = (np.full((4, 2), 100.0), batches[1][1])
    with pytest.raises(ValueError, match="batch 1: the log likelihood is not finite; look for a row of xs"):
        laplace(broken, params, batches=batches, checkpoint=tmp_path / "sum.npz")


def not_finite_far_away(log_density):
    """The same log density, with outputs that are NaN where an input is above 50."""

    def predict(params, x):
        return jnp.where(x[0] > 50, jnp.nan, log_density.predict(params, x))

    return dataclasses.replace(log_density, predict=jax.tree_util.Partial(predict))


def test_an_interrupted_stream_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("isouq.covariance._stream._SECONDS", 0.0)
    log_density, params = case("multiclass")
    path = tmp_path / "sum.npz"
    scored = []

    def interrupted():
        for number, batch in enumerate(in_batches(log_density, 2)):
            if number == 3 and not path.with_name("again").exists():
                raise KeyboardInterrupt
            scored.append(number)
            yield batch

    with pytest.raises(KeyboardInterrupt):
        laplace(log_density, params, batches=interrupted(), checkpoint=path)
    assert scored == [0, 1, 2]
    path.with_name("again").touch()
    progress = []
    got = laplace(log_density, params, batches=interrupted(), checkpoint=path, progress=progress.append)
    assert progress == [6, 6, 6, 8, 10, 11]  # what the checkpoint has is not summed again
    whole = laplace(log_density, params, batches=in_batches(log_density, 2))
    np.testing.assert_array_equal(got.factor, whole.factor)
    again = laplace(log_density, params, batches=interrupted(), checkpoint=path)  # all is there
    np.testing.assert_array_equal(again.factor, whole.factor)
    with pytest.raises(ValueError, match="has 6 batches of 11 rows, and batches gave 2 of 4; remove the file or give"):
        laplace(log_density, params, batches=in_batches(log_density, 2)[:2], checkpoint=path)
    first, *others = in_batches(log_density, 2)
    with pytest.raises(ValueError, match="has 6 batches of 11 rows, and batches gave 6 of 12; remove the file or give"):
        laplace(log_density, params, batches=[first, *others[:4], first], checkpoint=path)
    changed = dataclasses.replace(
        log_density, predict=jax.tree_util.Partial(lambda p, x: 2 * log_density.predict(p, x))
    )
    for other in (changed, dataclasses.replace(log_density, noise=2 * log_density.noise)):
        with pytest.warns(UserWarning, match="belongs to another run"):
            laplace(other, params, batches=in_batches(log_density, 2), checkpoint=path)
        laplace(log_density, params, batches=in_batches(log_density, 2), checkpoint=tmp_path / "new.npz")
        (tmp_path / "new.npz").replace(path)
    with pytest.warns(UserWarning, match="belongs to another run; it is now sum.npz.unused; starting anew"):
        laplace(log_density, params, structure="diagonal", batches=in_batches(log_density, 2), checkpoint=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.warns(UserWarning, match="is damaged"):
        got = laplace(log_density, params, batches=in_batches(log_density, 2), checkpoint=path)
    np.testing.assert_array_equal(got.factor, whole.factor)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "batches is empty; expected an iterable of pairs"),
        ({"batches": [np.zeros((2, 2))]}, "batch 0 is a ndarray; expected pairs"),
        ({"batches": [(np.zeros((2, 2)), [0, 7])]}, "batch 0: ys holds labels from 0 to 7; multiclass expects 0 to 2"),
        ({"batches": [(np.zeros((2, 5)), [0, 1])]}, r"batch 0: a row of xs has shape \(5,\); expected \(2,\)"),
        ({"batches": [(np.full((2, 2), np.nan), [0, 1])]}, "batch 0: .*NaN"),
        ({"batches": [(np.zeros((2, 2)), ["cat", "dog"])]}, r"batch 0: ys is <U3; expected numbers: numpy.unique\("),
        ({"batches": [], "structure": "low_rank"}, "structure 'low_rank' takes many passes"),
        ({"batches": [], "max_bytes": 10**9}, "max_bytes and batches were both given"),
        ({"progress": print}, "progress and checkpoint go with batches"),
    ],
)
def test_a_wrong_stream_is_one_clear_line(options, message):
    log_density, params = case("multiclass")
    with pytest.raises(ValueError, match=message) as error:
        laplace(log_density, params, **options)
    assert "\n" not in str(error.value)


def test_values_of_another_dtype_keep_their_fractions():
    """The few rows of the log density have whole values."""
    log_density, params = case("regression")
    few = dataclasses.replace(log_density, xs=log_density.xs[:2], ys=jnp.asarray([0, 1]))
    batches = [(np.asarray(xs, np.float64), np.asarray(ys, np.float64)) for xs, ys in in_batches(log_density, 4)]
    got = isouq.log_marginal_likelihood(few, params, batches=batches)
    assert got == pytest.approx(isouq.log_marginal_likelihood(log_density, params), abs=1e-3)


def test_a_multiple_of_the_prior_needs_no_second_decomposition(monkeypatch):
    log_density, params = case("multiclass")
    counted = []
    eigh = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda matrix: counted.append(matrix.shape) or eigh(matrix))
    isouq.choose_prior(log_density, params)
    assert len(counted) == 1


def test_a_prior_of_no_width_is_explained_by_the_validation_data():
    """Labels that the network already predicts become less likely by any variance."""
    log_density, params = case("multiclass")
    xs, ys = log_density.xs, jax.vmap(log_density.predict, (None, 0))(params, log_density.xs).argmax(axis=1)
    with pytest.warns(UserWarning, match="1e-04, the smallest that is tried; no variance makes the validation data"):
        choice = isouq.choose_prior(log_density, params, validation=(xs, ys))
    assert isouq.fit_scale(log_density.predict, params, xs, ys, "multiclass").scale == 0
    for wrapped in (choice, isouq.fit_scale(log_density.predict, params, xs, ys, "multiclass")):
        for f in (isouq.predictive, isouq.uncertainty):
            with pytest.raises(ValueError, match=r"covariance is .*; expected its field \.covariance"):
                f(log_density.predict, params, xs, "multiclass", covariance=wrapped)
        with pytest.raises(ValueError, match=r"covariance is .*; expected its field \.covariance"):
            isouq.fit_scale(log_density.predict, params, xs, ys, "multiclass", covariance=wrapped)
    with pytest.raises(ValueError, match=r"probabilities is a Predictive; expected an array: its field \.mean"):
        stats.log_loss(isouq.predictive(log_density.predict, params, xs, "multiclass", choice.covariance), ys)


def test_a_prior_at_the_border_of_the_search_is_said():
    """Parameters of 0 are likelier the narrower their prior is."""
    log_density, params = case("multiclass")
    with pytest.warns(UserWarning, match=r"is 1e-04, the smallest that is tried; look at params \(are they a mode\?\)"):
        isouq.choose_prior(log_density, jax.tree.map(jnp.zeros_like, params))


@pytest.mark.filterwarnings("ignore:the best factor of the prior")
def test_a_wrong_choice_is_one_clear_line():
    log_density, params = case("multiclass")
    with pytest.raises(ValueError, match="per is 'leaf'; expected"):
        isouq.choose_prior(log_density, params, per="leaf")
    with pytest.raises(ValueError, match="per is 'layer' and validation was given"):
        isouq.choose_prior(log_density, params, per="layer", validation=(log_density.xs, log_density.ys))
    with pytest.raises(ValueError, match="damping was given; an evidence has a prior and no damping"):
        isouq.choose_prior(log_density, params, damping=1.0)
    xs, ys = log_density.xs, log_density.ys
    for validation, message in (
        (xs, r"validation is .*; expected a pair \(xs, ys\)"),
        ((xs, ys[:, None]), "validation: ys has shape"),
        ((xs, ys[:1]), "validation: ys has shape"),
        ((xs, ys - 1), "validation: ys holds labels from -1"),
        ((xs[:, :1], ys), r"validation: a row of xs has shape \(1,\); expected \(2,\)"),
        ((xs.at[1].set(100.0), ys), "validation: the log likelihood is not finite; look for a row of xs"),
    ):
        with pytest.raises(ValueError, match=message):
            isouq.choose_prior(not_finite_far_away(log_density), params, validation=validation)
    choice, of_lists = (
        isouq.choose_prior(log_density, params, validation=pair) for pair in ((xs, ys), (xs.tolist(), ys.tolist()))
    )
    assert choice.log_loss == of_lists.log_loss
    for function in (isouq.choose_prior, isouq.log_marginal_likelihood):
        with pytest.raises(TypeError, match=f"{function.__name__} has no argument 'epochs'; its options are rank, key"):
            function(log_density, params, epochs=3)
    with pytest.raises(ValueError, match=r"batches is .*; expected an iterable of pairs \(xs, ys\)"):
        isouq.laplace(log_density, params, batches=np.ones(5))
    fit = fit_curvature(log_density, params)
    assert isinstance(fit, CurvatureFit)
