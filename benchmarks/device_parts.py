"""The parts of `python -m benchmarks device`: each yields rows, the most important first."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import isouq
from benchmarks import cancellation, cases, models, runner, timing
from experiments.synthetic.measure.reference import sampler_settings
from experiments.synthetic.presets import scaling
from experiments.synthetic.study import Cell, run_cell
from experiments.synthetic.subject import Setting, evaluation_inputs, set_up
from isouq import problems
from isouq.posterior import Margins, _blackjax
from isouq.posterior.map import _fit

Row = dict[str, Any]
PRECISIONS = {"TF32 off": "highest", "TF32 on": "default"}  # matrix products of float32 inputs
ROUNDING = {"TF32 off": 1e-7, "TF32 on": 1e-3}
WARMUP, DRAWS = 100, 100  # transitions of a chain in `sweep`


def equality(preset: str) -> Iterator[Row]:
    """Compare squared norms on the device with float64 on the CPU, with and without TF32."""
    for f, params, batches in _functions(preset):
        norms = jax.jit(jax.vmap(isouq.grad_sq_norm(f, per_leaf=True), (None, 0)))
        grads = jax.jit(jax.vmap(_squares(f), (None, 0)))
        for name, (xs, size) in batches.items():
            with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
                truth = [np.asarray(leaf) for leaf in jax.tree.leaves(grads(*jax.tree.map(_widen, (params, xs))))]
            for contestant, precision in PRECISIONS.items():
                with jax.default_matmul_precision(precision):
                    error, plain = (_error(function(params, xs), truth) for function in (norms, grads))
                allowed = 10 * max(plain, size * ROUNDING[contestant], 1e-6)
                yield {"case": name, "contestant": contestant, "error": error, "error_of_jax_grad": plain,
                       "agrees": bool(error <= allowed)}  # fmt: skip


def _functions(preset: str) -> Iterator[tuple[Callable, Any, dict[str, tuple[np.ndarray, float]]]]:
    """Yield a scalar function of one example, its parameters, and batches by name with the size of their entries."""
    networks = cancellation.NETWORKS if preset == "full" else cancellation.NETWORKS[:2]
    params = jax.tree.map(np.float32, cancellation.weights())
    levels = {level: cancellation.inputs(level, 8, np.random.default_rng(1)) for level in (1.0, 100.0, 1e4)}
    for network in networks:
        batches = {
            f"{network.__name__}, inputs around {level:g}": (xs.astype(np.float32), level)
            for level, xs in levels.items()
        }
        yield cancellation.probability(network), params, batches
    small = (cases.mlp_cases("smoke")[0], *cases.encoder_cases("smoke"), *cases.lm_cases("smoke", tied="on"))
    for case in (*small, *cases.cnn_cases("smoke")):
        yield models.jax_function(case), models.weights(case), {case.label: (models.inputs(case), 1.0)}


def _widen(leaf: np.ndarray) -> np.ndarray:
    return np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf


def _squares(f: Callable) -> Callable:
    return lambda params, x: jax.tree.map(lambda g: jnp.sum(jnp.square(g)), jax.grad(f)(params, x))


def _error(tree: Any, truth: list[np.ndarray]) -> float:
    """Return the largest relative error; parameters that matter a millionth of all are left out."""
    total = sum(truth)
    errors = [
        np.max(np.abs(np.asarray(leaf, np.float64) - exact) / np.maximum(exact, 1e-6 * total + 1e-30))
        for leaf, exact in zip(jax.tree.leaves(tree), truth, strict=True)
    ]
    return float(max(errors))


def ratios(preset: str) -> Iterator[Row]:
    """Time isouq beside vmap of grad on an MLP, an encoder and a language model."""
    full = preset == "full"
    options = runner.Options(timing.Plan(5, 4.0) if full else timing.Plan(1, 0.1), memory=False, only=cases.VMAP)
    groups = {
        "mlp": [cases.Case("mlp", f"MLP 2 × {width}, 16384 inputs", 16384, width=width) for width in (64, 256)]
        if full else cases.mlp_cases(preset),
        "encoder": cases.encoder_cases(preset),
        "lm": cases.lm_cases(preset, (128,), (8,), "on") if full else cases.lm_cases(preset, tied="on"),
    }  # fmt: skip
    for name, group in groups.items():
        for case in group:
            with contextlib.redirect_stdout(io.StringIO()):  # its progress
                rows = runner.run_case(name, case, options, runner.Progress([(name, case)], options))
            for row in rows:
                yield {"case": case.label, "contestant": row["contestant"], "seconds": row["seconds"],
                       "ratio": row["time_ratio"], "error": row["max_relative_error"],
                       "first_seconds": row["compile_seconds"],
                       "status": None if row["status"] == "ok" else row["status"]}  # fmt: skip


def sweep(preset: str) -> Iterator[Row]:
    """Sample posteriors of each width by vmap in one program, and one after the other."""
    widths = (1024, 32, 256, 4, 128, 512, 64, 16, 8, 2) if preset == "full" else (4, 2)
    count, steps, transitions = (16, 20, WARMUP + DRAWS) if preset == "full" else (2, 3, 20)
    for width in widths:
        cells = [Cell(scaling.PROBLEM, seed, width, "unit", 1.0, num_points=200) for seed in range(count)]
        arguments = _stack([_arguments(cell, steps, transitions) for cell in cells])
        gradients = cells[0].chains * transitions * steps
        for contestant, together in (("vmap", True), ("one by one", False)):
            program = jax.jit(jax.vmap(_sample_posterior) if together else _sample_posterior)
            parts = [arguments] if together else [jax.tree.map(lambda leaf, i=i: leaf[i], arguments) for i in range(2)]
            start = time.perf_counter()
            jax.block_until_ready(program(*parts[0]))
            first = time.perf_counter() - start
            start = time.perf_counter()
            acceptance = [np.asarray(program(*part)[1]) for part in parts]
            seconds = (time.perf_counter() - start) * (1 if together else count / len(parts))
            yield {"case": f"width {width}", "contestant": contestant, "posteriors": count, "seconds": seconds,
                   "first_seconds": first, "gradients_per_second": count * gradients / seconds,
                   "acceptance": float(np.mean(acceptance))}  # fmt: skip
        jax.clear_caches()


def _arguments(cell: Cell, steps: int, transitions: int) -> tuple[Any, ...]:
    """Return the arguments of `_sample_posterior` for a posterior of the study."""
    setting = set_up(cell, problems.get(cell.problem))
    rng = np.random.default_rng(cell.seed)
    lengths = rng.integers(-(-steps // 2), steps + steps // 2 + 1, transitions)
    keys = jax.random.split(setting.chain_key, cell.chains)
    return setting.log_density, setting.inits, jax.random.key_data(keys), _grid(cell, setting), np.int32(lengths)


def _grid(cell: Cell, setting: Setting) -> np.ndarray:
    """Return 400 of the inputs at which the study compares."""
    xs, grid, _ = evaluation_inputs(cell, setting.data.xs)
    return np.asarray(xs[grid])[:: len(xs[grid]) // 400][:400]


def _sample_posterior(log_density: Any, inits: Any, keys: Array, xs: Array, lengths: Array) -> tuple[Array, Array]:
    """Train from every start, warm up and draw; return the margins of the draws, and the mean acceptance.

    Everything that is particular to a posterior is an argument, so that vmap makes one program of many.
    """
    fit = _fit(log_density, inits, log_density.scales, jnp.full(len(keys), 1000), jnp.float32(0.05))
    theta = jax.tree.map(lambda leaf: leaf[jnp.argmax(fit.log_density)], fit.params)
    outputs = jax.vmap(log_density.predict, (None, 0))(theta, xs)
    record = Margins(log_density.predict, xs, jnp.argmax(outputs, axis=-1), log_density.kind)
    mass = _blackjax.flat_diagonal(jax.tree.map(jnp.square, log_density.scales), theta)
    half = lengths.shape[0] // 2

    def chain(position: Any, key: Array) -> tuple[Array, Array]:
        transitions = partial(_blackjax.run_block, "hmc", log_density)
        settings = jnp.float32(0.8)
        key = jax.random.wrap_key_data(key)
        state = _blackjax.start(log_density, position)
        for first, is_warm_up in ((0, True), (half, False)):
            steps = lengths[first : first + half, None]
            state, trace = transitions(
                state, mass, record, key, jnp.int32(first), steps, settings, jnp.bool_(is_warm_up)
            )
        return trace.recorded, jnp.mean(trace.acceptance)

    margins, acceptance = jax.vmap(chain)(fit.params, keys)
    return margins, jnp.mean(acceptance)


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *trees)


def references(preset: str) -> Iterator[Row]:
    """Time references of the study, each until its verdict accepts."""
    widths = (32, 256, 4) if preset == "full" else (2,)
    for width in widths:
        cell = next(cell for cell in scaling.jobs("paper" if preset == "full" else "smoke") if cell.width == width)
        times = []
        for _ in range(2):
            start = time.perf_counter()
            numbers = run_cell(cell.reference()).numbers
            times.append(time.perf_counter() - start)
        settings = sampler_settings(cell)
        yield {"case": f"{cell.problem}, width {width}, {settings.num_integration_steps} leapfrog steps",
               "contestant": "sample_reference", "seconds": times[1], "first_seconds": times[0],
               "references_per_minute": 60 / times[1], "rounds": numbers["rounds"], "accepted": numbers["accepted"],
               "gradients_per_second": numbers["gradient_evaluations"] / times[1],
               "acceptance": numbers["acceptance"]}  # fmt: skip


PARTS = {"equality": equality, "ratios": ratios, "sweep": sweep, "references": references}
