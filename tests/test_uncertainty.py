"""The estimate against its slow twin: the gradient of the probability itself, one input at a time."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import isouq
from isouq import models

KINDS = ("binary", "multiclass", "regression")


def network(kind, *, width=5, seed=0, dtype=jnp.float32, features=2):
    predict, init = models.mlp(features, (width,), 3 if kind == "multiclass" else 1)
    keys = jax.random.split(jax.random.key(seed), 2)
    params = jax.tree.map(lambda leaf: (2 * leaf).astype(dtype), init(keys[0]))
    return predict, params, jax.random.normal(keys[1], (7, features), dtype)


def probability(predict, kind):
    def p(params, x, target):
        out = predict(params, x)
        if kind == "multiclass":
            return jax.nn.softmax(out)[target]
        if kind == "binary":
            return jnp.where(target, jax.nn.sigmoid(out), 1 - jax.nn.sigmoid(out))
        return out

    return p


def slow_twin(predict, params, xs, kind, target=None, sigma=None):
    """p, its class, p(1 − p) and gᵀΣg by jax.grad of p, in a Python loop."""
    rows, value_and_grad = [], jax.jit(jax.value_and_grad(probability(predict, kind)))
    for i, x in enumerate(xs):
        out = predict(params, x)
        c = None if kind == "regression" else int(jnp.argmax(out)) if kind == "multiclass" else int(out > 0)
        c = c if target is None else int(target[i])
        p, grad = value_and_grad(params, x, c)
        g = ravel_pytree(grad)[0]
        rows.append((g @ g if sigma is None else g @ sigma @ g, p * (1 - p), p, c))
    return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=8)
@given(width=st.integers(1, 8), seed=st.integers(0, 10_000), batch_size=st.sampled_from([None, 1, 3, 7, 50]))
def test_equals_slow_twin_in_float64(kind, width, seed, batch_size):
    with jax.enable_x64(True):
        predict, params, xs = network(kind, width=width, seed=seed, dtype=jnp.float64)
        got = isouq.uncertainty(predict, params, xs, kind, batch_size=batch_size)
        epistemic, aleatoric, p, target = slow_twin(predict, params, xs, kind)
        np.testing.assert_allclose(got.epistemic, epistemic, rtol=1e-10)
        np.testing.assert_allclose(got.probability, p, rtol=1e-12)
        if kind == "regression":
            assert got.aleatoric is None
            assert got.target is None
        else:
            np.testing.assert_allclose(got.aleatoric, aleatoric, rtol=1e-10)
            np.testing.assert_array_equal(got.target, target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-4), (jnp.bfloat16, 0.1)])
def test_lower_precision_stays_close(kind, dtype, rtol):
    predict, params, xs = network(kind, dtype=dtype)
    got = isouq.uncertainty(predict, params, xs, kind)
    up = jax.tree.map(lambda a: np.asarray(a, np.float64), (params, xs))
    with jax.enable_x64(True):
        want = slow_twin(predict, jax.tree.map(jnp.asarray, up[0]), jnp.asarray(up[1]), kind, got.target)
    np.testing.assert_allclose(got.epistemic, want[0], rtol=rtol)
    assert got.epistemic.dtype == jnp.float32


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_given_target_and_one_target_for_all(kind, x64):
    predict, params, xs = network(kind, dtype=jnp.float64)
    labels = np.array([1, 0, 1, 0, 1, 0, 1])
    got = isouq.uncertainty(predict, params, xs, kind, target=labels)
    want = slow_twin(predict, params, xs, kind, labels)
    np.testing.assert_allclose(got.epistemic, want[0], rtol=1e-10)
    np.testing.assert_allclose(got.probability, want[2], rtol=1e-10)
    one = isouq.uncertainty(predict, params, xs, kind, target=1)
    np.testing.assert_array_equal(one.target, 1)
    np.testing.assert_allclose(one.epistemic[labels == 1], got.epistemic[labels == 1], rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_dense_covariance_equals_slow_twin(kind, x64):
    predict, params, xs = network(kind, dtype=jnp.float64)
    size = ravel_pytree(params)[0].size
    a = np.random.default_rng(0).normal(size=(size, size))
    sigma = a @ a.T
    want = slow_twin(predict, params, xs, kind, sigma=sigma)[0]
    for covariance in (isouq.Dense.from_covariance(sigma), isouq.Dense.from_precision(np.linalg.inv(sigma), 1e-12)):
        got = isouq.uncertainty(predict, params, xs, kind, covariance=covariance, batch_size=2)
        np.testing.assert_allclose(got.epistemic, want, rtol=1e-6)
        assert covariance.clipped == 0
    scaled = isouq.uncertainty(predict, params, xs, kind, covariance=isouq.Identity(3.0))
    np.testing.assert_allclose(scaled.epistemic, 3 * slow_twin(predict, params, xs, kind)[0], rtol=1e-10)


def test_indefinite_hessian_is_repaired_and_the_share_told():
    covariance = isouq.Dense.from_precision(np.diag([4.0, -1.0, 2.0, 0.1]), floor=1.0)
    assert covariance.clipped == 0.5
    grads = {"a": jnp.eye(4)}
    np.testing.assert_allclose(covariance.quadratic(grads), [0.25, 1.0, 0.5, 1.0], rtol=1e-6)


def test_negative_hessian_is_the_hessian(x64):
    a = jnp.array([[2.0, 0.5], [0.5, 1.0]])
    got = isouq.negative_hessian(
        lambda p: -0.5 * p["w"] @ a @ p["w"] - p["b"] ** 4, {"b": jnp.array(1.0), "w": jnp.ones(2)}
    )
    np.testing.assert_allclose(got, np.block([[np.array([[12.0]]), np.zeros((1, 2))], [np.zeros((2, 1)), a]]))


def test_small_digits_survive_saturation():
    def predict(params, x):
        return params * x

    got = isouq.uncertainty(predict, jnp.array(1.0), jnp.array([40.0]), "binary")
    np.testing.assert_allclose(got.aleatoric, np.exp(-40.0), rtol=1e-5)
    np.testing.assert_allclose(got.epistemic, (40 * np.exp(-40.0)) ** 2, rtol=1e-5)
    assert jax.grad(lambda w: jax.nn.sigmoid(w * 40.0))(1.0) == 0  # what differentiating p would give


MARGINS = np.array([0.0, 0.1, 1, 5, 20, 40, 43, 44, 45, 50, 60, 80, 87, 100, 104, 200, 300])


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_the_logarithm_is_right_at_every_margin(kind, sign, dtype, scale, x64):
    """The truth of m = w · x + b: ‖∇m‖² = x² + 1 (binary), log a = −m − 2 log(1 + e⁻ᵐ), in float64."""
    xs = np.full(MARGINS.size, scale)
    params = {"w": jnp.zeros((), dtype)}

    def predict(params, x):
        logit = params["w"] * x[0] + sign * x[1]
        return logit if kind == "binary" else jnp.stack([jnp.full_like(logit, -1e4), logit, jnp.zeros_like(logit)])

    rows = np.stack([xs, MARGINS], 1).astype(dtype)
    got = isouq.uncertainty(predict, params, rows, kind, target=1)
    want = 2 * (-MARGINS - 2 * np.log1p(np.exp(-MARGINS))) + 2 * np.log(scale)
    np.testing.assert_allclose(got.log_epistemic, want, rtol=2e-6 if dtype == jnp.float32 else 1e-12, atol=2e-6)
    normal = want > np.log(np.finfo(dtype).tiny) + 1
    np.testing.assert_allclose(got.epistemic[normal], np.exp(want[normal]), rtol=2e-5)  # also where a² underflows
    assert np.unique(got.log_epistemic).size == MARGINS.size
    assert got.epistemic.dtype == got.log_epistemic.dtype == dtype


@pytest.mark.parametrize(
    ("logits", "target", "p", "log_epistemic"),
    [
        ([1e4, 0.0, -5.0], 0, 1.0, -2e4),
        ([1e4, 0.0, -5.0], 1, 0.0, -2e4),
        ([2.0, -1e9, -1e9], 0, 1.0, -np.inf),  # certain, whatever the parameters
        ([2.0, -1e9, 0.0], 1, 0.0, -np.inf),
    ],
)
@pytest.mark.parametrize("engine", ["jaxpr", "vmap"])
def test_masked_and_extreme_logits(logits, target, p, log_epistemic, engine):
    logits = np.array(logits, np.float32)

    def predict(params, x):
        return jnp.where(x > -1e8, params * x, -jnp.inf)

    got = isouq.uncertainty(predict, jnp.ones(3), logits[None], "multiclass", target=target, engine=engine)
    assert got.probability[0] == p
    assert got.epistemic[0] == 0
    np.testing.assert_allclose(got.log_epistemic[0], log_epistemic, rtol=2e-3)


def test_the_logarithm_of_a_regression_and_of_no_gradient():
    got = isouq.uncertainty(lambda p, x: p * x, jnp.ones(()), jnp.array([0.0, 3.0]), "regression")
    np.testing.assert_allclose(got.log_epistemic, [-np.inf, np.log(9.0)], rtol=1e-6)


def mixture_of_experts(params, x):
    """`jax.lax.ragged_dot` has no rule for vmap over its rows."""
    sizes = jnp.array([2, 1], jnp.int32)
    return jax.lax.ragged_dot(jnp.tanh(x), params, sizes).mean(0)


@pytest.mark.parametrize("engine", ["jaxpr", "vmap"])
@pytest.mark.parametrize("options", [{}, {"max_bytes": 10**8}, {"devices": None}])
def test_one_by_one_needs_no_rule_for_vmap(engine, options):
    params, xs = jax.random.normal(jax.random.key(0), (2, 4, 3)), jax.random.normal(jax.random.key(1), (2, 3, 4))
    options = {name: value or jax.local_devices() for name, value in options.items()} | {"engine": engine}
    if "max_bytes" not in options:
        with pytest.raises(NotImplementedError, match=r"^predict cannot be batched \(.*\); pass batch_size=1"):
            isouq.uncertainty(mixture_of_experts, params, xs, "multiclass", **options)
        options["batch_size"] = 1
    got = isouq.uncertainty(mixture_of_experts, params, xs, "multiclass", **options)
    twin = isouq.uncertainty(
        lambda p, x: (jnp.tanh(x[:2]) @ p[0]).sum(0) / 3 + jnp.tanh(x[2]) @ p[1] / 3, params, xs, "multiclass"
    )
    np.testing.assert_allclose(got.epistemic, twin.epistemic, rtol=1e-4)


def test_works_under_jit_and_compiles_once():
    predict, params, xs = network("multiclass")
    traces = []

    def counted(params, x):
        traces.append(1)
        return predict(params, x)

    run = jax.jit(lambda params, xs: isouq.uncertainty(counted, params, xs, "multiclass", batch_size=3))
    first = run(params, xs)
    seen = len(traces)
    run(jax.tree.map(lambda leaf: leaf + 1, params), xs + 1)
    assert len(traces) == seen
    plain = isouq.uncertainty(predict, params, xs, "multiclass")
    np.testing.assert_allclose(first.epistemic, plain.epistemic, rtol=1e-5)


def test_the_loop_outside_jit_compiles_once_too():
    from isouq._uncertainty import _estimate

    predict, params, xs = network("multiclass", width=11)
    isouq.uncertainty(predict, params, xs, "multiclass")
    compiled = _estimate._cache_size()
    again = models.mlp(2, (11,), 3)[0]  # another MLP of the same shape is the same program
    isouq.uncertainty(again, params, xs + 1, "multiclass")
    assert _estimate._cache_size() == compiled


def test_any_pytree_of_parameters_and_of_inputs():
    params = ({"scale": jnp.array([1.0, 2.0])}, [jnp.array(0.5)])

    def predict(params, x):
        return jnp.dot(params[0]["scale"], x["a"]) + params[1][0] * x["b"]

    xs = {"a": jnp.ones((3, 2)), "b": jnp.array([0.0, 1.0, 2.0])}
    got = isouq.uncertainty(predict, params, xs, "regression")
    np.testing.assert_allclose(got.epistemic, [2.0, 3.0, 6.0], rtol=1e-6)


def test_single_output_axis_counts_as_a_scalar():
    got = isouq.uncertainty(lambda p, x: p * x, jnp.ones(1), jnp.array([[2.0]]), "binary")
    assert got.epistemic.shape == (1,)


def test_frameworks_agree():
    key = jax.random.key(0)
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    kernel, bias = linear.kernel[...], linear.bias[...]
    xs = jax.random.normal(key, (5, 2))
    want = isouq.uncertainty(lambda p, x: x @ p[0] + p[1], (kernel, bias), xs, "multiclass")
    nnx_pair = models.from_nnx(linear)
    linen_pair = models.from_linen(nn.Dense(3), {"params": {"kernel": kernel, "bias": bias}})
    layer = eqx.tree_at(lambda m: (m.weight, m.bias), eqx.nn.Linear(2, 3, key=key), (kernel.T, bias))
    arrays, static = eqx.partition(layer, eqx.is_array)
    equinox_pair = (lambda p, x: eqx.combine(p, static)(x), arrays)
    for predict, params in (nnx_pair, linen_pair, equinox_pair):
        got = isouq.uncertainty(predict, params, xs, "multiclass")
        np.testing.assert_allclose(got.epistemic, want.epistemic, rtol=1e-5)


def test_a_module_in_place_of_a_function_or_its_parameters_names_the_adapter():
    module = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.1, rngs=nnx.Rngs(1)))
    params = models.from_nnx(module)[1]
    for predict, parameters, call in (
        (module, params, r"from_nnx\(module\)"),
        (lambda module, x: module(x), module, r"from_nnx\(module\)"),
        (nn.Dense(3), params, r"from_linen\(module, variables\)"),
        (eqx.nn.Linear(2, 3, key=jax.random.key(0)), params, r"from_equinox\(module\)"),
    ):
        with pytest.raises(ValueError, match=rf"module: predict, params = isouq.models.{call}"):
            isouq.uncertainty(predict, parameters, jnp.ones((1, 2)), "multiclass")


def test_from_nnx_binds_other_state():
    module = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    predict, params = models.from_nnx(module)
    with pytest.raises(ValueError, match=r"BatchNorm in training mode; call module.eval\(\)"):
        isouq.uncertainty(predict, params, jnp.eye(3), "multiclass")
    module.eval()
    predict, params = models.from_nnx(module)
    assert set(params) == {"scale", "bias"}
    got = isouq.uncertainty(predict, params, jnp.eye(3), "multiclass")
    assert np.isfinite(got.epistemic).all()


def test_from_linen_binds_collections_and_keywords():
    module = nn.BatchNorm()
    variables = module.init(jax.random.key(0), jnp.ones((3,)), use_running_average=True)
    predict, params = models.from_linen(module, variables, use_running_average=False)
    with pytest.raises(ValueError, match="batch normalisation must be off"):
        isouq.uncertainty(predict, params, jnp.eye(3), "multiclass")
    predict, params = models.from_linen(module, variables, use_running_average=True)
    assert np.isfinite(isouq.uncertainty(predict, params, jnp.eye(3), "multiclass").epistemic).all()


def test_an_unknown_label_under_jit_is_nan_and_no_guess():
    predict, params, xs = network("multiclass")
    run = jax.jit(lambda target: isouq.uncertainty(predict, params, xs[:3], "multiclass", target=target))
    np.testing.assert_array_equal(np.isnan(run(jnp.array([0, 7, -1])).epistemic), [False, True, True])


@pytest.mark.parametrize("covariance", [np.eye(3), "laplace", isouq.Identity])
def test_what_is_no_covariance_is_refused(covariance):
    predict, params, xs = network("binary")
    with pytest.raises(ValueError, match="expected an instance"):
        isouq.uncertainty(predict, params, xs, "binary", covariance=covariance)


def test_an_unknown_engine_is_named():
    predict, params, xs = network("binary")
    with pytest.raises(ValueError, match="engine is 'torch'; expected one of 'jaxpr', 'vmap'"):
        isouq.uncertainty(predict, params, xs, "binary", engine="torch")


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_agree(kind, x64):
    predict, params, xs = network(kind, dtype=jnp.float64)
    fast, slow = (isouq.uncertainty(predict, params, xs, kind, engine=engine) for engine in ("jaxpr", "vmap"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), fast, slow)


LAST = {"layers": {0: False, 1: True}}


def choose(select, tree):
    return jax.tree.map(lambda keep, branch: branch if keep else None, select, tree)


def chosen_twin(predict, params, xs, kind, select, sigma=None):
    if isinstance(select, str):
        select = {"layers": {0: {"bias": False, "kernel": True}, 1: True}}
    """gᵀΣg over the chosen parameters, from the whole gradient of p."""
    p = probability(predict, kind)
    rows = []
    for x in xs:
        out = predict(params, x)
        c = None if kind == "regression" else int(jnp.argmax(out)) if kind == "multiclass" else int(out > 0)
        g = ravel_pytree(choose(select, jax.grad(p)(params, x, c)))[0]
        rows.append(g @ g if sigma is None else g @ sigma @ g)
    return np.array(rows)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", ["jaxpr", "vmap"])
@pytest.mark.parametrize(
    "select",
    [
        LAST,
        {"layers": {0: True, 1: {"bias": np.True_, "kernel": False}}},
        {"layers": {0: {"bias": True, "kernel": False}, 1: False}},
        r"layers\.0\.kernel|layers\.1",
    ],
    ids=str,
)
@pytest.mark.parametrize("options", [{"batch_size": 3}, {"devices": True}], ids=str)
def test_the_gradient_is_that_of_the_chosen_parameters(kind, engine, select, options, x64):
    predict, params, xs = network(kind, dtype=jnp.float64)
    options = {name: jax.local_devices() if value is True else value for name, value in options.items()}
    got = isouq.uncertainty(predict, params, xs, kind, select=select, engine=engine, **options)
    np.testing.assert_allclose(got.epistemic, chosen_twin(predict, params, xs, kind, select), rtol=1e-10)
    np.testing.assert_allclose(got.probability, isouq.uncertainty(predict, params, xs, kind).probability, rtol=1e-12)


def test_the_parts_of_the_parameters_add_up(x64):
    predict, params, xs = network("multiclass", dtype=jnp.float64)
    first = isouq.uncertainty(predict, params, xs, "multiclass", select={"layers": {0: True, 1: False}})
    last = isouq.uncertainty(predict, params, xs, "multiclass", select=LAST)
    for everything in (None, True, {"layers": True}):
        whole = isouq.uncertainty(predict, params, xs, "multiclass", select=everything)
        np.testing.assert_allclose(first.epistemic + last.epistemic, whole.epistemic, rtol=1e-10)


@pytest.mark.parametrize("engine", ["jaxpr", "vmap"])
def test_a_covariance_of_the_last_layer(engine, x64):
    predict, params, xs = network("multiclass", dtype=jnp.float64)
    chosen = choose(LAST, params)
    ys = jnp.array([0, 1, 2, 0, 1, 2, 0])

    def predict_last(chosen, x):
        return predict({"layers": {0: params["layers"][0], 1: chosen["layers"][1]}}, x)

    log_density = isouq.LogDensity.of(predict_last, chosen, xs, ys, "multiclass")
    covariances = [isouq.laplace(log_density, chosen, "ggn", form) for form in ("diagonal", "kronecker", "dense")]
    directions = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf**2]), chosen)
    for covariance in (*covariances, isouq.LowRank(directions, scale=2.0), isouq.Identity(3.0)):
        options = {"select": LAST, "covariance": covariance, "engine": engine}
        got = isouq.uncertainty(predict, params, xs, "multiclass", **options)
        want = chosen_twin(predict, params, xs, "multiclass", LAST, twins.dense(covariance, chosen))
        np.testing.assert_allclose(got.epistemic, want, rtol=1e-7)
        of_function = isouq.uncertainty(predict_last, chosen, xs, "multiclass", covariance=covariance, engine=engine)
        np.testing.assert_allclose(got.epistemic, of_function.epistemic, rtol=1e-10)
    with pytest.raises(ValueError, match="variances"):
        isouq.uncertainty(predict, params, xs, "multiclass", select=LAST, covariance=isouq.Diagonal(params))
    whole = isouq.LogDensity.of(predict, params, xs, ys, "multiclass")
    for form, covariance in zip(("diagonal", "kronecker", "dense"), covariances, strict=True):
        got = isouq.laplace(whole, params, "ggn", form, select="layers.1")
        by_path = whole.condition(params, "layers.1")[1]
        np.testing.assert_allclose(twins.dense(got, by_path), twins.dense(covariance, chosen), rtol=1e-9)
        scored = isouq.uncertainty(predict, params, xs, "multiclass", select="layers.1", covariance=got, engine=engine)
        of_function = isouq.uncertainty(predict_last, chosen, xs, "multiclass", covariance=covariance, engine=engine)
        np.testing.assert_allclose(scored.epistemic, of_function.epistemic, rtol=1e-9)


def test_a_path_ends_at_a_branch():
    params = {"layers": [jnp.ones(1)] * 11, "head": jnp.ones(1), "header": jnp.ones(1)}
    f = lambda p, x: x * (sum(p["layers"]) + p["head"] + p["header"])[0]  # noqa: E731
    counts = {"layers.1": 1, "head": 1, "head.*": 2, r"layers\.\d": 10, "layers|head": 12, ".*": 13}
    for select, count in counts.items():
        assert isouq.grad_sq_norm(f, select=select)(params, jnp.ones(())) == count, select


def test_a_conditioned_density_is_one_of_its_own(x64):
    predict, params, xs = network("multiclass", dtype=jnp.float64)
    ys = jnp.array([0, 1, 2, 0, 1, 2, 0])
    whole = isouq.LogDensity.of(predict, params, xs, ys, "multiclass", sigma={"layers": {0: 2.0, 1: 0.5}})
    last, chosen = whole.condition(params, "layers.1")
    other = jax.tree.map(lambda leaf: leaf + 0.1, chosen)
    moved = {"layers": {0: params["layers"][0], 1: other["layers"][1]}}
    np.testing.assert_allclose(last(other) - last(chosen), whole(moved) - whole(params), rtol=1e-9)
    assert isouq.log_marginal_likelihood(last, chosen) != isouq.log_marginal_likelihood(whole, params)
    with pytest.raises(ValueError, match=r"select was given; pass the pair log_density.condition\(params, select\)"):
        isouq.choose_prior(whole, params, select="layers.1")


def test_a_prior_for_each_layer(x64):
    predict, params, xs = network("multiclass", dtype=jnp.float64)
    ys = jnp.array([0, 1, 2, 0, 1, 2, 0])
    width = params["layers"][1]["kernel"].shape[0]
    density = isouq.LogDensity.of(
        predict, params, xs, ys, "multiclass", prior="fan_in", sigma={"layers": {0: 2.0, 1: {"bias": 3, "kernel": 0.5}}}
    )
    scales = density.scales["layers"]
    got = [float(scales[0]["bias"]), float(scales[1]["bias"]), float(scales[1]["kernel"])]
    np.testing.assert_allclose(got, [2.0, 3.0, 0.5 / np.sqrt(width)])
    for sigma, message in (
        ({"layers": {0: 1.0}}, "sigma is no prefix of params"),
        ({"layers": {0: 1.0, 1: -1.0}}, r"sigma\['layers'\]\[1\] is -1.0; expected a finite number above 0"),
        ("one", "sigma is 'one'; expected a positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            isouq.LogDensity.of(predict, params, xs, ys, "multiclass", sigma=sigma)


def test_the_engine_takes_the_same_selection(x64):
    predict, params, xs = network("multiclass", dtype=jnp.float64)

    def f(x, params):
        return predict(params, x)[0], "aux"

    grad = jax.grad(f, 1, has_aux=True)(xs[0], params)[0]
    of_leaf = jax.tree.map(lambda g: jnp.sum(g**2), grad)
    want = of_leaf["layers"][1]["kernel"]
    select = "layers.1.kernel"
    got, aux = isouq.grad_sq_norm(f, 1, has_aux=True, select=select)(xs[0], params)
    np.testing.assert_allclose(got, want, rtol=1e-10)
    assert aux == "aux"
    norms, _ = isouq.grad_sq_norm(f, 1, has_aux=True, per_leaf=True, select=select)(xs[0], params)
    assert jax.tree.leaves(norms) == [norms["layers"][1]["kernel"]]
    with pytest.raises(ValueError, match=r"argnums is \(0, 1\) and select was given; give one number"):
        isouq.grad_sq_norm(f, (0, 1), select=select)


def test_any_pytree_may_be_chosen_from():
    params = ({"scale": jnp.array([1.0, 2.0])}, [jnp.array(0.5)])

    def predict(params, x):
        return jnp.dot(params[0]["scale"], x["a"]) + params[1][0] * x["b"]

    xs = {"a": jnp.ones((3, 2)), "b": jnp.array([0.0, 1.0, 2.0])}
    for select, want in (
        ((True, False), [2.0, 2, 2]),
        ((False, [True]), [0.0, 1, 4]),
        (({"scale": True}, True), [2, 3, 6]),
    ):
        got = isouq.uncertainty(predict, params, xs, "regression", select=select)
        np.testing.assert_allclose(got.epistemic, want, rtol=1e-6)


def test_parameters_that_are_not_chosen_are_arguments_of_the_program():
    from isouq._uncertainty import _estimate

    predict, params, xs = network("multiclass", width=13)
    isouq.uncertainty(predict, params, xs, "multiclass", select=LAST)
    compiled = _estimate._cache_size()
    other = jax.tree.map(lambda leaf: leaf + 0.5, params)
    got = isouq.uncertainty(predict, other, xs, "multiclass", select=dict(LAST))
    assert _estimate._cache_size() == compiled
    np.testing.assert_allclose(got.epistemic, chosen_twin(predict, other, xs, "multiclass", LAST), rtol=1e-3)
    run = jax.jit(lambda params: isouq.uncertainty(predict, params, xs, "multiclass", select=LAST, batch_size=2))
    np.testing.assert_allclose(run(other).epistemic, got.epistemic, rtol=1e-4)
    limited = isouq.uncertainty(predict, other, xs, "multiclass", select=LAST, max_bytes=10**6)
    np.testing.assert_allclose(limited.epistemic, got.epistemic, rtol=1e-4)


@pytest.mark.parametrize(
    ("select", "message"),
    [
        (
            {"layers": {0: True}},
            r"select is no prefix of params \(.*\); expected True or False for each branch of params",
        ),
        ({"layer": True}, r"select is no prefix of params"),
        ([True], r"select is no prefix of params"),
        ({"layers": {0: True, 1: None}}, r"select is no prefix of params"),
        ({"layers": False}, r"select chooses no parameter; expected True for at least one branch of params"),
        ({"layers": {0: 1, 1: 0}}, r"select\['layers'\]\[0\] is 1; expected True or False"),
        ("last", r"select is 'last', which matches none of layers\.0\.bias, layers\.0\.kernel, layers\.1\.bias"),
        ("(", r"select is '\(', not a regular expression: missing \)"),
        (3, r"select is 3; expected True or False, or a regular expression"),
    ],
)
@pytest.mark.parametrize("ensemble", [False, True])
def test_a_wrong_choice_is_one_clear_line(select, message, ensemble):
    predict, params, xs = network("multiclass")
    if ensemble:
        params = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params)
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        isouq.uncertainty(predict, params, xs, "multiclass", select=select, ensemble=ensemble)
    assert "\n" not in str(caught.value)
