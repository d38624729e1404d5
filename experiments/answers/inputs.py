"""Read the questions and models of a block; a process reads each once."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from experiments.answers import questions
from experiments.answers.block import Block
from experiments.answers.tiny_model import TINY, tiny_model
from experiments.domains import inputs
from isouq.text import LanguageModel, TextEncoder, load
from isouq.text.entailment import Entailment, load_entailment

load_questions = lru_cache(maxsize=4)(questions.load_questions)
digest_of = lru_cache(maxsize=4)(inputs.digest_of)
open_encoder = lru_cache(maxsize=1)(inputs.open_encoder)
open_entailment = lru_cache(maxsize=1)(load_entailment)


@lru_cache(maxsize=1)
def open_model(name: str) -> LanguageModel:
    """Return the language model of this name, or the tiny one that is trained on the spot."""
    return tiny_model() if name == TINY else load(name)


class Judges(NamedTuple):
    """The models that judge answers: a sentence encoder, and an NLI encoder or None."""

    encoder: TextEncoder
    entailment: Entailment | None


class Models(NamedTuple):
    """All models of a block: the language model that answers, and those that judge."""

    model: LanguageModel
    judges: Judges


def read_questions(block: Block) -> questions.Questions:
    """Return the whole set of questions that the block belongs to.

    Raises ValueError where the questions or the files of a local model have changed since the block was made.
    """
    whole = _read(load_questions, block.data or block.benchmark)
    if digest_of(whole.digest, block.model) != block.digest:
        raise ValueError(f"{block.data} or {block.model} has changed since the run began; give the same command again")
    return whole


def read_model(block: Block) -> LanguageModel:
    """Return the language model of the block."""
    return _read(open_model, block.model)


def read_judges(block: Block) -> Judges:
    """Return the models that judge the block; raises ValueError where their files have changed."""
    if digest_of("", block.encoder, block.entailment) != block.judges:
        raise ValueError(f"{block.encoder} has changed since the run began; give the same command again")
    entailment = _read(open_entailment, block.entailment) if block.entailment else None
    return Judges(_read(open_encoder, block.encoder), entailment)


def read_models(block: Block) -> Models:
    """Return the language model of the block and the models that judge it."""
    return Models(read_model(block), read_judges(block))


def _read(open_named: Callable[[str], Any], name: str) -> Any:
    """Return `open_named(name)`; a missing file is a ValueError, for the runner takes an OSError as the store's."""
    try:
        return open_named(name)
    except OSError as error:
        raise ValueError(str(error)) from error
