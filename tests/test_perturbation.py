"""`isouq.perturbation` against its slow twin: NumPy in float64, one sample after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import isouq
from isouq import _memory, models
from isouq._perturbation import _Noise, _perturb
from isouq._predict import probability_difference

KINDS = ("binary", "multiclass", "regression")
KEY = jax.random.key(7)


def network(kind, width=5, dtype=jnp.float32):
    predict, init = models.mlp(2, (width,), 3 if kind == "multiclass" else 1)
    params = jax.tree.map(lambda leaf: (2 * leaf).astype(dtype), init(jax.random.key(0)))
    return predict, params, jax.random.normal(jax.random.key(1), (7, 2), dtype)


def pytree_model(kind):
    """A model whose parameters and inputs are pytrees, one leaf of them complex."""
    params = ({"w": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)}, [jnp.array(0.5), jnp.array([1 + 2j, -1j])])

    def predict(params, x):
        shift = jnp.abs(params[1][1] @ x["a"]) + params[1][0] * x["b"]
        logits = jnp.tanh(x["a"] @ params[0]["w"]) + shift * jnp.arange(3)
        return logits if kind == "multiclass" else logits[2]

    xs = {"a": jax.random.normal(jax.random.key(2), (7, 2)), "b": jnp.linspace(-1, 1, 7)}
    return predict, params, xs


def root_mean_square(params):
    squares, count = 0.0, 0
    for leaf in map(np.asarray, jax.tree.leaves(params)):
        squares += np.sum(np.abs(leaf) ** 2)
        count += leaf.size * (2 if np.iscomplexobj(leaf) else 1)
    return np.sqrt(squares / count)


def perturbed(params, step, sample):
    """θ + step · ε, with the documented direction of a sample."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.fold_in(KEY, sample), len(leaves))

    def noise(key, leaf):
        normal = np.asarray(jax.random.normal(key, leaf.shape, leaf.dtype))
        return normal * np.sqrt(2) if np.iscomplexobj(normal) else normal

    moved = [np.asarray(leaf) + step * noise(key, leaf) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(treedef, moved)


def probabilities(predict, params, xs, kind, target):
    """p_c of every row, or the mean."""
    outputs = np.asarray(jax.vmap(predict, (None, 0))(params, xs), np.float64)
    if kind == "multiclass":
        powers = np.exp(outputs - outputs.max(1, keepdims=True))
        return (powers / powers.sum(1, keepdims=True))[np.arange(len(outputs)), target]
    outputs = outputs.reshape(len(outputs))
    if kind == "binary":
        return 1 / (1 + np.exp(-np.where(target == 1, outputs, -outputs)))
    return outputs


def predicted(predict, params, xs, kind):
    outputs = np.asarray(jax.vmap(predict, (None, 0))(params, xs))
    if kind == "multiclass":
        return outputs.argmax(1)
    return (outputs.reshape(len(outputs)) > 0).astype(int) if kind == "binary" else None


def slow_twin(predict, params, xs, kind, step, num_samples, target=None):
    """The variance, its standard error and p, by their formulas."""
    target = predicted(predict, params, xs, kind) if target is None else target
    rows = [probabilities(predict, perturbed(params, step, sample), xs, kind, target) for sample in range(num_samples)]
    samples = np.array(rows)
    m2, m4 = (np.mean((samples - samples.mean(0)) ** power, 0) for power in (2, 4))
    error = np.sqrt((m4 - m2**2 * (num_samples - 3) / (num_samples - 1)) / num_samples)
    return samples.var(0, ddof=1), error, probabilities(predict, params, xs, kind, target), target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [lambda kind: network(kind, dtype=jnp.float64), pytree_model], ids=["mlp", "pytree"])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize(("batch_size", "num_samples"), [(None, 2), (1, 3), (3, 40)])
def test_equals_slow_twin_in_float64(kind, model, relative, batch_size, num_samples, x64):
    predict, params, xs = model(kind)
    options = {"key": KEY, "scale": 0.3, "relative": relative, "num_samples": num_samples, "batch_size": batch_size}
    got = isouq.perturbation(predict, params, xs, kind, **options)
    step = 0.3 * (root_mean_square(params) if relative else 1)
    want = slow_twin(predict, params, xs, kind, step, num_samples)
    for name, value, rtol in zip(got._fields, want, (1e-10, 1e-7, 1e-12, 0), strict=True):
        if value is None:
            assert getattr(got, name) is None
        else:
            np.testing.assert_allclose(getattr(got, name), value, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [lambda kind: network(kind, dtype=jnp.float64), pytree_model], ids=["mlp", "pytree"])
def test_a_small_scale_gives_the_squared_gradient_norm(kind, model, x64):
    predict, params, xs = model(kind)
    want = isouq.uncertainty(predict, params, xs, kind).epistemic
    got = isouq.perturbation(predict, params, xs, kind, key=KEY, scale=1e-4, relative=False, num_samples=4000)
    error = got.standard_error / got.epistemic
    np.testing.assert_allclose(error, np.sqrt(2 / 4000), rtol=0.15)  # that of a normal variable
    assert np.all(np.abs(got.epistemic / 1e-8 / want - 1) < 4.5 * error)


def test_the_standard_error_is_that_of_repeated_estimates():
    predict, params, xs = network("multiclass")
    run = jax.jit(lambda key: isouq.perturbation(predict, params, xs, "multiclass", key=key, num_samples=50, scale=1.0))
    estimates = [run(key) for key in jax.random.split(KEY, 200)]
    spread = np.std([got.epistemic for got in estimates], 0)
    np.testing.assert_allclose(spread, np.mean([got.standard_error for got in estimates], 0), rtol=0.25)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"batch_size": 2}, {"devices": True}, {"devices": True, "batch_size": 3}])
def test_batches_and_devices_change_nothing(kind, options, x64):
    predict, params, xs = network(kind, dtype=jnp.float64)
    if options.get("devices"):
        options = options | {"devices": jax.local_devices()}
        assert len(options["devices"]) > 1
    settings = {"key": KEY, "num_samples": 5}
    want = isouq.perturbation(predict, params, xs, kind, **settings)
    got = isouq.perturbation(predict, params, xs, kind, **settings, **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), got, want)


@pytest.mark.parametrize("margin", [5.0, 20.0, 35.0])
def test_digits_survive_saturation(margin):
    """In float32, with the truth from float64 and the same directions: 1 − p is as small as 10⁻¹⁵."""

    def predict(params, x):
        return params["w"] * x

    params, xs = {"w": jnp.array([1.0, 0.0])}, jnp.array([[margin, 0.0]])
    got = isouq.perturbation(
        lambda p, x: predict(p, x).sum(), params, xs, "binary", key=KEY, scale=0.05, relative=False, num_samples=200
    )
    margins = np.array([perturbed(params, np.float32(0.05), i)["w"][0] for i in range(200)], np.float64) * margin
    others = 1 / (1 + np.exp(margins))  # 1 − p
    np.testing.assert_allclose(got.epistemic, [others.var(ddof=1)], rtol=1e-4)
    m2, m4 = (np.mean((others - others.mean()) ** power) for power in (2, 4))
    error = np.sqrt((m4 - m2**2 * 197 / 199) / 200)
    np.testing.assert_allclose(got.standard_error, [error], rtol=1e-3)
    assert margin < 20 or got.probability[0] == 1  # so that a difference of probabilities would be 0


def test_a_difference_of_probabilities_keeps_its_digits():
    pairs = np.array([[40, 41], [-40, -41], [3, 2.9], [0, 1e-6], [50, -50], [-2, -2]], np.float32)
    got = probability_difference(*jnp.array(pairs.T))
    a, b = pairs.T.astype(np.float64)
    differences = 1 / (1 + np.exp(-a)) - 1 / (1 + np.exp(-b))
    of_others = 1 / (1 + np.exp(b)) - 1 / (1 + np.exp(a))  # has the digits where both are nearly 1
    np.testing.assert_allclose(got, np.where(a > 10, of_others, differences), rtol=1e-5)
    infinite = jnp.array([[jnp.inf, jnp.inf], [-jnp.inf, -jnp.inf], [jnp.inf, 0], [jnp.nan, 0]])
    got = probability_difference(*infinite.T)
    np.testing.assert_allclose(got, [0, 0, 0.5, np.nan])


def test_a_given_target(x64):
    predict, params, xs = network("multiclass", dtype=jnp.float64)
    target = np.array([0, 1, 2, 2, 1, 0, 1])
    got = isouq.perturbation(predict, params, xs, "multiclass", key=KEY, num_samples=4, relative=False, target=target)
    want = slow_twin(predict, params, xs, "multiclass", 0.1, 4, target)
    np.testing.assert_allclose(got.epistemic, want[0], rtol=1e-10)
    np.testing.assert_array_equal(got.target, target)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_gives_float32(dtype):
    predict, params, xs = network("multiclass", dtype=dtype)
    got = isouq.perturbation(predict, params, xs, "multiclass", key=KEY, scale=0.5)
    full = [jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree) for tree in (params, xs)]
    want = isouq.perturbation(predict, *full, "multiclass", key=KEY, scale=0.5)
    assert got.epistemic.dtype == got.standard_error.dtype == got.probability.dtype == jnp.float32
    same = got.target == want.target
    np.testing.assert_allclose(got.epistemic[same], want.epistemic[same], rtol=0.1)


def test_an_input_with_nan_outputs_is_nan_alone():
    got = isouq.perturbation(
        lambda p, x: p * jnp.log(x), jnp.array(1.0), jnp.array([2.0, -1.0, 3.0]), "regression", key=KEY
    )
    np.testing.assert_array_equal(np.isnan(got.epistemic), [False, True, False])


def test_a_prediction_without_parameters_has_no_variance():
    got = isouq.perturbation(lambda p, x: x + 0 * p, jnp.array(1.0), jnp.array([2.0]), "binary", key=KEY)
    assert got.epistemic[0] == got.standard_error[0] == 0


def test_one_program_serves_other_keys_scales_numbers_and_arrays():
    predict, params, xs = network("multiclass", width=9)
    isouq.perturbation(predict, params, xs, "multiclass", key=KEY)
    compiled = _perturb._cache_size()
    other = jax.tree.map(lambda leaf: leaf + 1, params)
    for options in ({"key": jax.random.key(1)}, {"scale": 0.7}, {"num_samples": 3}, {"scale": np.float32(2)}):
        isouq.perturbation(predict, other, xs + 1, "multiclass", **{"key": KEY} | options)
    assert _perturb._cache_size() == compiled


@pytest.mark.parametrize("relative", [True, False])
def test_works_under_jit(relative):
    predict, params, xs = network("binary")
    run = jax.jit(
        lambda params, xs, key, scale: isouq.perturbation(
            predict, params, xs, "binary", key=key, scale=scale, relative=relative, num_samples=5, batch_size=2
        )
    )
    got = run(params, xs, KEY, 0.2)
    want = isouq.perturbation(predict, params, xs, "binary", key=KEY, scale=0.2, relative=relative, num_samples=5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, want)


def test_memory_is_that_of_a_batch():
    predict, params, _ = network("multiclass", width=64)
    noise = _Noise(KEY, 0.1, 1000)

    def needed(batch_size):
        arrays = (jax.tree_util.Partial(predict), params, jnp.ones((5000, 2)), None, noise)
        return _memory.temporary_bytes(_perturb.lower(*arrays, "multiclass", batch_size).compile())

    numbers = 4 * 5000
    assert needed(None) > 64 * numbers
    assert needed(16) < 32 * numbers  # far from the 1000 samples of each input


def test_a_predict_that_cannot_be_batched_takes_one_input_at_a_time():
    def predict(params, x):
        return jax.lax.ragged_dot(jnp.tanh(x), params, jnp.array([2, 1], jnp.int32)).mean(0)

    params, xs = jax.random.normal(KEY, (2, 4, 3)), jax.random.normal(jax.random.key(1), (2, 3, 4))
    with pytest.raises(NotImplementedError, match=r"^predict cannot be batched \(.*\); pass batch_size=1"):
        isouq.perturbation(predict, params, xs, "multiclass", key=KEY, num_samples=3)
    got = isouq.perturbation(predict, params, xs, "multiclass", key=KEY, num_samples=3, batch_size=1)
    twin = isouq.perturbation(
        lambda p, x: (jnp.tanh(x[:2]) @ p[0]).sum(0) / 3 + jnp.tanh(x[2]) @ p[1] / 3,
        params, xs, "multiclass", key=KEY, num_samples=3,
    )  # fmt: skip
    np.testing.assert_allclose(got.epistemic, twin.epistemic, rtol=1e-3)


NAN = float("nan")
WRONG = {
    "one sample": ({"num_samples": 1}, r"num_samples is 1; expected a whole number of at least 2"),
    "scale 0": ({"scale": 0}, r"scale is 0; expected a finite number above 0"),
    "scale NaN": ({"scale": NAN}, r"scale is nan; expected a finite number above 0"),
    "scale text": ({"scale": "big"}, r"scale is 'big'; expected a positive number"),
    "negative array": ({"scale": jnp.array(-1.0)}, r"scale is -1.0; expected a finite number above 0"),
    "key a number": ({"key": 0}, r"key is of type int; expected one random key, such as jax.random.key\(0\)"),
    "many keys": ({"key": jax.random.split(KEY)}, r"key is an array key<fry>\[2\]; expected one random key"),
    "zeros": ({"params": jnp.zeros(2)}, r"params have the root mean square 0, so that a relative scale is 0; pass"),
    "squares underflow": ({"params": jnp.full(2, 1e-30)}, r"params have the root mean square 0, so that a relative"),
    "squares overflow": ({"params": jnp.full(2, 1e30)}, r"params have the root mean square inf, so that a relative"),
    "NaN in params": ({"params": jnp.array([NAN, 1.0])}, r"params holds 1 NaN or infinite values"),
    "NaN in xs": ({"xs": jnp.array([[NAN, 1.0]])}, r"xs holds 1 NaN or infinite values"),
    "integers": ({"params": jnp.ones(2, int)}, r"params is int32; expected a floating array"),
    "kind": ({"kind": "ranking"}, r"kind is 'ranking'; expected one of"),
    "shape": ({"kind": "multiclass"}, r"predict returned shape \(\) for one example; multiclass expects logits"),
    "target": ({"target": 2}, r"target holds labels from 2 to 2; expected 0 to 1"),
    "batch size": ({"batch_size": 0}, r"batch_size is 0; expected a whole number of at least 1"),
    "devices": ({"devices": []}, r"devices is \[\]; expected a list of JAX devices"),
}


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_one_clear_line(options, message):
    arguments = {"params": jnp.ones(2), "xs": jnp.ones((3, 2)), "kind": "binary", "key": KEY} | options
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        isouq.perturbation(lambda p, x: p @ x, **arguments)
    assert "\n" not in str(caught.value)


def test_an_old_key_is_taken():
    predict, params, xs = network("binary")
    old, new = (isouq.perturbation(predict, params, xs, "binary", key=key) for key in (jax.random.PRNGKey(7), KEY))
    np.testing.assert_array_equal(old.epistemic, new.epistemic)
