"""`isouq explain`: parameters and memory of a model, from its configuration and file headers alone."""

import json
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isouq import _checks
from isouq._memory import temporary_bytes
from isouq.cli.options import Explain
from isouq.text import encoder, language_model, prompts, scoring
from isouq.text.loading import adapter, checkpoint, sources
from isouq.text.models import architectures, parameters
from isouq.text.models.decoder_config import DecoderConfig
from isouq.text.models.encoder_config import EncoderConfig

WAYS = (("default", "remat_bytes"), ("--no-remat", "no_remat_bytes"))


def run(options: Explain) -> int:
    """Print what is known of a model."""
    for name in ("prompt_tokens", "answer_tokens", "batch_size"):
        _checks.positive_int(f"--{name.replace('_', '-')}", getattr(options, name))
    source = sources.resolve(options.model)
    family = None if options.adapter or adapter.is_adapter(source.path) else _family(source)
    facts: dict[str, Any]
    if family in encoder.FAMILIES:
        if options.adapter_apart:
            raise ValueError(f"--adapter-apart is given and {source.name} is an encoder, without adapter; leave it out")
        shapes = encoder.read_config(checkpoint.open_checkpoint(source.path))
        facts = {"model": source.name, "family": family, "dtype": options.dtype}
        facts |= _encoder(shapes) | _parameters(encoder.abstract(shapes), shapes.num_layers)
    else:
        name, _, config, _ = language_model.open_model(source.name, None, options.adapter, not options.adapter_apart)
        facts = {"model": name, "family": config.family, "dtype": options.dtype}
        facts |= _decoder(config) | _parameters(language_model.abstract(config), config.num_layers)
        facts["memory"] = _memory(config, options)
    print(json.dumps(facts) if options.json else _text(facts))
    return 0


def _family(source: sources.Source) -> str:
    """Return the family of a model, be it a decoder or an encoder."""
    known = architectures.DECODERS | architectures.ENCODERS
    opened = checkpoint.open_checkpoint(source.path)
    return checkpoint.read_config(opened, lambda config: architectures.architecture(config, known))[1]


def _decoder(config: DecoderConfig) -> dict[str, Any]:
    windows = sorted({window for window in config.windows if window < config.context_length})
    return {
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_heads,
        "key_value_heads": config.num_kv_heads,
        "head_size": config.head_dim,
        "vocabulary": config.vocab_size,
        "tied_embedding": config.tied,
        "context": config.context_length,
    } | ({"attention_windows": windows} if windows else {})


def _encoder(config: EncoderConfig) -> dict[str, Any]:
    return {
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.num_heads,
        "vocabulary": config.vocab_size,
        "classes": config.num_classes,
        "context": config.context_length,
    }


def _parameters(abstract: Any, layers: int) -> dict[str, Any]:
    """Return one row a parameter; equal layers share a row, which says how many there are."""
    rows = []
    for path, leaf in parameters.flatten(abstract):
        outside, inside, name = path.partition("layers.")
        stacked = bool(inside)
        rows.append(
            {
                "name": f"{outside}layers.*.{name}" if stacked else path,
                "shape": list(leaf.shape[1:] if stacked else leaf.shape),
                "layers": layers if stacked else None,
                "parameters": math.prod(leaf.shape),
            }
        )
    rows.sort(key=lambda row: row["layers"] is not None)  # stable: what lies outside the layers first
    return {"parameters": rows, "total_parameters": sum(row["parameters"] for row in rows)}


def _memory(config: DecoderConfig, options: Explain) -> dict[str, Any]:
    """Return the bytes that scoring one batch takes, by XLA's account of the program compiled for shapes alone."""
    count = options.prompt_tokens + options.answer_tokens
    if count > config.context_length:
        raise ValueError(
            f"prompt and answer have {count} tokens; the model's context is {config.context_length}: "
            "give fewer --prompt-tokens or --answer-tokens"
        )
    row = prompts.Row(np.zeros(count, np.int32), options.prompt_tokens)
    params = language_model.abstract(config, jnp.dtype(options.dtype))
    bytes_of_parameters = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    found: dict[str, Any] = {
        "prompt_tokens": options.prompt_tokens,
        "answer_tokens": options.answer_tokens,
        "batch_size": options.batch_size,
        "device": jax.default_backend(),
        "parameter_bytes": bytes_of_parameters,
    }
    for remat in (False,) if options.no_remat else (True, False):
        lowered = scoring.lower(config, params, [row] * options.batch_size, "mean", remat)
        found["remat_bytes" if remat else "no_remat_bytes"] = temporary_bytes(lowered.compile())
    return found


def _text(facts: dict[str, Any]) -> str:
    plain = {name: fact for name, fact in facts.items() if name not in ("parameters", "memory", "total_parameters")}
    width = max(map(len, plain))
    lines = [f"{name.replace('_', ' '):{width}}  {_plain(fact)}" for name, fact in plain.items()]
    rows = [
        (
            row["name"],
            " × ".join(map(str, row["shape"])),
            "" if row["layers"] is None else f"{row['layers']}",
            f"{row['parameters']:,}",
        )
        for row in facts["parameters"]
    ]
    rows.append(("total", "", "", f"{facts['total_parameters']:,}"))
    lines += ["", *_table(("parameter", "shape", "layers", "parameters"), rows)]
    if memory := facts.get("memory"):
        total = memory["parameter_bytes"]
        lines += [
            "",
            f"Memory of `isouq score --batch-size {memory['batch_size']}` on this {memory['device']}, for prompts of "
            f"{memory['prompt_tokens']} and answers of {memory['answer_tokens']} tokens:",
        ]
        ways = [(way, memory[key]) for way, key in WAYS if key in memory]
        rows = [(way, _bytes(total), _bytes(extra), _bytes(total + extra)) for way, extra in ways]
        lines += _table(("", "parameters", "temporary", "together"), rows)
    return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table.

    All columns but the first two hold numbers; if the first has no heading, all of them do.
    """
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    left = 2 if head[0] else 1

    def line(cells: Sequence[str]) -> str:
        return "  ".join([*map(str.ljust, cells[:left], widths), *map(str.rjust, cells[left:], widths[left:])]).rstrip()

    return [line(cells) for cells in (head, ["-" * width for width in widths], *rows)]


def _plain(fact: Any) -> str:
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    return ", ".join(map(str, fact)) if isinstance(fact, list) else str(fact)


def _bytes(count: int) -> str:
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count} B"
