"""Covariances Σ of the parameters, for the quadratic form gᵀΣg.

`Identity` is the paper's isotropic choice. `Diagonal`, `Kronecker` and `LowRank` have a form for each leaf of the
parameters, so that `isouq.uncertainty` needs no gradients for them. `Dense` is any covariance of a small model.
`laplace` builds covariances from data, `from_draws` from draws of a posterior; `save` and `load` keep them in files.
"""

from isouq.covariance._dense import Dense, negative_hessian
from isouq.covariance._family import Covariance, Diagonal, Identity, Kronecker, LowRank, StructuredCovariance
from isouq.covariance._from_draws import from_draws
from isouq.covariance._laplace import laplace
from isouq.covariance._saving import load, save

__all__ = [
    "Covariance",
    "Dense",
    "Diagonal",
    "Identity",
    "Kronecker",
    "LowRank",
    "StructuredCovariance",
    "from_draws",
    "laplace",
    "load",
    "negative_hessian",
    "save",
]
