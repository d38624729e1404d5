"""LoRA adapters as PEFT saves them: W + s B A, merged into a checkpoint, or A and B as parameters beside W.

The scale s is alpha / r, or alpha / √r with rank-stabilised LoRA (Kalajdzievski 2023, arXiv 2312.03732). Both forms are
checkpoints with Hugging Face's names, so that `parameters.assemble` reads them like any other.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isouq.text.loading.adapter import AdapterFiles
from isouq.text.loading.checkpoint import Checkpoint
from isouq.text.models import decoder_tensors, parameters
from isouq.text.models._numbers import number, whole
from isouq.text.models.decoder import Decoder
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.models.parameters import Table, Tensor

_PART = re.compile(r"(?P<module>.+)\.(?:lora_(?P<plain>[AB])\.weight|lora_embedding_(?P<embedding>[AB]))")
# What changes how an adapter is applied, and is not built here.
_REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config", "layer_replication", "target_parameters", "trainable_token_indices",
    "ensure_weight_tying",
)  # fmt: skip
_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # the others change the base's weights as well
_FLOAT32 = np.finfo(np.float32)
_SHARED = {("q", "k", "v"): "qkv", ("gate", "up"): "gate_up"}  # projections that one tensor holds


class Update(NamedTuple):
    """s B A of one module. a, b: names of the tensors A `[rank, in]` and B `[out, rank]`. scale: s."""

    a: str
    b: str
    rank: int
    scale: float


class Place(NamedTuple):
    """Where a module that an adapter may change stands in the base and among the parameters.

    tensor: the name of its weight. layer: its indices in the stack. parts: the parameters that its weight holds, with
    the rows of each. shape: `[out, in]` as B A has it. transpose: whether the weight is stored so, or `[in, out]`.
    """

    tensor: str
    layer: tuple[int, ...]
    parts: dict[str, Tensor]
    shape: tuple[int, int]
    transpose: bool


class Overlay:
    """A checkpoint of which some tensors are replaced, and to which some are added. See `checkpoint.Checkpoint`."""

    def __init__(
        self,
        base: Checkpoint,
        readers: Mapping[str, Callable[[], np.ndarray]],
        shapes: Mapping[str, tuple[int, ...]],
    ) -> None:
        self.path, self.config, self.tokenizer_parts = base.path, base.config, base.tokenizer_parts
        self.shapes: Mapping[str, tuple[int, ...]] = {**base.shapes, **shapes}
        self._base, self._readers = base, readers

    def read(self, name: str) -> np.ndarray:
        """Return one tensor."""
        return self._readers[name]() if name in self._readers else self._base.read(name)


class Adapted(NamedTuple):
    """A base with its adapter.

    adapters: what `DecoderConfig.adapters` becomes. table: where the parameters A and B stand; empty if merged.
    """

    checkpoint: Checkpoint
    adapters: tuple[tuple[str, tuple[float, ...]], ...]
    table: Table


def read_updates(files: AdapterFiles) -> tuple[dict[str, Update], dict[str, str]]:
    """Return the update of each module, and the tensors that replace one of the base: `{its name: name in the file}`.

    Raises ValueError of one line for another kind of adapter, a number that is none, and an A without its B.
    """
    try:
        return _read_updates(files)
    except KeyError as error:
        raise ValueError(f"{files.path}: adapter_config.json lacks {error}; expected one as PEFT saves it") from None
    except ValueError as error:
        raise ValueError(f"{files.path}: {error}") from None


def _read_updates(files: AdapterFiles) -> tuple[dict[str, Update], dict[str, str]]:
    config = files.config
    merge = "; merge it with PEFT's merge_and_unload and save the model"
    if config.get("peft_type") != "LORA":
        raise ValueError(f"the adapter is of type {config.get('peft_type')!r:.60}; expected LORA{merge}")
    for key in _REFUSED:
        if config.get(key):
            raise ValueError(f"the adapter has {key}={config[key]!r:.60}; expected a plain LoRA{merge}")
    if config.get("init_lora_weights") not in _INITS:
        raise ValueError(
            f"the adapter has init_lora_weights={config['init_lora_weights']!r:.60}, which changes the base's weights "
            f"too; expected a plain LoRA{merge}"
        )
    pairs: dict[str, dict[str, str]] = {}
    saved = {}
    for name in files.shapes:
        part = _PART.fullmatch(name)
        if part:
            pairs.setdefault(part["module"], {})[part["plain"] or part["embedding"]] = name
        elif "lora_" in name:
            raise ValueError(f"the adapter holds {name}, which is no part of a plain LoRA{merge}")
        else:
            saved[name.replace(".base_layer.", ".")] = name
    if not pairs and not saved:
        raise ValueError("the adapter holds no tensor; save it again")
    return {module: _update(files, module, pair) for module, pair in pairs.items()}, saved


def _update(files: AdapterFiles, module: str, pair: Mapping[str, str]) -> Update:
    """Return the update of a module whose tensors are `pair["A"]` and `pair["B"]`."""
    for letter in "AB":
        if letter not in pair:
            raise ValueError(f"the adapter lacks lora_{letter} of {module}, whose other half it holds; save it again")
    rank = whole(files.config, "r")
    rank = whole(_matching(files.config, "rank_pattern", module), "rank", rank)
    alpha = number(files.config, "lora_alpha")
    alpha = number(_matching(files.config, "alpha_pattern", module), "alpha", alpha)
    for name, axis in ((pair["A"], 0), (pair["B"], 1)):
        shape = files.shapes[name]
        if len(shape) != 2 or shape[axis] != rank:
            expected = [rank, "in"] if axis == 0 else ["out", rank]
            raise ValueError(f"{name} is {list(shape)}; expected [{expected[0]}, {expected[1]}] for rank {rank}")
    scale = alpha / (math.sqrt(rank) if files.config.get("use_rslora") else rank)
    if not float(_FLOAT32.tiny) <= scale <= float(_FLOAT32.max):
        raise ValueError(f"the scale of {module} is {scale:.3g}; expected one that float32 holds; mend lora_alpha")
    return Update(pair["A"], pair["B"], rank, scale)


def _matching(config: Mapping[str, Any], key: str, module: str) -> dict[str, Any]:
    """Return the entry of the first pattern that the end of a module's name matches, or an empty dictionary."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{key} is {patterns!r:.60}; expected an object of patterns and numbers")
    for pattern, value in patterns.items():
        try:
            if re.fullmatch(rf"(.*\.)?({pattern})", module):
                return {key.removesuffix("_pattern"): value}
        except re.error as error:
            raise ValueError(f"{key} holds {pattern!r:.60}, which is not a regular expression: {error}") from None
    return {}


def merge(base: Checkpoint, config: DecoderConfig, files: AdapterFiles) -> Adapted:
    """Return the checkpoint whose weights are W + s B A, computed in float32, or what the adapter saves whole.

    Where the base ties its output layer to its embedding and the adapter changes one of them, they are tied no longer.

    Raises ValueError of one line where the adapter does not fit the base.

    Cost: headers alone are read here; reading an adapted weight takes the product B A.
    """
    updates, saved = read_updates(files)
    places = _places(base, config)
    base = _replaced(base, config, files, saved, untied=bool(updates.keys() & _tied_modules(config)))
    readers = {}
    for module, update in updates.items():
        place = _place(base.path, places, files, module, update)
        readers[place.tensor] = partial(_merged, base, files, update, place)
    return Adapted(Overlay(base, readers, {}), (), {})


def _merged(base: Checkpoint, files: AdapterFiles, update: Update, place: Place) -> np.ndarray:
    """Return W + s B A of one module."""
    with np.errstate(over="ignore", invalid="ignore"):
        term = np.float32(update.scale) * (files.read(update.b) @ files.read(update.a))
    if not np.all(np.isfinite(term)):
        raise ValueError(f"{files.path}: s B A of {place.tensor} is beyond float32; the adapter is damaged")
    return base.read(place.tensor).astype(np.float32) + (term if place.transpose else term.T)


def beside(base: Checkpoint, config: DecoderConfig, files: AdapterFiles) -> Adapted:
    """Return the checkpoint in which A and B are tensors of their own beside the weights.

    They are `layers.3.attention.q.lora_a` `[in, R]` and `lora_b` `[R, out]`; where one tensor of the checkpoint holds
    several projections they share `layers.3.attention.qkv.lora_a` or `layers.3.mlp.gate_up.lora_a`.

    Raises ValueError of one line where the adapter does not fit the base, and where it adapts an embedding, the output
    layer or experts, which have no low-rank term here.

    Cost: headers alone are read here. In every layer A and B have, for each scale, the largest rank that a layer has
    with it; a layer that has fewer holds zeros there.
    """
    updates, saved = read_updates(files)
    places = _places(base, config)
    base = _replaced(base, config, files, saved, untied=False)
    groups: dict[str, dict[int, tuple[Place, Update]]] = {}
    for module, update in updates.items():
        place = _place(base.path, places, files, module, update)
        if len(place.layer) != 1:  # none: embedding and output layer; two: an expert of a layer
            raise ValueError(
                f"{files.path}: {module} cannot be kept apart from its weights; leave out merge=False (--adapter-apart)"
            )
        groups.setdefault(_shared_path(list(place.parts)), {})[place.layer[0]] = place, update
    adapters, readers, shapes, table = [], {}, {}, {}
    for path, layers in groups.items():
        ranks: dict[float, int] = {}  # scale: the largest rank that has it
        for _, update in layers.values():
            ranks[update.scale] = max(ranks.get(update.scale, 0), update.rank)
        scales = tuple(scale for scale, rank in ranks.items() for _ in range(rank))
        place = next(iter(layers.values()))[0]
        for letter, shape in (("a", (len(scales), place.shape[1])), ("b", (place.shape[0], len(scales)))):
            stored = f"{path}.{{}}.lora_{letter}"
            table[f"layers.{path}.lora_{letter}"] = Tensor(stored, transpose=True)
            for layer in range(config.num_layers):
                shapes[stored.format(layer)] = shape
                entry = layers.get(layer)
                readers[stored.format(layer)] = partial(_padded, files, entry, letter, scales, shape)
        adapters.append((path, scales))
    return Adapted(Overlay(base, readers, shapes), tuple(sorted(adapters)), table)


def _padded(
    files: AdapterFiles,
    entry: tuple[Place, Update] | None,
    letter: str,
    scales: tuple[float, ...],
    shape: tuple[int, int],
) -> np.ndarray:
    """Return A or B of one layer at the ranks of its scale, and zeros at those of other scales."""
    out = np.zeros(shape, np.float32)
    if entry is not None:
        place, update = entry
        first = scales.index(update.scale)
        ranks = slice(first, first + update.rank)
        if letter == "a":
            out[ranks] = files.read(update.a)
        else:
            b = files.read(update.b)
            rows = [parameters.part_of(b, tensor._replace(axis=0)) for tensor in place.parts.values()]
            out[:, ranks] = np.concatenate(rows)
    return out


def _shared_path(paths: list[str]) -> str:
    """Return the path in a layer of a low-rank term, of the paths of the kernels that it changes."""
    within = [path.removeprefix("layers.").removesuffix(".kernel") for path in paths]
    if len(within) == 1:
        return within[0]
    parent = within[0].rpartition(".")[0]
    return f"{parent}.{_SHARED[tuple(path.rpartition('.')[2] for path in within)]}"


def _places(base: Checkpoint, config: DecoderConfig) -> dict[str, Place]:
    """Return where every module stands that an adapter may change, an output layer that is tied among them."""
    table = decoder_tensors.table(config)
    leaves = {path: leaf.shape for path, leaf in parameters.flatten(parameters.structure(Decoder, config)[1])}
    leaves.setdefault("head.kernel", leaves["embed.embedding"][::-1])
    places: dict[str, Place] = {}
    for path, shape in leaves.items():
        tensor = table[path]
        if not path.endswith((".kernel", ".embedding")):
            continue
        stacked = shape[: tensor.name.count("{}")]
        for layer in np.ndindex(*stacked):
            name = tensor.name.format(*layer)
            module = name.removesuffix(".weight")
            if module in places:
                places[module].parts[path] = tensor
                continue
            stored = base.shapes.get(name, shape[::-1] if path == "head.kernel" else shape[len(stacked) :])
            out_in = stored if tensor.transpose else stored[::-1]
            places[module] = Place(name, layer, {path: tensor}, (out_in[0], out_in[1]), tensor.transpose)
    return {module: place._replace(parts=_in_order(place.parts)) for module, place in places.items()}


def _in_order(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of a fused tensor in the order in which they are computed with: q, k, v and gate, up."""
    order = [name for names in _SHARED for name in names]
    if len(parts) == 1:
        return parts
    return dict(sorted(parts.items(), key=lambda item: order.index(item[0].split(".")[-2])))


def _place(base: Path, places: Mapping[str, Place], files: AdapterFiles, module: str, update: Update) -> Place:
    """Return where a module stands; raise where the base lacks it or has another shape."""
    if module not in places:
        raise ValueError(f"{files.path} adapts {module}, which the base {base} does not have; give its own base model")
    place = places[module]
    (rows, columns), rank = place.shape, update.rank
    _check_shape(base, files, update.a, (rank, columns))
    _check_shape(base, files, update.b, (rows, rank))
    return place


def _check_shape(base: Path, files: AdapterFiles, name: str, expected: tuple[int, ...]) -> None:
    if files.shapes[name] != expected:
        raise ValueError(
            f"{files.path}: {name} is {list(files.shapes[name])}, expected {list(expected)} for the base {base}; "
            "give its own base model"
        )


def _tied_modules(config: DecoderConfig) -> set[str]:
    """Return the names of embedding and output layer where the two are tied; none where they are not."""
    pair = decoder_tensors.embedding_and_head(config)
    return {name.removesuffix(".weight") for name in pair} if config.tied else set()


def _replaced(
    base: Checkpoint, config: DecoderConfig, files: AdapterFiles, saved: Mapping[str, str], untied: bool
) -> Overlay:
    """Return the checkpoint with the tensors that an adapter saves whole, and an output layer of its own if untied."""
    embedding, head = decoder_tensors.embedding_and_head(config)
    if config.tied:  # PEFT saves what lies below an adapter of either; that is the tensor of both
        for one, other in ((embedding, head), (head, embedding)):
            if ".base_layer." in saved.get(one, ""):
                saved = {other: saved[one], **saved}
    known = dict(base.shapes)
    readers: dict[str, Callable[[], np.ndarray]] = {}
    if config.tied and (untied or head in saved):
        known.setdefault(head, known[embedding])
        readers[head] = partial(base.read, head if head in base.shapes else embedding)
    for name, stored in saved.items():
        if name not in known:
            raise ValueError(
                f"{files.path} replaces {name}, which the base {base.path} does not have; give its own base model"
            )
        _check_shape(base.path, files, stored, known[name])
        if config.tied and name == embedding and head not in saved:
            raise ValueError(
                f"{files.path} replaces {name}, to which the base {base.path} ties its output layer; merge it with "
                "PEFT's merge_and_unload and save the model"
            )
        readers[name] = partial(files.read, stored)
    return Overlay(base, readers, known)
