# %% [markdown]
# # Choose a covariance
#
# ‖g‖² uses Σ = I. If you have the training data, a Laplace approximation can replace it. This tutorial compares the
# choices on a regression with a gap in its inputs. It takes about ten seconds on two CPU cores.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import isouq
from isouq import models, posterior, problems

# %%
problem = problems.get("regression/nonlinear")
data = problem.sample(jax.random.key(0), n=200)
predict, init = models.mlp(1, (16,), 1)
inits = jax.vmap(init)(jax.random.split(jax.random.key(1), 4))
one = jax.tree.map(lambda leaf: leaf[0], inits)
log_density = posterior.LogDensity.of(predict, one, data.xs, data.ys, "regression", noise=problem.noise)
params = posterior.fit_map(log_density, inits).best()
grid = problems.evaluation_inputs(data.xs)

# %% [markdown]
# ## Five covariances
#
# The five covariances are the identity and the inverse generalised Gauss-Newton matrix (GGN) of the training data in
# four structures. The diagonal, Kronecker and low-rank structures are applied without forming a gradient.

# %%
covariances = {"identity": None}
for structure in ("diagonal", "kronecker", "low_rank", "dense"):
    covariances[f"GGN, {structure}"] = isouq.laplace(log_density, params, "ggn", structure)
maps = {
    name: np.asarray(isouq.uncertainty(predict, params, grid, "regression", covariance=covariance).epistemic)
    for name, covariance in covariances.items()
}

# %% [markdown]
# ## The gap
#
# No training input lies between −0.5 and 0.5. The uncertainty should be higher there.

# %%
x = np.asarray(grid)[:, 0]
gap, data_side = np.abs(x) < 0.4, (np.abs(x) > 0.7) & (np.abs(x) < 1.8)
for name, values in maps.items():
    ratio = values[gap].mean() / values[data_side].mean()
    print(f"{name:15} mean in the gap ÷ mean near the data: {ratio:8.2f}")

# %%
figure, axis = plt.subplots(figsize=(8, 3.6), layout="constrained")
for name, values in maps.items():
    axis.plot(x, values / values.max(), label=name)
axis.plot(data.xs[:, 0], np.full(len(data.xs), -0.03), "|", color="black", label="training inputs")
axis.set(xlabel="x", ylabel="gᵀΣg, largest = 1")
axis.legend(fontsize="small")

# %% [markdown]
# The identity misses the gap, because isotropy ignores where the data are. The dense GGN finds it.
#
# ## A variance with a unit
#
# gᵀΣg with a Laplace covariance is a variance in units of y². Its square root is an error bar for the mean:

# %%
bar = np.sqrt(maps["GGN, dense"])
print(f"in the gap ± {bar[gap].mean():.2f}, near the data ± {bar[data_side].mean():.2f}; noise sd {problem.noise}")

# %% [markdown]
# ## Which one to choose
#
# - Without training data, use the identity, and only for a ranking.
# - For a small model, use "dense".
# - For a large model, use "kronecker"; it costs about one epoch.
# - Do not use the Hessian of data from another domain.
#
# [When can I trust it?](../when-to-trust.md#which-covariance-of-the-training-data) has the numbers of these choices.
