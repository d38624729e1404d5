"""Every entry point against every kind of leaf: the number of `jax.grad` in float64, or a line that names the leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import sparse

import isouq
from isouq.gradnorm._probes import _normal
from isouq.posterior import LogDensity

RNG = np.random.default_rng(0)
W, IMAGINARY, B = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 3)), RNG.normal(size=3)
XS, YS = RNG.normal(size=(3, 5)), np.array([0, 1, 2])
KEY = jax.random.key(0)


def outputs(params, x):
    """Logits of one example `{"a": [5], ...}`, linear in real weights."""
    w = jnp.asarray(params["w"])
    if w.dtype.itemsize == 1:  # JAX promotes no float of 8 bits
        w = w.astype(jnp.float32)
    noise = jax.random.normal(x["key"], (5,), jnp.float32) if "key" in x else 0.0
    z = (x["a"] + noise) @ w + params["b"] * params.get("t", 1.0)
    return jnp.real(z) + jnp.square(jnp.imag(z)) / 4 if jnp.iscomplexobj(z) else z


def weighted(params, x):
    return outputs(params, x) @ jnp.arange(1.0, 4.0)


def probability(params, x):
    p = jax.nn.softmax(outputs(params, x))
    return p[jnp.argmax(p)]


def squares(f, params, xs):
    """‖∇f‖² of every row by `jax.grad` in float64, from the values that the leaves have."""

    def wide(leaf):
        leaf = leaf if isinstance(leaf, (jax.Array, np.ndarray)) else np.asarray(leaf)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        return jnp.asarray(np.asarray(leaf).astype(np.complex128 if np.iscomplexobj(leaf) else np.float64))

    with jax.enable_x64(True):
        gradients = jax.jit(jax.vmap(jax.grad(f), (None, 0)))(*jax.tree.map(wide, (params, xs)))
        return sum(np.square(np.abs(leaf)).reshape(3, -1).sum(1) for leaf in jax.tree.leaves(gradients))


def leaves(dtype=np.float32, **others):
    return {"w": jnp.asarray(W, dtype), "b": jnp.asarray(B, np.float32), **others}


def rows(dtype=np.float32, **others):
    return {"a": XS.astype(dtype), **others}


def read_only(array):
    array.flags.writeable = False
    return array


WHOLE = np.arange(15).reshape(3, 5) % 4
REAL = {  # parameters, inputs, relative error
    "float16": (leaves(jnp.float16), rows(), 2e-3),
    "bfloat16": (leaves(jnp.bfloat16), rows(), 2e-2),
    "8 bits": (leaves(jnp.float8_e4m3fn), rows(), 2e-1),
    "float64 of NumPy": ({"w": W, "b": B}, rows(np.float64), 1e-5),
    "an empty leaf": (leaves(nothing=jnp.zeros((0, 3))), rows(), 1e-5),
    "None": (leaves(nothing=None), rows(nothing=None), 1e-5),
    "a Python number": (leaves(t=2.0), rows(), 1e-5),
    "NumPy, read-only": ({"w": read_only(W.astype(np.float32)), "b": B.astype(np.float32)}, rows(), 1e-5),
    "NumPy, not contiguous": ({"w": np.asfortranarray(W)[::-1], "b": B[::-1]}, {"a": XS.T.copy().T}, 1e-5),
    "PRNG keys in xs": (leaves(), rows(key=jax.random.split(KEY, 3)), 1e-5),
    "whole numbers in xs": (leaves(), {"a": WHOLE}, 1e-5),
    "bool in xs": (leaves(), {"a": XS > 0}, 1e-5),
    "float16 in xs": (leaves(), rows(np.float16), 1e-5),
}
COMPLEX = {
    "complex": (leaves(np.complex64) | {"w": jnp.asarray(W + 1j * IMAGINARY, np.complex64)}, rows(), 1e-5),
    "complex of NumPy": ({"w": W + 1j * IMAGINARY, "b": B}, rows(), 1e-5),
}


def example(xs):
    return jax.tree.map(lambda leaf: leaf[0], xs)


@pytest.mark.parametrize("name", REAL | COMPLEX)
def test_the_engine_gives_the_number_of_jax_grad(name):
    params, xs, rtol = (REAL | COMPLEX)[name]
    want, x = squares(weighted, params, xs)[0], example(xs)
    value, norm = isouq.value_and_grad_sq_norm(weighted)(params, x)
    by_leaf = isouq.grad_sq_norm(weighted, per_leaf=True)(params, x)
    assert jax.tree.structure(by_leaf) == jax.tree.structure(params)
    for got in (norm, isouq.grad_sq_norm(weighted)(params, x), sum(jax.tree.leaves(by_leaf))):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, want, rtol=rtol)
    np.testing.assert_allclose(value, weighted(params, x), rtol=rtol)
    assert len(isouq.explain(weighted)(params, x)) == len(jax.tree.leaves(params))
    probes = isouq.grad_sq_norm_probes(weighted, 2000, KEY, chunk=2000)(params, x)
    np.testing.assert_allclose(probes.estimate, want, rtol=rtol + 4 * np.sqrt(2 / 2000))


def covariances(params):
    """Five ways to say the identity."""

    def both(leaf):
        last = np.shape(leaf)[-1] if np.ndim(leaf) else 1
        return jnp.eye(np.size(leaf) // last), jnp.eye(last)

    return [
        isouq.Identity(),
        isouq.Diagonal(jax.tree.map(lambda leaf: jnp.ones(np.shape(leaf)), params)),
        isouq.LowRank(jax.tree.map(lambda leaf: jnp.zeros((2, *np.shape(leaf))), params), 1.0),
        isouq.Kronecker(jax.tree.map(both, params)),
        isouq.Dense(jnp.eye(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))),
    ]


@pytest.mark.parametrize("name", REAL | COMPLEX)
def test_uncertainty_gives_the_number_of_jax_grad(name):
    params, xs, rtol = (REAL | COMPLEX)[name]
    want = squares(probability, params, xs)
    for engine in ("jaxpr", "vmap"):
        got = isouq.uncertainty(outputs, params, xs, "multiclass", engine=engine).epistemic
        np.testing.assert_allclose(got, want, rtol=rtol)
    for covariance in covariances(params)[: 5 if name in REAL else 1]:
        got = isouq.uncertainty(outputs, params, xs, "multiclass", covariance=covariance).epistemic
        np.testing.assert_allclose(got, want, rtol=rtol, err_msg=type(covariance).__name__)


@pytest.mark.parametrize("name", [name for name in REAL if name != "8 bits"])
def test_laplace_and_log_density_give_the_numbers_of_float32(name):
    params, xs, rtol = REAL[name]
    plain = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), params)
    values, variances = [], []
    for tree in (params, plain):
        density = LogDensity.of(outputs, tree, xs, YS, "multiclass")
        values.append(density(tree))
        variances.append(isouq.laplace(density, tree, "ggn", "diagonal").variances)
    np.testing.assert_allclose(*values, rtol=rtol)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=rtol), *variances)


def test_complex_weights_count_as_their_parts(x64):
    def parts(params, x):
        return weighted({"w": jax.lax.complex(params["real"], params["imag"]), "b": params["b"]}, x)

    x = {"a": jnp.asarray(XS[0])}
    got = isouq.grad_sq_norm(weighted)({"w": W + 1j * IMAGINARY, "b": B}, x)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, isouq.grad_sq_norm(parts)({"real": W, "imag": IMAGINARY, "b": B}, x), rtol=1e-12)


@pytest.mark.parametrize("which", range(1, 5))
def test_a_covariance_of_complex_weights_is_refused(which):
    params, xs, _ = COMPLEX["complex"]
    with pytest.raises(
        ValueError, match=r"params\['w'\] is complex64; expected a real array with a covariance .*parts?"
    ):
        isouq.uncertainty(outputs, params, xs, "multiclass", covariance=covariances(params)[which])


NO_LEAF = {
    "an integer": (jnp.arange(3), "int32"),
    "a Python integer": (2, "int"),
    "a bool": (np.ones(3, bool), "bool"),
    "a key": (KEY, "key<fry>"),
    "an old key": (jax.random.PRNGKey(0), "uint32"),
    "text": ("relu", "str"),
    "a function": (jnp.tanh, "PjitFunction"),
    "BCOO": (sparse.BCOO.fromdense(jnp.eye(3)), "a sparse BCOO"),
    "SciPy's": (scipy.sparse.csr_matrix(np.eye(3)), "a sparse csr_matrix"),
    "another byte order": (np.ones(3, ">f4"), "an array of >f4"),
    "objects": (np.array([1.0, None]), "an array of object"),
    "a Ref": (jax.new_ref(jnp.ones(3)), "Ref"),
}


@pytest.mark.parametrize("name", NO_LEAF)
def test_a_leaf_that_cannot_be_differentiated_is_named(name):
    leaf, given = NO_LEAF[name]
    params, x = leaves(odd={"leaf": leaf}), example(rows())
    for make in (isouq.grad_sq_norm, isouq.value_and_grad_sq_norm, isouq.explain, probes_of):
        with pytest.raises(TypeError) as error:
            make(weighted)(params, x)
        assert f"holds {given} at ['odd']['leaf']; expected floating arrays only (" in one_line(error)
    for run in (isouq.uncertainty, lambda *args: LogDensity.of(*args[:3], YS, args[3])):
        with pytest.raises(ValueError, match="expected a floating array") as error:
            run(outputs, params, rows(), "multiclass")
        assert f"params['odd']['leaf'] is {given}; expected a floating array (" in one_line(error)


def probes_of(f):
    return isouq.grad_sq_norm_probes(f, 2, KEY)


def one_line(error):
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (jnp.float8_e4m3fn, "is float8_e4m3fn; expected 16 bits or more"),
        (jnp.complex64, "is complex64; expected a real"),
    ],
)
def test_weights_that_a_density_does_not_take_are_named(dtype, said):
    with pytest.raises(ValueError, match=r"params\['w'\] ") as error:
        LogDensity.of(outputs, leaves(dtype), rows(), YS, "multiclass")
    assert said in one_line(error)


NO_INPUT = {
    "BCOO": (sparse.BCOO.fromdense(jnp.eye(3)), r"is a sparse BCOO; expected a dense array: xs\['odd'\].todense\(\)"),
    "BCOO with a batch": (sparse.BCOO.fromdense(jnp.eye(3), n_batch=1), r"is a sparse BCOO; expected a dense"),
    "SciPy's": (scipy.sparse.csr_array(np.eye(3)), r"is a sparse csr_array; expected a dense array"),
    "a number": (2.0, r"is a scalar; expected a leading batch axis .*a value that all rows share belongs inside"),
    "a scalar": (jnp.float32(2.0), r"is a scalar; expected a leading batch axis"),
    "text": ("relu", r"holds a str; expected JAX or NumPy arrays"),
    "another byte order": (np.ones(3, ">f4"), r"holds an array of >f4; expected .*numpy.asarray\(xs\['odd'\], float\)"),
}


@pytest.mark.parametrize("name", NO_INPUT)
def test_an_input_that_has_no_rows_of_numbers_is_named(name):
    leaf, said = NO_INPUT[name]
    for run in (isouq.uncertainty, lambda *args: LogDensity.of(*args[:3], YS, args[3])):
        with pytest.raises(ValueError, match=r"xs\['odd'\] " + said) as error:
            run(outputs, leaves(), rows(odd=leaf), "multiclass")
        one_line(error)


def test_a_sparse_example_and_a_sparse_matrix_inside_are_data():
    graph = sparse.BCOO.fromdense(jnp.asarray(np.where(W > 0, W, 0), jnp.float32))
    w = jnp.asarray(IMAGINARY[:3], jnp.float32)

    def f(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    want = isouq.grad_sq_norm(f)(w, graph.todense())
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(w, graph), want, rtol=1e-5)
    dense, by_graph = (
        isouq.uncertainty(lambda p, x, m=m: x @ p["w"] + (m.T @ x) * p["b"], leaves(), rows()["a"], "multiclass")
        for m in (graph.todense(), graph)
    )
    np.testing.assert_allclose(by_graph.epistemic, dense.epistemic, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "bfloat16", "float16", "float32", "complex64"])
def test_probes_have_variance_one_in_every_part(dtype):
    draws = np.asarray(_normal(KEY, (200_000,), jnp.dtype(dtype)))
    draws = draws.astype(np.complex128 if dtype == "complex64" else np.float64)
    for part in (draws.real, draws.imag)[: 2 if dtype == "complex64" else 1]:
        np.testing.assert_allclose(np.mean(part**2), 1, atol=0.015)
        np.testing.assert_allclose(np.mean(part), 0, atol=0.01)
