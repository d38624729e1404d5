"""Constructed rows of the experiment `qa`, as its stages give them, with a signal that is known."""

import numpy as np
from scipy.stats import norm

from experiments.answers.numbers.scores import FEATURES, PASSES, SCORES

# The AUROC that each score is built to have; every other one is at chance.
KNOWN = {"epistemic_mean": 0.55, "aleatoric_mean": 0.60, "p_true": 0.69, "semantic_entropy": 0.55, "nll_mean": 0.65}
CHOSEN = tuple(name for name in SCORES if name not in FEATURES)


def rows(model="org/one", benchmark="triviaqa", n=1000, right=0.2, seed=0, kind="alias", norm_of_all=1e4):
    """n questions, a share of them right; log scores are normal, shifted by √2 Φ⁻¹(AUROC) where wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.permutation(n) >= round(right * n)
    scores = {name: rng.normal(size=n) + wrong * np.sqrt(2) * norm.ppf(KNOWN.get(name, 0.5)) for name in CHOSEN}
    scores["num_tokens"] = rng.integers(1, 12, size=n).astype(float)
    scores["epistemic_mean"] += np.log(norm_of_all)
    found = []
    for i in range(n):
        row = {"model": model, "benchmark": benchmark, "kind": kind, "prompt": "few_shot", "seed": 0, "index": i,
               "answer": f"answer {i}", "state": "answered", "right": bool(not wrong[i]), "num_params": 135_000_000,
               "param_sq_norm": norm_of_all}  # fmt: skip
        row |= {name: float(values[i]) for name, values in scores.items()}
        if kind == "alias":
            row["right_contained"] = bool(not wrong[i] or rng.random() < 0.1)
        else:
            row |= {"right_similarity": bool(not wrong[i] or rng.random() < 0.2), "mc1": bool(rng.random() < 0.25),
                    "mc2": float(rng.random())}  # fmt: skip
        found.append(row)
    return found


def refused(row):
    """The row as a refusal: no label and no view."""
    kept = {name: value for name, value in row.items() if not name.startswith("right")}
    return kept | {"state": "refused"}


def empty(row):
    """The row as an empty answer: no label, no view and no score but those of the samples."""
    names = {name for name in SCORES if "entropy" not in name or "token" in name}
    kept = {name: value for name, value in row.items() if name not in names and not name.startswith("right")}
    return kept | {"state": "empty", "answer": ""}


def costs(model="org/one", benchmark="triviaqa"):
    """What passes take."""
    seconds = dict.fromkeys(PASSES, 0.2) | dict(zip(PASSES, (0.4, 1.5, 0.3, 0.6, 0.5, 0.4, 0.7), strict=False))
    return [
        {"model": model, "benchmark": benchmark, "questions": 4, "pass": name, "seconds": value}
        | ({"mib": 700.0} if name.startswith("gradient") else {})
        for name, value in seconds.items()
    ]
