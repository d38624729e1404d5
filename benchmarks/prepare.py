"""The construction of a contestant from its name."""

import importlib

from benchmarks.cases import MATERIALISING, TORCH, Case
from benchmarks.contestant import NO_TRANSFORMERS, NOT_INSTALLED, CannotRun, Prepared, fits


def prepare(name: str, case: Case) -> Prepared:
    """Import, build and compile one contestant. Raise CannotRun, with the reason, if that is impossible."""
    _fits(name, case)
    if name in TORCH:
        text = case.kind == "text"
        for package in ("torch", "transformers", "accelerate") if text else ("torch",):
            try:
                importlib.import_module(package)
            except ImportError:
                raise CannotRun(NO_TRANSFORMERS if text else NOT_INSTALLED) from None
        from benchmarks import torch_contestants

        return torch_contestants.prepare(name, case)
    if case.kind == "text":
        from benchmarks import text_contestants

        return text_contestants.prepare(name, case)
    from benchmarks import jax_contestants

    return jax_contestants.prepare(name, case)


def _fits(name: str, case: Case) -> None:
    """Raise CannotRun unless two gradients per example (the gradient and its square) fit in memory."""
    if name not in MATERIALISING:
        return
    from benchmarks import models

    fits(2 * 4 * case.batch * models.count(case), "one gradient per example needs about")
