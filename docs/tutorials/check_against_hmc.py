# %% [markdown]
# # Check it against HMC on your problem
#
# How well does ‖g‖² rank *your* inputs? To find out, this tutorial samples the posterior of a model, checks with a
# convergence verdict whether the sample can be trusted, and compares. It suits small models only, because HMC takes
# thousands of gradients. It takes about fifteen seconds on two CPU cores.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import isouq
from isouq import models, posterior, problems, stats

# %% [markdown]
# ## Your arrays

# %%
rng = np.random.default_rng(0)
xs = rng.normal(size=(200, 2)).astype(np.float32)
ys = (rng.random(200) < 1 / (1 + np.exp(-4 * (xs[:, 0] ** 2 + xs[:, 1] - 1)))).astype(np.int32)
problem = problems.from_arrays(xs, ys, kind="binary", hidden=(16,))

# %% [markdown]
# ## Model, prior, trained parameters
#
# Training and sampling use the same log density.

# %%
predict, init = models.mlp(2, problem.hidden, problem.num_outputs)
inits = jax.vmap(init)(jax.random.split(jax.random.key(1), 4))
one = jax.tree.map(lambda leaf: leaf[0], inits)
log_density = posterior.LogDensity.of(predict, one, xs, ys, problem.kind)
fit = posterior.fit_map(log_density, inits)
grid = problems.evaluation_inputs(xs, resolution=20)
u = isouq.uncertainty(predict, fit.best(), grid, problem.kind)

# %% [markdown]
# ## The reference
#
# There are four chains, each started from its own trained network. The convergence diagnostics use predictions and not
# weights, because the posterior of the weights is symmetric under permutations and sign changes of hidden units.

# %%
record = posterior.Margins(predict, grid, u.target, problem.kind)
sampling = posterior.Sampling(num_warmup=200, num_draws=600, num_integration_steps=20)
reference = posterior.sample_reference(log_density, fit.params, jax.random.key(2), sampling=sampling, record=record)
print(reference.verdict)
print(f"{reference.cost.gradient_evaluations} gradients; ‖g‖² took one per input")

# %% [markdown]
# If the verdict is "unconverged", do not compare. Increase `max_rounds` first and `num_integration_steps` second.
#
# ## Compare

# %%
p = posterior.probabilities(reference.predictions, problem.kind)  # [chains, draws, points]
sampled = p.var(axis=(0, 1))
spearman, pearson = stats.spearman(u.epistemic, sampled), stats.pearson(u.epistemic, sampled)
print(f"epistemic: Spearman {spearman:.2f}, Pearson {pearson:.2f}")
print(f"aleatoric: Spearman {stats.spearman(u.aleatoric, (p * (1 - p)).mean(axis=(0, 1))):.2f}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, (title, values) in zip(axes, {"HMC: Var[p]": sampled, "‖g‖²": np.asarray(u.epistemic)}.items(), strict=True):
    planar = np.asarray(grid).reshape(20, 20, 2)
    axis.contourf(planar[..., 0], planar[..., 1], (values / values.max()).reshape(20, 20), levels=20, cmap="viridis")
    axis.scatter(*xs.T, c=ys, s=8, cmap="gray", edgecolors="white", linewidths=0.3)
    axis.set(title=title, xlabel="x₁", ylabel="x₂")

# %% [markdown]
# ## Does the region matter?
#
# The agreement is often better near the data than far from them; here it is the same. Compare on the inputs for which
# you will use the uncertainty.

# %%
near = np.linalg.norm(np.asarray(grid)[:, None] - xs[None], axis=-1).min(axis=1) < 0.5
for where, mask in (("near the data", near), ("elsewhere", ~near)):
    print(f"{where}: Spearman {stats.spearman(np.asarray(u.epistemic)[mask], sampled[mask]):.2f} ({mask.sum()} points)")
