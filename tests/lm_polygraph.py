"""Write tests/lm_polygraph.json: what the estimators of lm-polygraph say of random statistics, which it holds too.

In an environment of its own; --no-deps, because the estimators need none of the 37 packages that the library asks for:
pip install numpy scipy rouge-score nltk, pip install --no-deps lm-polygraph==0.7.0, then: python tests/lm_polygraph.py
"""

import importlib
import importlib.util
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import numpy as np

WORDS = ["the", "a", "of", "Paris", "Rome", "is", "not", "capital", "city", "7", "it-is", "I've"]


def estimator(module, name, **settings):
    """Return an estimator without importing the whole library, whose __init__ asks for everything."""
    for package in ("lm_polygraph", "lm_polygraph.estimators"):
        if package not in sys.modules:
            place = Path(importlib.util.find_spec("rouge_score").origin).parents[1]  # site-packages
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(place / package.replace(".", "/"))]
    sys.modules["lm_polygraph.utils"] = types.ModuleType("lm_polygraph.utils")
    sys.modules["lm_polygraph.utils.common"] = types.ModuleType("lm_polygraph.utils.common")
    sys.modules["lm_polygraph.utils.common"].polygraph_module_init = lambda function: function
    return getattr(importlib.import_module(f"lm_polygraph.estimators.{module}"), name)(**settings)


def statistics(rng):
    """Return one question's statistics: an answer of T tokens, n samples, L layers of H heads."""
    count, samples, layers, heads = int(rng.integers(2, 7)), int(rng.integers(2, 6)), 6, 3
    similarity = rng.random((samples, samples))
    np.fill_diagonal(similarity, 1)
    lengths = rng.integers(2, 6, samples)
    tokens = [np.log(rng.random(length)) for length in lengths]
    relations = rng.choice(["entailment", "neutral", "contradiction"], (count, 2, 5))
    return {
        "log_p": np.log(rng.random(count)),
        "entropy": 3 * rng.random(count),
        "token_similarity": rng.random(count),
        "attention": rng.random((layers, heads, count - 1)),
        "alternatives": np.log(rng.dirichlet(np.ones(6), count)[:, :5]),
        "forward": relations[:, 0],
        "backward": relations[:, 1],
        "texts": [" ".join(rng.choice(WORDS, length)) for length in lengths],
        "sample_log_p": [one.sum() for one in tokens],
        "sample_tokens": tokens,
        "sample_token_similarity": [rng.random(length) for length in lengths],
        "similarity": similarity,
        "answer_similarity": rng.random(samples),
        "cluster": np.unique(rng.integers(0, 3, samples), return_inverse=True)[1],
        "states": rng.normal(size=(samples, 8)),
    }


def values(one):
    """Return the estimators' values by our names."""
    short = {"entailment": "entail", "contradiction": "contra", "neutral": "neutral"}
    count = len(one["log_p"])
    nli = []
    for forward, backward in zip(one["forward"], one["backward"], strict=True):
        matrix = [["" for _ in forward] for _ in forward]
        for i in range(len(forward)):
            matrix[0][i], matrix[i][0] = short[forward[i]], short[backward[i]]
        nli.append(matrix)
    attention = np.zeros((*one["attention"].shape[:2], count, count))
    for j in range(1, count):
        attention[:, :, j, j - 1] = one["attention"][:, :, j - 1]
    clusters = one["cluster"].tolist()
    classes = {
        "sample_to_class": {0: dict(enumerate(clusters))},
        "class_to_sample": {0: [np.flatnonzero(one["cluster"] == c).tolist() for c in range(max(clusters) + 1)]},
    }
    stats = {
        "greedy_log_likelihoods": [one["log_p"]],
        "entropy": [one["entropy"]],
        "token_similarity": [one["token_similarity"]],
        "attention_all": [attention.reshape(-1, count, count)],
        "greedy_tokens": [list(range(count))],
        "greedy_tokens_alternatives": [[[("word", p) for p in row] for row in one["alternatives"]]],
        "greedy_tokens_alternatives_nli": [nli],
        "sample_texts": [one["texts"]],
        "sample_log_probs": [one["sample_log_p"]],
        "sample_log_likelihoods": [one["sample_tokens"]],
        "sample_token_similarity": [one["sample_token_similarity"]],
        "sample_sentence_similarity": [one["similarity"]],
        "semantic_matrix_entail": one["similarity"][None],
        "greedy_sentence_similarity": [one["answer_similarity"]],
        "semantic_classes_entail": classes,
        "sample_embeddings": [one["states"]],
    }
    lexical = estimator("lexical_similarity", "LexicalSimilarity")
    lexical.scorer._tokenizer._stemmer = None  # ours takes words as they are
    estimators = {
        "nll": estimator("max_probability", "MaximumSequenceProbability"),
        "nll_mean": estimator("perplexity", "Perplexity"),
        "mean_token_entropy": estimator("token_entropy", "MeanTokenEntropy"),
        "token_sar": estimator("token_sar", "TokenSAR"),
        "sar": estimator("sar", "SAR"),
        "ccp": estimator("claim_conditioned_probability", "ClaimConditionedProbability"),
        "rauq": estimator("rauq", "RAUQ", n_layers=6, n_heads=3),
        "naive_entropy": estimator("monte_carlo_sequence_entropy", "MonteCarloSequenceEntropy"),
        "semantic_entropy_monte_carlo": estimator("semantic_entropy", "SemanticEntropy"),
        "semantic_entropy_discrete": estimator(
            "semantic_entropy", "SemanticEntropy", class_probability_estimation="frequency"
        ),
        "lexical_similarity": lexical,
        "degmat": estimator("deg_mat", "DegMat"),
        "eigv": estimator("eig_val_laplacian", "EigValLaplacian"),
        "eccentricity": estimator("eccentricity", "Eccentricity"),
        "degmat_jaccard": estimator("deg_mat", "DegMat", similarity_score="Jaccard_score"),
        "eigv_jaccard": estimator("eig_val_laplacian", "EigValLaplacian", similarity_score="Jaccard_score"),
        "eccentricity_jaccard": estimator("eccentricity", "Eccentricity", similarity_score="Jaccard_score"),
        "cocoa_sum": estimator("cocoa", "CocoaMSP"),
        "cocoa_mean": estimator("cocoa", "CocoaPPL"),
        "cocoa_entropy": estimator("cocoa", "CocoaMTE"),
        "eigenscore": estimator("eigenscore", "EigenScore"),
    }
    return {name: float(one_estimator(stats)[0]) for name, one_estimator in estimators.items()}


def plain(value):
    """Return arrays and lists of them as lists of numbers."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


if __name__ == "__main__":
    cases = []
    for seed in range(5):
        one = statistics(np.random.default_rng(seed))
        cases.append({"statistics": {k: plain(v) for k, v in one.items()}, "values": values(one)})
    table = {"command": "python tests/lm_polygraph.py", "lm-polygraph": version("lm-polygraph"), "cases": cases}
    Path(__file__).with_suffix(".json").write_text(json.dumps(table) + "\n")
