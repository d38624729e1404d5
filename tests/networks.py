"""Random small networks for the tests: a list of layers over an activation [d] or [T, d], made to be printed and rerun.

A layer is a function `layer(w, h, k)` of the weights, the activation h and the width k wished for. It asks for its
parameters with `w(*shape)`: the first run makes them, later runs are handed them in the same order. A tied
layer takes a parameter of that shape from before, if there is one.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st
from jax import lax

VOCABULARY = 5
LAYERS = {}  # by name; takes [d] and [T, d]
SEQUENCE_LAYERS = {}  # by name; takes [T, d] only


def run(function, *args):
    """Compiled and run once."""
    return jax.tree.map(np.asarray, jax.jit(function)(*args))


def twin(f):
    """‖∂f/∂leaf‖² by `jax.grad`."""
    return lambda *args: jax.tree.map(lambda g: jnp.sum(jnp.square(g)), jax.grad(f)(*args))


def assert_equal(got, want, rtol, dtype):
    """Every leaf, up to rtol of the sum of all leaves and the rounding of a gradient next to activations of size 1."""
    total = sum(np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(want))
    rounding = 10 * np.finfo(dtype).eps
    allowed = rtol * total + rounding * np.sqrt(total) + rounding**2
    found = dict(jax.tree.leaves_with_path(got))
    wanted = dict(jax.tree.leaves_with_path(want))
    assert found.keys() == wanted.keys()
    for path, leaf in wanted.items():
        error = np.abs(np.asarray(found[path], np.float64) - leaf)
        name = jax.tree_util.keystr(path)
        assert np.all(error <= allowed), f"{name}: {found[path]} where jax.grad gives {leaf} (all: {total})"


class Weights:
    """Makes parameters, when it has a random generator, or hands them out again."""

    def __init__(self, entries, ids, rng=None, seen=None):
        self.entries, self.rng, self.seen = entries, rng, {} if seen is None else seen
        self.all_ids = ids
        self.tied = False
        self.used = 0
        if rng is not None:
            entries.clear()

    def __call__(self, *shape, dtype=None):
        if self.tied and dtype is None and shape in self.seen:
            return self.seen[shape]
        if self.rng is not None:
            scale = max(1, np.prod(shape[-2:-1])) ** -0.5
            self.entries.append((scale * self.rng.normal(size=shape)).astype(dtype or np.float64))
        leaf = jnp.asarray(self.entries[self.used])
        self.used += 1
        if dtype is None:
            self.seen[shape] = leaf
        return leaf

    def block(self):
        """A function that opens the weights of a sub-block, as often as it is traced."""
        if self.rng is not None:
            self.entries.append([])
        entries, tied = self.entries[self.used], self.tied
        self.used += 1

        def opened():
            inner = Weights(entries, self.all_ids, self.rng, dict(self.seen))
            inner.tied = tied
            return inner

        return opened

    def ids(self, h):
        """Integers that belong to the example, one for each position of h."""
        return self.all_ids[: h.shape[0]] if h.ndim == 2 else self.all_ids[0]


def layer(function):
    LAYERS[function.__name__] = function
    return function


def sequence_layer(function):
    SEQUENCE_LAYERS[function.__name__] = function
    return function


def row(v, h):
    """A vector, ready to broadcast against h."""
    return v.reshape((1,) * (h.ndim - 1) + (-1,))


# Dense layers, and ways to store and to reach their weight


@layer
def dense(w, h, k):
    return h @ w(h.shape[-1], k)


@layer
def dense_bias(w, h, k):
    return h @ w(h.shape[-1], k) + row(w(k), h)


@layer
def dense_broadcast_bias(w, h, k):
    y = h @ w(h.shape[-1], k)
    return y + jnp.broadcast_to(w(k), y.shape)


@layer
def dense_einsum(w, h, k):
    return jnp.einsum("...d,dk->...k", h, w(h.shape[-1], k))


@layer
def weight_on_the_left(w, h, k):
    return jnp.einsum("kd,...d->...k", w(k, h.shape[-1]), h)


@layer
def transposed(w, h, k):
    return h @ w(k, h.shape[-1]).T


@layer
def flat(w, h, k):
    return h @ w(h.shape[-1] * k).reshape(h.shape[-1], k)


@layer
def flat_then_transposed(w, h, k):
    return h @ w(h.shape[-1] * k).reshape(k, h.shape[-1]).T


@layer
def heads_transposed_and_reshaped(w, h, k):
    d = h.shape[-1]
    return h @ w(2, d, k).transpose(1, 0, 2).reshape(d, 2 * k)


@layer
def heads_axis_merged(w, h, k):
    return h @ w(h.shape[-1], 2, k).reshape(h.shape[-1], 2 * k)


@layer
def general_output_axes(w, h, k):
    return jnp.einsum("...d,dhk->...hk", h, w(h.shape[-1], 2, k)).reshape(*h.shape[:-1], 2 * k)


@layer
def per_head(w, h, k):
    return jnp.einsum("...d,hdk->h...k", h, w(2, h.shape[-1], k)).mean(0)


@layer
def grouped(w, h, k):
    groups = jnp.stack([h, jnp.cos(h)]).reshape(2, -1, h.shape[-1])
    return jnp.einsum("gtd,gdk->gtk", groups, w(2, h.shape[-1], k)).sum(0).reshape(*h.shape[:-1], k)


@layer
def grouped_channels(w, h, k):
    parts = jnp.stack([h, 2 * h], -1)
    return jnp.einsum("...dg,gdk->...gk", parts, w(2, h.shape[-1], k)).reshape(*h.shape[:-1], 2 * k)


@layer
def summed_einsum(w, h, k):
    return jnp.einsum("...d,dkj->...k", h, w(h.shape[-1], k, 2))


@layer
def bilinear(w, h, k):
    return jnp.einsum("...d,dek,...e->...k", h, w(h.shape[-1], h.shape[-1], k), jnp.cos(h))


@layer
def diagonal_einsum(w, h, k):
    return jnp.einsum("...d,dd->...d", h, w(h.shape[-1], h.shape[-1]))


@layer
def split_gates(w, h, k):
    query, key, value = jnp.split(w(h.shape[-1], 3 * k), 3, axis=1)
    return (h @ query) * jax.nn.sigmoid(h @ key) + h @ value


@layer
def split_result(w, h, k):
    query, key = jnp.split(h @ w(h.shape[-1], 2 * k), 2, axis=-1)
    return query * jnp.cos(key)


@layer
def sliced_columns(w, h, k):
    weight = w(h.shape[-1], 2 * k)
    return h @ weight[:, :k] + jnp.cos(h) @ weight[:, k:]


@layer
def overlapping_columns(w, h, k):
    weight = w(h.shape[-1], k + 1)
    return h @ weight[:, :k] + jnp.cos(h) @ weight[:, 1:]


@layer
def sliced_rows(w, h, k):
    weight = w(2 * h.shape[-1], k)
    return h @ weight[: h.shape[-1]] + jnp.cos(h) @ weight[h.shape[-1] :]


@layer
def one_part_and_the_whole(w, h, k):
    weight = w(h.shape[-1], 2 * k)
    return jnp.cos(h) @ weight[:, :k] + (h @ weight)[..., k:]


@layer
def strided_rows(w, h, k):
    return h @ w(2 * h.shape[-1], k)[::2]


@layer
def reversed_rows(w, h, k):
    return h @ w(h.shape[-1], k)[::-1]


@layer
def concatenated_columns(w, h, k):
    d = h.shape[-1]
    return h @ jnp.concatenate([w(d, k), w(d, 1)], axis=1)


@layer
def concatenated_rows(w, h, k):
    d = h.shape[-1]
    return jnp.concatenate([h, jnp.cos(h)], -1) @ jnp.concatenate([w(d, k), w(d, k)], axis=0)


@layer
def concatenated_with_itself(w, h, k):
    weight = w(h.shape[-1], k)
    return h @ jnp.concatenate([weight, weight], axis=1)


@layer
def concatenated_with_constants(w, h, k):
    d = h.shape[-1]
    return h @ jnp.concatenate([w(d, k), jnp.ones((d, 1), h.dtype)], axis=1)


@layer
def stacked(w, h, k):
    d = h.shape[-1]
    return jnp.einsum("...d,gdk->...gk", h, jnp.stack([w(d, k), w(d, k)])).sum(-2)


@layer
def tiled(w, h, k):
    return h @ jnp.tile(w(h.shape[-1], k), (1, 2))


@layer
def padded(w, h, k):
    return h @ jnp.pad(w(h.shape[-1], k), ((0, 0), (1, 0)))


@layer
def broadcast_weight(w, h, k):
    return h @ jnp.broadcast_to(w(k), (h.shape[-1], k))


@layer
def updated_weight(w, h, k):
    return h @ w(h.shape[-1], k).at[0].set(1.0)


@layer
def triangular(w, h, k):
    return h @ jnp.tril(w(h.shape[-1], h.shape[-1]))


@layer
def cast_up(w, h, k):
    return h @ w(h.shape[-1], k, dtype=np.float32).astype(h.dtype)


# Weights stopped, scaled, added, multiplied


@layer
def stopped(w, h, k):
    return h @ lax.stop_gradient(w(h.shape[-1], k)) + row(w(k), h)


@layer
def stopped_once(w, h, k):
    weight = w(h.shape[-1], k)
    return h @ weight + jnp.cos(h) @ lax.stop_gradient(weight)


@layer
def stopped_in_part(w, h, k):
    weight = w(h.shape[-1], k)
    return h @ jnp.concatenate([lax.stop_gradient(weight[:1]), weight[1:]])


@layer
def stopped_data(w, h, k):
    return lax.stop_gradient(h) @ w(h.shape[-1], k)


@layer
def shift(w, h, k):
    return h + row(w(h.shape[-1]), h)


@layer
def shift_subtracted(w, h, k):
    return row(w(h.shape[-1]), h) - h


@layer
def scale(w, h, k):
    return h * row(w(h.shape[-1]), h)


@layer
def scale_by_broadcast(w, h, k):
    return jnp.broadcast_to(w(h.shape[-1]), h.shape) * h


@layer
def scale_used_twice(w, h, k):
    weight = row(w(h.shape[-1]), h)
    return jnp.cos(h * weight) * weight + weight


@layer
def divided(w, h, k):
    return h / (2 + jnp.cos(row(w(h.shape[-1]), h)))


@layer
def scalar(w, h, k):
    return h * w() + w()


@layer
def layer_norm(w, h, k):
    centred = h - h.mean(-1, keepdims=True)
    normal = centred * lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 0.1)
    return normal * row(w(h.shape[-1]), h) + row(w(h.shape[-1]), h)


@layer
def rms_norm(w, h, k):
    normal = h * lax.rsqrt(jnp.mean(h**2, -1, keepdims=True) + 0.1)
    return normal * (1 + row(w(h.shape[-1]), h))


@layer
def weight_times_constant(w, h, k):
    return h @ (0.5 * w(h.shape[-1], k))


@layer
def negated_and_divided(w, h, k):
    return h @ (-w(h.shape[-1], k) / 3)


@layer
def masked(w, h, k):
    d = h.shape[-1]
    mask = np.arange(d * k).reshape(d, k) % 2
    return h @ (w(d, k) * mask)


@layer
def selected(w, h, k):
    d = h.shape[-1]
    return h @ jnp.where(np.arange(d * k).reshape(d, k) % 2 == 0, w(d, k), w(d, k))


@layer
def weights_added(w, h, k):
    d = h.shape[-1]
    return h @ (w(d, k) + w(d, k))


@layer
def weight_scaled_by_data(w, h, k):
    return h @ (w(h.shape[-1], k) * jnp.mean(h))


@layer
def elementwise_and_matmul(w, h, k):
    weight = w(h.shape[-1], k)
    return (h @ weight) * jnp.sum(weight) + row(weight[0], h)


@layer
def nonlinear_weight(w, h, k):
    return h @ jnp.sin(w(h.shape[-1], k))


@layer
def squared_weight(w, h, k):
    return h @ w(h.shape[-1], k) ** 2


@layer
def weight_normalised(w, h, k):
    weight = w(h.shape[-1], k)
    return h @ (weight / (0.1 + jnp.linalg.norm(weight)))


@layer
def columns_normalised(w, h, k):
    weight = w(h.shape[-1], k)
    return h @ (weight * lax.rsqrt(0.1 + jnp.sum(weight**2, 0, keepdims=True))) * row(w(k), h)


@layer
def used_three_times(w, h, k):
    weight = w(h.shape[-1], h.shape[-1])
    return jnp.cos(jnp.cos(h @ weight) @ weight) @ weight.T


@layer
def used_at_once_and_transposed(w, h, k):
    weight = w(h.shape[-1], k)
    return jnp.sin(h @ weight) @ weight.T


@layer
def flat_and_shaped(w, h, k):
    d = h.shape[-1]
    weight = w(d * d)
    return h @ weight.reshape(d, d) + jnp.cos(h) @ weight.reshape(d, d).T


@layer
def weight_meets_itself(w, h, k):
    weight = w(h.shape[-1], h.shape[-1])
    return h @ (weight @ weight)


@layer
def gram_of_weight(w, h, k):
    weight = w(h.shape[-1], k)
    return h @ (weight @ weight.T)


@layer
def product_of_weights(w, h, k):
    return h @ (w(h.shape[-1], 2) @ w(2, k))


@layer
def low_rank_update(w, h, k):
    d = h.shape[-1]
    return h @ (w(d, k) + w(d, 1) @ w(1, k))


@layer
def empty_leaf(w, h, k):
    return h + jnp.sum(w(0, 3))


@layer
def empty_contraction(w, h, k):
    return h + (h @ w(h.shape[-1], 0)) @ w(0, h.shape[-1])


@layer
def unused_leaf(w, h, k):
    w(3)
    return h


@layer
def constants(w, h, k):
    d = h.shape[-1]
    order = jnp.asarray(np.arange(d)[::-1].copy())  # integers closed over
    return h[..., order] @ w(d, k)


@layer
def weight_permuted(w, h, k):
    d = h.shape[-1]
    return h @ w(d, k)[np.arange(d)[::-1].copy()]


# Lookups


@layer
def embedding(w, h, k):
    return h + w(VOCABULARY, h.shape[-1])[w.ids(h)]


@layer
def embedding_negative_ids(w, h, k):
    return h + w(VOCABULARY, h.shape[-1])[w.ids(h) - VOCABULARY]


@layer
def embedding_out_of_range(w, h, k):
    return h + w(VOCABULARY, h.shape[-1])[w.ids(h) + 2]


@layer
def embedding_take(w, h, k):
    return h + jnp.take(w(VOCABULARY, h.shape[-1]), w.ids(h), axis=0)


@layer
def embedding_clip(w, h, k):
    return h + jnp.take(w(VOCABULARY, h.shape[-1]), w.ids(h) + 2, axis=0, mode="clip")


@layer
def embedding_fill(w, h, k):
    return h + jnp.take(w(VOCABULARY, h.shape[-1]), w.ids(h) + 2, axis=0, mode="fill", fill_value=0.5)


@layer
def embedding_columns(w, h, k):
    columns = jnp.take(w(h.shape[-1], VOCABULARY), w.ids(h), axis=1)
    return h + jnp.moveaxis(columns, 0, -1)


@layer
def embedding_entries(w, h, k):
    ids = w.ids(h)
    return h * w(VOCABULARY, 3)[ids, ids % 3][..., None]


@layer
def one_hot(w, h, k):
    return h + jax.nn.one_hot(w.ids(h), VOCABULARY, dtype=h.dtype) @ w(VOCABULARY, h.shape[-1])


@layer
def tied_embedding(w, h, k):
    table = w(VOCABULARY, h.shape[-1])
    return jnp.cos(h + table[w.ids(h)]) @ table.T


@layer
def embedding_projected(w, h, k):
    return h + w(VOCABULARY, 2)[w.ids(h)] @ w(2, h.shape[-1])


@sequence_layer
def positions(w, h, k):
    return h + w(8, h.shape[1])[: h.shape[0]]


@layer
def expert_chosen_by_id(w, h, k):
    return jnp.einsum("...d,...dk->...k", h, w(VOCABULARY, h.shape[-1], k)[w.ids(h)])


# Attention and convolution


@sequence_layer
def mixed_positions(w, h, k):
    return w(2, h.shape[0]) @ h


@sequence_layer
def mixed_positions_and_channels(w, h, k):
    t, d = h.shape
    return jnp.einsum("td,tdsk->sk", h, w(t, d, 2, k))


@sequence_layer
def own_weight_for_each_position(w, h, k):
    t, d = h.shape
    return jnp.einsum("td,tdk->tk", h, w(t, d, k))


@sequence_layer
def self_attention(w, h, k):
    d = h.shape[1]
    query, key, value = h @ w(d, k), h @ w(d, k), h @ w(d, d)
    return h + jax.nn.softmax(query @ key.T) @ value


@sequence_layer
def multi_head_attention(w, h, k):
    d = h.shape[1]
    query, key, value = (jnp.einsum("td,dhk->thk", h, w(d, 2, k)) for _ in range(3))
    probability = jax.nn.softmax(jnp.einsum("thk,shk->hts", query, key))
    mixed = jnp.einsum("hts,shk->thk", probability, value)
    return jnp.einsum("thk,hkd->td", mixed, w(2, k, d))


@sequence_layer
def learned_queries(w, h, k):
    query = w(2, k) @ w(k, h.shape[1])
    return jax.nn.softmax(query @ h.T) @ h


@sequence_layer
def learned_token(w, h, k):
    return jnp.concatenate([w(1, h.shape[1]), h])[:8]


def conv1d(w, h, k, size=3, groups=1, **options):
    kernel = w(size, h.shape[1] // groups, k)
    options = {"window_strides": (1,), "padding": "SAME", **options}
    return lax.conv_general_dilated(
        h[None], kernel, dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups, **options
    )[0]


@sequence_layer
def conv_same(w, h, k):
    return conv1d(w, h, k)


@sequence_layer
def conv_valid(w, h, k):
    return conv1d(w, h, k, size=min(2, h.shape[0]), padding="VALID")


@sequence_layer
def conv_explicit_padding_and_stride(w, h, k):
    return conv1d(w, h, k, padding=[(2, 1)], window_strides=(2,))


@sequence_layer
def conv_dilated(w, h, k):
    return conv1d(w, h, k, rhs_dilation=(2,))


@sequence_layer
def conv_groups(w, h, k):
    return conv1d(w, jnp.concatenate([h, jnp.cos(h)], 1), 2 * k, groups=2)


@sequence_layer
def conv_depthwise(w, h, k):
    return conv1d(w, h, h.shape[1], groups=h.shape[1])


@sequence_layer
def conv_transposed(w, h, k):
    return conv1d(w, h, k, padding=[(1, 2)], lhs_dilation=(2,))[:8]


@sequence_layer
def conv_transpose_function(w, h, k):
    kernel = w(2, h.shape[1], k)
    return lax.conv_transpose(h[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0]


@sequence_layer
def conv_used_twice(w, h, k):
    kernel = w(3, h.shape[1], h.shape[1])
    for _ in range(2):
        h = lax.conv_general_dilated(jnp.sin(h)[None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))[0]
    return h


@sequence_layer
def conv_default_layout(w, h, k):
    return lax.conv(h.T[None], w(k, h.shape[1], 3), (1,), "SAME")[0].T


@sequence_layer
def conv2d(w, h, k):
    image = jnp.stack([h, jnp.cos(h)], -1)[None]
    out = lax.conv_general_dilated(image, w(2, 3, 2, k), (1, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return out[0].mean(1)


@sequence_layer
def conv2d_dilated_groups(w, h, k):
    image = jnp.stack([h, jnp.cos(h)], -1)[None]
    out = lax.conv_general_dilated(
        image,
        w(2, 2, 1, 2 * k),
        (1, 1),
        [(1, 0), (1, 1)],
        rhs_dilation=(1, 2),
        feature_group_count=2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out[0].sum(1)


@sequence_layer
def conv_batch_groups(w, h, k):
    pair = jnp.stack([h, jnp.cos(h)])
    out = lax.conv_general_dilated(
        pair, w(3, h.shape[1], 2), (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"), batch_group_count=2
    )
    return out[0]


@sequence_layer
def kernel_from_data(w, h, k):
    return lax.conv_general_dilated(
        w(1, 4, h.shape[1]), h[:1, :, None], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )[0]


# Activations


@layer
def relu(w, h, k):
    return jax.nn.relu(h + 0.1)


@layer
def gelu(w, h, k):
    return jax.nn.gelu(h)


@layer
def softmax(w, h, k):
    return jax.nn.softmax(h)


@layer
def sorted_channels(w, h, k):
    return jnp.sort(h, axis=-1)


@layer
def cumulative(w, h, k):
    return jnp.cumsum(h, axis=0)


@jax.custom_jvp
def wave(h):
    return jnp.sin(h)


@wave.defjvp
def wave_jvp(primals, tangents):
    return jnp.sin(*primals), jnp.cos(*primals) * tangents[0]


@layer
def custom_jvp_activation(w, h, k):
    return wave(h @ w(h.shape[-1], k))


# Derivatives that are not those of the function: the result must be that of `jax.grad`


@jax.custom_vjp
def straight_through(weight):
    return jnp.round(4 * weight) / 4


straight_through.defvjp(lambda weight: (straight_through(weight), None), lambda _, cotangent: (cotangent,))


@layer
def quantised_weight(w, h, k):
    return h @ straight_through(w(h.shape[-1], k))


@jax.custom_vjp
def doubling(h, weight):
    return h @ weight


def doubling_backward(residuals, cotangent):
    return jax.tree.map(lambda g: 2 * g, jax.vjp(jnp.matmul, *residuals)[1](cotangent))


doubling.defvjp(lambda h, weight: (h @ weight, (h, weight)), doubling_backward)


@layer
def custom_vjp_of_data_and_weight(w, h, k):
    return doubling(h, w(h.shape[-1], k))


@jax.custom_jvp
def tripled(weight):
    return weight


@tripled.defjvp
def tripled_jvp(primals, tangents):
    return primals[0], 3 * tangents[0]


@layer
def custom_jvp_of_weight(w, h, k):
    return h @ tripled(w(h.shape[-1], k))


@jax.custom_jvp
def product_tripled_in_weight(h, weight):
    return h @ weight


@product_tripled_in_weight.defjvp
def product_tripled_in_weight_jvp(primals, tangents):
    (h, weight), (h_dot, weight_dot) = primals, tangents
    return h @ weight, h_dot @ weight + 3 * (h @ weight_dot)


@layer
def custom_jvp_of_data_and_weight(w, h, k):
    return product_tripled_in_weight(h, w(h.shape[-1], k))


# Loops and branches


def residual(h, weight):
    return h + jnp.sin(h @ weight)


@layer
def scan_over_layers(w, h, k):
    d = h.shape[-1]
    stacks = w(3, d, d), w(3, d)
    return lax.scan(lambda h, xs: (jnp.sin(h @ xs[0] + row(xs[1], h)), None), h, stacks)[0]


@layer
def scan_over_layers_reversed(w, h, k):
    d = h.shape[-1]
    return lax.scan(lambda h, weight: (residual(h, weight), jnp.sum(h)), h, w(3, d, d), reverse=True, unroll=2)[0]


@layer
def scan_over_layers_that_end_outputs(w, h, k):
    outputs = lax.scan(lambda h, weight: (jnp.cos(h), h @ weight), h, w(2, h.shape[-1], k))[1]
    return outputs.sum(0)


@layer
def scan_over_stacked_leaves(w, h, k):
    d = h.shape[-1]
    return lax.scan(lambda h, weight: (residual(h, weight), None), h, jnp.stack([w(d, d), w(d, d)]))[0]


@layer
def scan_once(w, h, k):
    d = h.shape[-1]
    return lax.scan(lambda h, weight: (residual(h, weight), None), h, w(1, d, d))[0]


@layer
def scan_over_a_reshaped_stack(w, h, k):
    d = h.shape[-1]
    return lax.scan(lambda h, weight: (residual(h, weight.reshape(d, d).T), None), h, w(2, d * d))[0]


@layer
def scan_over_nested_stacks(w, h, k):
    d = h.shape[-1]

    def outer(h, weights):
        return lax.scan(lambda h, weight: (residual(h, weight), None), h, weights)[0], None

    return lax.scan(outer, h, w(2, 3, d, d))[0]


@layer
def scan_reusing_one_weight(w, h, k):
    weight = w(h.shape[-1], h.shape[-1])
    return lax.scan(lambda h, _: (residual(h, weight), None), h, None, length=3)[0]


@layer
def scan_over_layers_and_the_stack_again(w, h, k):
    d = h.shape[-1]
    weights = w(2, d, d)
    h = lax.scan(lambda h, weight: (residual(h, weight), None), h, weights)[0]
    return residual(h, weights[0])


@layer
def scanned_embeddings(w, h, k):
    ids = w.ids(h)
    return lax.scan(lambda h, table: (jnp.sin(h + table[ids]), None), h, w(2, VOCABULARY, h.shape[-1]))[0]


@layer
def scan_with_checkpoint(w, h, k):
    d = h.shape[-1]
    return lax.scan(jax.checkpoint(lambda h, weight: (residual(h, weight), None)), h, w(2, d, d))[0]


@sequence_layer
def recurrent(w, h, k):
    inner, outer, bias = w(h.shape[1], k), w(k, k), w(k)

    def step(state, x):
        state = jnp.sin(x @ inner + state @ outer + bias)
        return state, state

    return lax.scan(step, jnp.zeros(k, h.dtype), h)[1]


@sequence_layer
def recurrent_with_weight_in_the_carry(w, h, k):
    def step(carry, x):
        state, inner = carry
        state = jnp.sin(x @ inner + state)
        return (state, inner), state

    return lax.scan(step, (jnp.zeros(k, h.dtype), w(h.shape[1], k)), h)[1]


@sequence_layer
def recurrent_with_weight_decaying_in_the_carry(w, h, k):
    def step(carry, x):
        state, inner = carry
        state = jnp.sin(x @ inner + state)
        return (state, 0.9 * inner), state

    return lax.scan(step, (jnp.zeros(k, h.dtype), w(h.shape[1], k)), h)[1]


@sequence_layer
def recurrent_learned_start(w, h, k):
    inner = w(h.shape[1], k)
    return lax.scan(lambda state, x: (jnp.sin(x @ inner + state),) * 2, w(k), h)[1]


@sequence_layer
def recurrent_layers_in_a_scan(w, h, k):
    d = h.shape[1]

    def one(h, weights):
        inner, outer = weights
        return lax.scan(lambda state, x: (jnp.sin(x @ inner + state @ outer),) * 2, jnp.zeros(d, h.dtype), h)[1], None

    return lax.scan(one, h, (w(2, d, d), w(2, d, d)))[0]


@sequence_layer
def recurrent_embedding(w, h, k):
    table = w(VOCABULARY, h.shape[1])
    return lax.scan(lambda state, i: (jnp.sin(state + table[i]),) * 2, h[0], w.ids(h))[1]


@layer
def fori_indexed(w, h, k):
    d = h.shape[-1]
    weights = w(3, d, d)
    return lax.fori_loop(0, 3, lambda i, h: residual(h, weights[i]), h)


@layer
def loop_indexed(w, h, k):
    d = h.shape[-1]
    weights = w(3, d, d)
    for i in range(3):
        h = residual(h, weights[i])
    return h


@layer
def branch(w, h, k):
    first, second = w(h.shape[-1], k), w(h.shape[-1], k)
    return lax.cond(jnp.sum(h) > 0, lambda h: h @ first, lambda h: jnp.cos(h) @ second, h)


@layer
def branch_sharing_a_weight(w, h, k):
    weight, bias = w(h.shape[-1], k), w(k)
    y = lax.cond(jnp.sum(h) > 0, lambda h: h @ weight, lambda h: jnp.cos(h) @ weight + row(bias, h), h)
    return y + h @ weight


@layer
def branch_choosing_a_weight(w, h, k):
    first, second = w(h.shape[-1], k), w(h.shape[-1], k)
    return h @ lax.cond(jnp.sum(h) > 0, lambda: first, lambda: second)


@layer
def switch(w, h, k):
    weights = w(3, h.shape[-1], k)
    branches = [lambda h, i=i: jnp.sin(h @ weights[i] + i) for i in range(3)]
    return lax.switch(w.all_ids[0], branches, h)


@sequence_layer
def branch_in_a_scan(w, h, k):
    first, second = w(h.shape[1], k), w(h.shape[1], k)

    def step(state, x):
        state = jnp.sin(state + lax.cond(x[0] > 0, lambda: x @ first, lambda: x @ second))
        return state, state

    return lax.scan(step, jnp.zeros(k, h.dtype), h)[1]


@layer
def while_on_integers(w, h, k):
    count = lax.while_loop(lambda n: n < 10, lambda n: 3 * n + 1, w.all_ids[0])
    return h @ w(h.shape[-1], k) / count


@sequence_layer
def vmapped(w, h, k):
    weight = w(h.shape[1], k)
    return jax.vmap(lambda x: x @ weight)(h)


@layer
def vmapped_ensemble(w, h, k):
    return jax.vmap(lambda weight, bias: jnp.sin(h @ weight + row(bias, h)))(w(3, h.shape[-1], k), w(3, k)).mean(0)


@sequence_layer
def vmapped_pairs(w, h, k):
    t, d = h.shape
    return jax.vmap(lambda x, weight: x @ weight)(h, w(t, d, k))


@layer
def gradient_inside(w, h, k):
    weight = w(h.shape[-1], k)
    return jax.grad(lambda h: jnp.sum(jnp.sin(h @ weight)))(h)


# Blocks of other layers


def block(run):
    def blocked(w, h, k, *, inside=("dense_bias", "layer_norm", "used_at_once_and_transposed")):
        opened = w.block()

        def body(h):
            inner = opened()
            for name in inside:
                h = jnp.sin(LAYERS[name](inner, h, k))
            return h

        return run(body, h)

    return blocked


LAYERS["checkpointed"] = block(lambda body, h: jax.checkpoint(body)(h))
LAYERS["jitted"] = block(lambda body, h: jax.jit(body)(h))
LAYERS["checkpointed_twice"] = block(lambda body, h: jax.checkpoint(jax.checkpoint(body))(h))
LAYERS["called_twice"] = block(lambda body, h: body(h) + body(jnp.cos(h)))
LAYERS["jitted_called_twice"] = block(lambda body, h: (lambda run: run(h) + run(jnp.cos(h)))(jax.jit(body)))
LAYERS["in_a_branch"] = block(lambda body, h: lax.cond(jnp.sum(h) > 0, body, lambda h: body(jnp.cos(h)), h))
LAYERS["in_a_scan"] = block(lambda body, h: h + lax.scan(lambda h, _: (h, body(h)), h, None, length=2)[1].sum(0).mean())
LAYERS["checkpoint_that_saves_products"] = block(
    lambda body, h: jax.checkpoint(body, policy=jax.checkpoint_policies.dots_saveable)(h)
)
SEQUENCE_LAYERS["mapped_over_positions"] = block(lambda body, h: jax.vmap(body)(h))
SEQUENCE_LAYERS["mapped_in_a_loop"] = block(lambda body, h: lax.map(body, h))

LOSSES = {
    "squares": lambda h: jnp.mean(h**2),
    "smooth_absolute": lambda h: jnp.sum(jnp.sqrt(1 + h**2)),
    "log_sum_exp": lambda h: jax.nn.logsumexp(h),
    "waves": lambda h: jnp.sum(jnp.sin(h * jnp.arange(1.0, h.size + 1).astype(h.dtype).reshape(h.shape))),
    "log_softmax_of_one": lambda h: jax.nn.log_softmax(h.ravel())[0],
}

NESTS = {
    "list": (lambda entries: entries, lambda params: params),
    "tuple": (tuple, list),
    "dict": (
        lambda entries: {f"layer{i}": entry for i, entry in enumerate(entries)},
        lambda params: list(params.values()),
    ),
    "mixed": (
        lambda entries: {"first": tuple(entries[0]), "rest": {"list": entries[1:]}},
        lambda params: [list(params["first"]), *params["rest"]["list"]],
    ),
}


class Layer(NamedTuple):
    name: str
    width: int = 2
    tied: bool = False


class Network(NamedTuple):
    """`loss(params, example)` and its parameters, determined by what is printed."""

    layers: tuple[Layer, ...]
    width: int = 3
    length: int | None = 2  # None: the activation is [d]
    loss: str = "waves"
    nest: str = "list"
    seed: int = 0

    def parts(self, batch: int = 1, dtype: Any = np.float64) -> tuple[Any, Any, Any]:
        """f(params, example), params, and a batch of examples; of NumPy arrays."""
        rng = np.random.default_rng(self.seed)
        shape = (self.width,) if self.length is None else (self.length, self.width)
        examples = {
            "x": rng.normal(size=(batch, *shape)).astype(dtype),
            "ids": rng.integers(0, VOCABULARY, (batch, 16)),
        }
        pack, unpack = NESTS[self.nest]
        entries = [[] for _ in self.layers]
        jax.eval_shape(lambda example: self.run(entries, example, rng), jax.tree.map(lambda a: a[0], examples))
        narrow = functools.partial(jax.tree.map, lambda a: a.astype(np.promote_types(np.float32, dtype)))
        params = pack(entries if dtype == np.float64 else narrow(entries))
        return (lambda params, example: self.run(unpack(params), example)), params, examples

    def run(self, entries: Any, example: Any, rng: Any = None) -> Any:
        h, seen = example["x"], {}
        for (name, width, tied), mine in zip(self.layers, entries, strict=True):
            w = Weights(mine, example["ids"], rng, seen)
            w.tied = tied
            h = jnp.sin((LAYERS | SEQUENCE_LAYERS)[name](w, h, width))
        return LOSSES[self.loss](h)

    def has(self, *names: str) -> bool:
        return any(layer.name in names for layer in self.layers)


@st.composite
def networks(draw, depth=4):
    """Networks of up to `depth` layers."""
    length = draw(st.sampled_from([1, 2, 3, 4, None]))
    pool = LAYERS if length is None else LAYERS | SEQUENCE_LAYERS
    names = st.sampled_from(sorted(pool))
    layers = draw(st.lists(st.builds(Layer, names, st.integers(1, 4), st.booleans()), min_size=1, max_size=depth))
    return Network(
        tuple(layers),
        draw(st.integers(1, 4)),
        length,
        draw(st.sampled_from(sorted(LOSSES))),
        draw(st.sampled_from(sorted(NESTS))),
        draw(st.integers(0, 1000)),
    )
