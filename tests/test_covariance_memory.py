"""`laplace` in bounded memory: sums without the gradients they are made of, against slow twins that form each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree
from twins import dense, matrix

import isouq
from isouq import models
from isouq.covariance import _curvature, _limits, laplace
from isouq.gradnorm import _moments
from isouq.gradnorm._moments import factor_moments
from isouq.posterior import LogDensity


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), float)


def network(params, x):
    """Lookups, positions, a scan, a convolution, tied weights, a nonlinear use, a scalar and an unused leaf."""
    ids, image = x
    h = jnp.tanh(params["table"][ids] @ params["w"] + params["bias"][None])
    h = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"])[0]
    pixels = lax.conv_general_dilated(
        image[None], params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = jnp.sum(h, axis=0) + jnp.sum(jnp.tanh(pixels), axis=(0, 1, 2)) * params["scale"]
    h = jnp.tanh(h + params["columns"][:, ids].sum(axis=1)) @ jnp.sin(params["direct"])
    return h @ params["tied"] + params["tied"][:, :3].sum(axis=0)


SHAPES = {
    "bias": (4,),
    "columns": (4, 30),
    "direct": (4, 4),
    "kernel": (3, 3, 2, 4),
    "layers": (2, 4, 4),
    "scale": (),
    "table": (30, 4),
    "tied": (4, 3),
    "unused": (3, 2),
    "w": (4, 4),
}


def many_uses():
    params = {name: normal(i, *shape) / 2 for i, (name, shape) in enumerate(SHAPES.items())}
    xs = (jnp.asarray(np.random.default_rng(0).integers(0, 30, (5, 6))), normal(99, 5, 4, 4, 2))
    return LogDensity.of(network, params, xs, jnp.arange(5) % 3, "multiclass"), params


def rows_of(log_density, params):
    """Every row of the GGN [data · outputs, P], its weights written out: √p (e − p)ᵀ ∂f/∂θ."""
    theta, unravel = ravel_pytree(params)

    @jax.jit
    def rows(x):
        jacobian = jax.jacrev(lambda t: log_density.predict(unravel(t), x))(theta)
        p = jax.nn.softmax(log_density.predict(params, x))
        return jnp.sqrt(p)[:, None] * (jnp.eye(p.size) - p[None]) @ jacobian

    return np.concatenate([rows(x) for x in zip(*map(np.asarray, log_density.xs), strict=True)])


def test_sums_of_rows_are_those_of_explicit_gradients(x64):
    log_density, params = many_uses()
    want = rows_of(log_density, params)
    for rows in (1, 2, 7, 100):  # outputs one by one, in twos; two data at a time; all
        got = _curvature.diagonal(log_density, params, "ggn", 100, rows)
        np.testing.assert_allclose(got, np.sum(want**2, axis=0), rtol=1e-8, atol=1e-14, err_msg=f"{rows} rows")
    got = _curvature.dense(log_density, params, "ggn", 100, 2)
    np.testing.assert_allclose(got, want.T @ want, rtol=1e-8, atol=1e-12)


def test_moments_are_the_sum_of_those_of_every_row(x64):
    log_density, params = many_uses()
    totals = [[0, 0] for _ in params]
    one = jax.jit(factor_moments(_curvature._row(log_density, "ggn")))
    for i in range(5):
        x = jax.tree.map(lambda leaf, i=i: leaf[i], log_density.xs)
        for index in range(3):
            for total, pair in zip(totals, one(params, x, log_density.ys[i], index), strict=True):
                total[0], total[1] = total[0] + np.asarray(pair[0]) / 15, total[1] + np.asarray(pair[1])
    for rows in (2, 100):
        got = _curvature.kronecker(log_density, params, "ggn", 100, rows)
        for pair, total in zip(got, totals, strict=True):
            for a, b in zip(pair, total, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-14)
    shapes = {name: tuple(f.shape for f in pair) for name, pair in zip(params, got, strict=True)}
    assert shapes["table"] == ((30,), (4, 4))
    assert shapes["columns"] == ((4, 4), (30,))


def mlp(*sizes):
    predict, init = models.mlp(sizes[0], sizes[1:-1], sizes[-1])
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(init, jax.random.key(0)))
    return predict, params, jnp.zeros((256, sizes[0])), sizes[-1]


def tied():
    def predict(params, ids):
        return jnp.tanh(params["table"][ids].mean(axis=0)) @ params["table"].T

    return predict, {"table": jnp.zeros((3000, 16))}, jnp.zeros((64, 8), jnp.int32), 3000


def sequence():
    def predict(params, x):
        return jnp.tanh(x @ params["w"]).mean(axis=0) @ params["v"]

    return predict, {"w": jnp.zeros((512, 1024)), "v": jnp.zeros((1024, 4))}, jnp.zeros((256, 20, 512)), 4


LARGE = {  # what one copy of the gradients of the default batch would take: 0.4 to 260 GB
    "wide": lambda: mlp(784, 1024, 10),
    "10 M parameters": lambda: mlp(3072, 2048, 2048, 10),
    "many outputs": lambda: mlp(512, 1000),
    "tied": tied,
    "sequence": sequence,
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_no_batch_of_gradients_is_held(name, structure):
    predict, params, xs, classes = LARGE[name]()
    log_density = LogDensity.of(predict, params, xs, jnp.arange(len(xs)) % classes, "multiclass")
    program = getattr(_curvature, structure).lower(log_density, params, "ggn", 128).compile().memory_analysis()
    assert program.temp_size_in_bytes < 4e8 + program.output_size_in_bytes


def lookup(side, vocabulary, width=16):
    def predict(params, ids):
        rows = params["table"][ids] if side == "rows" else params["table"][:, ids].T
        return jnp.tanh(rows.mean(axis=0)) @ params["out"]

    shape = (vocabulary, width) if side == "rows" else (width, vocabulary)
    params = {"out": normal(0, width, 2), "table": normal(1, *shape)}
    ids = jnp.asarray(np.random.default_rng(2).integers(0, vocabulary, (8, 5)))
    return LogDensity.of(predict, params, ids, jnp.arange(8) % 2, "multiclass"), params


@pytest.mark.parametrize("side", ["rows", "columns"])
def test_a_vocabulary_of_30_000_words(side):
    log_density, params = lookup(side, 30_000)  # a factor of vocabulary² would take 3.6 GB, and hours
    covariance = laplace(log_density, params, "ggn", "kronecker")
    first, second = covariance.factors["table"]
    if side == "columns":
        first, second = second, first
    assert first.shape == (30_000,)
    assert second.shape == (16, 16)
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(covariance)) < 4e6
    variances = np.asarray(covariance.variances["table"])
    variances = variances if side == "rows" else variances.T
    seen = np.unique(log_density.xs)
    np.testing.assert_array_equal(np.delete(variances, seen, axis=0), 1.0)  # never looked up: the prior
    assert (variances[seen].min(axis=1) < 0.999).all()
    fast, slow = (
        isouq.uncertainty(
            log_density.predict, params, log_density.xs, "multiclass", target=1, covariance=covariance, engine=engine
        )
        for engine in ("jaxpr", "vmap")
    )
    np.testing.assert_allclose(fast.epistemic, slow.epistemic, rtol=1e-5)


def test_a_word_out_of_bounds_is_no_word(x64):
    log_density, params = lookup("rows", 40)
    for outside in (99, -99):  # JAX reads NaN there by default, and takes the gradient of no row

        def predict(p, ids, outside=outside):
            rows = p["table"].at[jnp.append(ids, outside)].get(mode="fill", fill_value=0)
            return jnp.tanh(rows.mean(axis=0)) @ p["out"]

        density = LogDensity.of(predict, params, log_density.xs % 39, log_density.ys, "multiclass")
        got = laplace(density, params, "ggn", "kronecker").variances["table"]
        unseen = np.setdiff1d(np.arange(40), density.xs)
        np.testing.assert_allclose(np.asarray(got)[unseen], 1.0)


LARGE_FACTORS = {
    "tied": (lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T, (2, 9)),
    "vector": (lambda p, x: jnp.sin(p["w"] * x[0]), (9,)),
    "last layer": (lambda p, x: x @ p["w"], (2, 9)),
    "one-hot": (lambda p, x: jax.nn.one_hot((x[:1] > 0) * 5, 9) @ p["w"], (9, 2)),
    "direct": (lambda p, x: jnp.sin(p["w"]) @ x, (9, 2)),
}


@pytest.mark.parametrize("name", LARGE_FACTORS)
def test_the_diagonal_alone_is_kept_of_a_large_factor(name, monkeypatch, x64):
    f, shape = LARGE_FACTORS[name]
    params = {"w": normal(0, *shape)}

    def predict(p, x):
        return jnp.resize(f(p, x), (9,))[:2]

    log_density = LogDensity.of(predict, params, normal(1, 4, 2), jnp.arange(4) % 2, "multiclass")
    (whole,) = _curvature.kronecker(log_density, params, "ggn", 4)
    monkeypatch.setattr(_moments, "LARGEST", 8)
    jax.clear_caches()
    (got,) = _curvature.kronecker(log_density, params, "ggn", 4)
    sides = [factor.shape[0] for factor in whole]
    assert [factor.shape for factor in got] == [(9,) if side == 9 else (side, side) for side in sides]
    for factor, full in zip(got, whole, strict=True):
        want = np.diag(np.diag(full)) if factor.ndim == 1 else full
        np.testing.assert_allclose(matrix(factor), want, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("structure", ["diagonal", "kronecker"])
def test_max_bytes_bounds_the_program(structure):
    log_density, params = many_uses()
    request = _limits.Request(structure, log_density, params, "ggn", 2)

    def program(rows):
        return getattr(_curvature, structure).lower(log_density, params, "ggn", 5, rows)

    def needed(rows):
        analysis = program(rows).compile().memory_analysis()
        return _limits.structure_bytes(request) + analysis.temp_size_in_bytes + analysis.output_size_in_bytes

    limit = (needed(1) + needed(15)) // 2
    rows = _limits.rows_within(limit, program, request)
    assert needed(rows) <= limit < needed(15)
    assert _limits.rows_within(needed(15), program, request) == 15


@pytest.mark.parametrize(
    ("curvature", "structure", "room"),
    [("ggn", "dense", 9e6), ("ggn", "kronecker", 9e5), ("ggn", "low_rank", 2e6), ("hessian", "diagonal", 9e5)],
)
def test_max_bytes_changes_no_number(curvature, structure, room, x64):
    log_density, params = many_uses()
    bounded, free = (
        laplace(log_density, params, curvature, structure, rank=2, **given) for given in ({"max_bytes": int(room)}, {})
    )
    want = dense(free, params)
    np.testing.assert_allclose(dense(bounded, params), want, rtol=0, atol=1e-7 * np.abs(want).max())


def giant():
    """A model of one parameter that multiplies out 2⁴⁶ numbers."""

    def predict(params, x):
        return ((jnp.full((2**23, 1), x[0])) @ (params["w"] * jnp.ones((1, 2**23)))).max(axis=0)[:2]

    params = {"w": jnp.ones(())}
    return LogDensity.of(predict, params, jnp.ones((4, 2)), jnp.arange(4) % 2, "multiclass"), params


def wide():
    predict, params, xs, classes = mlp(784, 1024, 10)
    return LogDensity.of(predict, params, xs, jnp.arange(256) % classes, "multiclass"), params


TOO_LARGE = {
    "a matrix of 0.8 M parameters": (
        wide,
        lambda of, p: laplace(of, p),
        r"structure='dense' of 814,090 parameters needs [\d,]+ bytes and this machine has [\d,]+; "
        r"structure='diagonal' needs [\d,]+; structure='kronecker' needs",
    ),
    "its Hessian": (
        wide,
        isouq.negative_hessian,
        "a matrix of 814,090 parameters needs .* use isouq.laplace with another structure",
    ),
    "max_bytes": (
        wide,
        lambda of, p: laplace(of, p, "ggn", "kronecker", max_bytes=10**6),
        r"max_bytes is 1,000,000, but structure='kronecker' of 814,090 parameters needs [\d,]+ bytes with one output "
        r"of one datum at a time; structure='diagonal' needs",
    ),
    "two sizes": (many_uses, lambda of, p: laplace(of, p, batch_size=1, max_bytes=10**6), "were both given"),
    "no size": (many_uses, lambda of, p: laplace(of, p, max_bytes=0), "max_bytes is 0; expected a whole number"),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_does_not_fit_is_refused_in_one_line(name):
    make, call, message = TOO_LARGE[name]
    with pytest.raises(ValueError, match=message) as error:
        call(*make())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker", "low_rank"])
def test_running_out_of_memory_says_what_would_fit(structure):
    log_density, params = giant()
    with pytest.raises(
        MemoryError, match=rf"ran out of memory: structure='{structure}' of 1 param.*; wrap the"
    ) as error:
        laplace(log_density, params, "ggn", structure)
    assert "\n" not in str(error.value)


def test_the_words_after_memory_ran_out_follow_what_takes_most():
    log_density, params = wide()
    by_batch = str(_limits.out_of_memory(_limits.Request("diagonal", log_density, params, "ggn", 20), 128))
    assert "a step of 128 data, 10 outputs of each" in by_batch or "; batch_size=" in by_batch
    by_size = str(_limits.out_of_memory(_limits.Request("low_rank", log_density, params, "ggn", 20), 1))
    assert "structure='diagonal' needs" in by_size
