"""ELECTRA: BERT whose embeddings may be narrower than its layers, and GELU in the head.

Clark et al. 2020, arXiv 2003.10555. Both of a pair are read: the discriminator, which is the encoder that one uses,
and the generator.
"""

from isouq.text.models import bert
from isouq.text.models.bert import Encoder, Head
from isouq.text.models.parameters import Table
from isouq.text.models.roberta import head_table

__all__ = ["LEFT_OVER", "PREFIX", "Encoder", "Head", "head_table", "table"]

PREFIX = "electra."
LEFT_OVER = ("discriminator_predictions.", "generator_predictions.", "generator_lm_head.")


def table(prefix: str, norm: tuple[str, str]) -> Table:
    """Return where each parameter of the encoder stands; see `bert.table`."""
    names = {"project": f"{prefix}embeddings_project"}
    return {**bert.table(prefix, norm), **bert.dense_and_norms("embeddings.", names, "", norm)}
