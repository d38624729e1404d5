"""The log density of a Bayesian model, which MAP training, the Laplace approximation and the samplers share."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from isouq import _checks
from isouq._errors import first_line
from isouq._frozen import Frozen, as_pytree, first_row, freeze
from isouq._predict import check_predict
from isouq.gradnorm._selection import Selection

PRIORS = ("unit", "fan_in")
_LARGE, _UNEQUAL = 100.0, 1000.0  # a standard deviation of a feature, and a ratio of two, that a warning names


def prior_scales(params: Any, prior: str = "unit", sigma: Any = 1.0) -> Any:
    """Return the prior standard deviation of each leaf, as a pytree of scalars like `params`, float32 or better.

    unit: every parameter ~ N(0, σ²). fan_in: weights ~ N(0, σ²/fan_in), biases ~ N(0, σ²), where a
    leaf with two or more axes is a weight and its fan_in is the product of all but the last axis.

    sigma: σ, one number for all parameters, or a pytree of numbers that is a prefix of params, one σ for each branch.
    """
    _checks.one_of("prior", prior, PRIORS)
    for path, number in jax.tree.leaves_with_path(sigma):
        _checks.positive(f"sigma{jax.tree_util.keystr(path)}", number)

    def scale(leaf: Any, sigma: Any) -> Float[Array, ""]:
        shape = jnp.shape(leaf)
        fan_in = np.prod(shape[:-1]) if prior == "fan_in" and len(shape) >= 2 else 1.0
        return jnp.asarray(sigma / np.sqrt(fan_in), jnp.promote_types(jnp.result_type(leaf), jnp.float32))

    try:
        return jax.tree.map(
            lambda number, branch: jax.tree.map(lambda leaf: scale(leaf, number), branch), sigma, params
        )
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"sigma is no prefix of params ({first_line(error)}); expected one number, or one for each branch of params"
        ) from error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LogDensity:
    """The log posterior density log p(θ) + Σᵢ log p(yᵢ | xᵢ, θ), normalised in y and θ, up to log p(D).

    The likelihood is Bernoulli(logit), Categorical(logits) or Normal(mean, noise²). A call with a pytree of parameters
    returns a scalar. A log density is itself a pytree: its data are arguments of a compiled program and never constants
    in it. `fit_map`, `sample_reference` and `laplace` trace `predict` anew at every call. Build a log density with
    `LogDensity.of`, which checks all arguments.
    """

    # the annotations are Any because JAX puts placeholders into pytrees
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
        sigma: Any = 1.0,
        noise: float | None = None,
    ) -> "LogDensity":
        """Return the log density of `predict` on data (xs, ys).

        Args:
            predict: as in `isouq.uncertainty`.
            params: any parameters of the model; only their shapes matter here.
            xs: inputs with a leading axis n.
            ys: class labels or values `[n]`.
            kind: "binary", "multiclass" or "regression".
            prior: name of the prior, as in `prior_scales`.
            sigma: its scale σ, or one for each branch of params: `{"layers": {0: 1.0, 1: 0.3}}`.
            noise: standard deviation of y given x; for regression it must be given, otherwise it must not.

        Raises:
            ValueError: a wrong shape, label or setting; the message says what to do.

        Warns:
            UserWarning: xs is a table of features, `[n, features]`, one of which has a standard deviation above 100 or
            1,000 times that of another.
        """
        _checks.dataset(xs, ys, kind)
        _checks.float_leaves("params", params)
        _checks.noise(kind, noise)
        num_classes = check_predict(predict, params, xs, kind)[1]
        _checks.dataset(xs, ys, kind, num_classes)
        _warn_if_unscaled(xs)
        labels = jnp.asarray(ys) if kind == "regression" else jnp.asarray(ys, jnp.int32)
        scales = prior_scales(params, prior, sigma)
        scatter = jnp.asarray(noise or 1.0, jnp.result_type(jnp.float32, *jax.tree.leaves(params)))
        return cls(as_pytree(predict), scales, xs, labels, scatter, kind)

    def freeze(self, params: Any) -> "LogDensity":
        """Return the log density with `predict` as a program, which no later change of a global variable reaches."""
        return replace(self, predict=freeze(self.predict, params, first_row(self.xs)))

    def condition(self, params: Any, select: Any) -> tuple["LogDensity", Any]:
        """Return the log density of the parameters that select chooses, the others fixed, and the chosen parameters.

        It differs from log p(chosen | others, D) by a constant. Its parameters are params with None in place of those
        that are fixed. `laplace`, `choose_prior`, `fit_map` and `sample_reference` take it as any other.

        Args:
            params: all parameters.
            select: as in `isouq.uncertainty`, such as "layers.1" for the last of two layers.

        Raises:
            ValueError: select fits no parameter, or params do not fit the model.
        """
        selection = Selection.of(select, params)
        try:
            scales = selection.choose(self.scales)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError("params do not fit the model of log_density; pass parameters of that model") from error
        predict = jax.tree_util.Partial(_predict_chosen, selection, self.predict, params)
        return replace(self, predict=predict, scales=scales), selection.choose(params)

    def log_prior(self, params: Any) -> Float[Array, ""]:
        """Return Σ log N(θⱼ; 0, scaleⱼ²)."""
        terms = jax.tree.map(lambda p, s: jnp.sum(norm.logpdf(p, scale=s)), params, self.scales)
        return jax.tree.reduce(jnp.add, terms)

    def log_likelihood(self, params: Any) -> Float[Array, ""]:
        """Return Σᵢ log p(yᵢ | xᵢ, θ)."""
        try:
            outputs = jax.vmap(self.predict, (None, 0))(params, self.xs)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"predict cannot be batched ({first_line(error)}); a log density maps it over the data by "
                "jax.vmap, so write that operation in others, such as a gather and a product"
            ) from error
        if self.kind == "multiclass":
            return -jnp.sum(_softmax_cross_entropy(outputs, self.ys))
        scalars = outputs.reshape(self.ys.shape)
        if self.kind == "binary":
            return -jnp.sum(_sigmoid_cross_entropy(scalars, self.ys))
        return jnp.sum(norm.logpdf(self.ys, scalars, self.noise))

    def __call__(self, params: Any) -> Float[Array, ""]:
        """Return the sum of `log_prior` and `log_likelihood`."""
        return self.log_prior(params) + self.log_likelihood(params)


def _predict_chosen(selection: Selection, predict: Callable, params: Any, chosen: Any, x: Any) -> Any:
    """Return the outputs of the model with the chosen parameters in place of those in params."""
    return predict(selection.replace(params, chosen), x)


def _warn_if_unscaled(xs: Any) -> None:
    """Warn of a table whose features have very large or unequal deviations: one prior for all treats them unequally."""
    if not (isinstance(xs, (np.ndarray, jax.Array)) and xs.ndim == 2 and jnp.issubdtype(xs.dtype, jnp.floating)):
        return
    if _checks.is_traced(xs) or len(xs) < 2:
        return
    rows = np.asarray(xs[:10_000])
    spread = np.std(rows, axis=0, dtype=np.float64)
    spread = spread[spread > 1e-6 * np.abs(rows).max(axis=0)]  # a constant feature has a spread by rounding
    if spread.size and (spread.max() > _LARGE or spread.max() > _UNEQUAL * spread.min()):
        warnings.warn(
            f"the features of xs have standard deviations from {spread.min():.2g} to {spread.max():.2g}, and one "
            "prior is put on all weights, so that it acts differently on each feature; standardise them: "
            "(xs - xs.mean(axis=0)) / xs.std(axis=0)",
            stacklevel=3,
        )


def _softmax_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return −log p of each label `[n]` under logits `[n, classes]`."""
    of_label = jnp.take_along_axis(logits, labels[:, None], axis=-1).take(0, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - of_label


def _sigmoid_cross_entropy(logits: Array, labels: Array) -> Array:
    """Return −log p of each label, 0 or 1, under the logits of class 1."""
    labels, log_p, log_not_p = labels.astype(logits.dtype), jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -labels * log_p - (1.0 - labels) * log_not_p


def freeze_density(log_density: Callable, inits: Any) -> Frozen:
    """Return `log_density` as a program for one row of `inits`; raise unless it returns a scalar."""
    try:
        frozen = freeze(log_density, first_row(inits), name="log_density")
    except (TypeError, ValueError) as error:
        if not callable(log_density):
            raise
        raise ValueError(
            f"log_density failed on one start: {first_line(error)}; inits needs a leading axis of "
            "starts: jax.vmap(init)(jax.random.split(key, 4))"
        ) from error
    shapes = [aval.shape for aval in jax.tree.leaves(frozen.outputs)]
    if shapes != [()]:
        outputs = f"shape {shapes[0]}" if len(shapes) == 1 else f"{len(shapes)} arrays"
        raise ValueError(f"log_density returned {outputs} for one start; expected a scalar []")
    return frozen


def check_starts(values: Any, grads: Any) -> None:
    """Raise unless the log density `[chains]` and its gradient, leading axis chains, are finite at every start."""
    values = np.asarray(values)
    finite = [np.isfinite(np.asarray(g)).reshape(len(values), -1).all(axis=1) for g in jax.tree.leaves(grads)]
    for name, bad in (("log density", ~np.isfinite(values)), ("gradient of the log density", ~np.all(finite, axis=0))):
        if bad.any():
            chains = ", ".join(map(str, np.flatnonzero(bad)))
            numbers = f" ({', '.join(map(str, values[bad]))})" if name == "log density" else ""
            raise ValueError(
                f"the {name} is not finite{numbers} at the start of chain {chains} of {len(values)}, counted from 0; "
                "start it where it is, for instance at a mode from fit_map"
            )
