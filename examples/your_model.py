"""Your own model: a Flax CNN on handwritten digits, which answers to leave to a person, and better probabilities.

Train a network as you do, ask isouq for both uncertainties of every test image, and see how the errors fall when the
least certain images are left out. One number, fitted on held-out labels, turns ‖g‖² into a predictive distribution.

Run: python examples/your_model.py   (half a minute on two CPU cores; writes your_model.png)
Needs scikit-learn for the data: pip install 'isouq[models,plots,posterior]' scikit-learn
"""

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import isouq
from isouq import stats


class CNN(nnx.Module):
    """Two convolutions and a linear layer."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(8, 16, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        """Return the ten logits of one image [8, 8, 1]."""
        return self.head(nnx.relu(self.conv2(nnx.relu(self.conv1(x)))).reshape(-1))


def load_data():
    """Return (images, labels) to train on, to fit one number on, and to test on: 300, 300 and 1,197."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = (digits.images[order] / 16).astype(np.float32)[..., None], digits.target[order].astype(np.int32)
    return [(images[rows], labels[rows]) for rows in (slice(0, 300), slice(300, 600), slice(600, None))]


def train(predict, params, xs, ys, steps=300):
    """Return the parameters after Adam on all images with a little weight decay."""
    optimiser = optax.adamw(optax.cosine_decay_schedule(1e-2, steps), weight_decay=1e-3)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(predict, (None, 0))(params, xs), ys).mean()

    def step(state, _):
        updates, moments = optimiser.update(jax.grad(loss)(state[0]), state[1], state[0])
        return (optax.apply_updates(state[0], updates), moments), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, optimiser.init(p)), length=steps)[0][0])(params)


def main():
    """Print losses, and draw the rejection curves with the areas under them; return the areas and the losses."""
    (xs, ys), (held_xs, held_ys), (test_xs, test_ys) = load_data()
    predict, params = isouq.models.from_nnx(CNN(nnx.Rngs(0)))
    params = train(predict, params, xs, ys)
    u = isouq.uncertainty(predict, params, test_xs, "multiclass")
    wrong = np.asarray(u.target) != test_ys
    print(f"{wrong.sum()} of {len(wrong)} test images are wrong")

    fitted = isouq.fit_scale(predict, params, held_xs, held_ys, "multiclass")  # Σ = s · I
    losses = {}
    for name, covariance in {
        "the network alone": isouq.Identity(0.0),
        f"s = {fitted.scale:.2g}": fitted.covariance,
    }.items():
        probabilities = isouq.predictive(predict, params, test_xs, "multiclass", covariance).mean
        losses[name] = stats.log_loss(probabilities, test_ys)
        print(f"mean −log p, {name}: {losses[name]:.4f}")

    figure, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    share, areas = 100 * np.arange(1, len(wrong) + 1) / len(wrong), {}
    for (name, score), style in zip({"‖g‖²": u.epistemic, "p(1 − p)": u.aleatoric}.items(), ("-", "--"), strict=True):
        areas[name] = stats.aurc(wrong, score)
        axis.plot(share, 100 * stats.rejection_curve(wrong, score), style, label=f"{name}, area {areas[name]:.4f}")
    axis.axhline(100 * wrong.mean(), color="gray", lw=0.8, label="all images answered")
    axis.set(xlabel="images answered, the most certain first, %", ylabel="errors among them, %", ylim=(0, None))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.savefig("your_model.png", dpi=150)
    return areas, losses


if __name__ == "__main__":
    main()
