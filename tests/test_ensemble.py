"""`isouq.uncertainty(..., ensemble=True)` against its slow twin: the gradient of p of each member and each input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.flatten_util import ravel_pytree

import isouq
from isouq import _memory, models
from isouq._uncertainty import _estimate_members

KINDS = ("binary", "multiclass", "regression")
LAST = {"layers": {0: False, 1: True}}


def mlps(kind, width=5, members=3, dtype=jnp.float32):
    """Stacked parameters of networks with different starts."""
    predict, init = models.mlp(2, (width,), 3 if kind == "multiclass" else 1)
    params = jax.vmap(init)(jax.random.split(jax.random.key(0), members))
    params = jax.tree.map(lambda leaf: (3 * leaf).astype(dtype), params)
    return predict, params, jax.random.normal(jax.random.key(1), (7, 2), dtype)


def pytree_models(kind):
    key = jax.random.key(2)
    params = ({"w": jax.random.normal(key, (4, 2, 3))}, [jnp.linspace(0.5, 1, 4)])

    def predict(params, x):
        logits = jnp.tanh(x["a"] @ params[0]["w"]) + params[1][0] * x["b"] * jnp.arange(3)
        return logits if kind == "multiclass" else logits[2]

    return predict, params, {"a": jax.random.normal(key, (7, 2)), "b": jnp.linspace(-1, 1, 7)}


def row(tree, i):
    return jax.tree.map(lambda leaf: leaf[i], tree)


def probability(predict, params, x, kind, target):
    outputs = predict(params, x)
    if kind == "multiclass":
        return jax.nn.softmax(outputs)[target]
    p = outputs.reshape(())
    return p if kind == "regression" else jnp.where(target == 1, jax.nn.sigmoid(p), 1 - jax.nn.sigmoid(p))


def slow_twin(predict, params, xs, kind, sigma=None, chosen=lambda grad: grad, target=None):
    """The fields of `EnsembleUncertainty`, by their formulas."""
    k, n = jax.tree.leaves(params)[0].shape[0], jax.tree.leaves(xs)[0].shape[0]
    classes = {"binary": 2, "multiclass": 3, "regression": 1}[kind]
    differentiate = jax.jit(
        jax.value_and_grad(lambda params, x, c: probability(predict, params, x, kind, c)), static_argnums=2
    )
    columns = []
    for i in range(n):
        x = row(xs, i)
        means = [np.mean([differentiate(row(params, m), x, c)[0] for m in range(k)]) for c in range(classes)]
        c = int(np.argmax(means)) if target is None else int(target[i])
        pairs = [differentiate(row(params, m), x, c) for m in range(k)]
        p = np.array([value for value, _ in pairs])
        g = np.array([ravel_pytree(chosen(grad))[0] for _, grad in pairs])
        sq_norms = np.sum(g**2, 1) if sigma is None else np.array([v @ sigma @ v for v in g])
        columns.append((np.mean((p - p.mean()) ** 2), sq_norms.mean(), np.mean(p * (1 - p)), p.mean(), c))
    between, within, aleatoric, mean, c = map(np.array, zip(*columns, strict=True))
    epistemic = between / between.mean() + within / within.mean()
    if kind == "regression":
        return epistemic, between, within, None, mean, None
    return epistemic, between, within, aleatoric, mean, c


def check(got, want, rtol=1e-9):
    assert isinstance(got, isouq.EnsembleUncertainty)
    for name, value, expected in zip(got._fields, got, want, strict=True):
        if expected is None:
            assert value is None, name
        else:
            np.testing.assert_allclose(value, expected, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [lambda kind: mlps(kind, dtype=jnp.float64), pytree_models], ids=["mlp", "pytree"])
@pytest.mark.parametrize("options", [{}, {"batch_size": 1}, {"batch_size": 3}, {"engine": "vmap"}], ids=str)
def test_equals_slow_twin_in_float64(kind, model, options, x64):
    predict, params, xs = model(kind)
    check(isouq.uncertainty(predict, params, xs, kind, ensemble=True, **options), slow_twin(predict, params, xs, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"batch_size": 2}, {}], ids=str)
def test_devices_change_nothing(kind, options, x64):
    predict, params, xs = mlps(kind, dtype=jnp.float64)
    devices = jax.local_devices()
    assert len(devices) > 1
    got = isouq.uncertainty(predict, params, xs, kind, ensemble=True, devices=devices, **options)
    check(got, slow_twin(predict, params, xs, kind))  # the row that fills the last device is in no mean


@pytest.mark.parametrize("kind", KINDS)
def test_the_members_share_a_covariance(kind, x64):
    predict, params, xs = mlps(kind, dtype=jnp.float64)
    member = row(params, 0)
    size = ravel_pytree(member)[0].size
    root = np.random.default_rng(0).normal(size=(size, size))
    diagonal = isouq.Diagonal(jax.tree.map(lambda leaf: 1 + leaf**2, member))
    for covariance in (isouq.Dense.from_covariance(root @ root.T), diagonal):
        got = isouq.uncertainty(predict, params, xs, kind, ensemble=True, covariance=covariance, batch_size=3)
        check(got, slow_twin(predict, params, xs, kind, twins.dense(covariance, member)), 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_layers_alone(kind, x64):
    predict, params, xs = mlps(kind, dtype=jnp.float64)
    want = slow_twin(predict, params, xs, kind, chosen=lambda grad: grad["layers"][1])
    check(isouq.uncertainty(predict, params, xs, kind, ensemble=True, select=LAST), want)
    chosen = jax.tree.map(lambda keep, branch: branch if keep else None, LAST, row(params, 0))
    covariance = isouq.Diagonal(jax.tree.map(lambda leaf: 1 + leaf**2, chosen))
    got = isouq.uncertainty(
        predict, params, xs, kind, ensemble=True, select=LAST, covariance=covariance, devices=jax.local_devices()
    )
    sigma = twins.dense(covariance, chosen)
    check(got, slow_twin(predict, params, xs, kind, sigma, lambda grad: grad["layers"][1]))


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_given_target(kind, x64):
    predict, params, xs = mlps(kind, dtype=jnp.float64)
    target = np.array([0, 1, 1, 0, 1, 0, 1])
    got = isouq.uncertainty(predict, params, xs, kind, ensemble=True, target=target)
    check(got, slow_twin(predict, params, xs, kind, target=target))


def test_the_class_is_that_of_the_mean_and_not_of_most_members():
    logits = jnp.array([[3.0, 0.0], [-0.5, 0.0], [-0.5, 0.0]])  # two of three members predict class 1
    got = isouq.uncertainty(lambda p, x: p * x, logits, jnp.ones(1), "multiclass", ensemble=True)
    assert got.target[0] == 0
    binary = isouq.uncertainty(lambda p, x: p * x, -logits[:, 0], jnp.ones(1), "binary", ensemble=True)
    assert binary.target[0] == 0
    np.testing.assert_allclose(binary.probability, got.probability, rtol=1e-6)
    tie = isouq.uncertainty(lambda p, x: p * x, jnp.array([2.0, -2.0]), jnp.ones(1), "binary", ensemble=True)
    assert tie.target[0] == 0  # as of one network whose logit is 0


def test_one_more_axis_of_the_outputs():
    params, xs = jnp.array([[1.0], [2.0]]), jnp.ones((2, 1))
    got = isouq.uncertainty(lambda p, x: p * x, params, xs, "binary", ensemble=True)
    assert got.epistemic.shape == (2,)


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_digits_survive_saturation(kind):
    """Margins of about 40, where 1 − p is 10⁻¹⁸ and every p is 1 in float32."""
    margins = np.array([39.0, 40.0, 42.0], np.float32)

    def predict(params, x):
        return params * x if kind == "binary" else jnp.stack([0 * params, params * x, jnp.full_like(params, -1e4)])

    got = isouq.uncertainty(predict, jnp.array(margins), jnp.ones(1), kind, ensemble=True)
    others = np.exp(-margins.astype(np.float64))
    np.testing.assert_allclose(got.between, [others.var()], rtol=1e-5)
    np.testing.assert_allclose(got.within, [np.mean(others**2)], rtol=1e-5)
    np.testing.assert_allclose(got.aleatoric, [others.mean()], rtol=1e-5)
    assert got.probability[0] == 1


def test_a_part_whose_mean_is_0_counts_as_0():
    predict, params, xs = mlps("multiclass")
    same = jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 2), params)
    got = isouq.uncertainty(predict, same, xs, "multiclass", ensemble=True)
    one = isouq.uncertainty(predict, row(params, 0), xs, "multiclass")
    np.testing.assert_array_equal(got.between, 0)
    np.testing.assert_allclose(got.within, one.epistemic, rtol=1e-5)
    np.testing.assert_allclose(got.epistemic, one.epistemic / one.epistemic.mean(), rtol=1e-5)


def test_an_input_with_nan_outputs_is_nan_alone():
    def estimate(xs):
        return isouq.uncertainty(lambda p, x: p * jnp.log(x), jnp.array([1.0, 2.0]), xs, "regression", ensemble=True)

    got, want = estimate(jnp.array([2.0, -1.0, 3.0])), estimate(jnp.array([2.0, 3.0]))
    np.testing.assert_allclose(got.epistemic, [want.epistemic[0], np.nan, want.epistemic[1]], rtol=1e-6)


def test_a_member_with_a_nan_output_counts_in_no_mean():
    """Its gradient may be finite, as that of the logarithm is."""

    def estimate(xs):
        return isouq.uncertainty(lambda p, x: jnp.log(p + x), jnp.array([1.0, 2.0]), xs, "regression", ensemble=True)

    got, want = estimate(jnp.array([2.0, -1.5, 3.0])), estimate(jnp.array([2.0, 3.0]))
    for field in (got.epistemic, got.between, got.within, got.probability):
        np.testing.assert_array_equal(np.isnan(field), [False, True, False])
    np.testing.assert_allclose(got.epistemic[jnp.array([0, 2])], want.epistemic, rtol=1e-6)


def test_half_precision_gives_float32():
    predict, params, xs = mlps("multiclass", dtype=jnp.bfloat16)
    got = isouq.uncertainty(predict, params, xs, "multiclass", ensemble=True)
    assert {leaf.dtype.name for leaf in got} == {"float32", "int32"}


def test_works_under_jit(x64):
    predict, params, xs = mlps("multiclass", dtype=jnp.float64)
    run = jax.jit(lambda params, xs: isouq.uncertainty(predict, params, xs, "multiclass", ensemble=True, batch_size=2))
    check(run(params, xs), slow_twin(predict, params, xs, "multiclass"))


def test_one_program_for_a_shape_and_the_members_in_a_loop():
    predict, params, xs = mlps("multiclass", width=6)
    isouq.uncertainty(predict, params, xs, "multiclass", ensemble=True)
    compiled = _estimate_members._cache_size()
    isouq.uncertainty(predict, row(params, jnp.array([2, 0, 1])), xs + 1, "multiclass", ensemble=True)
    assert _estimate_members._cache_size() == compiled

    def program(members):
        _, params, xs = mlps("multiclass", members=members)
        arrays = (jax.tree_util.Partial(predict), params, xs, None, None)
        return _estimate_members.lower(*arrays, "multiclass", None, "jaxpr")

    two, twenty = program(2), program(20)
    assert len(two.as_text().splitlines()) == len(twenty.as_text().splitlines())


def test_a_member_takes_two_numbers_an_input_of_a_batch_and_no_activations():
    def needed(members):
        predict, params, _ = mlps("multiclass", width=64, members=members)
        arrays = (jax.tree_util.Partial(predict), params, jnp.ones((500, 2)), None, None)
        return _memory.temporary_bytes(_estimate_members.lower(*arrays, "multiclass", 50, "jaxpr").compile())

    assert needed(40) - needed(2) <= 38 * 50 * 2 * 4


def test_scoring_keeps_to_max_bytes():
    predict, params, _ = mlps("multiclass", width=64)
    xs = jax.random.normal(jax.random.key(3), (400, 2))
    free = isouq.uncertainty(predict, params, xs, "multiclass", ensemble=True)
    for options in ({}, {"devices": jax.local_devices()}):
        limited = isouq.uncertainty(predict, params, xs, "multiclass", ensemble=True, max_bytes=100_000, **options)
        np.testing.assert_allclose(limited.epistemic, free.epistemic, rtol=1e-4)
    with pytest.raises(ValueError, match=r"^max_bytes is 10, but one input needs"):
        isouq.uncertainty(predict, params, xs, "multiclass", ensemble=True, max_bytes=10)


def test_a_predict_that_cannot_be_batched_takes_one_input_at_a_time():
    def predict(params, x):
        return jax.lax.ragged_dot(jnp.tanh(x), params, jnp.array([2, 1], jnp.int32)).mean(0)

    params, xs = jax.random.normal(jax.random.key(0), (3, 2, 4, 3)), jax.random.normal(jax.random.key(1), (2, 3, 4))
    got = isouq.uncertainty(predict, params, xs, "multiclass", ensemble=True, batch_size=1)
    twin = isouq.uncertainty(
        lambda p, x: (jnp.tanh(x[:2]) @ p[0]).sum(0) / 3 + jnp.tanh(x[2]) @ p[1] / 3,
        params, xs, "multiclass", ensemble=True,
    )  # fmt: skip
    np.testing.assert_allclose(got.epistemic, twin.epistemic, rtol=1e-4)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"w": jnp.ones((1, 2))},
            r"params has one member; an ensemble needs at least two, stacked by jax.tree.map\(lambda",
        ),
        (
            {"w": jnp.ones((2, 2)), "b": jnp.ones(3)},
            r"the leaves of params have different leading axes \[2, 3\]; expected one member axis",
        ),
        ({"w": jnp.ones((2, 2)), "b": jnp.array(0.0)}, r"params\['b'\] is a scalar; expected a leading member axis"),
        ({"w": jnp.array([[1.0, jnp.nan]] * 2)}, r"params\['w'\] holds 2 NaN or infinite values"),
        ({"w": jnp.ones((2, 3))}, r"predict\(params of member 0, x\) failed on one example of shape \(2,\)"),
        ([{"w": jnp.ones((2, 2))}] * 2, r"predict\(params of member 0, x\) failed"),  # a list in place of a stack
    ],
)
def test_one_clear_line(params, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        isouq.uncertainty(lambda p, x: p["w"] @ x, params, jnp.ones((3, 2)), "binary", ensemble=True)
    assert "\n" not in str(caught.value)


def test_a_covariance_of_all_members_is_refused():
    predict, params, xs = mlps("binary")
    with pytest.raises(ValueError, match="variances has"):
        isouq.uncertainty(predict, params, xs, "binary", ensemble=True, covariance=isouq.Diagonal(params))
