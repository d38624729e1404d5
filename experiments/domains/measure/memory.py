"""State the memory that scoring one batch by all parameters takes, by the engine and by vmap of grad."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.domains.inputs import Corpus
from experiments.domains.measure import kronecker
from experiments.domains.measure.tuned import KIND
from experiments.run.job import Result
from isouq._memory import temporary_bytes
from isouq._uncertainty import _estimate
from isouq.covariance import Diagonal
from isouq.gradnorm import Form

BATCH = 16
FORMS = ("identity", "diagonal", "kronecker")


def measure_memory(corpus: Corpus) -> Result:
    """Return the bytes that the compiled programs state; nothing is computed.

    Columns FORM_jaxpr (the engine) and FORM_vmap (vmap of grad) for the quadratic forms `FORMS`.
    """
    encoder = corpus.encoder.with_head(1, jax.random.key(0))
    xs = corpus.rows(np.arange(min(BATCH, len(corpus.labels))))
    params = encoder.params
    layers = kronecker.separate_layers(params)
    cases = {
        "identity": (encoder.predict, params, None),
        "diagonal": (encoder.predict, params, Diagonal(params)),
        "kronecker": (kronecker.PredictByLayer(encoder.predict), layers, _kronecker_shapes(layers)),
    }
    numbers: dict[str, Any] = {"num_params": int(sum(leaf.size for leaf in jax.tree.leaves(params)))}
    numbers |= {"batch": len(xs["length"]), "tokens": int(xs["ids"].shape[1])}
    for name in FORMS:
        predict, theta, covariance = cases[name]
        shapes = jax.tree.map(_shape, (theta, xs, None, covariance))
        for engine in ("jaxpr", "vmap"):
            lowered = _estimate.lower(predict, *shapes, KIND, None, engine)
            numbers[f"{name}_{engine}"] = temporary_bytes(lowered.compile())
    return Result(numbers, {"none": np.zeros(0)})


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _kronecker_shapes(params: Any) -> kronecker.PerLeaf:
    """Return the shapes of the covariance that `kronecker.kronecker` would give."""
    forms: list[Any] = []
    for leaf, diagonal in zip(jax.tree.leaves(params), kronecker.keep_diagonal(params), strict=True):
        if diagonal:
            forms.append(Form(diagonal=leaf))
            continue
        rows, columns = leaf.size // leaf.shape[-1], leaf.shape[-1]
        left, right, variances = (
            jax.ShapeDtypeStruct(shape, leaf.dtype) for shape in ((rows, rows), (columns, columns), (rows, columns))
        )
        forms.append(Form(kronecker=(left, right), diagonal=variances))  # type: ignore[arg-type]
    return kronecker.PerLeaf(forms)
