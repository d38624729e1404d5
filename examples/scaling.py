"""Does the agreement grow with the size of the network? Three rings, widths 4 to 128, two priors.

The paper claims that ‖g‖² comes closer to the posterior variance the wider the network. Here the width of one hidden
layer grows under two priors: "unit", where every parameter is N(0, 1), and "fan_in", where the variance of a weight is
σ² over the inputs of its layer. One seed, so no intervals: `python -m experiments scaling --preset paper` has widths to
1024, five priors and five seeds, and finds that the agreement falls again beyond width 64 or 128 under most priors.

Run: python examples/scaling.py   (three minutes on two CPU cores; writes scaling.png)
"""

import jax
import matplotlib.pyplot as plt

from isouq import models, stats, uncertainty
from isouq.posterior import LogDensity, Margins, Sampling, fit_map, probabilities, sample_reference
from isouq.problems import PROBLEMS, evaluation_inputs

PROBLEM = PROBLEMS["multiclass/rings"]
WIDTHS = (4, 16, 64, 128)
PRIORS = {"unit, σ = 1": ("unit", 1.0), "fan_in, σ = 3": ("fan_in", 3.0)}
SAMPLING = Sampling(num_warmup=300, num_draws=400, num_integration_steps=30, max_rounds=2)


def agreement(width, prior, sigma, seed=0):
    """Return Spearman's ρ of ‖g‖² with the posterior variance, and whether the chains were accepted."""
    for_data, for_starts, for_chains = jax.random.split(jax.random.key(seed), 3)
    xs, ys = PROBLEM.sample(for_data, 200)
    predict, init = models.mlp(2, (width,), PROBLEM.num_outputs)
    starts = jax.vmap(init)(jax.random.split(for_starts, 4))
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    log_density = LogDensity.of(predict, first, xs, ys, PROBLEM.kind, prior=prior, sigma=sigma)
    trained = fit_map(log_density, starts, scales=log_density.scales)
    grid = evaluation_inputs(xs, resolution=30)
    u = uncertainty(predict, trained.best(), grid, PROBLEM.kind)
    record = Margins(predict, grid, u.target, PROBLEM.kind)
    reference = sample_reference(log_density, trained.params, for_chains, sampling=SAMPLING, record=record)
    variance = probabilities(reference.predictions, PROBLEM.kind).var(axis=(0, 1))
    return stats.spearman(u.epistemic, variance), reference.verdict.accepted


def main(widths=WIDTHS, priors=PRIORS):
    """Print ρ for each width and prior and draw it; return the rows."""
    figure, axis = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
    rows = {}
    for (name, prior), style in zip(priors.items(), ("o-", "s--"), strict=False):
        rows[name] = [agreement(width, *prior) for width in widths]
        for width, (rho, accepted) in zip(widths, rows[name], strict=True):
            print(f"{name:<14} width {width:>4}  ρ {rho:.2f}  {'accepted' if accepted else 'unconverged'}", flush=True)
        shown = [(width, rho) for width, (rho, accepted) in zip(widths, rows[name], strict=True) if accepted]
        if shown:
            axis.plot(*zip(*shown, strict=True), style, label=name)
    axis.set_xscale("log", base=2)
    axis.set_xticks(widths, [str(width) for width in widths])
    axis.set(xlabel="hidden width", ylabel="Spearman ρ of ‖g‖² with Var[p]", ylim=(-0.05, 1.05))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, title="prior; unconverged widths are left out")
    figure.savefig("scaling.png", dpi=150)
    return rows


if __name__ == "__main__":
    main()
