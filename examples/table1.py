"""Table 1 of the paper, row by row: how do ‖g‖² and p(1 − p) correlate with a sampled posterior?

For each of nine problems: draw data, train a network to the mode of its posterior, take both uncertainties on a grid,
sample the posterior by Hamiltonian Monte Carlo from four trained networks, and correlate. One seed, so no intervals;
`python -m experiments validation --preset paper` has five seeds, stricter chains and the paper's numbers beside them.

Run: python examples/table1.py   (three minutes on two CPU cores; writes table1.png)
"""

import jax
import matplotlib.pyplot as plt
import numpy as np

from isouq import models, stats, uncertainty
from isouq.posterior import LogDensity, Margins, Sampling, fit_map, probabilities, sample_reference
from isouq.problems import PROBLEMS, evaluation_inputs

SAMPLING = Sampling(num_warmup=300, num_draws=500, num_integration_steps=30, max_rounds=2)


def compare(problem, seed=0):
    """Return (verdict, r and ρ of the epistemic uncertainty, r of the aleatoric one); None where there is no row."""
    for_data, for_starts, for_chains = jax.random.split(jax.random.key(seed), 3)
    xs, ys = problem.sample(for_data, 200)
    predict, init = models.mlp(xs.shape[1], problem.hidden, problem.num_outputs)
    starts = jax.vmap(init)(jax.random.split(for_starts, 4))
    first = jax.tree.map(lambda leaf: leaf[0], starts)
    log_density = LogDensity.of(predict, first, xs, ys, problem.kind, noise=problem.noise)  # prior: N(0, 1)
    trained = fit_map(log_density, starts)
    grid = evaluation_inputs(xs, resolution=30)
    u = uncertainty(predict, trained.best(), grid, problem.kind)
    record = Margins(predict, grid, u.target, problem.kind)
    reference = sample_reference(log_density, trained.params, for_chains, sampling=SAMPLING, record=record)
    p = probabilities(reference.predictions, problem.kind)  # [chains, draws, points]
    variance = p.var(axis=(0, 1))
    r, rho = stats.pearson(u.epistemic, variance), stats.spearman(u.epistemic, variance)
    aleatoric = None if problem.kind == "regression" else stats.pearson(u.aleatoric, (p * (1 - p)).mean(axis=(0, 1)))
    return reference.verdict.accepted, r, rho, aleatoric


def main(names=tuple(PROBLEMS)):
    """Print a line for each problem and draw ρ; return the rows."""
    print(f"{'problem':<22} accepted  epistemic r     ρ  aleatoric r")
    rows = {}
    for name in names:
        rows[name] = accepted, r, rho, aleatoric = compare(PROBLEMS[name])
        last = "            –" if aleatoric is None else f"{aleatoric:13.2f}"
        print(f"{name:<22} {'yes' if accepted else 'no':>8} {r:12.2f} {rho:5.2f}{last}", flush=True)
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    place = np.arange(len(rows))
    for offset, column, label, marker in ((-0.1, 2, "Spearman ρ", "o"), (0.1, 1, "Pearson r", "s")):
        axis.plot([row[column] for row in rows.values()], place + offset, marker, label=label)
    axis.axvline(0, color="gray", lw=0.8)
    axis.set_yticks(place, [name if row[0] else f"{name} (unconverged)" for name, row in rows.items()])
    axis.set(xlim=(-1.05, 1.05), xlabel="correlation of ‖g‖² with the posterior variance", ylim=(len(rows) - 0.5, -0.5))
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    figure.savefig("table1.png", dpi=150)
    return rows


if __name__ == "__main__":
    main()
