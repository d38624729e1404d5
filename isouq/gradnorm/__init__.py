"""The engine computes squared gradient norms without gradients. It needs JAX and no neural-network library."""

from isouq.gradnorm._engine import grad_sq_norm, value_and_grad_sq_norm
from isouq.gradnorm._explain import explain
from isouq.gradnorm._forms import Form, value_and_grad_quadratic
from isouq.gradnorm._probes import Estimate, grad_sq_norm_probes

__all__ = [
    "Estimate",
    "Form",
    "explain",
    "grad_sq_norm",
    "grad_sq_norm_probes",
    "value_and_grad_quadratic",
    "value_and_grad_sq_norm",
]
