"""The libraries that fit a Laplace approximation: each as a function that fits, chooses the prior, and can predict."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import isouq
from benchmarks.contestant import CannotRun
from benchmarks.laplace_subjects import Posterior, Subject
from isouq.posterior import LogDensity

MODE = "θ*, no covariance"
ISOUQ_KRONECKER, ISOUQ_DIAGONAL = "isouq Kronecker", "isouq diagonal"
TORCH_KRONECKER, TORCH_DIAGONAL = "laplace-torch Kronecker", "laplace-torch diagonal"
LAPLAX_KRONECKER, LAPLAX_DIAGONAL = "laplax Kronecker", "laplax diagonal"
CONTESTANTS = (
    MODE, ISOUQ_KRONECKER, ISOUQ_DIAGONAL, TORCH_KRONECKER, TORCH_DIAGONAL, LAPLAX_KRONECKER, LAPLAX_DIAGONAL,
)  # fmt: skip
NO_LAPLACE_TORCH = "not installed: pip install torch==2.13.0 laplace-torch"
NO_LAPLAX = "not installed: pip install laplax"
_BATCH_SIZE = 128  # data at a time, as isouq has it by default


def fit_function(name: str, subject: Subject) -> Callable[[], Posterior]:
    """Return the function that fits; raise CannotRun, with the reason, where the library cannot."""
    if name == LAPLAX_KRONECKER:
        raise CannotRun("not available: laplax has full, diagonal and low-rank curvature")
    if name in (TORCH_KRONECKER, TORCH_DIAGONAL):
        try:
            from benchmarks import torch_laplace
        except ImportError as error:
            raise CannotRun(f"{NO_LAPLACE_TORCH} ({error})") from None
        return torch_laplace.fit_function("kron" if name == TORCH_KRONECKER else "diag", subject, _BATCH_SIZE)
    if name == LAPLAX_DIAGONAL:
        return _laplax(subject)
    if name == MODE:
        program, xs = jax.jit(partial(_softmax, subject)), jnp.asarray(subject.test_xs)
        return lambda: Posterior(None, None, lambda: np.asarray(program(xs)))
    return _isouq("kronecker" if name == ISOUQ_KRONECKER else "diagonal", subject)


def _softmax(subject: Subject, xs: Any) -> Any:
    return jax.nn.softmax(jax.vmap(subject.predict, (None, 0))(subject.params, xs))


def _isouq(structure: str, subject: Subject) -> Callable[[], Posterior]:
    predict, params = subject.predict, subject.params
    log_density = LogDensity.of(predict, params, jnp.asarray(subject.xs), jnp.asarray(subject.ys), "multiclass")
    test_xs = jnp.asarray(subject.test_xs)

    def fit() -> Posterior:
        choice = isouq.choose_prior(log_density, params, "ggn", structure, batch_size=_BATCH_SIZE)
        covariance = jax.block_until_ready(choice.covariance)
        sigma = float(jax.tree.leaves(choice.log_density.scales)[0])
        return Posterior(
            sigma,
            choice.log_marginal_likelihood,
            lambda: np.asarray(isouq.predictive(predict, params, test_xs, "multiclass", covariance).mean),
        )

    return fit


def _laplax(subject: Subject) -> Callable[[], Posterior]:
    """Return the function that fits laplax's diagonal GGN, with its grid of priors and the probit rule (mean field 0).

    Its evidence halves the loss that it is given, and its own cross entropy is the binary one: the loss is passed.
    """
    try:
        import laplax
        from laplax.eval.likelihood import marginal_log_likelihood
        from loguru import logger
    except ImportError as error:
        raise CannotRun(f"{NO_LAPLAX} ({error})") from None
    logger.disable("laplax")
    params, test_xs = subject.params, jnp.asarray(subject.test_xs)
    data = {"input": jnp.asarray(subject.xs), "target": jnp.asarray(subject.ys)}
    num_data = len(subject.ys)

    def model(input: Any, params: Any) -> Any:
        return subject.predict(params, input)

    def twice_the_loss(logits: Any, ys: Any) -> Any:
        return -2 * jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), ys[:, None], axis=1))

    def fit() -> Posterior:
        posterior, curvature = laplax.laplace(
            model, params, data, loss_fn="cross_entropy", curv_type="diagonal", num_curv_samples=num_data,
            num_total_samples=num_data,
        )  # fmt: skip
        options = {"loss_fn": twice_the_loss, "curv_estimate": curvature, "curv_type": "diagonal"}
        prior, set_predictive = laplax.calibration(
            posterior, model, params, data, predictive_type="mean_field_0",
            calibration_objective="marginal_log_likelihood", **options,
        )  # fmt: skip
        evidence = marginal_log_likelihood(
            prior_arguments=prior, data=data, model_fn=model, params=params, vmap_over_data=True, **options
        )
        predictive = set_predictive(prior_arguments=prior)
        program = jax.jit(jax.vmap(lambda x: predictive(x)["pred_act"]))
        return Posterior(float(prior["prior_prec"]) ** -0.5, float(evidence), lambda: np.asarray(program(test_xs)))

    return fit
