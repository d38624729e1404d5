# %% [markdown]
# # Calibrated uncertainty on digits
#
# This tutorial trains a small Flax CNN on scikit-learn's handwritten digits. It then finds the images that the network
# is least certain of, compares three ways to make its probabilities better on images that it has not seen, and draws
# how many errors remain if the doubtful images are left to a person. It takes about a minute on two CPU cores.
# scikit-learn comes with `pip install -e '.[experiments]'`.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import isouq
from isouq import models, stats
from isouq.posterior import LogDensity

# %% [markdown]
# ## Data and a network
#
# 300 images train the network, 300 are held out to fit one number on, and 1,197 test the result. With so few images to
# train on the network makes enough errors to compare.

# %%
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images, labels = (digits.images[order] / 16).astype(np.float32)[..., None], digits.target[order].astype(np.int32)
(xs, ys), (held_xs, held_ys), (test_xs, test_ys) = (
    (images[rows], labels[rows]) for rows in (slice(0, 300), slice(300, 600), slice(600, None))
)


class CNN(nnx.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        """Return the ten logits of one image."""
        return self.head(nnx.relu(self.conv2(nnx.relu(self.conv1(x)))).reshape(-1))


predict, params = models.from_nnx(CNN(nnx.Rngs(0)))

# %% [markdown]
# ## Train it
#
# `LogDensity` is the log posterior under a Gaussian prior. Its maximum is an ordinary training with weight decay. Any
# other training will do for ‖g‖² and for a scale; a Laplace approximation wants a maximum of the log posterior.

# %%
log_density = LogDensity.of(predict, params, xs, ys, "multiclass", sigma=1.0)
optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 500))


@jax.jit
def train(params):
    """Return the parameters after 500 steps of Adam on all images."""

    def step(state, _):
        params, moments = state
        updates, moments = optimizer.update(jax.grad(lambda p: -log_density(p))(params), moments)
        return (optax.apply_updates(params, updates), moments), None

    return jax.lax.scan(step, (params, optimizer.init(params)), None, 500)[0][0]


params = train(params)
u = isouq.uncertainty(predict, params, test_xs, "multiclass")
p = np.asarray(isouq.predictive(predict, params, test_xs, "multiclass", isouq.Identity(0.0)).mean, np.float64)
wrong = p.argmax(axis=1) != test_ys
print(f"{wrong.sum()} of {len(wrong)} test images are wrong")

# %% [markdown]
# ## The images that it is least certain of
#
# `u.epistemic` is ‖g‖², the squared norm of the gradient of the predicted class's probability. Here are the twelve
# images where it is largest, with the predicted digit, and the true one where that differs.

# %%
figure, axes = plt.subplots(2, 6, figsize=(8, 3.2), layout="constrained")
for axis, index in zip(axes.ravel(), np.argsort(-np.asarray(u.epistemic)), strict=False):
    axis.imshow(test_xs[index, ..., 0], cmap="gray_r")
    says = f"says {p[index].argmax()}" + (f", is {test_ys[index]}" if wrong[index] else "")
    axis.set_title(says, fontsize=9)
    axis.axis("off")

# %% [markdown]
# ## Better probabilities
#
# Three ways, from the cheapest to the one that needs the training data:
#
# - *scale*: the covariance s · I, where s is the one number that makes the held-out labels most likely;
# - *Laplace*: a Kronecker-factored GGN, whose prior has the largest evidence (`choose_prior`);
# - *Laplace, scaled*: the same, with one factor fitted to the held-out labels.

# %%
scale = isouq.fit_scale(predict, params, held_xs, held_ys, "multiclass")
choice = isouq.choose_prior(log_density, params, "ggn", "kronecker")
scaled = isouq.fit_scale(predict, params, held_xs, held_ys, "multiclass", choice.covariance)
covariances = {
    "the network alone": isouq.Identity(0.0),
    "scale": scale.covariance,
    "Laplace": choice.covariance,
    "Laplace, scaled": scaled.covariance,
}
print(f"s = {scale.scale:.2g}; factor of Laplace {scaled.scale:.2g}")
losses = {}
for name, covariance in covariances.items():
    mean = np.asarray(isouq.predictive(predict, params, test_xs, "multiclass", covariance).mean, np.float64)
    losses[name] = -np.log(mean[np.arange(len(test_ys)), test_ys])
    print(
        f"{name:<18} NLL {stats.log_loss(mean, test_ys):.4f}   Brier {stats.brier_score(mean, test_ys):.4f}   "
        f"ECE {stats.calibration_error(mean, test_ys):.4f}"
    )

# %% [markdown]
# How sure are these differences? The paired bootstrap over the test images gives the change of the NLL against the
# network alone, with its 95 % interval. It holds for this network; another training gives other numbers.

# %%
for name in list(covariances)[1:]:
    change, _ = stats.paired_bootstrap(losses[name], losses["the network alone"])
    print(f"{name:<18} {change.mean:+.4f} [{change.low:+.4f}, {change.high:+.4f}]")

# %% [markdown]
# The scale needs one pass over the held-out images and does as well as the Laplace approximation with a factor, which
# needs the training data too. Both intervals hold 0, so that neither improvement is established on 1,197 images, and
# the Brier score gets slightly worse with both. Without a factor the Laplace approximation is far too uncertain here,
# so do not leave the factor out. [Calibrated uncertainty](../how-to/calibration.md) has the same comparison on text.

# %% [markdown]
# ## Which images to leave to a person
#
# The rejection curve is the share of errors among the images that are answered, from the most certain one on. The
# smaller the area under it (AURC), the better the score ranks.

# %%
variance = isouq.uncertainty(predict, params, test_xs, "multiclass", covariance=choice.covariance).epistemic
scores = {"‖g‖²": u.epistemic, "p(1 − p)": u.aleatoric, "Laplace, gᵀΣg": variance}
figure, axis = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
share = np.arange(1, len(wrong) + 1) / len(wrong)
for (name, score), style in zip(scores.items(), ("-", "--", ":"), strict=True):
    axis.plot(100 * share, 100 * stats.rejection_curve(wrong, score), style, label=name)
    print(f"{name:<14} AURC {stats.aurc(wrong, score):.5f}")
axis.set(xlabel="images answered (%)", ylabel="errors among them (%)", xlim=(40, 100), ylim=(0, None))
axis.legend(loc="upper left", frameon=False)

# %% [markdown]
# The three curves differ little: where a network of this kind errs, p(1 − p) knows it too. What ‖g‖² adds to p(1 − p)
# is measured over many problems and networks in [When can I trust it?](../when-to-trust.md).
