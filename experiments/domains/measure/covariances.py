"""Score test texts under the identity, under H_A⁻¹ (science) and under H_B⁻¹ (sports), and compare the domains."""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.domains.configuration import Configuration
from experiments.domains.measure import kronecker
from experiments.domains.measure.tuned import HEAD, KIND, Tuned, log_epistemic
from experiments.domains.statistics import compare_domains
from experiments.run.job import Result
from isouq._uncertainty import uncertainty
from isouq.covariance import laplace
from isouq.posterior import LogDensity

COMPARED = 64  # test texts a domain that are scored by all parameters; by the last layer, all of them


def compare_covariances(configuration: Configuration, tuned: Tuned) -> Result:
    """Return log U of the test texts under Σ = I, H_A⁻¹ and H_B⁻¹ (arrays), and how they differ (`compare_domains`)."""
    chosen = _compared(configuration, tuned.corpus.labels[tuned.split.test])
    test = tuned.split.test[chosen]
    identity = tuned.reference.arrays["identity_last" if configuration.last_layer else "identity"]
    logs = {"identity": identity[chosen]}
    for side, rows in (("a", tuned.split.science), ("b", tuned.split.sports)):
        logs[side] = score(configuration, tuned, rows[: configuration.proxies], test)
    labels = tuned.corpus.labels[test]
    numbers = compare_domains(logs["identity"], logs["a"], logs["b"], labels)
    scope = "last layer" if configuration.last_layer else "all parameters"
    return Result({**tuned.facts(), "scope": scope, "compared": len(test), **numbers}, {**logs, "labels": labels})


def _compared(configuration: Configuration, labels: np.ndarray) -> np.ndarray:
    """Return which test texts are scored: all, or for all parameters the first `COMPARED` of each domain."""
    if configuration.last_layer:
        return np.arange(len(labels))
    return np.sort(np.concatenate([np.flatnonzero(labels == domain)[:COMPARED] for domain in range(2)]))


def score(
    configuration: Configuration, tuned: Tuned, proxies: np.ndarray, rows: np.ndarray
) -> Float[np.ndarray, " rows"]:
    """Return log gᵀH⁻¹g of the texts `rows`, H from the texts `proxies` and the prior N(0, 1/λ)."""
    name, structure = configuration.covariance.split("_")
    curvature = "empirical_fisher" if name == "fisher" else name  # results are stored under the short name
    predict: Any = tuned.predict
    params, batch = tuned.params, 1

    def inputs(chosen: np.ndarray) -> Any:
        return tuned.features[chosen] if configuration.last_layer else tuned.corpus.rows(chosen)

    if configuration.last_layer:
        predict, params, batch = HEAD, tuned.head, 128
    elif structure == "kronecker":
        predict, params = kronecker.PredictByLayer(tuned.predict), kronecker.separate_layers(tuned.params)
    ys = tuned.corpus.labels
    # A data set must hold both classes to be accepted; the proxies, all of one class, take the place of the texts.
    both = tuned.split.train
    log_density = LogDensity.of(predict, params, inputs(both), ys[both], KIND, sigma=configuration.precision**-0.5)
    log_density = replace(log_density, xs=inputs(proxies), ys=jnp.asarray(ys[proxies], jnp.int32))
    if structure == "kronecker" and not configuration.last_layer:
        covariance: Any = kronecker.kronecker(log_density, params, curvature, batch)
    else:
        covariance = laplace(log_density, params, curvature, structure, batch_size=batch)
    scored = uncertainty(predict, params, inputs(rows), KIND, covariance=covariance, batch_size=min(16, len(rows)))
    return log_epistemic(scored)
