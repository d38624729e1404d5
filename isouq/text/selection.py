"""A part of a model's parameters, by name: a stated approximation that saves the backward pass below it.

Names are those of `parameter_names`: `layers.12.attention.q.kernel`, `norm.scale`, `embed.embedding`, `head.kernel`.
Where the output layer is the transposed embedding, `head.kernel` is that matrix in its use as the output layer alone.
Layers lie stacked; a selection cuts the stack into runs of layers that are selected alike, and JAX then never goes
back below the first of them.
"""

import functools
import re
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from isouq.text import language_model
from isouq.text.models import parameters
from isouq.text.models.decoder_config import DecoderConfig

HEAD = "head.kernel"


class Run(NamedTuple):
    """Layers first to last − 1, and which of a layer's parameters are selected (all alike in the run)."""

    first: int
    last: int
    names: frozenset[str]


class Selection(NamedTuple):
    """Which parameters the gradient is taken of; hashable. outer: those outside the layers."""

    outer: frozenset[str]
    runs: tuple[Run, ...]


def parameter_names(config: DecoderConfig) -> list[str]:
    """Return the name of every parameter, layer by layer."""
    outer, inner = _names(config)
    return [*outer, *(f"layers.{i}.{name}" for i in range(config.num_layers) for name in inner)]


@functools.lru_cache(maxsize=64)
def select(config: DecoderConfig, pattern: str | None) -> Selection:
    """Return the parameters whose name the regular expression matches from its start; None for all.

    Raises ValueError where nothing matches or the expression is not one.
    """
    outer, inner = _names(config)
    if pattern is None:
        whole = frozenset(outer) - ({HEAD} if config.tied else set())
        return Selection(whole, (Run(0, config.num_layers, frozenset(inner)),))
    if not isinstance(pattern, str):
        raise ValueError(f"select is {pattern!r:.60}; expected a regular expression of parameter names")
    try:
        chosen = {name for name in parameter_names(config) if re.match(pattern, name)}
    except re.error as error:
        raise ValueError(f"select is {pattern!r}, not a regular expression: {error}") from None
    if not chosen:
        raise ValueError(
            f"select is {pattern!r}, which matches none of {', '.join([*outer, *(f'layers.0.{n}' for n in inner)])}"
        )
    if config.tied and "embed.embedding" in chosen:
        chosen.discard(HEAD)  # the embedding is selected in both its uses
    runs: list[Run] = []
    for i in range(config.num_layers):
        names = frozenset(name for name in inner if f"layers.{i}.{name}" in chosen)
        if runs and runs[-1].names == names:
            runs[-1] = runs[-1]._replace(last=i + 1)
        else:
            runs.append(Run(i, i + 1, names))
    return Selection(frozenset(name for name in outer if name in chosen), tuple(runs))


def split(params: Any, config: DecoderConfig, selection: Selection) -> tuple[Any, Any]:
    """Return (selected, frozen), two lists of `{path: array}`: those outside the layers, then those run by run."""
    flat = dict(parameters.flatten(params))
    outer = {name: leaf for name, leaf in flat.items() if not name.startswith("layers.")}
    if config.tied and HEAD in selection.outer:
        outer[HEAD] = flat["embed.embedding"].T
    inner = {name.removeprefix("layers."): leaf for name, leaf in flat.items() if name.startswith("layers.")}
    selected: list[Any] = []
    frozen: list[Any] = []
    _part(outer, selection.outer, selected, frozen)
    for first, last, names in selection.runs:
        whole = last - first == config.num_layers
        _part({n: leaf if whole else leaf[first:last] for n, leaf in inner.items()}, names, selected, frozen)
    return selected, frozen


def logits(
    selected: Any,
    frozen: Any,
    config: DecoderConfig,
    selection: Selection,
    ids: Int[Array, " T"],
    length: Int[Array, ""],
    at: Int[Array, " A"],
    remat: bool = True,
) -> Float[Array, "A V"]:
    """Return the logits of the token after each of the positions `at` of one sequence, as a function of `selected`."""
    outer, *layers = [parameters.unflatten({**a, **b}) for a, b in zip(selected, frozen, strict=True)]
    head = outer.pop("head")["kernel"] if config.tied and HEAD in selection.outer else None
    # The layers are handed over run by run; those of the module itself stay shapes without values.
    decoder = language_model.module(config, outer | {"layers": language_model.abstract(config)["layers"]})
    x = decoder.embed_tokens(ids)
    for run, params in zip(selection.runs, layers, strict=True):
        x = decoder.run(x, slice(run.first, run.last), params, length, remat)
    return decoder.logits(decoder.norm(x[at]), head)


def _names(config: DecoderConfig) -> tuple[list[str], list[str]]:
    paths = [path for path, _ in parameters.flatten(language_model.abstract(config))]
    outer = [path for path in paths if not path.startswith("layers.")]
    inner = [path.removeprefix("layers.") for path in paths if path.startswith("layers.")]
    return [*outer, *([HEAD] if config.tied else [])], inner


def _part(leaves: dict[str, Any], names: frozenset[str], selected: list[Any], frozen: list[Any]) -> None:
    selected.append({name: leaf for name, leaf in leaves.items() if name in names})
    frozen.append({name: leaf for name, leaf in leaves.items() if name not in names})
