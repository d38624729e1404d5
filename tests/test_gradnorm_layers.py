"""Squared gradient norms against `jax.grad` on the layers of Flax NNX, Flax Linen and Equinox."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import assert_equal, run, twin

import isouq
from isouq import models
from isouq.gradnorm import _plan


@pytest.fixture(autouse=True)
def no_weight_is_small(monkeypatch):
    """The weights of these tests are tiny; their norms are to be read off where the rules allow it."""
    monkeypatch.setattr(_plan, "SMALL", 0)


BATCH = 3
IDS = "ids"  # in place of a shape: six token ids


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 4, rngs=rngs)
        self.inner = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, ids):
        return self.embed.attend(jnp.sin(self.inner(self.embed(ids))))


class FromZero(nnx.Module):
    """A recurrent cell that starts from zeros instead of drawing keys."""

    def __init__(self, cell, **options):
        self.rnn = nnx.RNN(cell, **options)

    def __call__(self, x):
        zeros = jnp.zeros(self.rnn.cell.hidden_features, x.dtype)
        pair = isinstance(self.rnn.cell, (nnx.LSTMCell, nnx.OptimizedLSTMCell))
        return self.rnn(x, initial_carry=(zeros, zeros) if pair else zeros)


class ScannedLayers(nnx.Module):
    def __init__(self, rngs):
        make = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs), in_axes=0, out_axes=0)
        self.layers = make(rngs.split(3))

    def __call__(self, x):
        forward = nnx.scan(nnx.remat(lambda x, layer: jnp.sin(layer(x))), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return forward(x, self.layers)


class Checkpointed(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)

    def __call__(self, x):
        return nnx.remat(lambda module, x: module.norm(jnp.sin(module.first(x))))(self, x)


NNX = {
    "Linear": (lambda r: nnx.Linear(3, 4, rngs=r), (3,)),
    "Linear of a sequence": (lambda r: nnx.Linear(3, 4, rngs=r), (5, 3)),
    "Linear of an image": (lambda r: nnx.Linear(3, 4, use_bias=False, rngs=r), (2, 5, 3)),
    "LinearGeneral": (lambda r: nnx.LinearGeneral((3, 2), (2, 4), axis=(-2, -1), rngs=r), (5, 3, 2)),
    "LinearGeneral with a batch axis": (lambda r: nnx.LinearGeneral(3, 4, batch_axis={0: 2}, rngs=r), (2, 5, 3)),
    "Einsum": (lambda r: nnx.Einsum("td,dhk->thk", (3, 2, 4), (2, 4), rngs=r), (5, 3)),
    "Conv": (lambda r: nnx.Conv(2, 4, 3, rngs=r), (6, 2)),
    "Conv causal": (lambda r: nnx.Conv(2, 4, (3,), padding="CAUSAL", rngs=r), (6, 2)),
    "Conv circular": (lambda r: nnx.Conv(2, 4, (3,), padding="CIRCULAR", rngs=r), (6, 2)),
    "Conv 2d with stride": (lambda r: nnx.Conv(2, 4, (3, 2), strides=2, rngs=r), (5, 6, 2)),
    "Conv 2d valid": (lambda r: nnx.Conv(2, 4, (3, 2), padding="VALID", rngs=r), (5, 6, 2)),
    "Conv groups": (lambda r: nnx.Conv(4, 6, (3,), feature_group_count=2, rngs=r), (6, 4)),
    "Conv depthwise and dilated": (
        lambda r: nnx.Conv(4, 4, (3,), kernel_dilation=2, feature_group_count=4, rngs=r),
        (6, 4),
    ),
    "ConvTranspose": (lambda r: nnx.ConvTranspose(2, 3, (3,), strides=2, rngs=r), (4, 2)),
    "ConvTranspose 2d": (lambda r: nnx.ConvTranspose(2, 3, (3, 2), (2, 1), transpose_kernel=False, rngs=r), (4, 3, 2)),
    "Embed": (lambda r: nnx.Embed(7, 4, rngs=r), IDS),
    "Embed and attend": (Tied, IDS),
    "LayerNorm": (lambda r: nnx.LayerNorm(4, rngs=r), (5, 4)),
    "RMSNorm": (lambda r: nnx.RMSNorm(4, rngs=r), (5, 4)),
    "GroupNorm": (lambda r: nnx.GroupNorm(4, num_groups=2, rngs=r), (5, 4)),
    "MultiHeadAttention": (
        lambda r: nnx.MultiHeadAttention(2, 4, 6, decode=False, normalize_qk=True, rngs=r),
        (5, 4),
    ),
    "LSTM": (lambda r: FromZero(nnx.LSTMCell(3, 4, rngs=r)), (5, 3)),
    "OptimizedLSTM": (lambda r: FromZero(nnx.OptimizedLSTMCell(3, 4, rngs=r)), (5, 3)),
    "GRU": (lambda r: FromZero(nnx.GRUCell(3, 4, rngs=r)), (5, 3)),
    "GRU in reverse": (lambda r: FromZero(nnx.GRUCell(3, 4, rngs=r), reverse=True), (5, 3)),
    "LoRALinear": (lambda r: nnx.LoRALinear(3, 4, lora_rank=2, rngs=r), (5, 3)),
    "scan over layers": (ScannedLayers, (5, 4)),
    "remat": (Checkpointed, (5, 3)),
}


class LinenTied(nn.Module):
    @nn.compact
    def __call__(self, ids):
        embed = nn.Embed(7, 4)
        return embed.attend(jnp.sin(nn.Dense(4)(embed(ids))))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4)(nn.LayerNorm()(jnp.sin(x))), None


def scanned(block):
    return nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)


class LinenScanned(nn.Module):
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        return scanned(nn.remat(Block, prevent_cse=False) if self.remat else Block)()(x, None)[0]


LINEN = {
    "Dense": (nn.Dense(4), (3,)),
    "Dense of a sequence": (nn.Dense(4), (5, 3)),
    "DenseGeneral": (nn.DenseGeneral((2, 4), axis=(-2, -1)), (5, 3, 2)),
    "DenseGeneral with batch axes": (nn.DenseGeneral(4, axis=-1, batch_dims=(0,)), (2, 5, 3)),
    "Einsum": (nn.Einsum((3, 2, 4), "td,dhk->thk"), (5, 3)),
    "Conv": (nn.Conv(4, (3,)), (6, 2)),
    "Conv 2d with stride and groups": (nn.Conv(4, (3, 2), strides=2, feature_group_count=2), (5, 6, 2)),
    "ConvLocal": (nn.ConvLocal(4, (3,)), (6, 2)),
    "ConvTranspose": (nn.ConvTranspose(3, (3,), strides=(2,)), (4, 2)),
    "Embed": (nn.Embed(7, 4), IDS),
    "Embed and attend": (LinenTied(), IDS),
    "LayerNorm": (nn.LayerNorm(), (5, 4)),
    "RMSNorm": (nn.RMSNorm(), (5, 4)),
    "GroupNorm": (nn.GroupNorm(2), (5, 4)),
    "MultiHeadAttention": (nn.MultiHeadAttention(2, qkv_features=6), (5, 4)),
    "WeightNorm": (nn.WeightNorm(nn.Dense(4)), (5, 3)),
    "LSTM": (nn.RNN(nn.LSTMCell(4)), (5, 3)),
    "OptimizedLSTM": (nn.RNN(nn.OptimizedLSTMCell(4)), (5, 3)),
    "GRU": (nn.RNN(nn.GRUCell(4)), (5, 3)),
    "LSTM in reverse": (nn.RNN(nn.LSTMCell(4), reverse=True, keep_order=True), (5, 3)),
    "remat": (nn.remat(nn.Dense)(4), (5, 3)),
    "scan over layers": (LinenScanned(), (5, 4)),
    "scan over remat": (LinenScanned(remat=True), (5, 4)),
}


class Recurrent(eqx.Module):
    cell: eqx.Module

    def __call__(self, xs):
        zeros = jnp.zeros(self.cell.hidden_size, xs.dtype)
        start = (zeros, zeros) if isinstance(self.cell, eqx.nn.LSTMCell) else zeros
        state = jax.lax.scan(lambda state, x: (self.cell(x, state), None), start, xs)[0]
        return jnp.concatenate(jax.tree.leaves(state))


class Attention(eqx.Module):
    layer: eqx.nn.MultiheadAttention

    def __call__(self, x):
        return self.layer(x, jnp.cos(x), x)


class Mapped(eqx.Module):
    layer: eqx.Module

    def __call__(self, x):
        return jax.vmap(self.layer)(x)


EQUINOX = {
    "Linear": (lambda k: eqx.nn.Linear(3, 4, key=k), (3,)),
    "Linear of a sequence": (lambda k: Mapped(eqx.nn.Linear(3, 4, key=k)), (5, 3)),
    "Linear to a scalar": (lambda k: eqx.nn.Linear(3, "scalar", key=k), (3,)),
    "Conv1d": (lambda k: eqx.nn.Conv1d(2, 4, 3, padding=1, key=k), (2, 6)),
    "Conv2d": (lambda k: eqx.nn.Conv2d(2, 4, 3, stride=2, padding=1, key=k), (2, 5, 6)),
    "Conv2d groups and dilation": (lambda k: eqx.nn.Conv2d(4, 4, 2, groups=2, dilation=2, key=k), (4, 5, 6)),
    "ConvTranspose2d": (lambda k: eqx.nn.ConvTranspose2d(2, 3, 3, stride=2, output_padding=1, key=k), (2, 3, 4)),
    "Embedding": (lambda k: Mapped(eqx.nn.Embedding(7, 4, key=k)), IDS),
    "LayerNorm": (lambda k: eqx.nn.LayerNorm(4), (4,)),
    "RMSNorm": (lambda k: Mapped(eqx.nn.RMSNorm(4)), (5, 4)),
    "GroupNorm": (lambda k: eqx.nn.GroupNorm(2, 4), (4, 5)),
    "MultiheadAttention": (lambda k: Attention(eqx.nn.MultiheadAttention(2, 4, use_query_bias=True, key=k)), (5, 4)),
    "GRU": (lambda k: Recurrent(eqx.nn.GRUCell(3, 4, key=k)), (5, 3)),
    "LSTM": (lambda k: Recurrent(eqx.nn.LSTMCell(3, 4, key=k)), (5, 3)),
    "MLP": (lambda k: eqx.nn.MLP(3, 2, 4, 2, key=k), (3,)),
    "WeightNorm": (lambda k: eqx.nn.WeightNorm(eqx.nn.Linear(3, 4, key=k)), (3,)),
    "PReLU": (lambda k: eqx.nn.PReLU(0.3), (3,)),
}


def examples(shape):
    rng = np.random.default_rng(0)
    if shape == IDS:
        return rng.integers(0, 7, (BATCH, 6), np.int32)
    return rng.normal(size=(BATCH, *shape)).astype(np.float32)


def moved(params):
    """Away from zeros and ones, so that every parameter counts."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + rng.normal(size=leaf.shape, scale=0.3).astype(leaf.dtype), params)


def loss_of(predict):
    def loss(params, x):
        out = predict(params, x)
        return jnp.sum(jnp.sin(out + jnp.arange(out.size).astype(out.dtype).reshape(out.shape)))

    return loss


def check(predict, params, xs, wide=True):
    """One example and a batch in float32 against `jax.grad` in float64 (`wide`) or float32."""
    f, params = loss_of(predict), jax.tree.map(np.asarray, moved(params))
    engine, plain = isouq.grad_sq_norm(f, per_leaf=True), twin(f)
    one, batch = run(lambda params, xs: (engine(params, xs[0]), jax.vmap(engine, (None, 0))(params, xs)), params, xs)
    with jax.enable_x64(wide):
        if wide:
            params, xs = jax.tree.map(lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a, (params, xs))
        want = run(jax.vmap(plain, (None, 0)), params, xs)
    assert {leaf.dtype for leaf in jax.tree.leaves((one, batch))} == {np.dtype(np.float32)}
    assert_equal(batch, want, 1e-5, np.float32)
    assert_equal(one, jax.tree.map(lambda leaf: leaf[0], want), 1e-5, np.float32)


@pytest.mark.parametrize("name", NNX)
def test_nnx_layers_equal_jax_grad(name):
    make, shape = NNX[name]
    predict, params = models.from_nnx(make(nnx.Rngs(0)))
    check(predict, params, examples(shape))


@pytest.mark.parametrize("name", LINEN)
def test_linen_layers_equal_jax_grad(name):
    module, shape = LINEN[name]
    xs = examples(shape)
    predict, params = models.from_linen(module, module.init(jax.random.key(0), xs[0]))
    recurrent = name.startswith(("LSTM", "OptimizedLSTM", "GRU"))  # the first state is float32, whatever the input
    check(predict, params, xs, wide=not recurrent)


@pytest.mark.parametrize("name", EQUINOX)
def test_equinox_layers_equal_jax_grad(name):
    make, shape = EQUINOX[name]
    params, static = eqx.partition(make(jax.random.key(0)), eqx.is_inexact_array)
    check(lambda params, x: eqx.combine(params, static)(x), params, examples(shape))
