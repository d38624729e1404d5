"""A second opinion on the reference: NumPyro's NUTS on the same model, written in NumPyro's way.

The two samplers share the data, the scales of the prior and `predict`, and no other code.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.infer import MCMC, NUTS, init_to_value

from isouq import _checks
from isouq._frozen import freeze
from isouq.density import LogDensity, check_starts, freeze_density
from isouq.posterior.reference import Cost, Margins, Reference, check_inits, judge_record


def numpyro_model(log_density: LogDensity, params: Any) -> Callable[[], None]:
    """Return the NumPyro model of a log density: a Normal site for each leaf of params, and the site "y".

    params: any parameters of the model; only the paths and shapes of their leaves matter here.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    scales = jax.tree.leaves(log_density.scales)

    def model() -> None:
        leaves = []
        for (path, leaf), scale in zip(paths, scales, strict=True):
            prior = dist.Normal(0.0, scale).expand(jnp.shape(leaf)).to_event(jnp.ndim(leaf))
            leaves.append(numpyro.sample(jax.tree_util.keystr(path), prior))
        theta = jax.tree.unflatten(treedef, leaves)
        outputs = jax.vmap(log_density.predict, (None, 0))(theta, log_density.xs)
        if log_density.kind == "multiclass":
            likelihood = dist.Categorical(logits=outputs)
        elif log_density.kind == "binary":
            likelihood = dist.Bernoulli(logits=outputs.reshape(log_density.ys.shape))
        else:
            likelihood = dist.Normal(outputs.reshape(log_density.ys.shape), log_density.noise)
        numpyro.sample("y", likelihood, obs=log_density.ys)

    return model


def sample_numpyro(
    log_density: LogDensity,
    inits: Any,
    key: Array,
    *,
    record: Margins,
    num_draws: int = 1000,
    num_warmup: int = 500,
    count_warmup: bool = False,
) -> Reference:
    """Sample with NumPyro's NUTS, with adapted step size and diagonal mass matrix, and judge the predictions.

    Arguments, errors and result are those of `sample_reference` and `Sampling`. The chains run vectorised, all waiting
    for the deepest tree, so that this is for small models.

    count_warmup: whether to count the gradients of the warm-up too, which compiles a second program and draws with
        other random numbers. Otherwise the cost is without them.

    Source: Phan, Pradhan and Jankowiak (2019).
    """
    _checks.positive_int("num_draws", num_draws)
    _checks.positive_int("num_warmup", num_warmup, 10)
    chains = check_inits(inits)
    first = jax.tree.map(lambda leaf: leaf[0], inits)
    check_starts(*jax.vmap(jax.value_and_grad(freeze_density(log_density, inits)))(inits))
    log_density, frozen = log_density.freeze(first), freeze(record, first, name="record")
    kernel = NUTS(numpyro_model(log_density, first), init_strategy=init_to_value(values=_sites(first)))
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_draws,
        num_chains=chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    # every site is a Normal, so that NumPyro's unconstrained values are the parameters themselves
    warmup_gradients = None
    if count_warmup:
        warm_key, key = jax.random.split(key)
        mcmc.warmup(warm_key, init_params=_sites(inits), extra_fields=("num_steps",), collect_warmup=True)
        warmup_gradients = int(mcmc.get_extra_fields()["num_steps"].sum())
    mcmc.run(key, init_params=_sites(inits), extra_fields=("diverging", "num_steps", "accept_prob"))
    samples = mcmc.get_samples(group_by_chain=True)
    draws = jax.tree.unflatten(jax.tree.structure(first), [samples[name] for name in _sites(first)])
    predictions = jax.jit(lambda rec, tree: jax.lax.map(jax.vmap(rec), tree))(frozen, draws)
    extra = mcmc.get_extra_fields(group_by_chain=True)
    divergent = float(extra["diverging"].mean())
    verdict = judge_record(record, predictions, divergent)
    gradients = (warmup_gradients or 0) + int(extra["num_steps"].sum())
    cost = Cost(gradients, chains * (num_draws + num_warmup), warmup_gradients)
    step_size = jnp.ravel(mcmc.last_state.adapt_state.step_size)
    return Reference(None, predictions, verdict, cost, divergent, step_size, extra["accept_prob"].mean(axis=1))


def _sites(params: Any) -> dict[str, Array]:
    """Return the leaves by the names of their NumPyro sites."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
