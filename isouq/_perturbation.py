"""The variance of a prediction when all parameters are perturbed at random: `isouq.perturbation`.

With d = p_c(θ + sε) − p_c(θ), ε ~ N(0, I), the estimate is the sample variance of d over S draws of ε. For a small s

    d ≈ s g·ε,    hence    Var[d] ≈ s² ‖g‖²,    g = ∇_θ p_c,

so that it differs from s² times the ‖g‖² of `isouq.uncertainty` by what is not linear in the noise. d is computed from
margins, which keeps the digits where a probability is nearly 0 or 1 (see `isouq._predict.probability_difference`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isouq import _checks
from isouq._frozen import Program
from isouq._predict import check_predict, check_target, margin, predicted_class, probability_difference
from isouq._room import bytes_of_one
from isouq._rows import estimate_rows, lay_out, map_rows, share_program
from isouq.gradnorm._plain import tree_sq_norm


class Perturbation(NamedTuple):
    """The variance of n predictions under perturbed parameters; every field has shape `[n]`.

    epistemic: the unbiased sample variance of p_c (units: probability²; for regression output²).
    standard_error: that of epistemic, from the fourth moment of the samples.
    probability: p_c at the parameters themselves; for regression the predicted mean.
    target: the class c; None for regression.
    """

    epistemic: Float[Array, " n"]
    standard_error: Float[Array, " n"]
    probability: Float[Array, " n"]
    target: Int[Array, " n"] | None


def perturbation(
    predict: Callable,
    params: Any,
    xs: Any,
    kind: str,
    *,
    key: Any,
    scale: Any = 0.1,
    relative: bool = True,
    num_samples: int = 256,
    target: Any = None,
    batch_size: int | None = None,
    devices: Any = None,
) -> Perturbation:
    """Estimate the variance of every prediction under isotropic Gaussian noise on all parameters.

    The estimate is Var[p_c(θ + sε)] with ε ~ N(0, I), from S samples. As s → 0, epistemic / s² tends to the ‖g‖² of
    `isouq.uncertainty`. In the leaderboard of docs/when-to-trust.md it ranks the inputs of the real classifications
    slightly better than ‖g‖², and over all models no better.

    Args:
        predict: as in `isouq.uncertainty`.
        params: θ, any pytree of floating arrays. Noise is added to the real and the imaginary part of a complex array.
        xs: inputs with a leading axis n (an array or a pytree of arrays).
        kind: "binary", "multiclass" or "regression"; for regression p_c is the predicted mean.
        key: a random key. The directions ε are functions of it and of the number of the sample alone, so that all
            inputs share them.
        scale: the size of the noise, above 0.
        relative: True for s = scale · RMS, where RMS = √(mean of θ²) over all parameters together; False for s = scale.
        num_samples: S, at least 2.
        target: class labels `[n]`, or one label for all; by default the class that is predicted at θ.
        batch_size: number of inputs that are predicted at a time, with the default of `isouq.uncertainty`.
        devices: a list of devices that share the inputs, as in `isouq.uncertainty`. Like batch_size, it changes no
            number beyond rounding.

    Returns:
        `Perturbation(epistemic, standard_error, probability, target)`, each `[n]`, float32 or better. With the central
        moments m₂ and m₄ of the samples, standard_error = √((m₄ − m₂² (S − 3)/(S − 1)) / S). For a small scale, where d
        is normal, that is about √(2/S) of epistemic: 9 % for 256 samples.

    Raises:
        ValueError: a wrong shape, NaN in params or xs, an unknown kind or label, a key that is none, a scale that is
            not above 0, fewer than 2 samples, or a relative scale where the squares of the parameters are all 0 or
            overflow.

    Cost: S + 1 forward passes for each input and no backward pass. The memory is that of batch_size × activations, two
    further copies of params, and a few numbers for each input, whatever S is. The program is compiled once for a shape;
    key, scale and num_samples are arguments of it. The digits are those of predict: in float32 choose a scale above
    10⁻³, and in bfloat16, to which perturbed parameters are rounded, one above 10⁻¹.

    Source: the limit is the first-order expansion of arXiv 2603.29466; the standard error is that of a sample variance.
    """
    _checks.one_of("kind", kind, _checks.KINDS)
    layout = lay_out(xs, batch_size, devices, (params, target, key, scale))
    _checks.inexact_leaves("params", params)
    _checks.finite("params", params)
    _checks.finite("xs", xs)
    _checks.key("key", key)
    _check_scale(scale)
    _checks.boolean("relative", relative)
    _checks.positive_int("num_samples", num_samples, 2)
    predict, num_classes = check_predict(predict, params, xs, kind)
    if target is not None:
        target = check_target(target, layout.size, kind, num_classes)
    if relative:
        rms = _root_mean_square(params)
        if not _checks.is_traced(rms) and not 0 < rms < jnp.inf:
            raise ValueError(
                f"params have the root mean square {rms:g}, so that a relative scale is {rms:g}; pass relative=False"
            )
        scale = scale * rms
    layout = share_program(layout, xs, lambda: _bytes_of_row(predict.program))
    noise = _Noise(key, scale, num_samples)
    return estimate_rows(_perturb, (predict, params, xs, target, noise), (kind, layout.batch_size), layout)


class _Noise(NamedTuple):
    key: Any
    scale: Any
    num_samples: Any


class _Moments(NamedTuple):
    """The moments of the samples so far, in units of the largest |sample|, whose fourth power could underflow.

    m2, m3 and m4 are sums of powers of the distance from the mean.
    """

    largest: Array
    mean: Array
    m2: Array
    m3: Array
    m4: Array

    def add(self, sample: Array, n: Array) -> "_Moments":
        """Return the moments with one sample more, the n-th, by the update of Pébay (2008, SAND2008-6212)."""
        largest = jnp.maximum(self.largest, jnp.abs(sample))
        unit = jnp.where(largest == 0, 1, largest)
        ratio = self.largest / unit
        mean, m2, m3, m4 = (moment * ratio**k for k, moment in enumerate(self[1:], 1))
        delta = sample / unit - mean
        step = delta / n
        term = delta * step * (n - 1)
        m4 += term * step**2 * (n**2 - 3 * n + 3) + 6 * step**2 * m2 - 4 * step * m3
        m3 += term * step * (n - 2) - 3 * step * m2
        return _Moments(largest, mean + step, m2 + term, m3, m4)

    def variance(self, n: Array) -> tuple[Array, Array]:
        """Return the unbiased variance of n samples and its standard error."""
        m2, m4 = self.m2 / n, self.m4 / n
        error = jnp.sqrt(jnp.maximum(m4 - m2**2 * (n - 3) / (n - 1), 0) / n)
        variance = self.m2 / (n - 1)
        return self.largest * (self.largest * variance), self.largest * (self.largest * error)


@jax.jit(static_argnames=("kind", "batch_size"))
def _perturb(
    predict: Callable,
    params: Any,
    xs: Any,
    target: Array | None,
    noise: _Noise,
    kind: str,
    batch_size: int | None,
) -> Perturbation:
    """Return the perturbation of every row of xs; the compiled part of `perturbation`."""

    def values(theta: Any, labels: Array | None) -> tuple[Array, Array | None]:
        def one(x: Any, label: Array | None) -> tuple[Array, Array | None]:
            outputs = predict(theta, x)
            c = predicted_class(outputs, kind) if label is None else label
            value = margin(outputs, c, kind)
            return value.astype(jnp.promote_types(value.dtype, jnp.float32)), c

        return map_rows(one, (xs, labels), batch_size)

    center, target = values(params, target)
    is_class = kind != "regression"

    def add(sample: Array, moments: _Moments) -> _Moments:
        theta = _perturbed(params, jax.random.fold_in(noise.key, sample), noise.scale)
        value, _ = values(theta, target)
        difference = probability_difference(value, center) if is_class else value - center
        return moments.add(difference, (sample + 1).astype(center.dtype))

    zero = jnp.zeros_like(center)
    moments = jax.lax.fori_loop(0, noise.num_samples, add, _Moments(zero, zero, zero, zero, zero))
    variance, error = moments.variance(jnp.asarray(noise.num_samples, center.dtype))
    return Perturbation(variance, error, jax.nn.sigmoid(center) if is_class else center, target)


@functools.lru_cache(maxsize=256)
def _bytes_of_row(program: Program) -> int:
    """Return a bound on the bytes that one input takes."""
    predict, (params, x) = program.abstract()
    return bytes_of_one(lambda fixed, x: fixed[0](fixed[1], x), (predict, params), x)


def _perturbed(params: Any, key: Array, scale: Array) -> Any:
    """Return θ + scale · ε, in the dtypes of θ."""
    leaves, treedef = jax.tree.flatten(params)

    def move(leaf: Array, key: Array) -> Array:
        dtype = leaf.dtype if jnp.finfo(leaf.dtype).bits >= 32 else jnp.dtype(jnp.float32)
        # JAX gives the real and the imaginary part of a complex number half of the variance each
        size = scale * np.sqrt(2) if jnp.issubdtype(dtype, jnp.complexfloating) else scale
        direction = jax.random.normal(key, leaf.shape, dtype)
        return (leaf.astype(dtype) + jnp.asarray(size, dtype) * direction).astype(leaf.dtype)

    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(treedef, [move(leaf, keys[i]) for i, leaf in enumerate(leaves)])


@jax.jit
def _root_mean_square(params: Any) -> Array:
    """Return √(mean of θ²) over the real and imaginary parts of all parameters together, 0 for none."""
    parts = [leaf.size * (1 + jnp.issubdtype(leaf.dtype, jnp.complexfloating)) for leaf in jax.tree.leaves(params)]
    return jnp.sqrt(tree_sq_norm(params) / max(sum(parts), 1))


def _check_scale(scale: Any) -> None:
    """Raise unless `scale` is a finite number above 0; the number of a traced scalar is not checked."""
    if isinstance(scale, (jax.Array, np.ndarray)) and scale.shape == ():
        if _checks.is_traced(scale):
            return
        scale = scale.item()
    _checks.positive("scale", scale)
