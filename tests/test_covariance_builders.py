"""`laplace` and `from_draws` against matrices written out in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.special
from jax.flatten_util import ravel_pytree
from twins import dense, flat

import isouq
from isouq.covariance import from_draws, laplace
from isouq.posterior import LogDensity

KINDS = ("binary", "multiclass", "regression")
NOISE = 0.4


def mlp(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def mlp_scalar(params, x):
    return mlp(params, x)[0]


def case(kind, n=11, hidden=3, prior="fan_in", sigma=1.5):
    """A network away from a mode, and its log density; in the precision that is on."""
    rng = np.random.default_rng(5)
    outputs = 3 if kind == "multiclass" else 1
    shapes = {"b1": (hidden,), "b2": (outputs,), "w1": (2, hidden), "w2": (hidden, outputs)}
    params = {name: jnp.asarray(rng.normal(size=shape), float) for name, shape in shapes.items()}
    xs = jnp.asarray(rng.normal(size=(n, 2)), float)
    ys = rng.normal(size=n) if kind == "regression" else np.arange(n) % (3 if kind == "multiclass" else 2)
    noise = NOISE if kind == "regression" else None
    predict = mlp if kind == "multiclass" else mlp_scalar
    return LogDensity.of(predict, params, xs, jnp.asarray(ys), kind, prior=prior, sigma=sigma, noise=noise), params


class Datum:
    """One datum of the network above, by hand: layers' inputs x, what comes back to them, outputs' curvature."""

    def __init__(self, log_density, params, i):
        p = {name: np.asarray(leaf, np.float64) for name, leaf in params.items()}
        x, y, kind = np.asarray(log_density.xs[i], np.float64), np.asarray(log_density.ys[i]), log_density.kind
        hidden = np.tanh(x @ p["w1"] + p["b1"])
        f = hidden @ p["w2"] + p["b2"]
        self.inputs = {"w1": x, "w2": hidden, "b1": np.ones(1), "b2": np.ones(1)}
        last = np.eye(f.size)
        first = p["w2"].T * (1 - hidden**2)
        self.deltas = {"w1": first, "w2": last, "b1": first, "b2": last}  # [outputs, features]
        if kind == "regression":
            self.curvature, self.residual = np.eye(1) / NOISE**2, (y - f) / NOISE**2
        elif kind == "binary":
            prob = scipy.special.expit(f)
            self.curvature, self.residual = np.diag(prob * (1 - prob)), y - prob
        else:
            prob = scipy.special.softmax(f)
            self.curvature, self.residual = np.diag(prob) - np.outer(prob, prob), np.eye(3)[y] - prob

    def jacobian(self):
        names = sorted(self.inputs)
        rows = [[np.outer(self.inputs[m], self.deltas[m][r]).ravel() for m in names] for r in range(len(self.residual))]
        return np.array([np.concatenate(row) for row in rows])


def data(log_density, params):
    return [Datum(log_density, params, i) for i in range(len(log_density.ys))]


def log_likelihood(theta, unravel, log_density):
    """Written anew, for `jax.hessian`."""
    f = jax.vmap(mlp, (None, 0))(unravel(theta), log_density.xs)
    if log_density.kind == "multiclass":
        return jnp.sum(f[jnp.arange(len(f)), log_density.ys] - jnp.log(jnp.sum(jnp.exp(f), axis=1)))
    if log_density.kind == "binary":
        p = 1 / (1 + jnp.exp(-f[:, 0]))
        return jnp.sum(jnp.log(jnp.where(log_density.ys == 1, p, 1 - p)))
    return -jnp.sum((log_density.ys - f[:, 0]) ** 2) / (2 * NOISE**2)


def curvature_twin(log_density, params, curvature):
    if curvature == "hessian":
        theta, unravel = ravel_pytree(params)
        return -np.asarray(jax.jit(jax.hessian(log_likelihood), static_argnums=1)(theta, unravel, log_density))
    pairs = [(d.jacobian(), d) for d in data(log_density, params)]
    if curvature == "ggn":
        return sum(j.T @ d.curvature @ j for j, d in pairs)
    return sum(np.outer(d.residual @ j, d.residual @ j) for j, d in pairs)


def prior_sd(params, prior, sigma, damping=0.0):
    """Of every parameter, the damping added to its precision."""
    fans = {name: leaf.shape[0] if leaf.ndim == 2 and prior == "fan_in" else 1 for name, leaf in params.items()}
    sds = {name: np.full(leaf.shape, (fans[name] / sigma**2 + damping) ** -0.5) for name, leaf in params.items()}
    return flat(sds)


def repaired(matrix, sd, keep=None):
    """Σ, and eigenvalues of C in units of the prior; of the `keep` largest alone."""
    values, vectors = np.linalg.eigh(sd[:, None] * matrix * sd)
    kept = np.maximum(values, 0)
    if keep is not None:
        kept[: len(kept) - keep] = 0
    root = sd[:, None] * vectors
    return root @ np.diag(1 / (1 + kept)) @ root.T, values


def assert_close(covariance, params, want, rtol=1e-5):
    np.testing.assert_allclose(dense(covariance, params), want, rtol=0, atol=rtol * np.abs(want).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", ["hessian", "ggn", "empirical_fisher"])
def test_dense_and_diagonal(kind, curvature, x64):
    for prior, sigma, damping in [("unit", 1.0, 0.0), ("fan_in", 1.5, 0.7)]:
        log_density, params = case(kind, prior=prior, sigma=sigma)
        sd, matrix = prior_sd(params, prior, sigma, damping), curvature_twin(log_density, params, curvature)
        want, values = repaired(matrix, sd)
        got = laplace(log_density, params, curvature, damping=damping)
        assert_close(got, params, want)
        entries = sd**2 * np.diag(matrix)
        diagonal = laplace(log_density, params, curvature, "diagonal", damping=damping)
        np.testing.assert_allclose(flat(diagonal.variances), sd**2 / (1 + np.maximum(entries, 0)), rtol=1e-5)
        if curvature == "hessian":
            assert got.clipped == pytest.approx(np.mean(values < -1e-3))
            assert got.clipped > 0
            assert diagonal.clipped == pytest.approx(np.mean(entries < -1e-3))
        else:
            assert got.clipped == diagonal.clipped == 0


def kfac_twin(log_density, params, curvature, precision):
    """Layer by layer, (A ⊗ B + prior)⁻¹: A the mean of the inputs' squares, B the sum of what comes back."""
    loop, blocks = data(log_density, params), []
    for name in sorted(params):
        a = sum(np.outer(d.inputs[name], d.inputs[name]) for d in loop) / len(loop)
        b = 0
        for d in loop:
            delta = d.deltas[name]
            square = d.curvature if curvature == "ggn" else np.outer(d.residual, d.residual)
            b = b + delta.T @ square @ delta
        blocks.append(np.kron(a, b))
    return np.linalg.inv(scipy.linalg.block_diag(*blocks) + np.diag(precision))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("curvature", ["ggn", "empirical_fisher"])
def test_kronecker(kind, curvature, x64):
    for prior, sigma, damping in [("unit", 1.0, 0.0), ("fan_in", 1.5, 0.7)]:
        log_density, params = case(kind, prior=prior, sigma=sigma)
        got = laplace(log_density, params, curvature, "kronecker", damping=damping)
        precision = prior_sd(params, prior, sigma, damping) ** -2
        assert_close(got, params, kfac_twin(log_density, params, curvature, precision))


@pytest.mark.parametrize(("kind", "n", "leaf"), [("regression", 9, "matrix"), ("binary", 9, "vector")])
def test_kronecker_is_exact_for_a_linear_model(kind, n, leaf, x64):
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(n, 4)))
    params = {"w": jnp.full((4, 1) if leaf == "matrix" else 4, 0.3)}
    noise = NOISE if kind == "regression" else None
    of = LogDensity.of(lambda p, x: (x @ p["w"]).reshape(()), params, xs, jnp.arange(n) % 2, kind, noise=noise)
    assert_close(laplace(of, params, "ggn", "kronecker"), params, dense(laplace(of, params, "ggn"), params), 1e-6)


def test_kronecker_is_exact_in_each_block_for_one_datum(x64):
    log_density, params = case("regression", n=1, prior="unit", sigma=1.0)
    matrix, at, blocks = curvature_twin(log_density, params, "ggn"), 0, []
    for leaf in params.values():
        blocks.append(np.linalg.inv(np.eye(leaf.size) + matrix[at : at + leaf.size, at : at + leaf.size]))
        at += leaf.size
    assert_close(laplace(log_density, params, "ggn", "kronecker"), params, scipy.linalg.block_diag(*blocks))


def test_kronecker_of_lookups_and_positions(x64):
    rng = np.random.default_rng(2)
    params = {"table": jnp.asarray(rng.normal(size=(40, 3))), "w": jnp.asarray(rng.normal(size=(3, 2)))}
    ids, ys = rng.integers(0, 40, (6, 4)), np.arange(6) % 2

    def predict(p, ids):
        return jnp.sum((p["table"][ids] @ p["w"]) @ jnp.asarray([1.0, -0.5]))

    log_density = LogDensity.of(predict, params, jnp.asarray(ids), jnp.asarray(ys), "binary")
    table, w = (np.asarray(leaf) for leaf in params.values())
    back = np.array([1.0, -0.5])
    blocks = {"table": [0, 0], "w": [0, 0]}
    for row in ids:
        p = scipy.special.expit(np.sum(table[row] @ w @ back))
        counts = np.bincount(row, minlength=40)
        for name, a, delta in [("table", np.diag(counts), w @ back), ("w", table[row].T @ table[row], back)]:
            blocks[name][0] = blocks[name][0] + a / 4 / 6  # the mean over positions and data
            blocks[name][1] = blocks[name][1] + 4 * p * (1 - p) * np.outer(delta, delta)  # the sum over both
    curvature = scipy.linalg.block_diag(*[np.kron(a, b) for a, b in blocks.values()])
    want = np.linalg.inv(curvature + np.eye(len(curvature)))
    assert_close(laplace(log_density, params, "ggn", "kronecker"), params, want)


@pytest.mark.parametrize(("curvature", "rank"), [("ggn", 5), ("ggn", 18), ("hessian", 3)])
def test_low_rank_equals_the_leading_eigenpairs(curvature, rank, x64):
    log_density, params = case("multiclass", hidden=10)  # 63 parameters: by Lanczos below rank 18
    sd = prior_sd(params, "fan_in", 1.5, 0.1)
    want, _ = repaired(curvature_twin(log_density, params, curvature), sd, keep=rank)
    got = laplace(log_density, params, curvature, "low_rank", rank=rank, damping=0.1)
    assert jax.tree.leaves(got.directions)[0].shape[0] == rank
    assert_close(got, params, want)


@pytest.mark.parametrize("curvature", ["ggn", "hessian"])
def test_low_rank_of_every_direction_is_dense(curvature, x64):
    log_density, params = case("multiclass")
    whole = dense(laplace(log_density, params, curvature), params)
    assert_close(laplace(log_density, params, curvature, "low_rank", rank=50), params, whole)


def test_low_rank_subtracts_nothing_twice_once_the_data_are_exhausted():
    log_density, params = case("binary", n=3, hidden=20)  # C has rank 3, and Lanczos in float32 goes 40 steps
    got = laplace(log_density, params, "ggn", "low_rank", rank=10, key=jax.random.key(1))
    want, _ = repaired(curvature_twin(log_density, params, "ggn"), prior_sd(params, "fan_in", 1.5))
    assert_close(got, params, want)


@pytest.mark.parametrize("structure", ["dense", "diagonal", "low_rank"])
def test_no_direction_of_an_indefinite_hessian_is_wider_than_the_prior(structure, x64):
    log_density, params = case("multiclass")
    sd = prior_sd(params, "fan_in", 1.5)
    got = dense(laplace(log_density, params, "hessian", structure, rank=6), params)
    values = np.linalg.eigvalsh(got / sd[:, None] / sd)
    assert values.max() == pytest.approx(1, abs=1e-6)
    assert 0 < values.min() < 0.5


def test_nothing_is_clipped_of_a_convex_model():
    xs = jax.random.normal(jax.random.key(0), (20, 3))
    params = {"w": jnp.ones((3, 1)), "b": jnp.zeros(1)}
    log_density = LogDensity.of(lambda p, x: x @ p["w"] + p["b"], params, xs, jnp.arange(20) % 2, "binary")
    for structure in ("dense", "diagonal"):
        by_hessian, by_ggn = (laplace(log_density, params, of, structure) for of in ("hessian", "ggn"))
        assert by_hessian.clipped == by_ggn.clipped == 0
        assert_close(by_hessian, params, dense(by_ggn, params))  # the two are one in a linear model


@pytest.mark.parametrize(
    ("curvature", "structure"), [("ggn", "dense"), ("ggn", "kronecker"), ("hessian", "diagonal"), ("ggn", "low_rank")]
)
def test_the_batch_size_changes_nothing(curvature, structure, x64):
    log_density, params = case("multiclass")
    at_once, in_batches = (laplace(log_density, params, curvature, structure, rank=2, batch_size=b) for b in (128, 4))
    assert_close(in_batches, params, dense(at_once, params), 1e-10)  # of 4, 4 and 3


def test_from_draws_is_the_covariance_of_the_draws():
    rng = np.random.default_rng(0)
    draws = {"b": 3 + rng.normal(size=(7, 3)), "w": rng.normal(size=(7, 4, 2))}
    params = jax.tree.map(lambda leaf: leaf[0], draws)
    want = np.cov(np.concatenate([leaf.reshape(7, -1) for leaf in draws.values()], axis=1).T, ddof=0)
    draws = jax.tree.map(jnp.float32, draws)
    assert_close(from_draws(draws), params, want)
    assert_close(from_draws(draws, "low_rank"), params, want)
    assert_close(from_draws(draws, "diagonal"), params, np.diag(np.diag(want)))


WRONG = {
    "curvature": ({"curvature": "gauss"}, "curvature is 'gauss'; expected one of 'hessian', 'ggn', 'empirical_fisher'"),
    "structure": ({"structure": "full"}, "structure is 'full'; expected one of 'dense', 'diagonal', 'kronecker'"),
    "no factors": ({"curvature": "hessian", "structure": "kronecker"}, "use curvature='ggn' or 'empirical_fisher'"),
    "function": ({"log_density": lambda p: 0.0}, "log_density is a function; .* build it with isouq.LogDens"),
    "tree": ({"params": {"w": jnp.ones(3)}}, "params do not fit the model .* pass parameters of that model"),
    "shape": ({"params": "shape"}, "params do not fit the model .* pass parameters of that model"),
    "NaN": ({"params": "NaN"}, r"params\['b1'\] holds 3 NaN .* remove or replace them"),
    "damping": ({"damping": -1.0}, "damping is -1.0; expected .*"),
    "NaN damping": ({"damping": float("nan")}, "damping is nan; expected .*"),
    "rank": ({"rank": 0}, "rank is 0; expected a whole number of at least 1"),
    "batch_size": ({"batch_size": 0}, "batch_size is 0; expected a whole number of at least 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_in_one_line(name):
    change, message = WRONG[name]
    log_density, params = case("binary")
    if change.get("params") == "NaN":
        change = {"params": params | {"b1": jnp.full(3, jnp.nan)}}
    if change.get("params") == "shape":
        change = {"params": params | {"w1": jnp.ones((3, 3))}}
    with pytest.raises(ValueError, match=message) as error:
        laplace(**{"log_density": log_density, "params": params} | change)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker", "low_rank"])
def test_a_curvature_that_is_not_finite_says_where_to_look(structure):
    def predict(params, x):  # finite, with an infinite derivative at x = 0
        return jnp.sqrt(jnp.abs(x @ params["w"])).sum() + params["b"]

    params = {"b": jnp.zeros(()), "w": jnp.ones((2, 30))}
    log_density = LogDensity.of(predict, params, jnp.zeros((4, 2)), jnp.arange(4) % 2, "binary")
    with pytest.raises(ValueError, match=r"the curvature at params is not finite: .* look at log_density"):
        laplace(log_density, params, "ggn", structure, rank=2)


def test_the_hessian_of_a_second_data_set_is_its_own():
    """The data are arguments of the compiled program: it is made once, and the second data set is not the first."""
    (first, params), (second, _) = case("binary", n=8), case("binary", n=8)
    second = LogDensity.of(mlp_scalar, params, 2 * second.xs, second.ys, "binary")
    one, other = (isouq.negative_hessian(density, params) for density in (first, second))
    assert not np.allclose(one, other)
    theta, unravel = ravel_pytree(params)
    np.testing.assert_allclose(other, -jax.hessian(lambda t: second(unravel(t)))(theta), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker", "low_rank"])
def test_bfloat16_parameters_get_a_float32_covariance(structure):
    log_density, params = case("binary")
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    covariance = laplace(log_density, narrow, "ggn", structure, rank=2)
    assert {leaf.dtype for leaf in jax.tree.leaves(covariance) if hasattr(leaf, "dtype")} == {jnp.dtype(jnp.float32)}


def test_a_covariance_needs_two_draws():
    with pytest.raises(ValueError, match="draws has one row; a covariance needs at least two draws"):
        from_draws({"w": jnp.ones((1, 3))})
    with pytest.raises(ValueError, match="structure is 'kronecker'; expected one of"):
        from_draws({"w": jnp.ones((2, 3))}, "kronecker")


def scored(log_density, params, covariance):
    """gᵀΣg as a user gets it: of a mean, the variance of the linearised network."""
    return isouq.uncertainty(log_density.predict, params, log_density.xs, "regression", covariance=covariance).epistemic


@pytest.mark.parametrize("kind", ["multiclass", "regression"])
def test_agrees_with_laplax(kind, x64):
    from laplax.curv.cov import create_posterior_fn
    from laplax.curv.ggn import create_ggn_mv

    log_density, params = case(kind, prior="unit", sigma=0.8)
    loss = {"multiclass": "cross_entropy", "regression": "mse"}[kind]
    products = create_ggn_mv(
        lambda input, params: mlp(params, input), params, {"input": log_density.xs, "target": log_density.ys}, loss
    )
    # laplax's squared error is (y − f)², its second derivative 2 where that of the likelihood is 1/noise²
    scale = 1 / (2 * NOISE**2) if kind == "regression" else 1.0
    for theirs, ours in [("full", "dense"), ("diagonal", "diagonal")]:
        posterior = create_posterior_fn(theirs, mv=products, layout=params)(
            {"prior_prec": 1 / 0.8**2, "sigma_squared": scale}
        )
        basis = jax.vmap(ravel_pytree(params)[1])(jnp.eye(ravel_pytree(params)[0].size))
        columns = jax.vmap(posterior.cov_mv(posterior.state))(basis)
        want = np.asarray(jax.vmap(lambda column: ravel_pytree(column)[0])(columns), np.float64)
        got = laplace(log_density, params, "ggn", ours)
        assert_close(got, params, want)
        if kind == "regression":
            rows = np.array([Datum(log_density, params, i).jacobian()[0] for i in range(11)])
            want = np.einsum("bi,ij,bj->b", rows, want, rows)
            np.testing.assert_allclose(scored(log_density, params, got), want, 1e-4)


def informative(noise, sigma, features):
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(200, features)), jnp.float32)
    params = jnp.ones(features)
    return LogDensity.of(jnp.vdot, params, xs, xs.sum(axis=1), "regression", sigma=sigma, noise=noise), params


@pytest.mark.parametrize(("noise", "sigma"), [(0.01, 1.0), (1.0, 1000.0), (0.01, 100.0)])
def test_a_low_rank_form_of_informative_data_is_exact_or_refused(noise, sigma):
    """It subtracts from the prior: what float32 cannot resolve must not come back as a negative variance."""
    log_density, params = informative(noise, sigma, 3)  # every direction is kept: nothing to subtract
    exact, low = (laplace(log_density, params, "ggn", structure) for structure in ("dense", "low_rank"))
    want, got = (scored(log_density, params, covariance) for covariance in (exact, low))
    np.testing.assert_allclose(got, want, rtol=1e-3)
    log_density, params = informative(noise, sigma, 40)
    with pytest.raises(ValueError, match=r"the data outweigh the prior .* use structure='dense' or 'kronecker'"):
        laplace(log_density, params, "ggn", "low_rank", rank=5)


def test_laplace_under_jit_says_what_to_do():
    log_density, params = case("binary")
    with pytest.raises(ValueError, match="build the covariance outside and pass it in"):
        jax.jit(lambda p: laplace(log_density, p).factor)(params)
