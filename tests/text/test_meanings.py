"""The scores of others on distributions whose entropies are known, and P(True) against the logits themselves."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy
from twins_text import write_model

from isouq.text import load, naive_entropy, p_true, semantic_entropy, semantic_entropy_discrete
from isouq.text.scores.meanings import clusters_by_entailment, clusters_by_similarity
from isouq.text.scores.truth import IDEAS, p_true_prompt

QUESTIONS, ANSWERS = ["who", "what now"], ["me", "tea"]
SAMPLES = [["me", "you\nboth", ""], []]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random Llama whose tokenizer knows "A" and "B", as no other model of the tests does."""
    folder = write_model(tmp_path_factory.mktemp("llama"), 3, 0.3, max_position_embeddings=256)
    text = (folder / "tokenizer.json").read_text().replace('"y":', '"A":').replace('"z":', '"B":')
    (folder / "tokenizer.json").write_text(text)
    config = (folder / "tokenizer_config.json").read_text().replace("<a>{%", "<a>{{ more }}{%")
    (folder / "tokenizer_config.json").write_text(config)
    return load(str(folder))


def test_the_prompt_of_p_true():
    wanted = f"""\
Question: who
{IDEAS}me
you both
Possible Answer: me
Is the possible answer:
A) True
B) False
The possible answer is:"""
    assert p_true_prompt("who", "me\n", SAMPLES[0]) == wanted
    assert IDEAS not in str(p_true_prompt("who", "me", [" "]))
    assert p_true_prompt("who", "me", SAMPLES[0], chat=True) == [{"role": "user", "content": wanted}]
    assert "{x} %s" in str(p_true_prompt("{x} %s", "{answer}", ["{question}"]))


@pytest.mark.parametrize(("chat", "variables"), [(False, {}), (True, {}), (True, {"more": "mm"})])
def test_p_true_is_the_share_of_the_two_letters(model, chat, variables):
    found = p_true(model, QUESTIONS, ANSWERS, SAMPLES, chat=chat, chat_template_kwargs=variables)
    for i, p in enumerate(found):
        prompt = p_true_prompt(QUESTIONS[i], ANSWERS[i], SAMPLES[i], chat)
        text = model.tokenizer.chat(prompt, **variables) if chat else prompt
        log_p = []
        for letter in "AB":
            ids = np.array(model.tokenizer.encode(text + ("" if chat else " ") + letter), np.int32)
            each = jax.nn.log_softmax(model.logits(ids))[jnp.arange(len(ids) - 1), ids[1:]]
            log_p.append(float(each[-1:].sum() if chat else each[-2:].sum()))
        np.testing.assert_allclose(p, np.exp(log_p[0]) / np.exp(log_p).sum(), atol=1e-5)


def test_p_true_of_a_constructed_distribution(model):
    """A model whose last norm gives one constant vector: P(A) is 3 P(B) whatever it reads."""
    a, b = model.tokenizer.token_id("A"), model.tokenizer.token_id("B")
    logits = np.zeros(48, np.float32)
    logits[a], logits[b] = np.log(3.0), 0.0
    params = jax.tree.map(jnp.zeros_like, model.params)
    params["embed"]["embedding"] = jnp.ones_like(params["embed"]["embedding"])
    params["norm"]["scale"] = jnp.ones_like(params["norm"]["scale"])
    width = params["norm"]["scale"].shape[0]
    params["head"]["kernel"] = jnp.tile(logits / width, (width, 1))
    found = p_true(replace(model, params=params), QUESTIONS, ANSWERS, SAMPLES)
    np.testing.assert_allclose(found, 0.75, atol=1e-4)


def test_p_true_of_what_cannot_be_asked(model):
    with pytest.raises(ValueError, match="2 questions, 1 answers and samples of 2; expected three lists"):
        p_true(model, QUESTIONS, ANSWERS[:1], SAMPLES)
    with pytest.raises(ValueError, match=r"question 1: the prompt has .* tokens; the model's context is 256"):
        p_true(model, QUESTIONS, ANSWERS, [[], ["m" * 300]])


def test_naive_entropy_of_samples_tends_to_the_entropy():
    p = np.array([0.5, 0.25, 0.125, 0.125])
    drawn = np.random.default_rng(0).choice(4, 40_000, p=p)
    log_p = np.log(p)[drawn]
    assert abs(naive_entropy(log_p) - entropy(p)) < 4 * log_p.std() / 200
    assert naive_entropy(np.array([-2.0, -6.0]), np.array([1, 3])) == 2.0
    assert naive_entropy(np.zeros(3)) == 0


def test_semantic_entropy_of_constructed_distributions():
    p = np.array([0.4, 0.1, 0.3, 0.2])
    cluster = np.array([0, 1, 0, 2])
    wanted = entropy([0.7, 0.1, 0.2])
    for shift in (0.0, -800.0):  # p is known up to a factor, which may leave a double
        np.testing.assert_allclose(semantic_entropy(cluster, np.log(p) + shift), wanted, rtol=1e-12)
    np.testing.assert_allclose(semantic_entropy(np.arange(4), np.log(p)), entropy(p), rtol=1e-12)
    np.testing.assert_allclose(semantic_entropy(np.array([5, 9, 5, 7]), np.log(p)), wanted, rtol=1e-12)
    assert semantic_entropy(np.zeros(4, int), np.log(p)) == 0
    assert semantic_entropy(np.array([0, 1]), np.array([-np.inf, -3.0])) == 0
    np.testing.assert_allclose(semantic_entropy_discrete(cluster), entropy([2, 1, 1]), rtol=1e-12)
    np.testing.assert_allclose(semantic_entropy_discrete(np.arange(10)), np.log(10), rtol=1e-12)
    assert semantic_entropy_discrete(np.zeros(1, int)) == 0


def test_semantic_entropy_does_not_ask_for_the_order():
    rng = np.random.default_rng(1)
    cluster, log_p = rng.integers(0, 4, 10), -20 * rng.random(10)
    order = rng.permutation(10)
    np.testing.assert_allclose(
        semantic_entropy(cluster[order], log_p[order]), semantic_entropy(cluster, log_p), rtol=1e-12
    )


def test_clusters_by_similarity_go_by_the_first_member():
    angles = np.deg2rad([0, 25, 50, 180, 20, 45])  # 25° is like 0° and like 50°, which are not alike
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([1, 2, 3, 4, 5, 6])[:, None]
    at_30 = np.cos(np.deg2rad(30))
    assert clusters_by_similarity(vectors, at_30).tolist() == [0, 0, 1, 2, 0, 1]
    assert clusters_by_similarity(vectors[::-1], at_30).tolist() == [0, 0, 1, 0, 0, 2]
    assert clusters_by_similarity(vectors.astype(np.float32), -1.0).tolist() == [0] * 6
    assert clusters_by_similarity(np.zeros((3, 2)), -1.0).tolist() == [0, 1, 2]


def test_clusters_by_entailment_ask_for_both_directions():
    entails = np.eye(4, dtype=bool)
    entails[0, 1] = entails[1, 0] = entails[1, 2] = entails[2, 1] = entails[0, 3] = True
    assert clusters_by_entailment(entails).tolist() == [0, 0, 1, 2]
    assert clusters_by_entailment(np.ones((3, 3), bool)).tolist() == [0, 0, 0]
    assert clusters_by_entailment(np.zeros((0, 0), bool)).tolist() == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: naive_entropy(np.zeros(0)), "log_p is empty; expected at least one sample"),
        (lambda: naive_entropy(np.array([np.nan])), "log_p holds NaN or .inf; expected"),
        (lambda: naive_entropy(np.zeros(1), np.zeros(1, int)), "lengths holds 0; expected at least 1"),
        (lambda: semantic_entropy(np.zeros(1, int), np.array([np.inf])), "log_p holds NaN or .inf; expected"),
        (lambda: semantic_entropy(np.zeros(2, int), np.full(2, -np.inf)), "log_p is -inf for every sample"),
        (lambda: semantic_entropy_discrete(np.zeros(0, int)), "cluster is empty; expected"),
        (lambda: clusters_by_similarity(np.ones((2, 2)), 1.5), "threshold is 1.5; expected a cosine"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_lists_give_what_arrays_give():
    log_p, clusters, lengths = [-1.0, -2.0, -0.5], [0, 0, 1], [3, 5, 2]
    assert naive_entropy(log_p) == naive_entropy(np.array(log_p))
    assert naive_entropy(log_p, lengths) == naive_entropy(np.array(log_p), np.array(lengths))
    assert semantic_entropy(clusters, log_p) == semantic_entropy(np.array(clusters), np.array(log_p))
    assert semantic_entropy_discrete(tuple(clusters)) == semantic_entropy_discrete(np.array(clusters))
    assert clusters_by_similarity([[1.0, 0], [0.9, 0.1]], 0.9).tolist() == [0, 0]
    assert clusters_by_similarity([[1e300, 0], [1e300, 1e299], [0, 1e-300]], 0.9).tolist() == [0, 0, 1]
    assert clusters_by_entailment([[True, False], [True, True]]).tolist() == [0, 1]


REFUSED = {
    "an infinite log p": (lambda: naive_entropy([-1.0, float("inf")]), r"NaN or \+inf"),
    "a log p above 0": (lambda: naive_entropy([-1.0, 0.5]), "log_p holds 0.5; .* at most 0"),
    "log p of different shapes": (lambda: naive_entropy([[-1.0], [-1.0, -2.0]]), "log_p does not hold numbers alone"),
    "complex log p": (lambda: naive_entropy([1j]), "log_p does not hold numbers alone; expected an array or a list"),
    "vectors of text": (lambda: clusters_by_similarity([["a"]], 0.9), "vectors does not hold numbers alone"),
    "no samples": (lambda: naive_entropy([]), "log_p is empty"),
    "lengths too few": (lambda: naive_entropy([-1.0, -2.0], [1]), "lengths has 1 values for 2 samples"),
    "a length of 0": (lambda: naive_entropy([-1.0, -2.0], [1, 0]), "lengths holds 0"),
    "clusters too few": (lambda: semantic_entropy([0, 1], [-1.0, -2.0, -3.0]), "cluster has 2 values for 3 samples"),
    "clusters that are no numbers": (lambda: semantic_entropy_discrete([0.5, 1.0]), "cluster holds float64"),
    "a vector with NaN": (lambda: clusters_by_similarity([[1.0, 0], [np.nan, 0]], 0.9), "infinity in row 1"),
    "one vector alone": (lambda: clusters_by_similarity([1.0, 0], 0.9), r"vectors has shape \(2,\)"),
    "scores of entailment": (lambda: clusters_by_entailment([[1.0, 0.9], [0.8, 1.0]]), "such as scores > 0.5"),
    "an oblong matrix": (lambda: clusters_by_entailment([[True, True]]), r"entails has shape \(1, 2\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_values_that_mean_nothing_are_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()
