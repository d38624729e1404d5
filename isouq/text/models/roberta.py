"""RoBERTa and XLM-R: BERT, positions counted from the padding token's id on, and a head of its own.

Liu et al. 2019, arXiv 1907.11692; Conneau et al. 2019, arXiv 1911.02116.
"""

from isouq.text.models import bert
from isouq.text.models.bert import table
from isouq.text.models.parameters import Table

__all__ = ["LEFT_OVER", "PREFIX", "head_table", "table"]

PREFIX = "roberta."
LEFT_OVER = ("lm_head.", "pooler.")


def head_table(prefix: str) -> Table:
    """The head of RobertaForSequenceClassification, on the first token."""
    return bert.dense_and_norms("", {"dense": "classifier.dense", "out": "classifier.out_proj"}, "", ("", ""))
