# %% [markdown]
# # Uncertainty of a classifier
#
# This tutorial trains a small network, computes the two uncertainties of every prediction and plots them. It takes
# about ten seconds on two CPU cores.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import isouq
from isouq import models, posterior, problems

# %% [markdown]
# ## Data and a trained network
#
# The data are two rings. `fit_map` trains four networks under a Gaussian prior. Any trained network can be used; if
# you have one, start at "Compute the uncertainties".

# %%
data = problems.get("binary/rings").sample(jax.random.key(0), n=200)
predict, init = models.mlp(2, (16,), 1)
inits = jax.vmap(init)(jax.random.split(jax.random.key(1), 4))
one = jax.tree.map(lambda leaf: leaf[0], inits)
log_density = posterior.LogDensity.of(predict, one, data.xs, data.ys, "binary")
params = posterior.fit_map(log_density, inits).best()
labels = jax.vmap(predict, (None, 0))(params, data.xs) > 0
print(f"training accuracy {np.mean(labels == data.ys):.2f}")

# %% [markdown]
# ## Compute the uncertainties
#
# The evaluation inputs form a grid over the data's range, widened by 0.5 on each side.

# %%
grid = problems.evaluation_inputs(data.xs)
u = isouq.uncertainty(predict, params, grid, kind="binary")
print(u.epistemic.shape, f"aleatoric between {u.aleatoric.min():.3f} and {u.aleatoric.max():.3f}")

# %% [markdown]
# ## Plot them
#
# Each map is divided by its own maximum, because ‖g‖² has no unit. Aleatoric uncertainty is highest along the line
# where p = ½. Epistemic uncertainty is high there too, but not uniformly: it is higher where few points determine the
# boundary.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for axis, name in zip(axes, ("epistemic", "aleatoric"), strict=True):
    values = np.asarray(getattr(u, name)).reshape(50, 50)
    xs = np.asarray(grid).reshape(50, 50, 2)
    axis.contourf(xs[..., 0], xs[..., 1], values / values.max(), levels=20, cmap="viridis")
    axis.scatter(*data.xs.T, c=data.ys, s=8, cmap="gray", edgecolors="white", linewidths=0.3)
    axis.set(title=name, xlabel="x₁", ylabel="x₂")

# %% [markdown]
# ## Which inputs to label next
#
# The inputs with the largest epistemic uncertainty are candidates for the next labels. Whether this choice teaches the
# model more than another was not measured here.

# %%
order = np.argsort(-np.asarray(u.epistemic))
for index in order[:3]:
    x1, x2 = grid[index]
    print(f"x = ({x1:.2f}, {x2:.2f})  p = {u.probability[index]:.2f}  ‖g‖² = {u.epistemic[index]:.3g}")

# %% [markdown]
# ## How the engine computed them
#
# `explain` shows how the engine treats each parameter. The gradient of a bias is only as large as an activation, so it
# is computed directly, and so is that of a weight matrix as small as these. The norm of the gradient of a larger matrix
# is found without the gradient; "outer" is the formula ‖x‖²‖δ‖².

# %%
wide_predict, wide_init = models.mlp(in_features=2, hidden=(256,), out_features=1)
for f, weights in [(predict, params), (wide_predict, wide_init(jax.random.key(0)))]:
    print(isouq.explain(f)(weights, grid[0]))

# %% [markdown]
# The result equals the squared norm of the gradient that `jax.grad` computes:

# %%
slow = isouq.uncertainty(predict, params, grid, kind="binary", engine="vmap")
print(np.allclose(u.epistemic, slow.epistemic, rtol=1e-4))
