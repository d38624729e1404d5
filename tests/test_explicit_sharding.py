"""Arrays sharded along explicit mesh axes: the norms are those of one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import isouq

RNG = np.random.default_rng(0)
PARAMS = {name: jnp.asarray(RNG.normal(size=size), jnp.float32) for name, size in {"a": (6, 8), "b": (8, 4)}.items()}
INPUTS = {"one position": (4, 6), "a sequence": (4, 5, 6)}
SHARDINGS = {"rows of xs": (None, "xs"), "columns": ("a", (None, "d")), "rows of a weight": ("b", ("d", None))}


def predict(p, x):
    h = jnp.tanh(x @ p["a"]) @ p["b"]
    return h if x.ndim == 1 else h.mean(0)


def scanned(p, x):
    rows = jnp.atleast_2d(x)
    return jax.lax.scan(lambda h, row: (h + jnp.tanh(row @ p["a"]) @ p["b"], None), jnp.zeros(4), rows)[0]


@pytest.mark.parametrize("f", [predict, scanned], ids=lambda f: f.__name__)
@pytest.mark.parametrize("sharding", SHARDINGS)
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto], ids=str)
def test_the_result_is_that_of_one_device(name, sharding, kind, f):
    leaf, spec = SHARDINGS[sharding]
    xs = jnp.asarray(np.random.default_rng(1).normal(size=INPUTS[name]), jnp.float32)
    want = isouq.uncertainty(f, PARAMS, xs, "multiclass").epistemic
    mesh = jax.make_mesh((2,), ("d",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        if leaf is None:
            params, inputs = PARAMS, jax.device_put(xs, NamedSharding(mesh, PartitionSpec("d")))
        else:
            sharded = jax.device_put(PARAMS[leaf], NamedSharding(mesh, PartitionSpec(*spec)))
            params, inputs = PARAMS | {leaf: sharded}, xs
        got = isouq.uncertainty(f, params, inputs, "multiclass").epistemic
    np.testing.assert_allclose(got, want, rtol=1e-5)
