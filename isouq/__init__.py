"""isouq: the uncertainty of a neural network's prediction from one forward and one backward pass.

u = isouq.uncertainty(predict, params, xs, kind="multiclass")
u.epistemic, u.aleatoric
"""

import importlib
from typing import Any

from isouq.covariance import Dense, Diagonal, Identity, Kronecker, LowRank, from_draws, laplace, negative_hessian
from isouq.gradnorm import explain, grad_sq_norm, grad_sq_norm_probes, value_and_grad_sq_norm
from isouq.uncertainty import Uncertainty, uncertainty

__version__ = "0.1.0"

_ROOMS = ("alignment", "models", "plots", "posterior", "problems", "sharding", "stats", "text")

__all__ = [
    "Dense",
    "Diagonal",
    "Identity",
    "Kronecker",
    "LowRank",
    "Uncertainty",
    "__version__",
    "explain",
    "from_draws",
    "grad_sq_norm",
    "grad_sq_norm_probes",
    "laplace",
    "negative_hessian",
    "uncertainty",
    "value_and_grad_sq_norm",
    *_ROOMS,
]


def __getattr__(name: str) -> Any:
    """Rooms that need Flax, BlackJAX or matplotlib are imported when first used."""
    if name in _ROOMS:
        return importlib.import_module(f"isouq.{name}")
    raise AttributeError(f"module 'isouq' has no attribute {name!r}")
