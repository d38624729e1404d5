"""Rotary position embeddings and the ways they are stretched to longer contexts.

A pair of coordinates (i, i + d/2) of a query or key at position t is turned by the angle t ω_i with
ω_i = θ^(−2i/d); the variants change ω. Su et al. 2021 (arXiv 2104.09864); position interpolation, Chen et al. 2023
(arXiv 2306.15595); YaRN, Peng et al. 2023 (arXiv 2309.00071); LongRoPE, Ding et al. 2024 (arXiv 2402.13753); Llama
3.1's banded scaling, Grattafiori et al. 2024 (arXiv 2407.21783).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from isouq.text.models._numbers import number, numbers, whole

KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "frequencies")
CONTEXTS = {  # where a config.json leaves it out
    "mistral": 131072, "ministral": 131072, "qwen2": 32768, "qwen3": 32768, "phi3": 4096, "smollm3": 32768,
    "mixtral": 131072, "qwen3_moe": 32768, "gemma2": 8192, "gemma3_text": 131072,
}  # fmt: skip
ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class Rope:
    """Rotary embeddings of one model; hashable.

    kind: one of KINDS. dim: coordinates of a head that are turned (even). theta: the base.
    context: positions trained or stretched to. original: positions before stretching. factor: the stretch.
    factors, long_factors: one divisor of ω per pair (longrope: below and above `original`).
    scale: of cos and sin. low, high: Llama 3's frequency factors, or YaRN's betas.
    """

    dim: int
    theta: float = 10000.0
    kind: str = "default"
    context: int = 2048
    original: int = 2048
    factor: float = 1.0
    factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    scale: float = 1.0
    low: float = 1.0
    high: float = 1.0
    truncate: bool = True

    def tables(
        self, positions: Int[Array, " T"], length: Int[Array, ""]
    ) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
        """Return (cos, sin) of every position and pair, float32.

        length: tokens of the sequence, which `dynamic` and `longrope` depend on and the others do not.
        """
        angles = positions[:, None].astype(jnp.float32) * self._frequencies(length)[None, :]
        return jnp.cos(angles) * self.scale, jnp.sin(angles) * self.scale

    def _frequencies(self, length: Int[Array, ""]) -> Float[Array, " half"]:
        powers = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        plain = np.float32(1) / np.float32(self.theta) ** powers
        if self.kind == "linear":
            return jnp.asarray(plain / np.float32(self.factor))
        if self.kind == "frequencies":
            return jnp.asarray(plain / np.asarray(self.factors, np.float32))
        if self.kind == "llama3":
            return jnp.asarray(_llama3(plain, self))
        if self.kind == "yarn":
            return jnp.asarray(_yarn(plain, self))
        if self.kind == "longrope":
            short, long = (plain / np.asarray(f, np.float32) for f in (self.factors, self.long_factors))
            return jnp.where(length > self.original, long, short)
        if self.kind == "dynamic":
            grown = jnp.maximum(length, self.original) * self.factor / self.original - (self.factor - 1)
            theta = self.theta * grown ** (self.dim / (self.dim - 2))
            return 1 / theta ** jnp.asarray(powers)
        return jnp.asarray(plain)


def turn(x: Float[Array, "T heads d"], cos: Float[Array, "T half"], sin: Float[Array, "T half"]) -> Array:
    """Return the first 2 · half coordinates of every head turned by its position's angles, the rest as they are."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    cos, sin = cos[:, None, :].astype(x.dtype), sin[:, None, :].astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def from_config(config: dict[str, Any], head_dim: int, family: str = "llama") -> Rope:
    """Read the Rope that a config.json describes, in the old (`rope_scaling`) or the new way (`rope_parameters`).

    The context is `max_position_embeddings` where that is the stretched length already, and the original length times
    the factor where it is not. Without `original_max_position_embeddings` the former is the length before stretching,
    as transformers takes it. Raises ValueError for a kind that is not known, for a number that is missing, and where
    layers of one model are to turn differently.
    """
    settings = _parameters(config)
    kind = settings.get("rope_type", settings.get("type", "default")) or "default"
    kind = "longrope" if kind == "su" or (kind == "yarn" and family == "phi3") else kind
    if kind not in KINDS:
        raise ValueError(f"rope_type is {kind!r:.60}; expected one of {', '.join(KINDS)}")
    either = {**config, **{key: value for key, value in settings.items() if value is not None}}
    if config.get(ORIGINAL) is not None:  # as in transformers, the one outside counts
        either[ORIGINAL] = config[ORIGINAL]
    part = number(either, "partial_rotary_factor", 1.0)
    dim = int(head_dim * part)
    if part > 1 or dim < 2 or dim % 2:
        raise ValueError(
            f"partial_rotary_factor {part} of a head of {head_dim} is {dim}; expected an even number within the head"
        )
    longest = whole(config, "max_position_embeddings", CONTEXTS.get(family, 2048), least=2)
    unstated = 4096 if family == "phi3" and kind == "longrope" else longest  # Phi3Config's own default
    original = whole(either, ORIGINAL, unstated, least=2)
    rope = Rope(dim, number(either, "rope_theta", 10000.0, above=1.0), kind, longest, original)
    try:
        rope = replace(rope, **_details(kind, settings, dim, original, longest))
    except KeyError as error:
        raise ValueError(f"rope_scaling of type {kind!r} lacks {error}") from None
    if kind in ("default", "frequencies"):
        return replace(rope, original=longest)  # no length is stretched, though Phi-3 always names the original one
    if kind == "llama3" and longest > original:
        return rope  # its factor stretches wavelengths, and the length by less or more
    context = max(longest, int(original * rope.factor))
    return replace(rope, context=context, original=longest if kind == "dynamic" else original)


def _parameters(config: dict[str, Any]) -> dict[str, Any]:
    """Return the one dictionary that says how positions are turned, wherever the file has it."""
    for key in ("rope_scaling", "rope_parameters"):
        if not isinstance(config.get(key) or {}, dict):
            raise ValueError(f"{key} is {config[key]!r:.60}; expected a dictionary")
    new, old = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    new, old = _common_to_layers(new, config), _common_to_layers(old, config)
    outer = ("rope_theta", "partial_rotary_factor")
    return {key: new[key] for key in outer if key in new} | old if old else new


def _common_to_layers(settings: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Return the dictionary itself or, where it holds one for each type of layer, the one of all types in use.

    Raises ValueError where types in use differ.
    """
    types = config.get("layer_types")
    used = sorted({name for name in types if isinstance(name, str)}) if isinstance(types, list) else []
    if not any(isinstance(value, dict) for value in settings.values()):
        return settings
    used = used or sorted(settings)
    common = settings.get(used[0])
    if not isinstance(common, dict) or any(settings.get(name) != common for name in used):
        raise ValueError(
            f"the positions of {', '.join(used)} layers are turned in different ways; "
            "expected one way for all layers of this family"
        )
    return common


def _details(kind: str, settings: dict[str, Any], dim: int, original: int, context: int) -> dict[str, Any]:
    """Read the fields of Rope that belong to its kind alone; raise KeyError for a number that is missing."""
    if kind in ("linear", "dynamic"):
        return {"factor": number(settings, "factor")}
    if kind == "frequencies":
        return {"factors": numbers(settings, "factors", dim // 2)}
    if kind == "llama3":
        low = number(settings, "low_freq_factor")
        return {
            "factor": number(settings, "factor"),
            "low": low,
            "high": number(settings, "high_freq_factor", above=low),
        }
    if kind not in ("longrope", "yarn"):
        return {}
    factor = number(settings, "factor", context / original)
    if kind == "longrope":
        scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        return {
            "factor": factor,
            "factors": numbers(settings, "short_factor", dim // 2),
            "long_factors": numbers(settings, "long_factor", dim // 2),
            "scale": number(settings, "attention_factor", scale),
        }
    scale = _mscale(factor, 1.0)
    if settings.get("mscale") and settings.get("mscale_all_dim"):
        scale = _mscale(factor, number(settings, "mscale")) / _mscale(factor, number(settings, "mscale_all_dim"))
    slow = number(settings, "beta_slow", 1.0)
    return {
        "factor": factor,
        "scale": number(settings, "attention_factor", scale),
        "high": number(settings, "beta_fast", 32.0, above=slow),
        "low": slow,
        "truncate": bool(settings.get("truncate", True)),
    }


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _llama3(plain: np.ndarray, rope: Rope) -> np.ndarray:
    """Stretch long wavelengths by `factor`, keep short ones and interpolate between the two."""
    turns = rope.original * plain / (2 * np.pi)  # turns of each pair within the original context
    smooth = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
    return ((1 - smooth) * plain / rope.factor + smooth * plain).astype(np.float32)


def _yarn(plain: np.ndarray, rope: Rope) -> np.ndarray:
    """Keep pairs that turn more than `high` times in the original context; stretch those of fewer turns than `low`."""

    def pair(turns: float) -> float:
        return rope.dim * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = pair(rope.high), pair(rope.low)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    last = last + 0.001 if first == last else last
    stretched = np.clip((np.arange(rope.dim // 2, dtype=np.float32) - first) / (last - first), 0, 1)
    return (plain * (1 - stretched) + plain / rope.factor * stretched).astype(np.float32)
