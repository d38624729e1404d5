"""Flax modules with state: what they write in their call, hold beside parameters, or are given in the call."""

from dataclasses import dataclass

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import freeze

import isouq
from isouq import models

XS = jax.random.normal(jax.random.key(0), (2, 5))
SEQUENCES = jax.random.normal(jax.random.key(1), (2, 4, 5))


@dataclass
class Config:
    """Not frozen, so Python makes it unhashable."""

    scale: float = 2.0


class Net(nnx.Module):
    """A linear model around a function of the module itself, that may read and write what it likes."""

    def __init__(self, around, **parts):
        self.linear = nnx.Linear(5, 3, rngs=nnx.Rngs(0))
        self.around = around
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x, **kwargs):
        return self.around(self, x, **kwargs)


class Own(nnx.Param):
    """A type of parameter of somebody's own."""


def recurrent(cell, **kwargs):
    rnn = nnx.RNN(cell(5, 5, rngs=nnx.Rngs(1)), **kwargs)
    return Net(lambda self, x, **kwargs: self.linear(self.rnn(x, **kwargs)[-1]), rnn=rnn)


def both_ways():
    rnn = nnx.Bidirectional(*(nnx.RNN(nnx.GRUCell(5, 2, rngs=nnx.Rngs(i))) for i in range(2)))
    return Net(lambda self, x: self.linear(jnp.pad(self.rnn(x)[-1], (0, 1))), rnn=rnn)


def stream():
    def around(self, x):
        return self.linear(x + 0.1 * jax.random.normal(self.rngs.noise(), x.shape))

    return Net(around, rngs=nnx.Rngs(noise=3))


def counter():
    def around(self, x):
        self.calls[...] += 1
        self.steps += 1  # in place
        self.last = x
        return self.linear(x) * self.calls[...] * self.steps

    return Net(around, calls=nnx.Variable(jnp.array(0)), steps=np.zeros(3, np.float32), last=None)


def own_dropout(**kwargs):
    return Net(lambda self, x: self.linear(self.drop(x, **kwargs)), drop=nnx.Dropout(0.5, rngs=nnx.Rngs(2)))


def own_norm(**kwargs):
    return Net(lambda self, x: self.linear(self.norm(x, **kwargs)), norm=nnx.BatchNorm(5, rngs=nnx.Rngs(2)))


def evaluated(module):
    module.eval()
    return module


def tied():
    first = nnx.Linear(5, 5, rngs=nnx.Rngs(4))
    parts = {"layers": nnx.List([first, first]), "scales": nnx.Dict(a=Own(jnp.ones(3))), "widths": [1, {"b": 2.0}]}

    def around(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return self.linear(x) * self.scales["a"][...] * self.widths[1]["b"]

    return Net(around, **parts)


def scanned():
    @nnx.split_rngs(splits=3)
    @nnx.vmap(axis_size=3)
    def layers(rngs):
        return nnx.Sequential(nnx.Linear(5, 5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs))

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def forward(x, layer):
        return jnp.tanh(layer(x))

    return Net(lambda self, x: self.linear(forward(x, self.layers)), layers=layers(nnx.Rngs(5)))


def configured():
    parts = {"config": Config(), "order": np.arange(5)[::-1]}
    return Net(lambda self, x: self.linear(x[self.order]) / self.config.scale, **parts)


def lora():
    return nnx.LoRA(5, 2, 3, base_module=nnx.Linear(5, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))


NNX = {
    "LSTMCell": lambda: (recurrent(nnx.LSTMCell), {}, SEQUENCES),
    "OptimizedLSTMCell": lambda: (recurrent(nnx.OptimizedLSTMCell, reverse=True), {}, SEQUENCES),
    "GRUCell with a stream of its own": lambda: (recurrent(nnx.GRUCell, rngs=nnx.Rngs(7)), {}, SEQUENCES),
    "SimpleCell with a stream in the call": lambda: (recurrent(nnx.SimpleCell), {"rngs": nnx.Rngs(6)}, SEQUENCES),
    "Bidirectional": lambda: (both_ways(), {}, SEQUENCES),
    "a stream drawn from": lambda: (stream(), {}, XS),
    "a counter": lambda: (counter(), {}, XS),
    "dropout off in the call": lambda: (own_dropout(deterministic=True), {}, XS),
    "dropout off": lambda: (evaluated(own_dropout()), {}, XS),
    "batch normalisation off in the call": lambda: (own_norm(use_running_average=True), {}, XS),
    "batch normalisation off": lambda: (evaluated(own_norm()), {}, XS),
    "tied layers, lists and a type of parameter": lambda: (tied(), {}, XS),
    "scanned layers with dropout off": lambda: (evaluated(scanned()), {}, XS),
    "an unhashable configuration": lambda: (configured(), {}, XS),
    "LoRA": lambda: (lora(), {}, XS),
    "a keyword": lambda: (Net(lambda self, x, mask: self.linear(x * mask)), {"mask": jnp.arange(5.0)}, XS),
}


def twin(outputs, params, xs):
    """‖∇p_c‖² of the predicted class by `jax.grad`."""

    def probability(params, x):
        p = jax.nn.softmax(outputs(params, x))
        return p[jnp.argmax(p)]

    gradients = jax.jit(jax.vmap(jax.grad(probability), (None, 0)))(params, xs)
    return sum(np.square(np.asarray(leaf).reshape(len(xs), -1)).sum(1) for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", NNX)
def test_an_nnx_module_with_state_equals_jax_grad_and_stays_as_it_is(name):
    module, kwargs, xs = NNX[name]()
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)
    before = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))

    def outputs(params, x):
        given = {k: nnx.clone(v) if isinstance(v, nnx.Rngs) else v for k, v in kwargs.items()}
        numpy = jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, rest)
        return nnx.merge(graphdef, params, numpy, copy=True)(x, **given)

    predict, plain = models.from_nnx(module, **kwargs)
    want = twin(outputs, params, xs)
    for _ in range(2):
        got = isouq.uncertainty(predict, plain, xs, "multiclass").epistemic
        np.testing.assert_allclose(got, want, rtol=1e-5)
    after = nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState)))
    jax.tree.map(np.testing.assert_array_equal, after, before)


@pytest.mark.parametrize("kind", ["ref", "hijax"])
def test_variables_that_are_references_are_read_as_arrays(kind):
    plain, params = models.from_nnx(counter())
    with nnx.var_defaults(**{kind: True}):
        predict, read = models.from_nnx(counter())
    want = isouq.uncertainty(plain, params, XS, "multiclass").epistemic
    assert np.all(want > 0)
    np.testing.assert_array_equal(isouq.uncertainty(predict, read, XS, "multiclass").epistemic, want)


@pytest.mark.parametrize(
    ("make", "layer"),
    [(own_dropout, "Dropout"), (own_norm, "BatchNorm"), (scanned, "Dropout")],
    ids=lambda v: getattr(v, "__name__", v),
)
def test_a_layer_in_training_mode_is_named(make, layer):
    predict, params = models.from_nnx(make())
    with pytest.raises(
        ValueError,
        match=rf"failed .*module has {layer} in training mode; call module.eval\(\), then from_nnx\(module\)$",
    ):
        isouq.uncertainty(predict, params, XS, "multiclass")


def test_a_module_that_was_changed_is_seen_by_a_new_from_nnx_only():
    module = Net(lambda self, x: self.linear(x) * self.scale * self.buffer, scale=1.0, buffer=np.ones(3, np.float32))
    predict, params = models.from_nnx(module)
    first = predict(params, XS[0])
    module.scale = 3.0
    module.buffer[:] = 2.0
    module.linear.kernel[...] = jnp.zeros((5, 3))
    np.testing.assert_array_equal(predict(params, XS[0]), first)
    np.testing.assert_allclose(models.from_nnx(module)[0](params, XS[0]), 6 * first, rtol=1e-6)


class Counted(nn.Module):
    """Counts its calls in a collection, keeps what it computed, can drop units, has a keyword."""

    @nn.compact
    def __call__(self, x, train=False, mask=1.0):
        count = self.variable("count", "n", lambda: jnp.ones(()))
        count.value += 1.0
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x * mask))
        self.sow("intermediates", "hidden", x)
        return nn.Dense(3)(x) * count.value / 4

    def doubled(self, x):
        return 2 * self(x)


VARIABLES = Counted().init(jax.random.key(2), XS[0])
LINEN = {
    "mutable a list": ({"mutable": ["count"]}, VARIABLES),
    "mutable all": ({"mutable": True}, freeze(VARIABLES)),
    "intermediates": ({"mutable": "count", "capture_intermediates": True}, VARIABLES),
    "NumPy variables": ({"mutable": ["count"]}, jax.tree.map(np.array, VARIABLES)),
    "a method": ({"mutable": ["count"], "method": "doubled"}, VARIABLES),
    "a random stream": ({"mutable": ["count"], "train": True, "rngs": {"dropout": jax.random.key(3)}}, VARIABLES),
    "an array": ({"mutable": ["count"], "mask": jnp.arange(5.0)}, VARIABLES),
}


@pytest.mark.parametrize("name", LINEN)
def test_a_linen_module_with_state_equals_jax_grad(name):
    kwargs, variables = LINEN[name]
    rest = jax.tree.map(jnp.array, {k: v for k, v in variables.items() if k != "params"})

    def outputs(params, x):
        return Counted().apply({"params": params, **rest}, x, **kwargs)[0]

    predict, params = models.from_linen(Counted(), variables, **kwargs)
    want = twin(outputs, params, XS)
    for _ in range(2):
        got = isouq.uncertainty(predict, params, XS, "multiclass").epistemic
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_another_array_as_a_keyword_is_another_answer():
    def epistemic(mask):
        predict, params = models.from_linen(Counted(), VARIABLES, mutable=["count"], mask=mask)
        return np.asarray(isouq.uncertainty(predict, params, XS, "multiclass").epistemic)

    one, other = jnp.arange(5.0), jnp.ones(5)
    first = epistemic(one)
    np.testing.assert_array_equal(epistemic(one + 0), first)
    assert not np.allclose(epistemic(other), first)


@pytest.mark.parametrize("out_features", [1, 3])
def test_an_mlp_without_its_module_is_the_module(out_features):
    predict, init = models.mlp(5, (4, 2), out_features, jax.nn.relu)
    params = jax.jit(init)(jax.random.key(0))
    module = models.MLP(5, (4, 2), out_features, activation=jax.nn.relu, rngs=nnx.Rngs(jax.random.key(0)))
    want = models.from_nnx(module)[0](params, XS[0])
    np.testing.assert_array_equal(predict(params, XS[0]), want[0] if out_features == 1 else want)
    jax.tree.map(np.testing.assert_array_equal, params, models.from_nnx(module)[1])
    assert predict(params, XS).shape == (2, *want.shape)[: 1 if out_features == 1 else 2]


def test_numbers_of_mlp_init_stay():
    _, init = models.mlp(2, (3,), 1)
    params = init(jax.random.key(0))
    np.testing.assert_allclose(params["layers"][1]["kernel"][:, 0], [0.78495908, 0.81752163, -0.25595918], rtol=1e-6)


class Dropping(eqx.Module):
    """Dropout between two layers, and a switch that is no parameter."""

    first: eqx.nn.Linear
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear
    negate: bool

    def __call__(self, x, scale=1.0):
        y = self.last(self.drop(jnp.tanh(self.first(x))))
        return scale * (-y if self.negate else y)


def test_an_equinox_module_is_split_and_does_not_drop():
    keys = jax.random.split(jax.random.key(0))
    module = Dropping(eqx.nn.Linear(5, 4, key=keys[0]), eqx.nn.Dropout(0.5), eqx.nn.Linear(4, 3, key=keys[1]), True)
    predict, params = models.from_equinox(module, scale=2.0)
    x = XS[0]
    hidden = np.tanh(np.asarray(module.first.weight) @ x + module.first.bias)
    want = -2 * (np.asarray(module.last.weight) @ hidden + module.last.bias)
    np.testing.assert_allclose(predict(params, x), want, rtol=1e-5)
    assert len(jax.tree.leaves(params)) == 4
    u = isouq.uncertainty(predict, params, XS, "multiclass")
    gradient = jax.grad(lambda p: jax.nn.softmax(predict(p, x))[u.target[0]])(params)
    norm = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    assert float(u.epistemic[0]) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.from_equinox(None), "module is NoneType; expected an Equinox module"),
        (lambda: models.from_equinox(Dropping), "module is Dropping; expected an Equinox module that was built"),
        (lambda: models.from_equinox(eqx.nn.Identity()), "holds no floating arrays"),
        (lambda: models.from_nnx(nnx.Linear(2, 2, rngs=nnx.Rngs(0)).eval()), r"module is None, which module.eval\(\)"),
    ],
)
def test_a_wrong_module_is_one_clear_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
