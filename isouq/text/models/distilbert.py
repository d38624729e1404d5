"""DistilBERT: BERT's blocks without segments, other names, and ReLU in the head. Sanh et al. 2019, arXiv 1910.01108."""

from isouq.text.models import bert
from isouq.text.models.bert import Encoder, Head
from isouq.text.models.parameters import Table

__all__ = ["LEFT_OVER", "PREFIX", "Encoder", "Head", "head_table", "table"]

PREFIX = "distilbert."
LEFT_OVER = ("vocab_transform.", "vocab_layer_norm.", "vocab_projector.")
LAYER_NAMES = {
    "attention.q": "attention.q_lin",
    "attention.k": "attention.k_lin",
    "attention.v": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "norm": "output_layer_norm",
}


def table(prefix: str, norm: tuple[str, str]) -> Table:
    """Where each parameter of the encoder stands; see `bert.table`."""
    return {
        **bert.embeddings_table(f"{prefix}embeddings.", norm),
        **bert.dense_and_norms("layers.", LAYER_NAMES, f"{prefix}transformer.layer.{{}}.", norm),
    }


def head_table(prefix: str) -> Table:
    """Return the head of DistilBertForSequenceClassification."""
    return bert.dense_and_norms("", {"dense": "pre_classifier", "out": "classifier"}, "", ("", ""))
