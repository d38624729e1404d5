"""The log density, its maximum, samples of its posterior with a verdict, and a second sampler to check them."""

from isouq._extras import extra
from isouq.density import PRIORS, LogDensity, prior_scales

with extra("posterior"):
    from isouq.posterior._sampling import Sampling
    from isouq.posterior.exact import linear_regression
    from isouq.posterior.map import MapFit, fit_map, fit_maps
    from isouq.posterior.reference import Cost, Margins, Reference, probabilities, sample_reference, sample_references
    from isouq.posterior.second_opinion import numpyro_model, sample_numpyro
    from isouq.posterior.verdict import Verdict, judge

__all__ = [
    "PRIORS",
    "Cost",
    "LogDensity",
    "MapFit",
    "Margins",
    "Reference",
    "Sampling",
    "Verdict",
    "fit_map",
    "fit_maps",
    "judge",
    "linear_regression",
    "numpyro_model",
    "prior_scales",
    "probabilities",
    "sample_numpyro",
    "sample_reference",
    "sample_references",
]
