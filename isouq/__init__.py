"""isouq: the uncertainty of a neural network's prediction from one forward and one backward pass.

u = isouq.uncertainty(predict, params, xs, kind="multiclass")
u.epistemic, u.aleatoric
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is imported when a name is first used
    from isouq import alignment, covariance, gradnorm, models, plots, posterior, problems, sharding, stats, text
    from isouq._batches import map_batches
    from isouq._ensemble import EnsembleUncertainty
    from isouq._evidence import PriorChoice, choose_prior, log_marginal_likelihood
    from isouq._perturbation import Perturbation, perturbation
    from isouq._predictive import Predictive, ScaleFit, fit_scale, predictive
    from isouq._uncertainty import Uncertainty, uncertainty
    from isouq.covariance import Dense, Diagonal, Identity, Kronecker, LowRank, from_draws, laplace, negative_hessian
    from isouq.density import LogDensity
    from isouq.gradnorm import explain, grad_sq_norm, grad_sq_norm_probes, value_and_grad_sq_norm

__version__ = "0.2.0"

_ROOMS = (
    "alignment", "covariance", "gradnorm", "models", "plots", "posterior", "problems", "sharding", "stats", "text",
)  # fmt: skip
_HOMES = {
    "EnsembleUncertainty": "_ensemble",
    "map_batches": "_batches",
    **dict.fromkeys(("PriorChoice", "choose_prior", "log_marginal_likelihood"), "_evidence"),
    **dict.fromkeys(("Perturbation", "perturbation"), "_perturbation"),
    **dict.fromkeys(("Predictive", "ScaleFit", "fit_scale", "predictive"), "_predictive"),
    **dict.fromkeys(("Uncertainty", "uncertainty"), "_uncertainty"),
    **dict.fromkeys(
        ("Dense", "Diagonal", "Identity", "Kronecker", "LowRank", "from_draws", "laplace", "negative_hessian"),
        "covariance",
    ),
    "LogDensity": "density",
    **dict.fromkeys(("explain", "grad_sq_norm", "grad_sq_norm_probes", "value_and_grad_sq_norm"), "gradnorm"),
}

__all__ = [
    "Dense",
    "Diagonal",
    "EnsembleUncertainty",
    "Identity",
    "Kronecker",
    "LogDensity",
    "LowRank",
    "Perturbation",
    "Predictive",
    "PriorChoice",
    "ScaleFit",
    "Uncertainty",
    "__version__",
    "alignment",
    "choose_prior",
    "covariance",
    "explain",
    "fit_scale",
    "from_draws",
    "grad_sq_norm",
    "grad_sq_norm_probes",
    "gradnorm",
    "laplace",
    "log_marginal_likelihood",
    "map_batches",
    "models",
    "negative_hessian",
    "perturbation",
    "plots",
    "posterior",
    "predictive",
    "problems",
    "sharding",
    "stats",
    "text",
    "uncertainty",
    "value_and_grad_sq_norm",
]


def __getattr__(name: str) -> Any:
    """Import the module that a public name belongs to when the name is first used."""
    if name in _ROOMS:
        return importlib.import_module(f"isouq.{name}")
    if name in _HOMES:
        value = getattr(importlib.import_module(f"isouq.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'isouq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
