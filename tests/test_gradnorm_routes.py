"""Which way each parameter takes, what that saves, and that `explain` says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import isouq

IDS = jnp.array([1, 3, 1])


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def scalar(y):
    return jnp.sum(jnp.sin(y))


def routes(f, params, *args):
    return {row.leaf: row.route for row in isouq.explain(f)(params, *args)}


def straight_through():
    @jax.custom_vjp
    def double(w):
        return w

    double.defvjp(lambda w: (w, None), lambda _, cotangent: (2 * cotangent,))
    return double


ROUTES = {
    "one position": (lambda w, x: scalar(x @ w), (30, 20), (30,), "outer"),
    "one position of a small weight": (
        lambda w, x: scalar(x @ w),
        (32, 4),
        (32,),
        "direct: cheaper (at most 128 entries)",
    ),
    "one position of a weight that is not small": (lambda w, x: scalar(x @ w), (43, 3), (43,), "outer"),
    "few positions": (lambda w, x: scalar(jnp.tanh(x @ w)), (30, 20), (3, 30), "gram"),
    "many positions": (lambda w, x: scalar(jnp.tanh(x @ w)), (30, 20), (50, 30), "product"),
    "transposed": (lambda w, x: scalar(x @ w.T), (20, 30), (30,), "outer"),
    "reshaped": (lambda w, x: scalar(x @ w.reshape(30, 20)), (600,), (30,), "outer"),
    "heads": (lambda w, x: scalar(jnp.einsum("td,hdk->htk", x, w)), (4, 30, 5), (3, 30), "gram"),
    "split": (lambda w, x: scalar(sum(jnp.tanh(x @ v) for v in jnp.split(w, 3, 1))), (30, 60), (30,), "outer"),
    "cast": (lambda w, x: scalar((x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)) + 0.0), (30, 20), (30,), "outer"),
    "embedding": (lambda w, x: scalar(w[IDS]), (50, 20), (), "lookup"),
    "one row": (lambda w, x: scalar(w[x.astype(int)]), (50, 20), (), "outer"),
    "rows and columns of one table": (
        lambda w, x: scalar(w[x.astype(int)]) + scalar(w[:, x.astype(int) + 1]),
        (20, 20),
        (),
        "product of all uses together",
    ),
    "convolution": (
        lambda w, x: scalar(lax.conv(x, w, (1, 1), "SAME")),
        (8, 4, 3, 3),
        (1, 4, 9, 9),
        "product",
    ),
    "checkpoint": (lambda w, x: scalar(jax.checkpoint(lambda w: jnp.tanh(x @ w))(w)), (30, 20), (30,), "outer"),
    "layers in a scan": (
        lambda w, x: scalar(lax.scan(lambda h, v: (jnp.tanh(h @ v), None), x, w)[0]),
        (3, 30, 30),
        (30,),
        "outer",
    ),
    "reused in a scan": (
        lambda w, x: scalar(lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, 3)[0]),
        (30, 30),
        (30,),
        "gram of all uses together",
    ),
    "reused in a scan more often than it is large": (
        lambda w, x: scalar(lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, None, 9)[0]),
        (8, 8),
        (8,),
        "direct: cheaper (64 numbers; pairs of all uses: 144)",
    ),
    "tied": (lambda w, x: scalar(jnp.tanh(x @ w) @ w.T), (30, 30), (30,), "gram of all uses together"),
    "branches": (
        lambda w, x: scalar(lax.cond(x[0] > 0, lambda: x @ w, lambda: 2 * (x @ w))),
        (30, 20),
        (30,),
        "gram of all uses together",
    ),
    "bias": (lambda w, x: scalar(x + w), (30,), (30,), "direct: add"),
    "times itself": (lambda w, x: scalar(x @ (w @ w)), (30, 30), (30,), "direct: dot_general with another parameter"),
    "overlapping": (
        lambda w, x: scalar(x @ w[:, :20]) + scalar(x @ w[:, 10:]),
        (30, 30),
        (30,),
        "direct: overlapping or differently reshaped uses",
    ),
    "its own derivative": (
        lambda w, x: scalar(x @ straight_through()(w)),
        (30, 20),
        (30,),
        "direct: custom_vjp_call",
    ),
    "looked up as often as it has rows": (lambda w, x: scalar(w[IDS]), (2, 20), (), "direct: gather"),
    "unused": (lambda w, x: scalar(x), (30,), (30,), "unused"),
}


@pytest.mark.parametrize("name", ROUTES)
def test_each_use_takes_its_route_and_gives_the_norm_of_the_gradient(name):
    f, shape, data, route = ROUTES[name]
    w, x = normal(0, *shape), normal(1, *data)
    assert routes(f, w, x) == {"params": route}
    expected = jnp.sum(jax.grad(f)(w, x) ** 2)
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(w, x), expected, rtol=2e-2 if name == "cast" else 1e-5)


def test_two_parameters_that_meet_leave_the_larger_to_the_engine():
    params = {"queries": normal(0, 4, 30), "w": normal(1, 30, 30)}
    assert routes(lambda p, x: scalar(jnp.tanh(p["queries"] @ p["w"]) @ x), params, normal(2, 30)) == {
        "['queries']": "direct: dot_general with another parameter",
        "['w']": "gram",
    }


def test_parts_of_a_concatenation_are_told_apart():
    params = {"a": normal(0, 30, 8), "b": normal(1, 30, 2)}

    def f(p, x):
        return scalar(jnp.tanh(x @ jnp.concatenate([p["a"], p["b"]], axis=1)))

    norms = isouq.grad_sq_norm(f, per_leaf=True)(params, normal(2, 30))
    expected = jax.tree.map(lambda g: jnp.sum(g**2), jax.grad(f)(params, normal(2, 30)))
    assert set(routes(f, params, normal(2, 30)).values()) == {"outer"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), norms, expected)


def test_explain_prints_a_table_with_costs():
    params = {"embedding": normal(0, 500, 64), "w": normal(1, 64, 128), "b": normal(2, 128)}

    def f(p, ids):
        return scalar(jnp.tanh(p["embedding"][ids] @ p["w"] + p["b"][None]))

    table = isouq.explain(f)(params, IDS)
    assert str(table).splitlines() == [
        "leaf           shape      uses  route          cost  memory  instead of",
        "-------------  ---------  ----  -----------  ------  ------  --------------",
        "['b']          [128]      –     direct: add    128    512 B",
        "['embedding']  [500, 64]  1     lookup         192    768 B",
        "['w']          [64, 128]  1     gram         1.73 k    72 B  product 24.6 k",
    ]


def cost(shape, positions):
    """The route of a weight that this many positions share, its multiplications and what it was chosen over."""
    w, x = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((*positions, shape[0]), jnp.float32)
    (row,) = isouq.explain(lambda w, x: scalar(jnp.tanh(x @ w)))(w, x)
    return row.route, row.cost, row.instead_of


def test_the_form_with_the_smaller_cost_is_chosen():
    assert cost((16, 8), ()) == ("direct: cheaper (at most 128 entries)", 128, "")
    assert cost((43, 3), ()) == ("outer", 46, "product 129")
    assert cost((64, 64), (23,)) == ("gram", 23 * 23 * 128, "product 94.2 k")
    assert cost((64, 64), (24,)) == ("product", 24 * 64 * 64, "gram 73.7 k")  # ¾ of it


CONVOLUTIONS = {  # stride, padding, dilations, groups
    "plain": (1, "SAME", 1, 1, 1),
    "strided": (2, "SAME", 1, 1, 1),
    "dilated": (1, "VALID", 1, 2, 1),
    "transposed": (1, [(2, 1), (1, 2)], 2, 1, 1),
    "cropped": (2, [(-1, 0), (1, -2)], 1, 1, 1),
    "grouped": (1, "SAME", 1, 1, 2),
    "depthwise": (2, "SAME", 1, 1, 4),
}


@pytest.mark.parametrize("size", [6, 28])  # patches that are gathered, and those that are multiplied one by one
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_all_sizes_equal_vmap_of_grad(name, size):
    stride, padding, lhs, rhs, groups = CONVOLUTIONS[name]

    def f(w, x):
        y = lax.conv_general_dilated(x[None], w, (stride, stride), padding, (lhs, lhs), (rhs, rhs),
                                     ("NHWC", "HWIO", "NHWC"), groups)  # fmt: skip
        return scalar(y)

    w, xs = normal(0, 3, 2, 4 // groups, 8), normal(1, 3, size, size, 4)
    want = jax.vmap(lambda x: jnp.sum(jax.grad(f)(w, x) ** 2))(xs)
    np.testing.assert_allclose(jax.vmap(isouq.grad_sq_norm(f), (None, 0))(w, xs), want, rtol=1e-5)
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(w, xs[0]), want[0], rtol=1e-5)
    slope = jax.grad(lambda w: isouq.grad_sq_norm(f)(w, xs[0]))(w)
    expected = jax.grad(lambda w: jnp.sum(jax.grad(f)(w, xs[0]) ** 2))(w)
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-4 * float(jnp.abs(expected).max()))


def test_a_large_convolution_with_float64_enabled(x64):
    def f(w, x):
        return jnp.sum(jnp.tanh(lax.conv(x[None], w, (1, 1), "SAME")))

    w, x = normal(0, 8, 3, 3, 3), normal(1, 3, 32, 32)
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(w, x), jnp.sum(jax.grad(f)(w, x) ** 2), rtol=1e-5)


def test_the_patches_of_a_large_convolution_are_never_stacked():
    def f(w, x):
        y = lax.conv_general_dilated(x[None], w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return scalar(y)

    w, xs = normal(0, 3, 3, 16, 16), normal(1, 8, 24, 24, 16)
    assert temporaries(isouq.grad_sq_norm(f), w, xs) <= 8 * xs.nbytes  # nine copies would be the patches alone


def test_explain_needs_shapes_only():
    params = jax.ShapeDtypeStruct((30, 20), jnp.float32)
    (row,) = isouq.explain(lambda w, x: scalar(x @ w))(params, jax.ShapeDtypeStruct((30,), jnp.float32))
    assert (row.route, row.cost, row.memory) == ("outer", 50, 120)


def test_a_function_that_looks_at_its_parameters_is_differentiated():
    def f(w, x):
        return scalar(x @ w) if w[0, 0] > 0 else scalar(2 * x @ w)

    w, x = normal(0, 30, 20), normal(1, 30)
    assert routes(f, w, x) == {"params": "direct: f looks at values and cannot be traced"}
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(w, x), jnp.sum(jax.grad(f)(w, x) ** 2), rtol=1e-5)


def mlp(params, x):
    for w in params[:-1]:
        x = jnp.tanh(x @ w)
    return jax.nn.softmax(x @ params[-1])[0]


def temporaries(g, params, xs):
    program = jax.jit(jax.vmap(g, (None, 0))).lower(params, xs).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_no_gradient_of_a_weight_is_ever_held():
    params, xs = [normal(0, 2, 256), normal(1, 256, 256), normal(2, 256, 3)], normal(3, 64, 2)
    ours = temporaries(isouq.grad_sq_norm(mlp), params, xs)
    activations = 4 * 64 * 256  # bytes of one layer's
    assert ours <= 6 * activations
    assert temporaries(lambda p, x: sum(jnp.sum(g**2) for g in jax.grad(mlp)(p, x)), params, xs) >= 64 * 256 * 256 * 4


def test_a_stack_of_layers_reused_in_time_is_squared_over_time_alone():
    def f(w, xs):
        def layer(xs, v):
            return lax.scan(lambda h, x: (jnp.tanh(h @ v + x),) * 2, jnp.zeros(100), xs)[1], None

        return scalar(lax.scan(layer, xs, w)[0])

    (row,) = isouq.explain(f)(normal(0, 12, 100, 100), normal(1, 20, 100))
    assert (row.route, row.cost) == ("gram of all uses together", 12 * 20 * 20 * 200)


def test_a_table_whose_index_float32_cannot_hold_is_differentiated():
    def f(table):
        return scalar(table[IDS])

    sizes = {rows: jax.ShapeDtypeStruct((rows, 1), jnp.float32) for rows in (2**24, 2**24 + 1)}
    assert [isouq.explain(f)(sizes[rows])[0].route for rows in sizes] == ["lookup", "direct: gather"]


def lookup(table, ids):
    numbers = lax.GatherDimensionNumbers((), (0, 1), (0, 1))
    return lax.gather(table, ids, numbers, (1, 1), mode="clip")


ODD = {
    "a complex intermediate": (lambda w: scalar(jnp.abs((X + 1j * X) @ w)), (30, 20)),
    "a complex and a real use": (lambda w: scalar(jnp.abs((X + 1j * X) @ w)) + scalar(X @ w), (30, 20)),
    "a spectrum of a weight": (lambda w: scalar(jnp.abs(jnp.fft.rfft(w))), (30,)),
    "int8 indices of a table of 400": (lambda w: scalar(lookup(w, jnp.array([[19, 19], [9, 3]], jnp.int8))), (20, 20)),
    "uint8 indices of a table of 300": (lambda w: scalar(jnp.take(w, jnp.array([7, 255, 7], jnp.uint8), 0)), (300, 4)),
    "uint8 index of one row": (lambda w: scalar(w[jnp.asarray(200, jnp.uint8)]), (300, 4)),
    "a barrier": (
        lambda w: scalar(lax.optimization_barrier((X, w))[0] @ lax.optimization_barrier((X, w))[1]),
        (30, 20),
    ),
    "a convolution with empty output": (
        lambda w: scalar(lax.conv(jnp.ones((1, 4, 2, 2)), w, (1, 1), "VALID")),
        (8, 4, 3, 3),
    ),
    "a boolean mask": (lambda w: scalar(w[w > 0]) + scalar(X @ w), (30, 20)),
    "a size from values": (lambda w: scalar(X[: int(jnp.argmax(X)) + 1] @ w[: int(jnp.argmax(X)) + 1]), (30, 20)),
    "a branch for each platform": (
        lambda w: lax.platform_dependent(w, cpu=lambda w: scalar(X @ w), default=lambda w: scalar(2 * X @ w)),
        (30, 20),
    ),
}
X = normal(1, 30)


@pytest.mark.parametrize("name", ODD)
def test_odd_functions_get_the_norm_of_the_gradient(name):
    f, shape = ODD[name]
    w = normal(0, *shape)
    # not jax.grad: XLA's CPU compiler without its fusion emitters scatters wrongly at uint8 indices
    np.testing.assert_allclose(isouq.grad_sq_norm(f)(w), jnp.sum(jax.jacfwd(f)(w) ** 2), rtol=1e-5)


def test_an_empty_part_of_a_concatenation_counts_nothing():
    def f(p):
        return scalar(jnp.concatenate([p[0][:0], p[1]]) @ X)

    norms = isouq.grad_sq_norm(f, per_leaf=True)([normal(2, 3, 30), normal(3, 1, 30)])
    expected = [jnp.sum(g**2) for g in jax.grad(f)([normal(2, 3, 30), normal(3, 1, 30)])]
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_float8_is_accumulated_in_float32():
    w = normal(0, 30, 20).astype(jnp.float8_e4m3fn)
    norm = isouq.grad_sq_norm(lambda w: scalar(X @ w.astype(jnp.float32)))(w)
    assert norm.dtype == jnp.float32
    assert norm > 0


def test_argnums_may_be_of_numpy():
    assert isouq.grad_sq_norm(lambda a, b: a * b, np.int64(1))(3.0, 2.0) == 9.0


def test_errors_of_the_function_are_its_own():
    def f(w):
        raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        isouq.grad_sq_norm(f)(X)


def test_explain_prints_equal_blocks_on_one_line():
    def f(params, x):
        for i in range(3):
            x = jnp.tanh(x @ params[f"block{i}"]["w1"])
        return jnp.sum(x @ params["block3"]["w1"])

    params = {f"block{i}": {"w1": jnp.ones((80, 80))} for i in range(3)} | {"block3": {"w1": jnp.ones((80, 2))}}
    explanation = isouq.explain(f)(params, jnp.ones(80))
    assert len(explanation) == 4  # the rows themselves stay
    lines = str(explanation).splitlines()[2:]
    assert [line.split("  ")[0] for line in lines] == ["['block*']['w1'] × 3", "['block3']['w1']"]
    assert len({line.index("outer") for line in lines}) == 1
