"""The table of all scores: the function of each and the quantities that it takes, which passes measure."""

from collections.abc import Callable
from typing import NamedTuple

from isouq.text.scores import gradients, graphs, likelihood, meanings, truth


class Score(NamedTuple):
    """A score of one answer, higher where the model is less certain.

    function: its docstring has formula, source and cost. needs: the quantities that it takes, in order; each of them
    is what a pass of `isouq.text.scores.passes.PASSES` gives.
    """

    function: Callable[..., float]
    needs: tuple[str, ...]


SCORES = {
    "nll": Score(likelihood.nll, ("log_p",)),
    "nll_mean": Score(likelihood.nll_mean, ("log_p",)),
    "perplexity": Score(likelihood.perplexity, ("log_p",)),
    "aleatoric": Score(likelihood.aleatoric, ("log_p",)),
    "mean_token_entropy": Score(likelihood.mean_token_entropy, ("entropy",)),
    "max_token_entropy": Score(likelihood.max_token_entropy, ("entropy",)),
    "rauq": Score(likelihood.rauq, ("log_p", "attention")),
    "epistemic": Score(gradients.epistemic, ("gradient_log_p", "log_grad_sq_norm")),
    "grad_log_p": Score(gradients.grad_log_p, ("log_grad_sq_norm",)),
    "exgrad": Score(gradients.exgrad, ("head_gradient",)),
    "exgrad_mean": Score(gradients.exgrad_mean, ("head_gradient", "log_p")),
    "paragrad": Score(gradients.paragrad, ("weighted_head_gradient",)),
    "paragrad_mean": Score(gradients.paragrad_mean, ("weighted_head_gradient", "entropy")),
    "semgrad": Score(gradients.semgrad, ("state_gradient",)),
    "semgrad_mean": Score(gradients.semgrad_mean, ("state_gradient", "entropy")),
    "hybridgrad": Score(gradients.hybridgrad, ("state_gradient", "weighted_head_gradient", "entropy")),
    "hybridgrad_mean": Score(gradients.hybridgrad_mean, ("state_gradient", "weighted_head_gradient", "entropy")),
    "p_true": Score(truth.p_false, ("p_true",)),
    "naive_entropy": Score(meanings.naive_entropy, ("sample_log_p",)),
    "naive_entropy_mean": Score(meanings.naive_entropy, ("sample_log_p", "sample_lengths")),
    "lexical_similarity": Score(meanings.lexical_similarity, ("sample_texts",)),
    "eigenscore": Score(graphs.eigenscore, ("sample_states",)),
    "degmat_jaccard": Score(graphs.degmat, ("sample_jaccard",)),
    "eccentricity_jaccard": Score(graphs.eccentricity, ("sample_jaccard",)),
    "eigv_jaccard": Score(graphs.eigv, ("sample_jaccard",)),
    "semantic_entropy": Score(meanings.semantic_entropy, ("clusters", "sample_mean_log_p")),
    "semantic_entropy_monte_carlo": Score(meanings.semantic_entropy_monte_carlo, ("clusters", "sample_log_p")),
    "semantic_entropy_discrete": Score(meanings.semantic_entropy_discrete, ("clusters",)),
    "degmat": Score(graphs.degmat, ("entailment",)),
    "eccentricity": Score(graphs.eccentricity, ("entailment",)),
    "eigv": Score(graphs.eigv, ("entailment",)),
    "ccp": Score(likelihood.ccp, ("alternatives",)),
    "token_sar": Score(likelihood.token_sar, ("log_p", "token_similarity")),
    "sar": Score(graphs.sar, ("sample_token_log_p", "sample_token_similarity", "sample_similarity")),
    "cocoa_sum": Score(graphs.cocoa_sum, ("log_p", "answer_similarity")),
    "cocoa_mean": Score(graphs.cocoa_mean, ("log_p", "answer_similarity")),
    "cocoa_entropy": Score(graphs.cocoa_entropy, ("entropy", "answer_similarity")),
}
