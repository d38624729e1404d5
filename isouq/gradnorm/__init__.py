"""The engine: squared gradient norms. Knows JAX, knows no neural-network library."""

from isouq.gradnorm._plain import grad_sq_norm, value_and_grad_sq_norm

__all__ = ["grad_sq_norm", "value_and_grad_sq_norm"]
