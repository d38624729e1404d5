"""RoBERTa, XLM-R and CamemBERT: BERT, positions counted from the padding token's id on, and a head of its own.

Liu et al. 2019, arXiv 1907.11692; Conneau et al. 2019, arXiv 1911.02116;
Martin et al. 2019, arXiv 1911.03894.
"""

from isouq.text.models import bert
from isouq.text.models.bert import Encoder, Head, table
from isouq.text.models.parameters import Table

__all__ = ["LEFT_OVER", "PREFIX", "Encoder", "Head", "head_table", "table"]

PREFIX = "roberta."
LEFT_OVER = ("lm_head.", "pooler.")


def head_table(prefix: str) -> Table:
    """Return the head of RobertaForSequenceClassification, on the first token, which ELECTRA and MPNet have too."""
    return bert.dense_and_norms("", {"dense": "classifier.dense", "out": "classifier.out_proj"}, "", ("", ""))
