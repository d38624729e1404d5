"""What `predict` is: read anew at every call, never stale, compiled once where nothing changed."""

import dataclasses
import functools
import types

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import isouq
from isouq import models
from isouq._frozen import first_row, freeze
from isouq._uncertainty import _estimate
from isouq.posterior import LogDensity, Margins, Sampling, fit_map, sample_reference

W = jax.random.normal(jax.random.key(0), (5, 3))
XS = jax.random.normal(jax.random.key(1), (4, 5))
YS = jnp.array([0, 1, 2, 0])


def estimate(predict, params=W, **options):
    return np.asarray(isouq.uncertainty(predict, params, XS, "multiclass", **options).epistemic)


def truth(predict, params=W):
    """jax.grad of the probability itself, not jitted."""

    def probability(theta, x):
        outputs = predict(theta, x)
        return jax.nn.softmax(outputs)[jnp.argmax(outputs)]

    rows = [jax.grad(probability)(params, x) for x in XS]
    return np.array([sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(row)) for row in rows])


class Scaled:
    """A model with what a model has beside its parameters."""

    def __init__(self):
        self.temperature, self.mask, self.table = 1.0, np.ones(3, np.float32), {"bias": jnp.zeros(3)}

    def predict(self, w, x):
        return x @ w / self.temperature * self.mask + self.table["bias"]

    def __call__(self, w, x):
        return self.predict(w, x)


CHANGES = {
    "an attribute": lambda m: setattr(m, "temperature", 3.0),
    "an array in place": lambda m: m.mask.__setitem__(0, 0.1),
    "an entry of a dictionary": lambda m: m.table.update(bias=jnp.array([0.0, 1.0, 2.0])),
}
FORMS = {
    "bound method": lambda m: m.predict,
    "callable object": lambda m: m,
    "lambda": lambda m: lambda w, x: m.predict(w, x),
    "partial": lambda m: functools.partial(Scaled.predict, m),
    "jax.tree_util.Partial": lambda m: jax.tree_util.Partial(m.predict),
    "jit anew": lambda m: jax.jit(lambda w, x: m.predict(w, x)),
    "eqx.filter_jit": lambda m: eqx.filter_jit(lambda w, x: m.predict(w, x)),
    "eqx.Partial": lambda m: eqx.Partial(lambda scaled, w, x: scaled.predict(w, x), m),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_changes_outside_is_seen_and_what_does_not_is_not_compiled_again(form):
    for change in CHANGES.values():
        model = Scaled()
        np.testing.assert_allclose(estimate(FORMS[form](model)), truth(model.predict), rtol=1e-4)
        compiled = _estimate._cache_size()
        estimate(FORMS[form](model))
        assert _estimate._cache_size() == compiled
        change(model)
        np.testing.assert_allclose(estimate(FORMS[form](model)), truth(model.predict), rtol=1e-4)


class Wrapped(eqx.Module):
    """The half of a model that holds functions, an array and a number."""

    rest: eqx.Module
    shift: jax.Array
    temperature: float = 2.0

    def __call__(self, params, x):
        return eqx.combine(params, self.rest)(x + self.shift) / self.temperature

    def method(self, params, x):
        return self(params, x)


@pytest.mark.parametrize("form", ["module", "bound method", "lambda"])
def test_an_equinox_module_is_a_predict(form):
    mlp = eqx.nn.MLP(5, 3, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(mlp, eqx.is_inexact_array)

    def forms(shift):
        module = Wrapped(static, jnp.full(5, shift))
        return {"module": module, "bound method": module.method, "lambda": lambda p, x: module(p, x)}[form]

    for shift in (0.0, 1.0):
        np.testing.assert_allclose(estimate(forms(shift), params), truth(forms(shift), params), rtol=1e-4)
    compiled = _estimate._cache_size()
    estimate(forms(2.0), params)  # another array is another argument
    assert _estimate._cache_size() == compiled
    with pytest.raises(ValueError, match=r"params\.activation is .*eqx\.partition"):
        estimate(lambda model, x: model(x), mlp)
    density = LogDensity.of(forms(0.0), params, XS, YS, "multiclass")
    np.testing.assert_allclose(jax.jit(lambda d, p: d(p))(density, params), density(params), rtol=1e-5)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, mask=None, scale=1.0):
        return nn.Dense(3)(x) * mask * scale


def test_the_adapters_with_arrays_and_numbers():
    module = Linen()
    variables = module.init(jax.random.key(2), XS[0], jnp.ones(3))
    sizes = []
    for mask, scale in ((jnp.ones(3), 1.0), (jnp.ones(3), 1.0), (jnp.arange(3.0), 1.0), (jnp.ones(3), 0.3)):
        predict, params = models.from_linen(module, variables, mask=mask, scale=scale)
        np.testing.assert_allclose(estimate(predict, params), truth(predict, params), rtol=1e-4)
        sizes.append(_estimate._cache_size())
    assert sizes[0] == sizes[1] == sizes[2] == sizes[3] - 1  # a number is part of the program, an array is not

    class Net(nnx.Module):
        def __init__(self):
            self.layer, self.config = nnx.Linear(5, 3, rngs=nnx.Rngs(0)), types.SimpleNamespace(temperature=1.0)

        def __call__(self, x):
            return self.layer(x) / self.config.temperature

    net = Net()
    predict, params = models.from_nnx(net)
    before = estimate(predict, params)
    net.config.temperature = 3.0
    assert not np.allclose(estimate(models.from_nnx(net)[0], params), before)


def custom_rule(cell, wrap=lambda f: f):
    """A function inside predict whose derivative reads from outside."""

    def jvp(w, x):
        f = jax.custom_jvp(lambda y: 2 * y)
        f.defjvp(lambda primals, tangents: (f(*primals), cell["slope"] * tangents[0]))
        return wrap(f)(x @ w)

    def vjp(w, x):
        f = jax.custom_vjp(lambda y: 2 * y)
        f.defvjp(lambda y: (f(y), y), lambda y, g: (cell["slope"] * g,))
        return wrap(f)(x @ w)

    def closes_over_x(w, x):
        total = jnp.sum(x)
        f = jax.custom_vjp(lambda y: total * y)
        f.defvjp(lambda y: (f(y), None), lambda _, g: (cell["slope"] * total * g,))
        return f(x @ w)

    return {"jvp": jvp, "vjp": vjp, "closes over x": closes_over_x}


@pytest.mark.parametrize("name", ["jvp", "vjp", "closes over x"])
@pytest.mark.parametrize("engine", ["jaxpr", "vmap"])
def test_a_derivative_rule_is_read_anew(name, engine):
    cell = {"slope": 2.0}
    predict = custom_rule(cell)[name]
    np.testing.assert_allclose(estimate(predict, engine=engine), truth(predict), rtol=1e-4)
    compiled = _estimate._cache_size()
    estimate(lambda w, x: predict(w, x), engine=engine)
    assert (_estimate._cache_size() == compiled) == (name != "closes over x")
    cell["slope"] = 5.0
    np.testing.assert_allclose(estimate(predict, engine=engine), truth(predict), rtol=1e-4)


SAME = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "softmax": jax.nn.softmax,
    "logsumexp": jax.nn.logsumexp,
    "logaddexp, whose rule calls itself": lambda x: jnp.logaddexp(x, 2.0),
    "selu": jax.nn.selu,
    "scan": lambda x: jax.lax.scan(lambda c, a: (c + jax.nn.relu(a), a), 0.0, x)[0],
    "cond": lambda x: jax.lax.cond(x[0] > 0, lambda y: 2 * y, lambda y: y, x),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) * jax.nn.relu(x)),
    "jit": lambda x: jax.jit(lambda y: jax.nn.gelu(y) * x)(x),
    "print": lambda x: (jax.debug.print("{}", x), x)[1],
    "a debugging callback": lambda x: (jax.debug.callback(np.shape, x), x)[1],
    "random numbers": lambda x: x + jax.random.normal(jax.random.key(3), (6,)),
    "NaN": lambda x: x * float("nan"),
    "a NumPy array": lambda x: x * np.arange(6.0, dtype=np.float32),
}
OTHER = {
    "numbers": (lambda x: x * 2.0, lambda x: x * 3.0),
    "signs of zero": (lambda x: x * 0.0, lambda x: x * -0.0),
    "dtypes": (lambda x: x.astype(jnp.bfloat16), lambda x: x.astype(jnp.float16)),
    "operands": (lambda x: x - x[::-1], lambda x: x[::-1] - x),
    "debugging callbacks": (
        lambda x: (jax.debug.callback(np.shape, x), x)[1],
        lambda x: (jax.debug.callback(np.ndim, x), x)[1],
    ),
    "structures": (lambda x: (x, x), lambda x: [x, x]),
    "precisions": (lambda x: jnp.dot(x, x), lambda x: jnp.dot(x, x, precision="highest")),
    "branches": (
        lambda x: jax.lax.cond(x[0] > 0, lambda y: y, lambda y: 2 * y, x),
        lambda x: jax.lax.cond(x[0] > 0, lambda y: 2 * y, lambda y: y, x),
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_equal_code_is_an_equal_program(name):
    one, two = (freeze(lambda x: SAME[name](x), jnp.linspace(0.1, 1, 6)).program for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)


@pytest.mark.parametrize("name", OTHER)
def test_other_code_is_another_program(name):
    one, two = (freeze(f, jnp.linspace(0.1, 1, 6)).program for f in OTHER[name])
    assert one != two


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint], ids=["jit", "checkpoint"])
def test_an_array_that_an_inner_function_closes_over_is_compared(wrap):
    def scaled(number):
        array = jnp.full(3, number)
        inner = wrap(lambda theta, x: jnp.tanh(x @ theta * array + array))
        return lambda theta, x: 2 * inner(theta, x)

    for number in (0.1, 0.5, 0.1, -2.0):
        np.testing.assert_allclose(estimate(scaled(number)), truth(scaled(number)), rtol=1e-4)


def test_tracers_that_predict_closes_over():
    def scaled(s):
        return isouq.uncertainty(lambda w, x: x @ w * s, W, XS, "multiclass").epistemic

    want = truth(lambda w, x: x @ w * 2.0)
    np.testing.assert_allclose(jax.jit(scaled)(2.0), want, rtol=1e-4)
    np.testing.assert_allclose(jax.vmap(scaled)(jnp.array([1.0, 2.0]))[1], want, rtol=1e-4)
    slope = jax.grad(lambda s: scaled(s).sum())(2.0)
    np.testing.assert_allclose(slope, (scaled(2.01).sum() - scaled(1.99).sum()) / 0.02, rtol=1e-2)


def test_a_compiled_call_is_frozen_as_jit_freezes():
    model = Scaled()
    score = jax.jit(functools.partial(isouq.uncertainty, model.predict, kind="multiclass"))
    first = score(W, XS).epistemic
    np.testing.assert_allclose(first, truth(model.predict), rtol=1e-4)
    model.temperature = 3.0
    np.testing.assert_array_equal(score(W, XS).epistemic, first)


def test_kinds_of_abstract_values_survive():
    row = first_row({"a": np.zeros((2, 3), np.float64), "b": jax.random.split(jax.random.key(0), 2)})
    assert row["a"] == jax.typeof(jnp.zeros(3))
    assert row["b"] == jax.typeof(jax.random.key(0))
    assert freeze(lambda x: x, 1.0).outputs.weak_type
    assert not freeze(lambda x: x, jnp.float32(1.0)).outputs.weak_type
    with pytest.raises(TypeError, match=r"expected an argument of f(loat)?32\[3\]"):
        freeze(lambda x: x, jnp.zeros(3))(jnp.zeros(4))


@dataclasses.dataclass
class Temperature:
    value: float = 1.0

    def predict(self, w, x):
        return x @ w / self.value


@pytest.mark.parametrize("change", [False, True])
def test_the_rest_of_the_library_reads_predict_anew(change):
    model = Temperature()
    density = LogDensity.of(model.predict, W, XS, YS, "multiclass")
    inits = jnp.stack([W, W])
    options = {"sampling": Sampling(4, 10, 2), "verdict": False}

    def answers(predict, density):
        record = Margins(predict, XS, YS, "multiclass")
        return [
            isouq.laplace(density, W, "ggn", "diagonal").variances,
            isouq.negative_hessian(density, W),
            fit_map(density, inits, max_steps=20).best(),
            sample_reference(density, inits, jax.random.key(0), record=record, **options).predictions,
        ]

    before = answers(model.predict, density)
    if change:
        model.value = 3.0
    after = answers(model.predict, density)
    assert all(np.array_equal(a, b) == (not change) for a, b in zip(before, after, strict=True))
    if change:
        fresh = Temperature(3.0)
        want = answers(fresh.predict, LogDensity.of(fresh.predict, W, XS, YS, "multiclass"))
        for got, right in zip(after, want, strict=True):
            np.testing.assert_allclose(got, right, rtol=1e-5)
