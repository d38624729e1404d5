"""laplace-torch on the networks of `laplace_subjects`. Only imported when laplace-torch is installed."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from laplace import Laplace
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.laplace_subjects import STRIDES, Posterior, Subject
from benchmarks.provenance import threads
from benchmarks.torch_models import DEVICE, linear, parameter

torch.set_num_threads(threads())
torch.set_float32_matmul_precision("highest")
warnings.filterwarnings("ignore", message="By default `link_approx` is `probit`")
_PREDICT_ROWS = 32  # at a time: time and memory of a Kronecker prediction grow with the square of this number


class _Flatten(nn.Module):
    """Flattens images with channels first in the order of channels last, which the weights have."""

    def forward(self, h: Tensor) -> Tensor:
        return h.permute(0, 2, 3, 1).flatten(1)


def fit_function(structure: str, subject: Subject, batch_size: int) -> Callable[[], Posterior]:
    """Return the function that fits in a structure of laplace-torch and chooses one prior by the evidence."""
    model = _network(subject.params).to(DEVICE)
    data = TensorDataset(_inputs(subject.xs), torch.from_numpy(subject.ys.astype(np.int64)))
    loader, test_xs = DataLoader(data, batch_size=batch_size), _inputs(subject.test_xs).to(DEVICE)

    def fit() -> Posterior:
        la = Laplace(model, "classification", subset_of_weights="all", hessian_structure=structure)
        la.fit(loader)
        la.optimize_prior_precision(pred_type="glm", method="marglik", prior_structure="scalar", link_approx="probit")
        return Posterior(
            float(la.prior_precision) ** -0.5,
            float(la.log_marginal_likelihood()),
            lambda: np.concatenate(
                [
                    la(xs, pred_type="glm", link_approx="probit").detach().cpu().numpy()
                    for xs in test_xs.split(_PREDICT_ROWS)
                ]
            ),
        )

    return fit


def _inputs(xs: np.ndarray) -> Tensor:
    return torch.from_numpy(np.moveaxis(xs, -1, 1).copy(order="C") if xs.ndim == 4 else xs)


def _network(params: Any) -> nn.Sequential:
    parts: list[nn.Module] = []
    for p, stride in zip(params["convs"], STRIDES, strict=False):
        w = np.asarray(p["w"])
        conv = nn.Conv2d(w.shape[2], w.shape[3], 3, stride=stride, padding=1)
        conv.weight, conv.bias = parameter(w.transpose(3, 2, 0, 1)), parameter(np.asarray(p["b"]))
        parts += [conv, nn.ReLU()]
    parts += [_Flatten()] if parts else []
    first, *rest = (linear({name: np.asarray(leaf) for name, leaf in p.items()}) for p in params["layers"])
    return nn.Sequential(*parts, first, *[part for layer in rest for part in (nn.Tanh(), layer)])
