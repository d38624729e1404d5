"""Fine-tune an encoder on science and sports texts: its head alone, or then all of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from experiments.clock import Clock
from experiments.domains import texts
from experiments.domains.configuration import ACCURACY, Configuration
from experiments.domains.inputs import Corpus
from experiments.domains.measure.tuned import HEAD, HEAD_PATIENCE, HEAD_RATE, KIND, log_epistemic, scored_rows
from experiments.domains.training import Fit, fit, logits
from experiments.run.job import Result
from isouq._uncertainty import uncertainty
from isouq.text.encoder import Predict, TextEncoder

WHOLE_RATE, WHOLE_PATIENCE = 5e-5, 1
HEAD_START = 60  # epochs of the head at most, before the whole encoder is fine-tuned
Progress = Callable[[float], None]


def fine_tune(
    configuration: Configuration,
    corpus: Corpus,
    progress: Progress | None = None,
    checkpoint: Path | None = None,
) -> Result:
    """Fine-tune the head on the encoder's vectors, and for "whole" then all parameters, from there.

    Columns: accuracy on the test texts, and whether it is `ACCURACY` or more; epochs. Arrays: params (flat), the
    pooled vectors of all texts in any part of the split, and over `scored_rows` the logit of sports, the label, and
    log ‖g‖² by the parameters of the last layer and, for member 0 of "whole", by all.
    """
    clock = Clock()
    split = texts.split(corpus.labels, configuration.seed)
    encoder = corpus.encoder.with_head(1, jax.random.key(configuration.training_seed))
    whole = configuration.variant == "whole"
    tuned = _fit_head(configuration, corpus, split, encoder, clock)
    if whole:
        tuned = _fit_whole(configuration, corpus, split, encoder, tuned, progress, checkpoint)
    clock.lap("seconds_training", tuned.params)
    params, features, rows = tuned.params, tuned.features, scored_rows(split)
    head = params["head"]["out"]
    arrays = {"identity_last": log_epistemic(uncertainty(HEAD, head, features[rows], KIND))}
    if whole and not configuration.member:
        everything = uncertainty(encoder.predict, params, corpus.rows(rows), KIND, batch_size=16)
        arrays["identity"] = log_epistemic(everything)
    clock.lap("seconds_identity")
    logit = logits(HEAD, head, features[rows])
    arrays |= {
        "params": np.asarray(ravel_pytree(params if whole else head)[0], np.float32),
        "features": features[np.concatenate(split)],
        "logit": logit.astype(np.float32),
        "labels": corpus.labels[rows],
    }
    tests = len(split.test)
    accuracy = float(((logit > 0) == (corpus.labels[rows] == 1))[:tests].mean())
    numbers = {
        "accepted": accuracy >= ACCURACY,
        "accuracy": accuracy,
        "train": len(split.train),
        "validation": len(split.validation),
        "tests": tests,
        "num_params": int(arrays["params"].size),
        "epochs": len(tuned.fit.train),
        "best_epoch": tuned.fit.best,
    }
    return Result({**numbers, **clock.laps()}, arrays)


class _Step(NamedTuple):
    """Parameters of the whole encoder after a fit, and the pooled vectors under them, NaN for a text in no part."""

    fit: Fit
    params: Any
    features: np.ndarray


def _fit_head(
    configuration: Configuration, corpus: Corpus, split: texts.Split, encoder: TextEncoder, clock: Clock
) -> _Step:
    """Fit the head on the vectors of the encoder as it is; before a fit of the whole, for fewer epochs."""
    whole = configuration.variant == "whole"
    params, ys = encoder.params, corpus.labels
    rows = np.concatenate([split.train, split.validation]) if whole else np.concatenate(split)
    features = np.full((len(ys), encoder.config.hidden_size), np.nan, np.float32)
    features[rows] = np.asarray(_vectors(encoder.predict, params, corpus.rows(rows)))
    clock.lap("seconds_features")
    train, validation = ((features[part], ys[part]) for part in (split.train, split.validation))
    best = fit(HEAD, params["head"]["out"], train, validation, configuration.training_seed, rate=HEAD_RATE,
               epochs=HEAD_START if whole else configuration.epochs, patience=HEAD_PATIENCE)  # fmt: skip
    return _Step(best, params | {"head": {"out": best.params}}, features)


def _fit_whole(
    configuration: Configuration,
    corpus: Corpus,
    split: texts.Split,
    encoder: TextEncoder,
    start: _Step,
    progress: Progress | None,
    checkpoint: Path | None,
) -> _Step:
    """Fit all parameters from those of `start`."""
    train, validation = ((corpus.rows(part), corpus.labels[part]) for part in (split.train, split.validation))
    best = fit(encoder.predict, start.params, train, validation, configuration.training_seed, rate=WHOLE_RATE,
               epochs=configuration.epochs, patience=WHOLE_PATIENCE, progress=progress,
               checkpoint=checkpoint)  # fmt: skip
    used = np.concatenate(split)
    features = start.features.copy()
    features[used] = np.asarray(_vectors(encoder.predict, best.params, corpus.rows(used)))
    return _Step(best, best.params, features)


@jax.jit
def _vectors(predict: Predict, params: Any, xs: Any) -> Array:
    """Return the pooled vector of every text, 32 at a time."""
    return jax.lax.map(lambda x: predict.vector(params, x), xs, batch_size=32)
