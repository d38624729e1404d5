"""The contestants on a pretrained language model in JAX: `isouq.text` as its users call it, and JAX's own gradients."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks import text_models
from benchmarks.cases import BF16, BF16_KEPT, HALVES, ISOUQ, KEPT, LAX_MAP, Case
from benchmarks.contestant import Prepared, fits
from benchmarks.jax_contestants import compiled, squares

SETTINGS = {  # dtype of the parameters, remat
    ISOUQ: ("float32", True),
    HALVES: ("float32", True),
    KEPT: ("float32", False),
    BF16: ("bfloat16", True),
    BF16_KEPT: ("bfloat16", False),
}


def prepare(name: str, case: Case) -> Prepared:
    """Compile the contestant for the case's model and answers."""
    if name == LAX_MAP:
        model = text_models.load(text_models.path(case), "float32")
        return compiled(_one_after_another(model), model.params, jnp.asarray(text_models.inputs(case)))
    dtype, remat = SETTINGS[name]
    batch_size = case.batch // 2 if name == HALVES else case.batch
    return _scored(case, text_models.load(text_models.path(case), dtype), remat, batch_size)


def _scored(case: Case, model: Any, remat: bool, batch_size: int) -> Prepared:
    """Prepare `score_rows` with its program compiled; its norms are those of ∇ log p(answer)."""
    from isouq.text import scoring
    from isouq.text.prompts import Row

    rows = [Row(ids, 1) for ids in text_models.inputs(case)]
    start = time.perf_counter()
    program = scoring.lower(model.config, model.params, rows[:batch_size], "answer", remat).compile()
    analysis = program.memory_analysis()
    seconds = time.perf_counter() - start
    fits(getattr(analysis, "temp_size_in_bytes", 0), "the compiled program needs")

    def call() -> Any:
        return list(scoring.score_rows(model, rows, "answer", batch_size, remat=remat))

    def norms(result: Any) -> np.ndarray:
        sq_norms = np.empty(len(rows))
        for indices, scores in result:
            sq_norms[indices] = np.exp(scores.log_grad_sq_norm)
        return sq_norms

    return Prepared(call, norms, seconds, getattr(analysis, "temp_size_in_bytes", None))


def _one_after_another(model: Any) -> Callable[[Any, Array], Array]:
    """Return jax.grad of the same log p, with only the model from isouq, storing one layer of activations at a time."""
    from isouq.text import language_model

    def log_p(params: Any, ids: Array) -> Array:
        each = jax.nn.log_softmax(language_model.module(model.config, params)(ids[:-1]))
        return jnp.sum(jnp.take_along_axis(each, ids[1:, None], axis=-1))

    return lambda params, xs: jax.lax.map(lambda ids: squares(jax.grad(log_p)(params, ids)), xs)
