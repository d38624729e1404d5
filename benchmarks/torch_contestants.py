"""The contestants in torch. Only imported when torch is installed."""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import torch_models
from benchmarks.cases import BACKPACK, OPACUS, TORCH_FUNC, TORCH_LOOP, TORCH_LOOP_BF16, TORCH_TRAINING, Case
from benchmarks.contestant import NOT_INSTALLED, CannotRun, Prepared
from benchmarks.provenance import threads
from benchmarks.torch_models import DEVICE

torch.set_num_threads(threads())
torch.set_float32_matmul_precision("highest")
torch.backends.cudnn.allow_tf32 = False
warnings.filterwarnings("ignore", message="Full backward hook is firing")


def prepare(name: str, case: Case) -> Prepared:
    """Build the model with the case's weights and wrap it as the library requires."""
    make: dict[str, Callable[[Case, Tensor], Callable[[], Any]]] = {
        TORCH_FUNC: _vmap_of_grad,
        BACKPACK: _backpack,
        OPACUS: _opacus,
        TORCH_LOOP: _loop,
        TORCH_LOOP_BF16: functools.partial(_loop, dtype=torch.bfloat16),
        TORCH_TRAINING: _training,
    }
    run = make[name](case, torch_models.inputs(case))
    return Prepared(call=_synchronised(run), norms=None if name == TORCH_TRAINING else _numpy)


def _vmap_of_grad(case: Case, xs: Tensor) -> Callable[[], Tensor]:
    model = torch_models.model(case)
    params = {name: p.detach() for name, p in model.named_parameters()}

    def single(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, params, (x[None],))[0]

    torch.func.vmap(torch.func.grad(torch.sum))(torch.ones(1, 1))  # the first use imports 150 MB of modules
    gradients = torch.func.vmap(torch.func.grad(single), in_dims=(None, 0))
    return lambda: sum(g.square().flatten(1).sum(1) for g in gradients(params, xs).values())


def _loop(case: Case, xs: Tensor, dtype: torch.dtype = torch.float32) -> Callable[[], Tensor]:
    model = torch_models.model(case, dtype)
    parameters: list[Any] = list(model.parameters())

    def run() -> Tensor:
        norms: list[Any] = []
        for i in range(len(xs)):
            model.zero_grad(set_to_none=True)
            model(xs[i : i + 1]).sum().backward()
            norms.append(sum(p.grad.float().square().sum() for p in parameters))
        return torch.stack(norms)

    return run


def _training(case: Case, xs: Tensor) -> Callable[[], None]:
    model = torch_models.model(case)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(xs).sum().backward()

    return run


def _backpack(case: Case, xs: Tensor) -> Callable[[], Tensor]:
    if case.kind not in ("mlp", "cnn"):
        raise CannotRun("not supported: BatchL2Grad has no rule for LayerNorm")
    try:
        from backpack import backpack, extend
        from backpack.extensions import BatchL2Grad
    except ImportError as error:
        raise CannotRun(f"{NOT_INSTALLED} ({error})") from None
    model = torch_models.model(case)
    extend(model.logits)
    parameters: list[Any] = list(model.parameters())

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        with backpack(BatchL2Grad()):
            model(xs).sum().backward()
        return sum(p.batch_l2 for p in parameters)

    return run


def _opacus(case: Case, xs: Tensor) -> Callable[[], Tensor]:
    try:
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import GradSampleModuleFastGradientClipping
    except ImportError as error:
        raise CannotRun(f"{NOT_INSTALLED} ({error})") from None
    model = GradSampleModuleFastGradientClipping(
        torch_models.model(case), batch_first=True, loss_reduction="sum", use_ghost_clipping=True
    )

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        model(xs).sum().backward()
        return model.get_norm_sample().square()

    return run


def _synchronised(run: Callable[[], Any]) -> Callable[[], Any]:
    def call() -> Any:
        result = run()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    return call


def _numpy(norms: Tensor) -> np.ndarray:
    return norms.detach().cpu().numpy()
