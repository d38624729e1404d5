"""The log density: one definition, used by the estimate, the Laplace baseline and the reference."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from isouq import _checks
from isouq._checks import as_pytree_callable
from isouq._uncertainty import check_predict

PRIORS = ("unit", "fan_in")


def prior_scales(params: Any, prior: str = "unit", sigma: float = 1.0) -> Any:
    """The prior standard deviation of each leaf, a pytree of scalars like `params`.

    unit: every parameter ~ N(0, σ²). fan_in: weights ~ N(0, σ²/fan_in), biases ~ N(0, σ²), where a
    leaf with two or more axes is a weight and its fan_in is the product of all but the last axis.
    """
    _checks.one_of("prior", prior, PRIORS)
    _checks.positive("sigma", sigma)

    def scale(leaf: Any) -> Float[Array, ""]:
        shape = jnp.shape(leaf)
        fan_in = np.prod(shape[:-1]) if prior == "fan_in" and len(shape) >= 2 else 1.0
        return jnp.float32(sigma / np.sqrt(fan_in))

    return jax.tree.map(scale, params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogDensity:
    """log p(θ) + Σᵢ log p(yᵢ | xᵢ, θ), normalised in y and θ, up to log p(D).

    Calling it with a pytree of parameters gives a scalar. It is itself a pytree: the data travel as
    arguments of a compiled program and never become constants in it.
    Likelihood: Bernoulli(logit), Categorical(logits) or Normal(mean, noise²). Build it with
    `LogDensity.of`, which checks everything.
    """

    # Any: JAX rebuilds pytrees around placeholders
    predict: Any
    scales: Any
    xs: Any
    ys: Any
    noise: Any
    kind: str = field(metadata={"static": True})

    @classmethod
    def of(
        cls,
        predict: Callable,
        params: Any,
        xs: Any,
        ys: Any,
        kind: str,
        *,
        prior: str = "unit",
        sigma: float = 1.0,
        noise: float | None = None,
    ) -> "LogDensity":
        """The log density of `predict` on data (xs, ys) under a named prior.

        params: any parameters of the model; only their shapes matter here.
        noise: standard deviation of y given x; needed for regression, refused otherwise.
        """
        _checks.dataset(xs, ys, kind)
        _checks.float_leaves("params", params)
        _checks.noise(kind, noise)
        predict = as_pytree_callable(predict)
        num_classes = check_predict(predict, params, xs, kind)
        _checks.dataset(xs, ys, kind, num_classes)
        labels = jnp.asarray(ys) if kind == "regression" else jnp.asarray(ys, jnp.int32)
        return cls(predict, prior_scales(params, prior, sigma), xs, labels, jnp.float32(noise or 1.0), kind)

    def log_prior(self, params: Any) -> Float[Array, ""]:
        """Σ log N(θⱼ; 0, scaleⱼ²)."""
        terms = jax.tree.map(lambda p, s: jnp.sum(norm.logpdf(p, scale=s)), params, self.scales)
        return jax.tree.reduce(jnp.add, terms)

    def log_likelihood(self, params: Any) -> Float[Array, ""]:
        """Σᵢ log p(yᵢ | xᵢ, θ)."""
        outputs = jax.vmap(self.predict, (None, 0))(params, self.xs)
        if self.kind == "multiclass":
            return -jnp.sum(optax.softmax_cross_entropy_with_integer_labels(outputs, self.ys))
        scalars = outputs.reshape(self.ys.shape)
        if self.kind == "binary":
            return -jnp.sum(optax.sigmoid_binary_cross_entropy(scalars, self.ys))
        return jnp.sum(norm.logpdf(self.ys, scalars, self.noise))

    def __call__(self, params: Any) -> Float[Array, ""]:
        """The sum of `log_prior` and `log_likelihood`."""
        return self.log_prior(params) + self.log_likelihood(params)
