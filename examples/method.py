"""The whole method on two rings: does one gradient know what a sampled posterior knows?

With p(x) the probability of a class by a small network, at the mode θ* of its posterior:

    epistemic uncertainty   ‖∂p/∂θ‖²  from one gradient, against  Var_θ[p]       over networks drawn by HMC
    aleatoric uncertainty   p(1 − p)  from one network,  against  E_θ[p(1 − p)]  over the same networks

Nothing here uses isouq, which does the same for any model. Run: python examples/method.py   (half a minute)
"""

import blackjax
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

WIDTH, POINTS, STEPS, CHAINS, WARM_UP, DRAWS = 16, 200, 3000, 4, 400, 500


def draw_rings(key):
    """Return points [n, 2] on two noisy rings of radius 1 and 2, and their labels [n]."""
    labels, angle = jnp.arange(POINTS) % 2, jax.random.uniform(key, (POINTS,), maxval=2 * jnp.pi)
    radius = 1.0 + labels + 0.2 * jax.random.normal(jax.random.fold_in(key, 1), (POINTS,))
    return radius[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1), labels


def draw_parameters(key):
    """Return parameters drawn from the prior, a standard normal."""
    shapes = {"w1": (2, WIDTH), "b1": (WIDTH,), "w2": (WIDTH,), "b2": ()}
    keys = jax.random.split(key, len(shapes))
    return {name: jax.random.normal(one, shape) for one, (name, shape) in zip(keys, shapes.items(), strict=True)}


def logit(params, x):
    """Return the logit of class 1 for one input [2]."""
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def probability(params, x):
    """Return p of class 1. Class 0 has the same squared gradient, the same variance and the same p(1 − p)."""
    return jax.nn.sigmoid(logit(params, x))


def log_posterior(params, xs, ys):
    """Return log p(θ) + Σ log p(y | x, θ), up to a constant."""
    losses = optax.sigmoid_binary_cross_entropy(jax.vmap(logit, (None, 0))(params, xs), ys)
    return -0.5 * optax.tree.norm(params, squared=True) - jnp.sum(losses)


@jax.jit
def find_mode(params, xs, ys):
    """Return the mode θ* of the posterior that Adam finds from these parameters."""
    optimiser = optax.adam(optax.cosine_decay_schedule(0.02, STEPS))

    def step(state, _):
        updates, moments = optimiser.update(jax.grad(lambda p: -log_posterior(p, xs, ys))(state[0]), state[1])
        return (optax.apply_updates(state[0], updates), moments), None

    return jax.lax.scan(step, (params, optimiser.init(params)), length=STEPS)[0][0]


@jax.jit
def sample_posterior(keys, xs, ys):
    """Return samples, every leaf [chains · DRAWS, ...]; each chain begins at a draw from the prior."""

    def run_chain(key):
        for_start, for_warm_up, for_draws = jax.random.split(key, 3)
        adaptation = blackjax.window_adaptation(blackjax.nuts, lambda p: log_posterior(p, xs, ys))
        (state, tuned), _ = adaptation.run(for_warm_up, draw_parameters(for_start), WARM_UP)
        step = blackjax.nuts(lambda p: log_posterior(p, xs, ys), **tuned).step
        return jax.lax.scan(lambda s, k: (step(k, s)[0], s.position), state, jax.random.split(for_draws, DRAWS))[1]

    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.vmap(run_chain)(keys))


def main():
    """Print how the uncertainties agree on a grid and draw them to method.png; return θ*, the grid and the maps."""
    for_data, for_start, for_chains = jax.random.split(jax.random.key(0), 3)
    xs, ys = draw_rings(for_data)
    mode = find_mode(draw_parameters(for_start), xs, ys)
    axis = jnp.linspace(-2.5, 2.5, 40)
    grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    norm = jax.vmap(lambda x: optax.tree.norm(jax.grad(probability)(mode, x), squared=True))(grid)
    samples = sample_posterior(jax.random.split(for_chains, CHAINS), xs, ys)
    on_grid = jax.vmap(probability, (None, 0))
    p, ps = on_grid(mode, grid), jax.vmap(on_grid, (0, None))(samples, grid)
    maps = {"epistemic": (ps.var(axis=0), norm), "aleatoric": ((ps * (1 - ps)).mean(axis=0), p * (1 - p))}
    figure, axes = plt.subplots(2, 2, figsize=(6.4, 5.6), sharex=True, sharey=True, layout="constrained")
    for (name, pair), row in zip(maps.items(), axes, strict=True):
        print(f"{name}: correlation {jnp.corrcoef(*pair)[0, 1]:.2f} over the grid")
        for values, title, panel in zip(pair, ("drawn by HMC", "one network"), row, strict=True):
            figure.colorbar(panel.pcolormesh(axis, axis, values.reshape(40, 40)), label=name)
            panel.scatter(*xs.T, c=ys, s=5, cmap="gray")
            panel.set(title=title, xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
    figure.savefig("method.png", dpi=150)
    return mode, grid, maps


if __name__ == "__main__":
    main()
