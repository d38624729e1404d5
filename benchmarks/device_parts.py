"""The parts of `python -m benchmarks device`: each yields rows, the most important first."""

import contextlib
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import isouq
from benchmarks import cancellation, cases, models, runner, timing
from experiments.synthetic.measure.reference import measure_references, sampler_settings
from experiments.synthetic.presets import scaling
from experiments.synthetic.study import Cell, run_cell
from isouq import problems

Row = dict[str, Any]
PRECISIONS = {"TF32 off": "highest", "TF32 on": "default"}  # matrix products of float32 inputs
ROUNDING = {"TF32 off": 1e-7, "TF32 on": 1e-3}


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
    """Train and sample references of each width in one program, and one after the other, with one round of draws."""
    widths = (1024, 32, 256, 4, 128, 512, 64, 16, 8, 2) if preset == "full" else (4, 2)
    count, length = (16, 20) if preset == "full" else (2, 3)
    transitions = 100 if preset == "full" else 10  # of warm-up, and of draws
    for width in widths:
        cells = [
            Cell(
                scaling.PROBLEM, seed, width, num_warmup=transitions, num_draws=transitions, max_rounds=1,
                num_leapfrog=length, resolution=20,
            )
            for seed in range(count)
        ]  # fmt: skip
        for contestant, some, at_once in (("vmap", cells, count), ("one by one", cells[:2], 1)):
            times = []
            for _ in range(2):
                start = time.perf_counter()
                results = measure_references(some, [problems.get(scaling.PROBLEM)] * len(some), at_once=at_once)
                times.append(time.perf_counter() - start)
            seconds = times[1] * count / len(some)
            gradients = np.mean([result.numbers["gradient_evaluations"] for result in results])
            yield {"case": f"width {width}", "contestant": contestant, "posteriors": count, "seconds": seconds,
                   "first_seconds": times[0], "gradients_per_second": count * gradients / seconds,
                   "acceptance": float(np.mean([result.numbers["acceptance"] for result in results]))}  # fmt: skip
        jax.clear_caches()


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
