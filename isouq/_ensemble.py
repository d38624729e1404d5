"""The uncertainty of an ensemble: the variance between its members, and the mean of their own uncertainties.

For K members with parameters θ_k and p_k = p_c(θ_k), the law of total variance splits the variance of p_c into

    between = (1/K) Σ_k (p_k − p̄)²,    within = (1/K) Σ_k Var[p_c | member k],    p̄ = (1/K) Σ_k p_k,

where Var[p_c | member k] is replaced by gᵀΣg at θ_k. The two parts have different units, because ‖g‖² has no scale;
each is therefore divided by its mean over the inputs before they are added.

Source: Lakshminarayanan et al. (2017), arXiv 1612.01474, for ensembles; the law of total variance for the two parts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from isouq import _checks
from isouq._predict import predicted_class, probability_difference


class EnsembleUncertainty(NamedTuple):
    """The uncertainties of n predictions of an ensemble of K members; every field has shape `[n]`.

    epistemic: between / mean(between) + within / mean(within), the means over the inputs of the call; a part whose
        mean is 0 counts as 0. It has no unit and ranks the inputs of one call. It cannot be compared with that of
        another call, and for a single input it is 2, or less where a part is 0. Inputs whose outputs are NaN do
        not enter the means; a row that `isouq.sharding.shard_inputs` repeated enters them as often as it stands there.
    between: (1/K) Σ (p_k − probability)², the variance between the members (units: probability²; for regression
        output²).
    within: the mean over the members of gᵀΣg, or of ‖g‖² without a covariance (units as those of
        `Uncertainty.epistemic`).
    aleatoric: the mean over the members of p_k(1 − p_k); None for regression.
    probability: the mean over the members of p_k; for regression of the predicted means.
    target: the class c, by default the one of the largest mean probability; None for regression.
    """

    epistemic: Float[Array, " n"]
    between: Float[Array, " n"]
    within: Float[Array, " n"]
    aleatoric: Float[Array, " n"] | None
    probability: Float[Array, " n"]
    target: Int[Array, " n"] | None


class Parts(NamedTuple):
    """The fields of `EnsembleUncertainty` that each input has by itself."""

    between: Array
    within: Array
    aleatoric: Array | None
    probability: Array
    target: Array | None


def first_member(params: Any) -> Any:
    """Return the parameters of member 0; raise unless all leaves have one leading axis of at least two members."""
    if _checks.count_rows(params, "params", "member") < 2:
        raise ValueError(
            "params has one member; an ensemble needs at least two, stacked by "
            "jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *members)"
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[0], params)


def class_of_mean(predict: Callable, members: Any, x: Any, kind: str) -> Int[Array, ""] | None:
    """Return the class of ONE input whose mean probability over the members is the largest; None for regression."""
    if kind == "regression":
        return None

    def score(member: Any) -> Array:
        logits = predict(member, x)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        # tanh(l / 2) = 2σ(l) − 1, whose sum is above 0 where the mean probability of class 1 is above ½
        return jax.nn.softmax(logits) if kind == "multiclass" else jnp.tanh(logits / 2)

    shape = jax.eval_shape(lambda members: score(jax.tree.map(lambda leaf: leaf[0], members)), members)
    zero = jnp.zeros(shape.shape, shape.dtype)
    total, _ = jax.lax.scan(lambda total, member: (total + score(member), None), zero, members)
    return predicted_class(total, kind)


def combine(values: Array, quadratics: Array, target: Array | None, kind: str) -> Parts:
    """Return the parts of ONE input from the members' margins m `[K]` and quadratic forms ∇mᵀΣ∇m `[K]`."""
    if kind == "regression":
        within = jnp.where(jnp.isnan(values).any(), jnp.nan, quadratics.mean())
        return Parts(jnp.var(values), within, None, values.mean(), None)
    aleatoric = jax.nn.sigmoid(values) * jax.nn.sigmoid(-values)
    between = jnp.var(probability_difference(values, values[0]))  # has digits where all p_k are nearly 1
    within = jnp.mean(aleatoric * (aleatoric * quadratics))
    return Parts(between, within, aleatoric.mean(), jax.nn.sigmoid(values).mean(), target)


@jax.jit
def add_relative(parts: Parts) -> EnsembleUncertainty:
    """Return the uncertainty whose epistemic field adds both parts, each divided by its mean over the inputs."""
    return EnsembleUncertainty(_relative(parts.between) + _relative(parts.within), *parts)


def _relative(part: Array) -> Array:
    mean = jnp.nanmean(part)
    return part / jnp.where(mean == 0, 1, mean)
