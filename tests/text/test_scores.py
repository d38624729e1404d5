"""Published scores on random statistics: against lm-polygraph, and against their formulas written out slowly."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from isouq.text import SCORES
from isouq.text.scores import graphs, likelihood, meanings
from isouq.text.scores.similarity import jaccard

PEER = json.loads((Path(__file__).parents[1] / "lm_polygraph.json").read_text(encoding="utf-8"))
CASES = [case["statistics"] for case in PEER["cases"]]


def relations(one):
    """What `ccp` takes: log p of the words at each token, and their relation to the first."""
    pairs = [
        [likelihood.joint_relation(*both) for both in zip(forward, backward, strict=True)]
        for forward, backward in zip(one["forward"], one["backward"], strict=True)
    ]
    return list(zip(one["alternatives"], pairs, strict=True))


def rauq(one):
    layers = likelihood.middle_layers(len(one["attention"]))
    return likelihood.rauq(one["log_p"], np.array(one["attention"])[list(layers)])


OURS = {
    "nll": lambda one: likelihood.nll(one["log_p"]),
    "nll_mean": lambda one: likelihood.nll_mean(one["log_p"]),
    "mean_token_entropy": lambda one: likelihood.mean_token_entropy(one["entropy"]),
    "token_sar": lambda one: likelihood.token_sar(one["log_p"], one["token_similarity"]),
    "ccp": lambda one: likelihood.ccp(relations(one)),
    "rauq": rauq,
    "naive_entropy": lambda one: meanings.naive_entropy(one["sample_log_p"]),
    "semantic_entropy_monte_carlo": lambda one: meanings.semantic_entropy_monte_carlo(
        one["cluster"], one["sample_log_p"]
    ),
    "semantic_entropy_discrete": lambda one: meanings.semantic_entropy_discrete(one["cluster"]),
    "lexical_similarity": lambda one: meanings.lexical_similarity(one["texts"]),
    "sar": lambda one: graphs.sar(one["sample_tokens"], one["sample_token_similarity"], one["similarity"]),
    "degmat": lambda one: graphs.degmat(one["similarity"]),
    "eigv": lambda one: graphs.eigv(one["similarity"]),
    "eccentricity": lambda one: graphs.eccentricity(one["similarity"]),
    "degmat_jaccard": lambda one: graphs.degmat(jaccard(one["texts"])),
    "eigv_jaccard": lambda one: graphs.eigv(jaccard(one["texts"])),
    "eccentricity_jaccard": lambda one: graphs.eccentricity(jaccard(one["texts"])),
    "cocoa_sum": lambda one: graphs.cocoa_sum(one["log_p"], one["answer_similarity"]),
    "cocoa_mean": lambda one: graphs.cocoa_mean(one["log_p"], one["answer_similarity"]),
    "cocoa_entropy": lambda one: graphs.cocoa_entropy(one["entropy"], one["answer_similarity"]),
    "eigenscore": lambda one: graphs.eigenscore(one["states"]),
}
OFFSETS = {"rauq": 1.0}  # theirs is 1 − the mean of log confidences


@pytest.mark.parametrize("name", OURS)
def test_scores_are_those_of_lm_polygraph(name):
    """The numbers were written by tests/lm_polygraph.py."""
    theirs = [case["values"][name] for case in PEER["cases"]]
    assert PEER["cases"][0]["values"].keys() == OURS.keys()
    found = [OURS[name](one) + OFFSETS.get(name, 0) for one in CASES]
    np.testing.assert_allclose(found, theirs, rtol=1e-9, atol=1e-12)
    assert len(set(found)) > 1


# Against formulas written out, entry by entry


def slow_token_sar(log_p, similarity):
    relevance = [1 - s for s in similarity]
    return -sum(r / sum(relevance) * p for r, p in zip(relevance, log_p, strict=True))


def slow_sar(one):
    sars = [slow_token_sar(*pair) for pair in zip(one["sample_tokens"], one["sample_token_similarity"], strict=True)]
    p, n = [math.exp(-s) for s in sars], len(sars)
    shifted = [p[i] + sum(one["similarity"][i][j] * p[j] for j in range(n) if j != i) / 0.001 for i in range(n)]
    return -sum(map(math.log, shifted)) / n


def slow_laplacian(one):
    n, given = len(one["similarity"]), one["similarity"]
    w = [[(given[i][j] + given[j][i]) / 2 for j in range(n)] for i in range(n)]
    degree = [sum(row) for row in w]
    return np.array([[(i == j) - w[i][j] / math.sqrt(degree[i] * degree[j]) for j in range(n)] for i in range(n)])


def slow_eccentricity(one):
    values, vectors = np.linalg.eig(slow_laplacian(one))
    first = [vectors[:, k] for k in range(len(values)) if values[k] < 0.9]
    n = len(values)
    centres = [sum(u) / n for u in first]
    return math.sqrt(sum((u[i] - c) ** 2 for i in range(n) for u, c in zip(first, centres, strict=True)))


def slow_eigenscore(one):
    z = np.array(one["states"])
    j = np.eye(z.shape[1]) - 1 / z.shape[1]
    return sum(map(math.log, np.linalg.eigvals(z @ j @ z.T + 1e-3 * np.eye(len(z))))) / len(z)


def slow_ccp(one):
    product = 1.0
    for log_p, forward, backward in zip(one["alternatives"], one["forward"], one["backward"], strict=True):
        above = below = math.exp(log_p[0])
        for p, pair in list(zip(map(math.exp, log_p), zip(forward, backward, strict=True), strict=True))[1:]:
            yes, no = "entailment" in pair, "contradiction" in pair
            above += p * (yes and not no)
            below += p * (yes != no)
        product *= above / below
    return -product


def slow_rauq(one):
    largest = -math.inf
    p = [math.exp(x) for x in one["log_p"]]
    for layer in one["attention"][2:5]:  # 6 / 3 to 2 · 6 / 3
        head = max(layer, key=lambda weights: sum(weights) / len(weights))
        c = p[0]
        total = math.log(c)
        for own, weight in zip(p[1:], head, strict=True):
            c = 0.2 * own + 0.8 * weight * c
            total += math.log(c)
        largest = max(largest, -total / len(p))
    return largest


def slow_lexical(one):
    def longest(a, b):
        """The longest common subsequence by trying all of the first text's."""
        for size in range(len(a), 0, -1):
            for words in itertools.combinations(a, size):
                rest = iter(b)
                if all(word in rest for word in words):
                    return size
        return 0

    texts = [text.lower().replace("-", " ").replace("'", " ").split() for text in one["texts"]]
    pairs = [(a, b) for i, a in enumerate(texts) for b in texts[i + 1 :]]
    return -sum(2 * longest(a, b) / (len(a) + len(b)) for a, b in pairs) / len(pairs)


def slow_semantic(one):
    total = 0.0
    for own in one["cluster"]:
        total += math.log(
            sum(math.exp(p) for p, c in zip(one["sample_log_p"], one["cluster"], strict=True) if c == own)
        )
    return -total / len(one["cluster"])


def mean(values):
    return sum(values) / len(values)


def dissimilarity(one):
    return mean([1 - s for s in one["answer_similarity"]])


SLOW = {
    "nll": lambda one: -math.log(math.prod(map(math.exp, one["log_p"]))),
    "nll_mean": lambda one: -mean(one["log_p"]),
    "mean_token_entropy": lambda one: mean(one["entropy"]),
    "token_sar": lambda one: slow_token_sar(one["log_p"], one["token_similarity"]),
    "sar": slow_sar,
    "ccp": slow_ccp,
    "rauq": slow_rauq,
    "naive_entropy": lambda one: -mean(one["sample_log_p"]),
    "semantic_entropy_monte_carlo": slow_semantic,
    "lexical_similarity": slow_lexical,
    "degmat": lambda one: mean([1 - s for row in one["similarity"] for s in row]),
    "eigv": lambda one: sum(max(0, 1 - value) for value in np.linalg.eigvals(slow_laplacian(one))),
    "eccentricity": slow_eccentricity,
    "cocoa_sum": lambda one: -sum(one["log_p"]) * dissimilarity(one),
    "cocoa_mean": lambda one: -mean(one["log_p"]) * dissimilarity(one),
    "cocoa_entropy": lambda one: mean(one["entropy"]) * dissimilarity(one),
    "eigenscore": slow_eigenscore,
}


@pytest.mark.parametrize("name", SLOW)
def test_scores_are_their_formulas(name):
    np.testing.assert_allclose([OURS[name](one) for one in CASES], [SLOW[name](one) for one in CASES], rtol=1e-9)


def test_scores_at_their_ends():
    assert likelihood.perplexity([math.log(0.5)] * 3) == pytest.approx(2)
    assert likelihood.perplexity([-1e6]) == math.inf
    assert likelihood.max_token_entropy([0.1, 0.7, 0.2]) == 0.7
    assert likelihood.token_sar([-1.0, -2.0], [1, 1]) == 1.5  # nothing matters: all alike
    assert likelihood.token_sar([-1.0], [0.3]) == 1
    assert likelihood.rauq([-0.5], np.zeros((2, 3, 0))) == 0.5
    assert list(likelihood.middle_layers(30)) == list(range(10, 21))
    assert list(likelihood.middle_layers(1)) == [0]
    assert likelihood.ccp([([-1.0, -1.0], ["", "contradiction"])]) == -0.5
    for n in (1, 2, 5):
        apart, alike = np.eye(n), np.ones((n, n))
        assert graphs.eigv(apart) == pytest.approx(n)
        assert graphs.eigv(alike) == pytest.approx(1)
        assert graphs.degmat(apart) == pytest.approx(1 - 1 / n)
        assert graphs.degmat(alike) == 0
        assert graphs.eccentricity(apart) == pytest.approx(math.sqrt(n - 1))
        assert graphs.eccentricity(alike) == pytest.approx(0, abs=1e-7)
    assert graphs.sar([[-1.0], [-3.0]], [[0], [0]], np.eye(2)) == pytest.approx(2)  # no sample supports another
    assert graphs.sar([[-5e3]] * 2, [[0]] * 2, np.ones((2, 2))) == pytest.approx(5e3 - math.log(1001))  # p underflows
    assert meanings.lexical_similarity(["Paris!", "paris"]) == -1
    assert meanings.lexical_similarity(["?", "!"]) == 0
    assert math.isnan(meanings.lexical_similarity(["one"]))


BAD = {
    "no tokens": (lambda: likelihood.nll([]), "log_p is empty"),
    "an entropy that is none": (lambda: likelihood.mean_token_entropy([np.nan]), "entropy has shape"),
    "relevance of other tokens": (lambda: likelihood.token_sar([-1.0], [0.1, 0.2]), r"similarity has shape \(2,\)"),
    "no alternatives": (lambda: likelihood.ccp([]), "alternatives is empty; expected"),
    "an unknown relation": (lambda: likelihood.ccp([([-1, -1], ["", "so"])]), "relation of token 0 is 'so'; expected"),
    "too few relations": (lambda: likelihood.ccp([([-1, -1], [""])]), "token 0 is 1 values for 2 words; expected"),
    "attention of other tokens": (lambda: likelihood.rauq([-1, -1], np.ones((2, 2, 2))), r"expected \[layers, heads"),
    "an alpha of 0": (lambda: likelihood.rauq([-1], np.ones((1, 1, 0)), 0.0), "alpha is 0.0; expected"),
    "no square": (lambda: graphs.degmat(np.ones((2, 3))), r"similarity has shape \(2, 3\); expected \[samples"),
    "similarities of others": (lambda: graphs.sar([[-1.0]], [[0]], np.ones((2, 2))), r"expected \[1, 1\]"),
    "a similarity of 2": (lambda: graphs.eigv([[2.0]]), "similarity holds a number outside 0 to 1; expected"),
    "zeros": (lambda: graphs.eigv([[1.0, 0], [0, 0]]), "similarity has a row and column of zeros; expected"),
    "a temperature of 0": (lambda: graphs.sar([[-1.0]], [[0]], [[1.0]], 0.0), "temperature is 0.0; expected"),
    "no samples": (lambda: graphs.cocoa_mean([-1.0], []), "similarity has shape .0,.; expected"),
    "infinite states": (lambda: graphs.eigenscore([[np.inf]]), "states has shape .* or is not finite; expected"),
    "no ridge": (lambda: graphs.eigenscore([[1.0]], 0.0), "ridge is 0.0; expected"),
    "a single text": (lambda: meanings.lexical_similarity("text"), "texts is 'text'; expected a list"),
    "no probability": (lambda: meanings.semantic_entropy_monte_carlo([0], [-np.inf]), "log_p holds -inf; expected"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_said_in_one_line(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SCORES)
def test_every_docstring_says_what_is_returned_its_source_and_its_cost(name):
    text = SCORES[name].function.__doc__
    assert text.startswith("Return ")
    assert "source" in text.lower()
    assert "cost" in text.lower()
