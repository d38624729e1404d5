"""Write tests/laplace_torch.json: evidence and posterior precision of laplace-torch on the networks of the tests.

In an environment of its own, with a seed of its own for data and weights, which stand in the file too:
pip install torch laplace-torch==0.3, then: python tests/laplace_torch.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from laplace import Laplace
from torch.utils.data import DataLoader, TensorDataset

SIZES = {"multiclass": 3, "regression": 1}
NOISE = 0.4
PRIOR_PRECISION = 0.7
STRUCTURES = {"dense": "full", "diagonal": "diag", "kronecker": "kron"}


def network(outputs: int) -> torch.nn.Module:
    """Return an MLP with weights of its seed, in float64."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, outputs)
    return torch.nn.Sequential(*layers).double()


def convolution(rng: np.random.Generator) -> dict:
    """Return a convolutional network with its data, and the evidence of its Kronecker form."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(18, 3)
    ).double()
    xs, ys = rng.normal(size=(24, 1, 3, 3)), rng.integers(3, size=24)
    la = Laplace(
        model, "classification", subset_of_weights="all", hessian_structure="kron", prior_precision=PRIOR_PRECISION
    )
    la.fit(DataLoader(TensorDataset(torch.tensor(xs), torch.tensor(ys)), batch_size=24))
    weights = {name: value.detach().numpy().tolist() for name, value in model.named_parameters()}
    evidence = float(la.log_marginal_likelihood())
    return {"xs": xs.tolist(), "ys": ys.tolist(), "weights": weights, "log_marginal_likelihood": evidence}


def main() -> None:
    """Compute and write the file."""
    rng = np.random.default_rng(0)
    xs = rng.normal(size=(40, 2))
    labels = {"multiclass": rng.integers(3, size=40), "regression": rng.normal(size=40)}
    cases = []
    for kind, ys in labels.items():
        model = network(SIZES[kind])
        target = torch.tensor(ys) if kind == "multiclass" else torch.tensor(ys)[:, None]
        loader = DataLoader(TensorDataset(torch.tensor(xs), target), batch_size=8)
        weights = {name: value.detach().numpy().tolist() for name, value in model.named_parameters()}
        case = {"kind": kind, "xs": xs.tolist(), "ys": ys.tolist(), "weights": weights, "structures": {}}
        for name, structure in STRUCTURES.items():
            likelihood = "classification" if kind == "multiclass" else "regression"
            options = {} if kind == "multiclass" else {"sigma_noise": NOISE}
            la = Laplace(
                model, likelihood, subset_of_weights="all", hessian_structure=structure,
                prior_precision=PRIOR_PRECISION, **options,
            )  # fmt: skip
            la.fit(loader)
            precision = la.posterior_precision
            matrix = precision.to_matrix() if structure == "kron" else precision
            case["structures"][name] = {
                "log_marginal_likelihood": float(la.log_marginal_likelihood()),
                "posterior_precision": matrix.detach().numpy().tolist(),
            }
        cases.append(case)
    record = {
        "convolution": convolution(rng),
        "command": "python tests/laplace_torch.py",
        "laplace-torch": version("laplace-torch"),
        "torch": torch.__version__,
        "prior_precision": PRIOR_PRECISION,
        "noise": NOISE,
        "cases": cases,
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
