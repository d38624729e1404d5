"""The scores of an answer: what they are called, what they need, and what the paper reports of them."""

from typing import NamedTuple


class Pass(NamedTuple):
    """A kind of pass over a question: its forward and backward passes over an answer, and whether it samples."""

    label: str
    forward: int
    backward: int
    sampled: bool = False


# By the names of the rows that `measure.cost` gives.
PASSES = {
    "answer": Pass("the greedy answer, which every score shares", 0, 0),
    "samples": Pass("the sampled answers", 0, 0, sampled=True),
    "forward": Pass("log p and entropy of every token", 1, 0),
    "gradient": Pass("gradient of the whole answer", 1, 1),
    "gradient_first": Pass("gradient of the first token", 1, 1),
    "gradient_head": Pass("gradient of the output layer alone", 1, 1),
    "p_true": Pass("P(True), the samples as ideas", 1, 0),
    "attention": Pass("attention to the token before", 1, 0),
    "head_gradient": Pass("gradients by the output layer, in one forward pass", 1, 0),
    "state_gradient": Pass("gradients by the hidden states of the upper layers", 1, 1),
    "sample_states": Pass("hidden states of the sampled answers", 0, 0),
    "shared_words": Pass("words that the sampled answers share", 0, 0),
    "entailment": Pass("entailment of every two sampled answers", 0, 0),
    "alternatives": Pass("entailment of the likeliest words", 1, 0),
    "token_similarity": Pass("likeness of the answer without each token", 0, 0),
    "sample_token_similarity": Pass("likeness of the samples without each token", 0, 0),
    "sample_similarity": Pass("likeness of every two samples", 0, 0),
    "answer_similarity": Pass("likeness of the answer to the samples", 0, 0),
}


class Score(NamedTuple):
    """label: as tables and figures name it. role: "ours", "variant" (of ours), "baseline" or "control".

    passes: names of `PASSES` that it needs beside the greedy answer. also: what else it needs, in words.
    """

    label: str
    role: str
    passes: tuple[str, ...] = ()
    also: str = ""


_EMBEDDED = "an embedding a sample"
_ENTAILED = "the entailment of every two samples, both ways"
_LIKENESS = "an embedding a text, which the seconds include"
SCORES = {
    "combined_mean": Score("epistemic & aleatoric, learned", "ours", ("gradient",), "labelled answers"),
    "epistemic_mean": Score("epistemic ‖∇p‖²", "ours", ("gradient",)),
    "aleatoric_mean": Score("aleatoric p(1 − p)", "ours", ("forward",)),
    "combined_answer": Score("learned, p of the whole answer", "variant", ("gradient",), "labelled answers"),
    "epistemic_answer": Score("epistemic, p of the whole answer", "variant", ("gradient",)),
    "aleatoric_answer": Score("aleatoric, p of the whole answer", "variant", ("forward",)),
    "combined_first": Score("learned, p of the first token", "variant", ("gradient_first",), "labelled answers"),
    "epistemic_first": Score("epistemic, p of the first token", "variant", ("gradient_first",)),
    "aleatoric_first": Score("aleatoric, p of the first token", "variant", ("forward",)),
    "grad_log_mean": Score("‖∇ log p‖²", "variant", ("gradient",)),
    "grad_log_answer": Score("‖∇ log p‖², whole answer", "variant", ("gradient",)),
    "grad_log_first": Score("‖∇ log p‖², first token", "variant", ("gradient_first",)),
    "beyond_mean": Score("‖∇p‖² / (p(1 − p))²", "variant", ("gradient",)),
    "head_epistemic_mean": Score("‖∇p‖² of the output layer", "variant", ("gradient_head",)),
    "head_grad_log_mean": Score("‖∇ log p‖² of the output layer", "variant", ("gradient_head",)),
    "p_true": Score("1 − P(True)", "baseline", ("samples", "p_true")),
    "semantic_entropy": Score("semantic entropy, embeddings", "baseline", ("samples",), _EMBEDDED),
    "semantic_entropy_discrete": Score("semantic entropy, by counts", "baseline", ("samples",), _EMBEDDED),
    "semantic_entropy_entailment": Score("semantic entropy, entailment", "baseline", ("samples",), _ENTAILED),
    "naive_entropy": Score("naive entropy", "baseline", ("samples",)),
    "naive_entropy_normalised": Score("naive entropy, by length", "baseline", ("samples",)),
    "nll_mean": Score("−log p by length", "baseline", ("forward",)),
    "nll_answer": Score("−log p", "baseline", ("forward",)),
    "max_token_entropy": Score("largest token entropy", "baseline", ("forward",)),
    "mean_token_entropy": Score("mean token entropy", "baseline", ("forward",)),
    "rauq": Score("RAUQ", "baseline", ("forward", "attention")),
    "exgrad": Score("ExGrad", "baseline", ("head_gradient",)),
    "exgrad_mean": Score("ExGrad, by length", "baseline", ("head_gradient", "forward")),
    "paragrad": Score("ParaGrad", "baseline", ("head_gradient",)),
    "paragrad_mean": Score("ParaGrad, by length", "baseline", ("head_gradient", "forward")),
    "semgrad": Score("SemGrad", "baseline", ("state_gradient",)),
    "semgrad_mean": Score("SemGrad, by length", "baseline", ("state_gradient", "forward")),
    "hybridgrad": Score("HybridGrad", "baseline", ("state_gradient", "head_gradient", "forward")),
    "hybridgrad_mean": Score("HybridGrad, by length", "baseline", ("state_gradient", "head_gradient", "forward")),
    "lexical_similarity": Score("lexical similarity", "baseline", ("samples",)),
    "eigenscore": Score(
        "EigenScore", "baseline", ("samples", "sample_states"), "a forward pass a sample, which the seconds include"
    ),
    "degmat_jaccard": Score("DegMat, shared words", "baseline", ("samples", "shared_words")),
    "eccentricity_jaccard": Score("eccentricity, shared words", "baseline", ("samples", "shared_words")),
    "eigv_jaccard": Score("EigV, shared words", "baseline", ("samples", "shared_words")),
    "degmat": Score("DegMat, entailment", "baseline", ("samples", "entailment"), _ENTAILED),
    "eccentricity": Score("eccentricity, entailment", "baseline", ("samples", "entailment"), _ENTAILED),
    "eigv": Score("EigV, entailment", "baseline", ("samples", "entailment"), _ENTAILED),
    "ccp": Score("CCP", "baseline", ("forward", "alternatives"), "the entailment of the likeliest words"),
    "token_sar": Score("TokenSAR", "baseline", ("forward", "token_similarity"), _LIKENESS),
    "sar": Score("SAR", "baseline", ("samples", "sample_token_similarity", "sample_similarity"), _LIKENESS),
    "cocoa_sum": Score("CoCoA, −log p", "baseline", ("forward", "samples", "answer_similarity"), _LIKENESS),
    "cocoa_mean": Score("CoCoA, −log p by length", "baseline", ("forward", "samples", "answer_similarity"), _LIKENESS),
    "cocoa_entropy": Score("CoCoA, entropy", "baseline", ("forward", "samples", "answer_similarity"), _LIKENESS),
    "num_tokens": Score("number of tokens", "control"),
}
FREE = "nll_answer"  # −log p, which costs nothing beside the answer: every score is tested against it
BASELINES = tuple(name for name, score in SCORES.items() if score.role == "baseline")
# Shown where there is no room for all; tests and the table of all scores have every one.
MAIN = (
    "combined_mean", "epistemic_mean", "aleatoric_mean", "p_true", "semantic_entropy", "naive_entropy", "nll_mean",
    "max_token_entropy", "num_tokens",
)  # fmt: skip
CURVES = ("combined_mean", "epistemic_mean", "aleatoric_mean", "p_true", "semantic_entropy", "nll_mean")
FEATURES = {f"combined_{r}": (f"aleatoric_{r}", f"epistemic_{r}") for r in ("mean", "answer", "first")}

# Table 2 of arXiv 2603.29466: AUROC, mean and standard deviation over 300 bootstrap runs of four other models.
PAPER = {
    "triviaqa": {
        "p_true": (0.69, 0.06), "semantic_entropy": (0.55, 0.03), "naive_entropy": (0.52, 0.04),
        "aleatoric_mean": (0.60, 0.04), "epistemic_mean": (0.52, 0.07), "combined_mean": (0.61, 0.05),
    },
    "truthfulqa": {
        "p_true": (0.55, 0.06), "semantic_entropy": (0.54, 0.08), "naive_entropy": (0.51, 0.08),
        "aleatoric_mean": (0.60, 0.09), "epistemic_mean": (0.55, 0.07), "combined_mean": (0.63, 0.08),
    },
}  # fmt: skip

# Other definitions of a right answer: the column of the rows, and what the report calls it.
VIEWS = {
    "right_contained": "an alias stands in the answer",
    "right_similarity": "nearer to a true reference, by sentence embeddings",
    "mc1": "multiple choice: the best true reference is likelier than every false one",
}


def paper(benchmark: str) -> dict[str, tuple[float, float]]:
    """Return the paper's numbers of a benchmark, whatever its file is called; none for other questions."""
    name = "".join(letter for letter in benchmark.lower() if letter.isalnum())
    return next((numbers for known, numbers in PAPER.items() if known in name), {})
