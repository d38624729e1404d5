"""The same models with the same weights in torch, built from layers that the other libraries support where possible.

`forward` maps a batch to f, [B]: the probability of class 0, or the log-probability of each token sequence.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import models
from benchmarks.cases import Case

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def model(case: Case, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return the module on the device, in training mode (none of its layers behaves differently in evaluation).

    dtype: the type of a pretrained model's parameters.
    """
    if case.kind == "text":
        from benchmarks import torch_text

        return torch_text.Pretrained(case, dtype).to(DEVICE)
    params = models.weights(case)
    if case.kind == "lm":
        return LanguageModel(case, params).to(DEVICE)
    logits = {"mlp": _mlp, "cnn": _cnn, "encoder": Encoder}[case.kind](case, params)
    return Classifier(logits).to(DEVICE)


def inputs(case: Case) -> Tensor:
    """Return the inputs [B, ...]; images have channels first, token ids are int64."""
    xs = models.inputs(case)
    if case.kind == "cnn":
        # A copy: torch would treat one channel as "channels last", a layout for which Opacus 1.6 computes wrong norms.
        xs = np.moveaxis(xs, -1, 1).copy(order="C")
    return torch.from_numpy(xs.astype(np.int64) if xs.dtype == np.int32 else xs).to(DEVICE)


class Classifier(nn.Module):
    """The probability of class 0, on top of a module that returns logits."""

    def __init__(self, logits: nn.Module) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, xs: Tensor) -> Tensor:
        """[B]"""
        return torch.softmax(self.logits(xs), dim=-1)[:, 0]


class Block(nn.Module):
    """Pre-LN attention and a GELU MLP, as in GPT-2."""

    def __init__(self, case: Case, p: Any) -> None:
        super().__init__()
        self.heads, self.causal = case.heads, case.kind == "lm"
        self.ln1, self.ln2 = _norm(p["ln1"]), _norm(p["ln2"])
        self.qkv, self.out, self.up, self.down = (linear(p[name]) for name in ("qkv", "out", "up", "down"))

    def forward(self, h: Tensor) -> Tensor:
        """[B, T, D]"""
        h = h + self.out(self.attention(self.qkv(self.ln1(h))))
        return h + self.down(nn.functional.gelu(self.up(self.ln2(h)), approximate="tanh"))

    def attention(self, qkv: Tensor) -> Tensor:
        """[B, T, 3 D] -> [B, T, D], written out so that torch.func and every backend run the same products."""
        b, t, d = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        q, k, v = (part.reshape(b, t, self.heads, -1).transpose(1, 2) for part in qkv.split(d, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(d // self.heads)
        if self.causal:
            mask = torch.ones(t, t, dtype=torch.bool, device=qkv.device).tril()
            scores = scores.masked_fill(~mask, -torch.inf)
        return (torch.softmax(scores, dim=-1) @ v).transpose(1, 2).reshape(b, t, d)


class Trunk(nn.Module):
    """Token ids [B, T] to the last hidden states [B, T, D]."""

    def __init__(self, case: Case, params: Any) -> None:
        super().__init__()
        self.tokens, self.positions = _embedding(params["tokens"]), _embedding(params["positions"])
        self.blocks = nn.Sequential(*[Block(case, p) for p in params["blocks"]])
        self.ln = _norm(params["ln"])

    def forward(self, ids: Tensor) -> Tensor:
        """Look up the positions for every example: Opacus needs a leading batch axis and contiguous ids."""
        positions = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0], 1)
        return self.ln(self.blocks(self.tokens(ids) + self.positions(positions)))


class Encoder(nn.Module):
    """Mean over positions, then a linear layer."""

    def __init__(self, case: Case, params: Any) -> None:
        super().__init__()
        self.trunk, self.head = Trunk(case, params), linear(params["head"])

    def forward(self, ids: Tensor) -> Tensor:
        """[B, classes]"""
        return self.head(self.trunk(ids).mean(dim=1))


class LanguageModel(nn.Module):
    """log p of a sequence [B, T + 1] under the causal model, summed over T next tokens."""

    def __init__(self, case: Case, params: Any) -> None:
        super().__init__()
        self.trunk = Trunk(case, params)
        self.head = nn.Linear(case.width, case.vocab, bias=False, device="meta")
        self.head.weight = self.trunk.tokens.weight if case.tied else parameter(params["head"]["w"].T)

    def forward(self, ids: Tensor) -> Tensor:
        """[B]"""
        log_p = torch.log_softmax(self.head(self.trunk(ids[:, :-1].contiguous())), dim=-1)
        return log_p.gather(-1, ids[:, 1:, None])[..., 0].sum(dim=-1)


def _mlp(case: Case, params: Any) -> nn.Sequential:
    first, *rest = (linear(p) for p in params["layers"])
    return nn.Sequential(first, *[part for layer in rest for part in (nn.Tanh(), layer)])


def _cnn(case: Case, params: Any) -> nn.Sequential:
    parts: list[nn.Module] = []
    for p, (n_in, n_out, stride) in zip(params["convs"], models.CONVOLUTIONS, strict=True):
        conv = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)
        conv.weight, conv.bias = parameter(p["w"].transpose(3, 2, 0, 1)), parameter(p["b"])
        parts += [conv, nn.ReLU()]
    side = models.IMAGE // math.prod(stride for *_, stride in models.CONVOLUTIONS)
    w = params["dense"]["w"].reshape(side, side, n_out, case.classes)  # the rows in channels-first order
    dense = {"w": w.transpose(2, 0, 1, 3).reshape(-1, case.classes), "b": params["dense"]["b"]}
    return nn.Sequential(*parts, nn.Flatten(), linear(dense))


def linear(p: Any) -> nn.Linear:
    """Return the layer of a matrix w [in, out] and a bias b."""
    layer = nn.Linear(*p["w"].shape)
    layer.weight, layer.bias = parameter(p["w"].T), parameter(p["b"])
    return layer


def _norm(p: Any) -> nn.LayerNorm:
    layer = nn.LayerNorm(p["scale"].shape, eps=models.LN_EPS)
    layer.weight, layer.bias = parameter(p["scale"]), parameter(p["bias"])
    return layer


def _embedding(table: np.ndarray) -> nn.Embedding:
    return nn.Embedding(table.shape[0], table.shape[1], _weight=torch.from_numpy(table.copy()))


def parameter(array: np.ndarray) -> nn.Parameter:
    """Return a parameter with a copy of the array."""
    return nn.Parameter(torch.from_numpy(array.copy(order="C")))
