"""Squared gradient norms go where `jax.grad` goes: under every transformation, on every device, with every argument."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from networks import run

import isouq

BATCH = 4


def f(params, x):
    """A small network on one example `[2, 3]`: reused, looked up, scanned, normalised and plain weights."""
    h = jnp.sin(x @ params["in"] + params["bias"][None])
    h = jax.lax.scan(lambda h, w: (h + jnp.sin(h @ w), None), h, params["layers"])[0]
    h = h * (1 + params["scale"][None]) + params["table"][jnp.array([0, 2])]
    return jnp.mean(jnp.sin(h @ params["in"].T) ** 2)


def parameters(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"in": (3, 4), "bias": (4,), "layers": (2, 4, 4), "scale": (4,), "table": (6, 4)}
    return {name: jnp.asarray(rng.normal(size=shape) / 2, dtype) for name, shape in shapes.items()}


def examples(*batch, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(7).normal(size=(*batch, 2, 3)), dtype)


def squares(grads):
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)))) for leaf in grads)


def twin(f, argnums=0):
    """The sum of squares of `jax.grad`."""
    return lambda *args, **kwargs: squares(jax.tree.leaves(jax.grad(f, argnums)(*args, **kwargs)))


def assert_same(transform, *args, rtol=1e-5):
    """`transform` does to the engine what it does to its slow twin."""
    got, want = run(lambda *args: (transform(isouq.grad_sq_norm(f))(*args), transform(twin(f))(*args)), *args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), got, want)
    return got


def over_examples(g):
    return jax.vmap(g, (None, 0))


def test_without_jit():
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(parameters(), examples()), twin(f)(parameters(), examples()), 1e-5)


TRANSFORMS = {
    "jit": (jax.jit, ()),
    "jit of jit": (lambda g: jax.jit(jax.jit(g)), ()),
    "vmap": (over_examples, (BATCH,)),
    "vmap of vmap": (lambda g: over_examples(over_examples(g)), (2, 3)),
    "vmap of jit": (lambda g: over_examples(jax.jit(g)), (BATCH,)),
    "vmap along the last axis": (lambda g: lambda p, xs: jax.vmap(g, (None, -1))(p, jnp.moveaxis(xs, 0, -1)), (BATCH,)),
    "vmap with a named axis": (lambda g: jax.vmap(g, (None, 0), axis_name="examples"), (BATCH,)),
    "lax.map": (lambda g: lambda p, xs: jax.lax.map(functools.partial(g, p), xs), (BATCH,)),
    "lax.map in batches": (lambda g: lambda p, xs: jax.lax.map(functools.partial(g, p), xs, batch_size=3), (BATCH,)),
    "checkpoint": (jax.checkpoint, ()),
    "vmap of checkpoint": (lambda g: over_examples(jax.checkpoint(g)), (BATCH,)),
    "scan": (lambda g: lambda p, xs: jax.lax.scan(lambda sum, x: (sum + g(p, x), None), 0.0, xs)[0], (BATCH,)),
    "cond": (lambda g: lambda p, x: jax.lax.cond(jnp.sum(x) > 0, g, lambda p, x: -g(p, x), p, x), ()),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inside_transformations(name):
    transform, batch = TRANSFORMS[name]
    assert_same(transform, parameters(), examples(*batch))


def test_over_an_ensemble_of_parameters():
    ensemble = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[parameters(seed=seed) for seed in range(3)])
    assert_same(lambda g: jax.vmap(g, (0, None)), ensemble, examples())
    got = assert_same(lambda g: jax.vmap(over_examples(g), (0, None)), ensemble, examples(BATCH))
    assert got.shape == (3, BATCH)


def test_over_one_leaf_of_the_parameters():
    params = parameters() | {"bias": jnp.arange(8.0).reshape(2, 4)}
    axes = {name: 0 if name == "bias" else None for name in params}
    assert_same(lambda g: jax.vmap(g, (axes, None)), params, examples())


# Further derivatives


def test_grad_through_it_is_grad_through_the_twin(x64):
    params, x = parameters(jnp.float64), examples(dtype=jnp.float64)
    assert_same(jax.grad, params, x, rtol=1e-9)
    assert_same(lambda g: over_examples(jax.grad(g, 1)), params, examples(BATCH, dtype=jnp.float64), rtol=1e-9)


def test_jvp_through_it_is_jvp_through_the_twin(x64):
    params, x = parameters(jnp.float64), examples(dtype=jnp.float64)
    tangents = parameters(jnp.float64, seed=5)
    assert_same(lambda g: lambda p, x: jax.jvp(lambda p: g(p, x), (p,), (tangents,)), params, x, rtol=1e-9)


def test_vjp_linearize_and_hessian_through_it(x64):
    params, x = parameters(jnp.float64), examples(dtype=jnp.float64)
    assert_same(lambda g: lambda p, x: jax.vjp(g, p, x)[1](jnp.ones((), x.dtype)), params, x, rtol=1e-9)
    assert_same(lambda g: lambda p, x: jax.linearize(g, p, x)[1](p, x), params, x, rtol=1e-9)
    assert_same(lambda g: lambda p, x: jax.hessian(lambda b: g(p | {"bias": b}, x))(p["bias"]), params, x, rtol=1e-9)


def test_of_a_function_that_differentiates():
    def slope(params, x):
        return jnp.sum(jax.grad(f, 1)(params, x) ** 2)

    got, want = run(lambda *args: (isouq.grad_sq_norm(slope)(*args), twin(slope)(*args)), parameters(), examples())
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_of_itself():
    got, want = run(
        lambda *args: (isouq.grad_sq_norm(isouq.grad_sq_norm(f))(*args), twin(twin(f))(*args)), parameters(), examples()
    )
    np.testing.assert_allclose(got, want, rtol=1e-4)


# Several devices


@pytest.fixture
def mesh():
    return Mesh(np.array(jax.devices()[:2]), ("devices",))


def placed(mesh, params, xs):
    """Inputs split by example, the parameters by column."""
    spread = {name: P(*[None] * (leaf.ndim - 1), "devices") for name, leaf in params.items()}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in spread.items()}
    return jax.device_put(params, shardings), jax.device_put(xs, NamedSharding(mesh, P("devices"))), shardings


def test_on_sharded_inputs(mesh):
    params, xs = parameters(), examples(BATCH)
    got = assert_same(over_examples, params, jax.device_put(xs, NamedSharding(mesh, P("devices"))))
    np.testing.assert_allclose(got, run(over_examples(twin(f)), params, xs), rtol=1e-5)


def test_on_sharded_parameters_and_inputs(mesh):
    params, xs = parameters(), examples(BATCH)
    got = assert_same(over_examples, *placed(mesh, params, xs)[:2])
    np.testing.assert_allclose(got, run(over_examples(twin(f)), params, xs), rtol=1e-5)


def test_in_jit_with_shardings(mesh):
    params, xs = parameters(), examples(BATCH)
    shardings, split = placed(mesh, params, xs)[2], NamedSharding(mesh, P("devices"))
    norms = jax.jit(over_examples(isouq.grad_sq_norm(f)), in_shardings=(shardings, split), out_shardings=split)
    got = norms(params, xs)
    assert got.sharding.is_equivalent_to(split, 1)
    np.testing.assert_allclose(got, run(over_examples(twin(f)), params, xs), rtol=1e-5)


def test_with_a_sharding_constraint_on_a_weight(mesh):
    def constrained(params, x):
        split = NamedSharding(mesh, P(None, "devices"))
        return f(params | {"in": jax.lax.with_sharding_constraint(params["in"], split)}, x)

    norms = jax.jit(over_examples(isouq.grad_sq_norm(constrained)))
    params, xs = parameters(), examples(BATCH)
    np.testing.assert_allclose(norms(params, xs), run(over_examples(twin(f)), params, xs), rtol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(mesh, check_vma):
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(P(), P("devices")), out_specs=P("devices"), check_vma=check_vma
    )
    def norms(params, xs):
        params = jax.lax.pcast(params, "devices", to="varying")  # a gradient for each device, not their sum
        return over_examples(isouq.grad_sq_norm(f))(params, xs)

    params, xs = parameters(), examples(BATCH)
    np.testing.assert_allclose(run(norms, params, xs), run(over_examples(twin(f)), params, xs), rtol=1e-5)


def test_inside_shard_map_replicated_parameters_get_the_sum_over_devices(mesh):
    def spread(g):
        return jax.shard_map(over_examples(g), mesh=mesh, in_specs=(P(), P("devices")), out_specs=P("devices"))

    def norm(g):
        return lambda params, x: jax.lax.pcast(g(f)(params, x), "devices", to="varying")

    got, want = run(
        lambda *args: (spread(norm(isouq.grad_sq_norm))(*args), spread(norm(twin))(*args)),
        parameters(),
        examples(BATCH),
    )
    np.testing.assert_allclose(got, want, rtol=1e-5)


# Precision


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_give_float32(dtype):
    params, xs = parameters(dtype), examples(BATCH, dtype=dtype)
    got, want = run(
        lambda params, xs: (
            over_examples(isouq.grad_sq_norm(f))(params, xs),
            over_examples(twin(f))(*jax.tree.map(jnp.float32, (params, xs))),
        ),
        params,
        xs,
    )
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0.05 if dtype == jnp.bfloat16 else 0.01)


def test_bfloat16_is_as_close_as_the_gradient_in_bfloat16():
    params, xs = parameters(jnp.bfloat16), examples(BATCH, dtype=jnp.bfloat16)
    assert_same(over_examples, params, xs, rtol=0.02)


def test_large_float16_gradients_do_not_overflow():
    got = isouq.grad_sq_norm(lambda w: jnp.sum(w * jnp.float16(1000)))(jnp.ones(3, jnp.float16))
    np.testing.assert_allclose(got, 3e6, rtol=1e-3)


def test_mixed_precision_of_leaves():
    params = parameters()
    params |= {"table": params["table"].astype(jnp.bfloat16), "scale": params["scale"].astype(jnp.float16)}

    def mixed(params, x):
        return f(jax.tree.map(jnp.float32, params), x)

    got, want = run(
        lambda *args: (
            isouq.grad_sq_norm(mixed, per_leaf=True)(*args),
            {name: squares([leaf]) for name, leaf in jax.grad(mixed)(*args).items()},
        ),
        params,
        examples(),
    )
    assert {leaf.dtype for leaf in got.values()} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0.02), got, want)


def test_float64_stays_float64(x64):
    got = assert_same(over_examples, parameters(jnp.float64), examples(BATCH, dtype=jnp.float64), rtol=1e-12)
    assert got.dtype == np.float64


# Arguments


def of_three(a, b, x, power=2):
    return jnp.sum(jnp.sin(x @ a["w"] @ b) ** power)


THREE = {"w": jnp.arange(6.0).reshape(3, 2) / 6}, jnp.array([[0.3, -0.4], [0.1, 0.2]]), examples()


@pytest.mark.parametrize("argnums", [0, 1, 2, -1, -3, (0,), (0, 1), (1, 0), (0, -1), (0, 1, 2)])
def test_argnums_as_in_jax_grad(argnums):
    grads = jax.grad(of_three, argnums)(*THREE)
    value, total = isouq.value_and_grad_sq_norm(of_three, argnums)(*THREE)
    np.testing.assert_allclose(total, squares(jax.tree.leaves(grads)), rtol=1e-5)
    np.testing.assert_allclose(value, of_three(*THREE), rtol=1e-5)
    leaves = isouq.grad_sq_norm(of_three, argnums, per_leaf=True)(*THREE)
    assert jax.tree.structure(leaves) == jax.tree.structure(grads)
    jax.tree.map(lambda leaf, grad: np.testing.assert_allclose(leaf, jnp.sum(grad**2), rtol=1e-5), leaves, grads)


@pytest.mark.parametrize("argnums", [3, -4, (0, 3)])
def test_argnums_out_of_range_are_refused(argnums):
    for g in (jax.grad(of_three, argnums), isouq.grad_sq_norm(of_three, argnums)):
        with pytest.raises((TypeError, ValueError), match="argnums"):  # jax: ValueError for negative ones
            g(*THREE)


def test_keywords_are_passed_on():
    np.testing.assert_allclose(
        isouq.grad_sq_norm(of_three)(*THREE, power=3), twin(of_three)(*THREE, power=3), rtol=1e-5
    )
    np.testing.assert_allclose(isouq.grad_sq_norm(of_three)(*THREE[:2], x=THREE[2]), twin(of_three)(*THREE), rtol=1e-5)


def test_arguments_that_are_not_differentiated_may_be_anything():
    def g(w, name, numbers, function):
        return function(w * numbers["by"]) if name == "apply" else 0.0

    assert isouq.grad_sq_norm(g)(jnp.float32(2.0), "apply", {"by": 3}, lambda v: v**2) == 36.0**2


@pytest.mark.parametrize("jitted", [False, True])
def test_aux_is_handed_back_as_in_jax(jitted):
    def with_aux(params, x):
        return f(params, x), {"h": x @ params["in"], "ids": jnp.arange(3), "none": None}

    args = parameters(), examples()
    wrap = jax.jit if jitted else lambda g: g
    (value, aux), norm = wrap(isouq.value_and_grad_sq_norm(with_aux, has_aux=True))(*args)
    norm_alone, aux_alone = wrap(isouq.grad_sq_norm(with_aux, has_aux=True))(*args)
    (want_value, want_aux), _ = jax.value_and_grad(with_aux, has_aux=True)(*args)
    np.testing.assert_allclose(value, want_value, rtol=1e-5)
    np.testing.assert_allclose([norm, norm_alone], twin(f)(*args), rtol=1e-5)
    for found in (aux, aux_alone):
        assert jax.tree.structure(found) == jax.tree.structure(want_aux)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, want_aux)


def test_aux_may_hold_python_objects():
    def with_aux(w):
        return w**2, ("name", 3, [1.5])

    assert isouq.grad_sq_norm(with_aux, has_aux=True)(jnp.float32(3.0)) == (36.0, ("name", 3, [1.5]))
    assert jax.grad(with_aux, has_aux=True)(jnp.float32(3.0))[1] == ("name", 3, [1.5])


def test_aux_and_leaves_under_vmap():
    def with_aux(params, x):
        return f(params, x), x[0]

    xs = examples(BATCH)
    leaves, aux = jax.vmap(isouq.grad_sq_norm(with_aux, has_aux=True, per_leaf=True), (None, 0))(parameters(), xs)
    np.testing.assert_allclose(aux, xs[:, 0])
    np.testing.assert_allclose(sum(leaves.values()), run(over_examples(twin(f)), parameters(), xs), rtol=1e-5)


def test_leaves_add_up_to_the_whole():
    args = parameters(), examples()
    leaves, total = run(lambda *a: (isouq.grad_sq_norm(f, per_leaf=True)(*a), isouq.grad_sq_norm(f)(*a)), *args)
    np.testing.assert_allclose(sum(leaves.values()), total, rtol=1e-6)
    value, again = isouq.value_and_grad_sq_norm(f, per_leaf=True)(*args)
    np.testing.assert_allclose(value, f(*args), rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), again, leaves)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["w", "b"], meta_fields=["power"])
@dataclass
class Dense:
    w: jax.Array
    b: jax.Array
    power: int


def test_parameters_in_a_registered_dataclass():
    def g(dense, x):
        return jnp.sum(jnp.sin(x @ dense.w + dense.b[None]) ** dense.power)

    args = Dense(jnp.eye(3), jnp.ones(3), 2), examples()
    leaves = jax.jit(isouq.grad_sq_norm(g, per_leaf=True))(*args)
    grads = jax.grad(g)(*args)
    assert isinstance(leaves, Dense)
    assert leaves.power == 2
    np.testing.assert_allclose(leaves.w, jnp.sum(grads.w**2), rtol=1e-5)
    np.testing.assert_allclose(leaves.b, jnp.sum(grads.b**2), rtol=1e-5)


def test_a_python_float_is_a_parameter():
    np.testing.assert_allclose(isouq.grad_sq_norm(lambda w: w**3)(2.0), 144.0)
    np.testing.assert_allclose(isouq.grad_sq_norm(lambda p: p[0] * p[1])([2.0, jnp.float32(3.0)]), 13.0)


def test_numpy_arrays_are_parameters():
    params = jax.tree.map(np.asarray, parameters())
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(params, examples()), twin(f)(params, examples()), rtol=1e-5)


def test_random_keys_may_be_arguments_and_closed_over():
    key = jax.random.key(0)

    def noisy(params, x, own):
        return f(params, x + jax.random.normal(key, x.shape) + jax.random.normal(own, x.shape))

    args = parameters(), examples(), jax.random.key(1)
    got, want = run(lambda *a: (isouq.grad_sq_norm(noisy)(*a), twin(noisy)(*a)), *args)
    np.testing.assert_allclose(got, want, rtol=1e-5)


# Variables of outer transformations that f closes over


def closing(norm, params):
    """A function of x within which f closes over x, and over part of the parameters."""

    def of_x(x):
        return norm(lambda w: f(params | {"in": w}, x))(params["in"])

    return of_x


@pytest.mark.parametrize(
    "transform",
    [jax.jit, jax.grad, lambda g: jax.jit(jax.grad(g)), jax.checkpoint, lambda g: lambda x: jax.jvp(g, (x,), (x,))],
    ids=["jit", "grad", "jit of grad", "checkpoint", "jvp"],
)
def test_f_may_close_over_outer_variables(transform):
    got, want = run(
        lambda params, x: (transform(closing(isouq.grad_sq_norm, params))(x), transform(closing(twin, params))(x)),
        parameters(),
        examples(),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


def test_f_may_close_over_variables_of_vmap_and_scan():
    def norms(norm, params, xs):
        of_x = closing(norm, params)
        return jax.vmap(of_x)(xs), jax.lax.scan(lambda _, x: (None, of_x(x)), None, xs)[1]

    got, want = run(lambda *a: (norms(isouq.grad_sq_norm, *a), norms(twin, *a)), parameters(), examples(BATCH))
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_f_may_close_over_a_weight_that_it_also_takes():
    def g(norm):
        return lambda w, x: norm(lambda v: jnp.sum(jnp.sin(x @ v) @ w.T))(w)

    args = jnp.eye(3, 2), examples()
    got, want = run(lambda *a: (jax.grad(g(isouq.grad_sq_norm))(*a), jax.grad(g(twin))(*a)), *args)
    np.testing.assert_allclose(got, want, rtol=1e-5)


# What jax.grad refuses


def complex_output(w):
    return jnp.sum(w * 1j)


REFUSED = {
    "a vector": (lambda w: w**2, jnp.ones(3)),
    "one element in an axis": (lambda w: jnp.sum(w, keepdims=True), jnp.ones(3)),
    "a tuple": (lambda w: (jnp.sum(w), jnp.sum(w)), jnp.ones(3)),
    "nothing": (lambda w: None, jnp.ones(3)),
    "text": (lambda w: "loss", jnp.ones(3)),
    "integers": (lambda w: jnp.sum(w).astype(int), jnp.ones(3)),
    "complex numbers": (complex_output, jnp.ones(3)),
    "integer parameters": (lambda w: jnp.sum(w * 1.0), jnp.arange(3)),
    "a Python integer": (lambda w: w * 1.0, 3),
    "boolean parameters": (lambda w: jnp.sum(w * 1.0), jnp.array([True])),
    "an integer among the leaves": (lambda p: jnp.sum(p[0]), [jnp.ones(2), jnp.arange(2)]),
    "text among the leaves": (lambda p: jnp.sum(p[0]), [jnp.ones(2), "name"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_jax_grad_refuses_is_refused_in_one_line(name):
    g, params = REFUSED[name]
    for differentiated in (jax.grad(g), isouq.grad_sq_norm(g), isouq.value_and_grad_sq_norm(g)):
        with pytest.raises(TypeError) as caught:
            differentiated(params)
    assert "\n" not in str(caught.value)


def test_aux_that_is_no_pair_is_refused():
    for differentiated in (jax.grad(jnp.sum, has_aux=True), isouq.grad_sq_norm(jnp.sum, has_aux=True)):
        with pytest.raises(TypeError):
            differentiated(jnp.ones(3))


def test_what_f_raises_comes_through():
    def broken(w):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        isouq.grad_sq_norm(broken)(jnp.ones(3))


def test_complex_parameters_are_treated_as_by_jax_grad():
    def g(w):
        return jnp.sum(jnp.abs(w) ** 2)

    w = jnp.array([1 + 2j, 3 - 1j])
    np.testing.assert_allclose(isouq.grad_sq_norm(g)(w), jnp.sum(jnp.abs(jax.grad(g)(w)) ** 2), rtol=1e-5)


# Odd values


def test_compiled_once_for_one_shape():
    traced = []

    def counted(params, x):
        traced.append(1)
        return f(params, x)

    norms = jax.jit(over_examples(isouq.grad_sq_norm(counted)))
    norms(parameters(), examples(BATCH))
    first = len(traced)
    norms(parameters(seed=1), examples(BATCH) + 1)
    assert len(traced) == first == 1
    norms(parameters(), examples(BATCH + 1))
    assert len(traced) == 2


def test_nan_inputs_give_nan_for_that_example_alone():
    xs = examples(BATCH).at[1, 0, 0].set(jnp.nan)
    got = jax.jit(over_examples(isouq.grad_sq_norm(f)))(parameters(), xs)
    np.testing.assert_array_equal(np.isnan(got), [False, True, False, False])


def test_infinite_gradients_give_infinity():
    assert isouq.grad_sq_norm(lambda w: jnp.sum(jnp.sqrt(w)))(jnp.zeros(2)) == jnp.inf


def test_leaves_of_size_zero_count_nothing():
    params = {"w": jnp.ones((3, 2)), "none": jnp.zeros((0, 4)), "thin": jnp.zeros((3, 0))}

    def g(params, x):
        return jnp.sum(jnp.sin(x @ params["w"])) + jnp.sum(params["none"]) + jnp.sum(x @ params["thin"])

    leaves = jax.jit(isouq.grad_sq_norm(g, per_leaf=True))(params, examples())
    assert leaves["none"] == leaves["thin"] == 0
    np.testing.assert_allclose(leaves["w"], twin(g)(params, examples()), rtol=1e-5)


def test_no_parameters_give_zero():
    assert isouq.grad_sq_norm(lambda params, x: jnp.sum(x))({}, examples()) == 0


def test_a_function_that_ignores_its_parameters_gives_zero():
    leaves = isouq.grad_sq_norm(lambda params, x: jnp.sum(x), per_leaf=True)(parameters(), examples())
    assert all(leaf == 0 for leaf in leaves.values())


def test_a_function_that_returns_its_parameter():
    assert isouq.grad_sq_norm(lambda w: w)(jnp.float32(4.0)) == 1
    assert isouq.grad_sq_norm(lambda p: p[1][0])((jnp.ones(2), jnp.arange(2.0))) == 1


def test_callbacks_and_prints_in_f_are_left_alone(capfd):
    def talking(params, x):
        jax.debug.print("seen {}", x.shape[0])
        return f(params, x)

    got, want = run(lambda *a: (isouq.grad_sq_norm(talking)(*a), twin(f)(*a)), parameters(), examples())
    jax.effects_barrier()
    np.testing.assert_allclose(got, want, rtol=1e-5)
    assert capfd.readouterr().out.count("seen 2") == 1
