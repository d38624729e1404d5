"""The problems: pure, balanced, and with the constants of the protocol."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from isouq import problems

MANY = 20_000


def draw(name, n=MANY, seed=0):
    data = problems.get(name).sample(jax.random.key(seed), n)
    return np.asarray(data.xs), np.asarray(data.ys)


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_shapes_dtypes_and_purity(name):
    problem = problems.get(name)
    data, again, other = (problem.sample(jax.random.key(seed), 50) for seed in (0, 0, 1))
    assert data.xs.shape == (50, 1 if problem.kind == "regression" else 2)
    assert data.ys.shape == (50,)
    assert data.xs.dtype == jnp.float32
    assert data.ys.dtype == (jnp.float32 if problem.kind == "regression" else jnp.int32)
    np.testing.assert_array_equal(data.xs, again.xs)
    np.testing.assert_array_equal(data.ys, again.ys)
    assert not np.array_equal(data.xs, other.xs)


@pytest.mark.parametrize(
    "name", ["binary/xor", "binary/rings", "multiclass/clusters", "multiclass/spirals", "multiclass/rings"]
)
def test_classes_are_balanced(name):
    counts = np.bincount(draw(name, 200)[1])
    assert np.ptp(counts) <= 1


def test_binary_linear():
    xs, ys = draw("binary/linear")
    np.testing.assert_allclose(xs.std(axis=0), 1.5, rtol=0.02)
    score = 2 * xs.sum(axis=1)
    near = np.abs(score - 1) < 0.2
    np.testing.assert_allclose(ys[near].mean(), 1 / (1 + np.exp(-1)), atol=0.05)


def test_binary_xor():
    xs, ys = draw("binary/xor")
    np.testing.assert_allclose(np.abs(xs).mean(), 1.0, atol=0.02)
    blob = np.round((np.sign(xs) * [2, 1]).sum(axis=1))
    own = xs[(blob == 3) & (ys == 1)]  # mostly the blob at (1, 1), its tails cut at 0
    np.testing.assert_allclose(own.mean(axis=0), 1.0, atol=0.05)
    np.testing.assert_allclose(own.std(axis=0), 0.48, atol=0.03)
    assert np.mean(ys == (xs.prod(axis=1) > 0)) > 0.93


@pytest.mark.parametrize(
    ("name", "radii", "sd"), [("binary/rings", (1, 2), 0.2), ("multiclass/rings", (1, 2, 3), 0.25)]
)
def test_rings(name, radii, sd):
    xs, ys = draw(name)
    for label, radius in enumerate(radii):
        r = np.linalg.norm(xs[ys == label], axis=1)
        np.testing.assert_allclose(r.mean(), radius, atol=0.01)
        np.testing.assert_allclose(r.std(), sd, rtol=0.03)
        angle = np.arctan2(*xs[ys == label].T)
        np.testing.assert_allclose(angle.std(), 2 * np.pi / np.sqrt(12), rtol=0.02)


def test_clusters():
    xs, ys = draw("multiclass/clusters")
    centres = np.array([xs[ys == label].mean(axis=0) for label in range(3)])
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 2.0, atol=0.04)
    np.testing.assert_allclose(np.linalg.norm(centres - np.roll(centres, 1, axis=0), axis=1), 2 * np.sqrt(3), atol=0.06)
    np.testing.assert_allclose(xs[ys == 0].std(axis=0), 0.8, rtol=0.03)


def test_spirals():
    xs, ys = draw("multiclass/spirals")
    r = np.linalg.norm(xs, axis=1)
    np.testing.assert_allclose([r.min(), r.max()], [0.25, 2.5], atol=0.01)
    t = (r - 0.25) / 2.25
    offset = np.arctan2(xs[:, 1], xs[:, 0]) - 4 * t - 2 * np.pi * ys / 3
    offset = (offset + np.pi) % (2 * np.pi) - np.pi
    np.testing.assert_allclose(offset.mean(), 0.0, atol=0.01)
    np.testing.assert_allclose(offset.std(), 0.2, rtol=0.03)


def test_regressions():
    xs, ys = draw("regression/linear")
    np.testing.assert_allclose([xs.min(), xs.max()], [-2, 2], atol=0.01)
    np.testing.assert_allclose((ys - 1.5 * xs[:, 0] + 0.5).std(), 0.3, rtol=0.03)
    xs, ys = draw("regression/nonlinear")
    size = np.abs(xs)
    np.testing.assert_allclose([size.min(), size.max(), size.mean()], [0.5, 2, 1.25], atol=0.01)
    np.testing.assert_allclose((xs > 0).mean(), 0.5, atol=0.02)
    np.testing.assert_allclose((ys - np.sin(2 * xs[:, 0])).std(), 0.2, rtol=0.03)


def test_evaluation_inputs():
    xs = np.array([[0.0, -1.0], [4.0, 1.0]])
    grid = np.asarray(problems.evaluation_inputs(xs))
    assert grid.shape == (2500, 2)
    np.testing.assert_allclose([grid.min(axis=0), grid.max(axis=0)], [[-0.5, -1.5], [4.5, 1.5]])
    assert (np.diff(grid[:50, 0]) > 0).all()
    assert np.ptp(grid[:50, 1]) == 0
    wide = np.asarray(problems.evaluation_inputs(xs, 7, widen=None))
    assert wide.shape == (49, 2)
    np.testing.assert_allclose([wide.min(axis=0), wide.max(axis=0)], [[-1, -1.5], [5, 1.5]])
    line = np.asarray(problems.evaluation_inputs(xs[:, :1]))
    assert line.shape == (400, 1)


def test_own_arrays_and_own_function():
    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(30, 3)), rng.integers(0, 3, 30)
    own = problems.from_arrays(xs, ys, "multiclass", hidden=(4,))
    assert own.num_outputs == 3
    data = own.sample(jax.random.key(0), 30)
    assert {tuple(row) for row in np.asarray(data.xs)} == {tuple(row) for row in xs.astype(np.float32)}

    def noisy_step(key, n):
        x = jax.random.normal(key, (n, 1))
        return x, (x[:, 0] > 0).astype(int)

    mine = problems.Problem("mine/step", "binary", noisy_step, hidden=(2,))
    assert mine.sample(jax.random.key(0), 20).ys.dtype == jnp.int32


def test_the_same_data_in_double_precision_mode():
    single = draw("regression/nonlinear", 50)[0]
    with jax.enable_x64(True):
        np.testing.assert_array_equal(single, draw("regression/nonlinear", 50)[0])


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_values_are_finite_and_the_first_rows_do_not_betray_the_key(name):
    xs, ys = draw(name, 200)
    other = draw(name, 200, seed=1)[0]
    assert np.isfinite(xs).all()
    assert np.isfinite(ys).all()
    assert not np.isin(xs[:, 0], other[:, 0]).any()


def test_binary_linear_has_the_coefficients_of_its_logit():
    xs, ys = draw("binary/linear")
    design = np.column_stack([xs, np.ones(MANY)])
    theta = np.zeros(3)
    for _ in range(20):  # Newton
        p = 1 / (1 + np.exp(-design @ theta))
        theta += np.linalg.solve((design.T * (p * (1 - p))) @ design, design.T @ (ys - p))
    np.testing.assert_allclose(theta, [2, 2, 0], atol=0.12)
    np.testing.assert_allclose(np.corrcoef(xs.T)[0, 1], 0, atol=0.03)


def test_binary_xor_has_the_moments_of_its_blobs():
    xs, ys = draw("binary/xor")
    np.testing.assert_allclose(xs.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose((xs**2).mean(axis=0), 1 + 0.5**2, rtol=0.02)
    for label, sign in ((0, -1), (1, 1)):  # centres (±1, ±1), label 1 where the signs are equal
        np.testing.assert_allclose(xs[ys == label].prod(axis=1).mean(), sign, atol=0.03)


def test_angles_of_clusters_and_spirals_class_by_class():
    xs, ys = draw("multiclass/clusters")
    for label in range(3):
        angle = 2 * np.pi * label / 3
        own = xs[ys == label]
        np.testing.assert_allclose(own.mean(axis=0), [2 * np.cos(angle), 2 * np.sin(angle)], atol=0.04)
        np.testing.assert_allclose(own.std(axis=0), 0.8, rtol=0.03)
    xs, ys = draw("multiclass/spirals")
    t = (np.linalg.norm(xs, axis=1) - 0.25) / 2.25
    np.testing.assert_allclose([t.mean(), t.std()], [0.5, 1 / np.sqrt(12)], atol=0.01)
    turn = np.exp(1j * (np.arctan2(xs[:, 1], xs[:, 0]) - 4 * t))
    for label in range(3):
        np.testing.assert_allclose(np.angle(turn[ys == label].mean() * np.exp(-2j * np.pi * label / 3)), 0, atol=0.02)


def test_regressions_have_their_mean_and_uniform_inputs():
    xs, ys = draw("regression/linear")
    np.testing.assert_allclose(np.polyfit(xs[:, 0], ys, 1), [1.5, -0.5], atol=0.01)
    np.testing.assert_allclose([xs.mean(), xs.std()], [0, 4 / np.sqrt(12)], atol=0.03)
    xs, ys = draw("regression/nonlinear")
    np.testing.assert_allclose(np.abs(xs).std(), 1.5 / np.sqrt(12), rtol=0.02)
    residual = ys - np.sin(2 * xs[:, 0])
    np.testing.assert_allclose(residual.mean(), 0, atol=0.006)
    np.testing.assert_allclose(np.polyfit(xs[:, 0], residual, 3), 0, atol=0.01)


def test_evaluation_inputs_widen_by_what_is_asked():
    xs = np.array([[-1.0], [3.0]])
    for widen, ends in ((0.5, [-1.5, 3.5]), (0.0, [-1, 3]), (None, [-2, 4]), (1.25, [-2.25, 4.25])):
        line = problems.evaluation_inputs(xs, 5, widen=widen)
        assert line.dtype == jnp.float32
        np.testing.assert_allclose(line[:, 0], np.linspace(*ends, 5), rtol=1e-6)
    grid = np.asarray(problems.evaluation_inputs(np.array([[0.0, 10.0], [1.0, 20.0]]), 3, widen=0.0))
    want = [[0, 10], [0.5, 10], [1, 10], [0, 15], [0.5, 15], [1, 15], [0, 20], [0.5, 20], [1, 20]]
    np.testing.assert_allclose(grid, want)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "regression"])
def test_own_rows_stay_with_their_labels_and_are_drawn_once(kind):
    xs = np.arange(40.0).reshape(40, 1)
    ys = np.arange(40) % 4 if kind == "multiclass" else np.arange(40) % 2 if kind == "binary" else np.arange(40.0)
    own = problems.from_arrays(xs, ys, kind, noise=0.1 if kind == "regression" else None, name="mine")
    assert (own.name, own.num_outputs) == ("mine", 4 if kind == "multiclass" else 1)
    data, again, other = (own.sample(jax.random.key(seed), 15) for seed in (0, 0, 1))
    rows = np.asarray(data.xs)[:, 0].astype(int)
    assert len(set(rows)) == 15
    np.testing.assert_array_equal(data.ys, ys[rows])
    np.testing.assert_array_equal(data.xs, again.xs)
    assert not np.array_equal(data.xs, other.xs)


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_a_problem_can_be_sent_to_another_process(name):
    problem = problems.get(name)
    copy = pickle.loads(pickle.dumps(problem))
    assert copy == problem
    np.testing.assert_array_equal(copy.sample(jax.random.key(0), 5).xs, problem.sample(jax.random.key(0), 5).xs)
